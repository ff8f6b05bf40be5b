"""Label matchers: Prometheus's semantics, and bounds on what a pattern of a client may cost."""

from collections.abc import Callable

import pytest

from exporter.core.errors import RequestError
from exporter.core.patterns import compile_pattern
from exporter.history import matching
from exporter.history.matching import Matcher, Operator, Selection


@pytest.mark.parametrize(
    ("operator", "value", "label", "accepted"),
    [
        ("=", "a", "a", True),
        ("=", "a", "ab", False),
        ("=", "", "", True),
        ("!=", "a", "b", True),
        ("!=", "a", "", True),
        ("!=", "", "", False),
        ("=~", "a|b", "b", True),
        ("=~", "a|b", "ab", False),
        ("=~", "a|b|", "", True),
        ("=~", ".*", "", True),
        ("=~", ".+", "", False),
        ("=~", "ab", "xabx", False),
        ("=~", "(?i)ABC", "abc", True),
        ("=~", "a.c", "abc", True),
        ("=~", "a\\.c", "abc", False),
        ("=~", "^a$", "a", True),
        ("=~", "[[:alpha:]]+", "abc", True),
        ("=~", "ä|ö", "ö", True),
        ("=~", "\\d+", "12", True),
        ("=~", "\\d+", "٣", False),
        ("!~", "a.*", "abc", False),
        ("!~", "a.*", "", True),
        ("!~", "a|b", "c", True),
        ("!~", "a|b", "a", False),
    ],
)
def test_a_matcher_has_the_semantics_of_prometheus(operator: Operator, value: str, label: str, accepted: bool) -> None:
    assert Selection([Matcher("x", operator, value)]).accepts({"x": label}) is accepted


def test_an_absent_label_equals_an_empty_one() -> None:
    assert Selection([Matcher("job", "=", "")]).accepts({})
    assert not Selection([Matcher("job", "=", "node")]).accepts({})
    assert Selection([Matcher("region", "=", "x")]).accepts({}, unknown=("region",))


@pytest.mark.parametrize("pattern", ["(", "a{2", "(?P<x", "\\", "(a{1000}){1000}", "(?=a)", "a**"])
def test_an_expression_that_re2_rejects_is_refused_with_the_reason(pattern: str) -> None:
    if pattern == "a{2":  # a literal in RE2
        assert Selection([Matcher("x", "=~", pattern)]).accepts({"x": "a{2"})
        return
    with pytest.raises(RequestError, match="valid RE2 regular expression"):
        Selection([Matcher("x", "=~", pattern)])


def test_an_expression_that_makes_backtracking_engines_explode_is_linear() -> None:
    """They would not end."""
    assert not Selection([Matcher("x", "=~", "(a+)+(a|aa)+$")]).accepts({"x": "a" * 5000 + "b"})


@pytest.mark.parametrize("value", ["", "a", "ä b", "\n", "a\n", "a\nb"])
@pytest.mark.parametrize("pattern", [".*", ".+"])
@pytest.mark.parametrize("operator", ["=~", "!~"])
def test_what_needs_no_automaton_matches_as_one_does(operator: Operator, pattern: str, value: str) -> None:
    compiled = Selection([Matcher("x", operator, f"(?:{pattern})")])
    assert Selection([Matcher("x", operator, pattern)]).accepts({"x": value}) == compiled.accepts({"x": value})


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("a|b", {"a", "b"}),
        ("(a|b)", {"a", "b"}),
        ("(lab\\.example\\.org|i-0)", {"lab.example.org", "i-0"}),
        ("a\\\\|b", None),
        ("a\\|b", None),
        ("a.b", None),
        ("(a|b)|(c)", None),
        ("a\\d", None),
        ("", {""}),
    ],
)
def test_lists_of_values_as_grafana_sends_them_need_no_regular_expression(pattern: str, values: set[str] | None) -> None:
    assert matching._alternatives(pattern) == values


@pytest.mark.parametrize("values", [("lab.example.org", "labXexampleXorg"), ("a+b", "aab"), ("x|y", "x"), ("i-0(1)", "i-01")])
def test_escaped_values_match_only_themselves(values: tuple[str, str]) -> None:
    same, other = values
    escaped = "".join(c if c.isalnum() else f"\\{c}" for c in same)
    for pattern in (escaped, f"({escaped}|never)"):
        assert Selection([Matcher("x", "=~", pattern)]).accepts({"x": same})
        assert not Selection([Matcher("x", "=~", pattern)]).accepts({"x": other})


IDS = [f"{number:08x}-aaaa-4bcd-9e3f-{number * 7919:012x}" for number in range(10_000)]
LARGE = {
    "185 bytes of nested groups": "(" * 62 + "[a-f0-9-]*" + ")" * 62,
    "hundreds of empty groups": "()" * 450 + ".*",
    "a kilobyte of optional groups": "(" * 330 + "a" + ")?" * 330,
    "counted repetitions of everything": "(" * 90 + ".*" + "){0,2}" * 6 + ")" * 84,
}


@pytest.mark.parametrize("pattern", LARGE.values(), ids=LARGE)
def test_a_large_pattern_is_matched_within_the_limit(pattern: str) -> None:
    selection = Selection([Matcher("worker_id", "=~", pattern)])
    for _ in range(20):  # metrics
        for worker_id in IDS:
            selection.accepts({"worker_id": worker_id})


def test_a_pattern_that_takes_longer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_MATCHING_SECONDS", 0.2)
    selection = Selection([Matcher("worker_id", "=~", "(((((a?){0,9}){0,9}){0,9}.*)*)*")])
    with pytest.raises(RequestError, match="use fewer nested repetitions"):
        all(selection.accepts({"worker_id": worker_id}) or True for worker_id in IDS)


def test_groups_are_not_captured() -> None:
    """With captures a pattern of hundreds of groups takes a hundred times as long."""
    assert compile_pattern("()(a)((b)?)").groups == 0


class Ticking:
    """A clock that goes on by `step` seconds with each call."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def matched(clock: Callable[[], float], pattern: str, values: list[str]) -> int:
    selection = Selection([Matcher("x", "=~", pattern)], cpu_seconds=clock)
    return sum(selection.accepts({"x": value}) for value in values)


def test_matching_ends_with_an_error_once_the_patterns_have_taken_their_time() -> None:
    with pytest.raises(RequestError, match=r"took more than 2 s of CPU time; use fewer nested repetitions"):
        matched(Ticking(0.5), "a.*", [f"a{number}" for number in range(5)])
    assert matched(Ticking(0.5), "a.*", [f"a{number}" for number in range(4)]) == 4


def test_a_value_is_matched_once() -> None:
    assert matched(Ticking(0.5), "a.*", ["a1", "a2"] * 100) == 200


def test_long_patterns_are_refused_unless_they_are_lists() -> None:
    many = "|".join(IDS)
    assert Selection([Matcher("x", "=~", many)]).accepts({"x": IDS[9999]})
    with pytest.raises(RequestError, match=r"has 4097 characters; at most 4096 are accepted, unless it is a list of values"):
        Selection([Matcher("x", "=~", "." * 4097)])
    assert Selection([Matcher("x", "=~", "." * 100 + "a" * 3996)])

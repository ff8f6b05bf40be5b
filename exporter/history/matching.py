"""Label matchers with Prometheus's semantics, compiled, with bounds on memory and CPU time. Pure.

The patterns come from clients. RE2 is linear in the length of a value, but not in that of a pattern: with capture groups or
nested counted repetitions one match takes milliseconds, and one query matches the labels of every worker.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from exporter.core.errors import RequestError
from exporter.core.patterns import MAX_PATTERN_CHARACTERS, compile_pattern

MAX_PATTERN_BYTES = 1 << 18
"""Limit of the memory of a compiled pattern, including the states that matching adds."""
MAX_MATCHING_SECONDS = 2.0
"""Limit of the CPU time that the patterns of one query take; those of dashboards take milliseconds for 10,000 workers."""

Operator = Literal["=", "!=", "=~", "!~"]
Labels = Mapping[str, str]

_LITERAL = r"(?:[\w:/@, -]|\\[!-/:-@\[-`{-~])*+"
_ALTERNATIVES = re.compile(rf"{_LITERAL}(?:\|{_LITERAL})*+", re.ASCII)
_ESCAPED = re.compile(r"\\(.)")
_ANY: Mapping[str, Callable[[str], bool]] = {
    ".*": lambda value: "\n" not in value,  # which `.` does not match
    ".+": lambda value: value != "" and "\n" not in value,
}
"""Patterns that need no automaton."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """A label matcher with Prometheus's semantics: fully anchored RE2, and an absent label equals an empty one."""

    name: str
    operator: Operator
    value: str

    def test(self) -> tuple[Callable[[str], bool], bool]:
        """Return a function that tests the value of a label, and whether its results need not be kept: it takes no time.

        Raises:
            RequestError: the pattern is not a valid RE2 expression, or too large.
        """
        wanted = frozenset({self.value}) if self.operator in ("=", "!=") else _alternatives(self.value)
        negative = self.operator in ("!=", "!~")
        if wanted is not None:
            return (lambda value: value not in wanted) if negative else wanted.__contains__, True
        if self.value in _ANY and not negative:  # all workers of a dashboard, with or without one that is empty
            return _ANY[self.value], True
        compiled = _compile(self.value)
        if negative:
            return lambda value: compiled.fullmatch(value) is None, False
        return lambda value: compiled.fullmatch(value) is not None, False


def _alternatives(pattern: str) -> frozenset[str] | None:
    """Return the values of `a|b\\.c` or `(a|b\\.c)`, which is what Grafana's variables send; None for any other pattern."""
    inner = pattern[1:-1] if pattern.startswith("(") and pattern.endswith(")") else pattern
    if not _ALTERNATIVES.fullmatch(inner):
        return None
    return frozenset(_ESCAPED.sub(r"\1", value) for value in inner.split("|")) if "\\|" not in inner else None


def _compile(pattern: str) -> Any:  # noqa: ANN401  # google-re2 ships no types
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise RequestError(
            f"a regular expression has {len(pattern)} characters; at most {MAX_PATTERN_CHARACTERS} are accepted, "
            "unless it is a list of values such as a|b|c"
        )
    try:
        return compile_pattern(pattern, max_bytes=MAX_PATTERN_BYTES)
    except ValueError as error:
        raise RequestError(str(error)) from error


class Selection:
    """All matchers of a query, compiled. Each value of a label is matched once, however many series have it.

    Args:
        matchers: of the query.
        cpu_seconds: the clock that MAX_MATCHING_SECONDS is measured by; by default the CPU time of the calling thread.

    Raises:
        RequestError: a pattern is not a valid RE2 expression, or too large.
    """

    def __init__(self, matchers: Iterable[Matcher], *, cpu_seconds: Callable[[], float] = time.thread_time) -> None:
        self._cpu_seconds = cpu_seconds
        self._spent = 0.0
        self._tests = [(matcher.name, self._remembering(*matcher.test())) for matcher in matchers]

    def accepts(self, labels: Labels, unknown: Collection[str] = ()) -> bool:
        """Whether every matcher accepts the series; matchers of labels that are not known yet are skipped.

        Raises:
            RequestError: the patterns have taken more than MAX_MATCHING_SECONDS.
        """
        return all(test(labels.get(name, "")) for name, test in self._tests if name not in unknown)

    def test_of(self, name: str) -> Callable[[str], bool]:
        """Return the test of a value by all matchers of this one label; it raises as `accepts`."""
        tests = [test for of, test in self._tests if of == name]
        return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)

    def _remembering(self, predicate: Callable[[str], bool], is_cheap: bool) -> Callable[[str], bool]:
        if is_cheap:
            return predicate
        results: dict[str, bool] = {}

        def test(value: str) -> bool:
            known = results.get(value)
            if known is None:
                begin = self._cpu_seconds()
                known = results[value] = predicate(value)
                self._spent += self._cpu_seconds() - begin
                if self._spent > MAX_MATCHING_SECONDS:
                    raise RequestError(
                        f"the regular expressions of a query took more than {MAX_MATCHING_SECONDS:g} s of CPU time; "
                        "use fewer nested repetitions"
                    )
            return known

        return test

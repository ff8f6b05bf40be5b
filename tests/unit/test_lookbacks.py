"""Every selector of the history in docs, dashboards and rules has a range in which its newest sample always is.

`tests/integration/history/test_sample_age.py` measures that LOOKBACK_SECONDS is long enough.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.core.history_metrics import LOOKBACK_SECONDS
from exporter.core.periods import parse_duration
from grafana.promql import HISTORY_SAMPLE, HISTORY_STEP

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "prometheus" / "runbook.md"]
CONFIGURATION = sorted((ROOT / "prometheus").rglob("*.yml"))
OF_THE_PANEL = {"$__interval", "$__range"}
"""Ranges that Grafana chooses."""

SELECTOR = re.compile(r"""[\w:…]+\{[^{}]*store="history"[^{}]*\}(?:\[(?P<range>[^\]:]+))?""")
"""A selector of the history and its range."""
SUBQUERY = re.compile(rf"\[(?P<range>[^\]:]+):{HISTORY_STEP}\]")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
ANY_HISTORY = re.compile(r"_over_time\((?:x|…|cml_worker[\w:]*)(?:\{[^{}]*\})?\[(?P<range>[^\]:]+)")
"""A range in prose, whose selector may be abbreviated."""


def too_short(range_: str) -> bool:
    return range_ not in OF_THE_PANEL and parse_duration(range_) < LOOKBACK_SECONDS


def expressions(node: object) -> Iterator[str]:
    """Yield every text in a dashboard."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from expressions(each)
    elif isinstance(node, str):
        yield node


def selectors(text: str) -> list[tuple[str, str | None]]:
    """Return every selector and its range; that of the subquery around a selector of single samples."""
    return [
        (found[0], SUBQUERY.search(text, found.end())["range"] if found["range"] == HISTORY_SAMPLE else found["range"])  # type: ignore[index]
        for found in SELECTOR.finditer(text)
    ]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboards_read_the_history_through_a_range_that_is_long_enough(path: Path) -> None:
    found = [each for text in expressions(json.loads(path.read_text())) for each in selectors(text)]
    assert found or path.stem not in {"cml-worker", "cml-trends"}
    assert [each for each, range_ in found if range_ is None or too_short(range_)] == []


@pytest.mark.parametrize("path", [*DOCS, *CONFIGURATION], ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_selectors_and_rules_read_a_range_that_is_long_enough(path: Path) -> None:
    text = path.read_text()
    code = "".join(FENCED.findall(text)) if path.suffix == ".md" else text
    assert [each for each, range_ in selectors(code) if range_ is None] == [], "an instant selector finds nothing"
    found = [(each, range_) for each, range_ in selectors(text) if range_ is not None]
    if (path.parent.name == "docs" and path.name != "dashboards.md") or path.name == "README.md":
        found += [(each[0], each["range"]) for each in ANY_HISTORY.finditer(text)]
    assert [each for each, range_ in found if too_short(range_)] == []


def test_a_short_range_is_noticed() -> None:
    ((found, range_),) = selectors('last_over_time(cml_worker_active_labs{worker_id="w",store="history"}[30m])')
    assert range_ == "30m"
    assert found.startswith("cml_worker_active_labs{")
    assert too_short("30m")
    assert not too_short("1h")
    in_steps = (
        f'avg_over_time((last_over_time(cml_worker_active_labs{{store="history"}}[{HISTORY_SAMPLE}]))[30m:{HISTORY_STEP}])'
    )
    assert [too_short(range_ or "") for text in (in_steps, in_steps.replace("30m", "1d")) for _, range_ in selectors(text)] == [
        True,
        False,
    ]
    assert [each["range"] for each in ANY_HISTORY.finditer("`last_over_time(…[15m])`, `avg_over_time(x[5m])`")] == ["15m", "5m"]

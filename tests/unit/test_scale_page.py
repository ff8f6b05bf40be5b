"""docs/scale.md: its sums are right, and its prices, sizes, and limits are those of the code."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from exporter.commands.estimate import estimate
from exporter.core.budget import DOLLARS_PER_METRIC, MONTH
from exporter.core.catalog import StatusForm
from exporter.core.model import (
    STATUS_CODES,
    Fleet,
    Worker,
    WorkerGauges,
)
from exporter.core.periods import DAY, parse_duration
from exporter.history import hourly_cache, series
from exporter.pipeline import calls
from exporter.pipeline.lifecycle import Rules
from exporter.sources.cloudwatch import memory_series, queries
from exporter.storage.mongo import STATE
from exporter.web import connections, parameters
from tests.helpers.sized_workers import running_worker
from tests.helpers.worker_families import render

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
NOW = 1_795_900_000
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
"""Units that a number is multiplied by; other words only say what is counted."""
TERM = r"\$?[\d,]+(?:\.\d+)?(?: [A-Za-z]+)?"
SUM = re.compile(rf"({TERM}(?: [×÷+−] {TERM})+) = ({TERM})")


def number(term: str) -> float:
    digits, _, unit = term.removeprefix("$").partition(" ")
    return float(digits.replace(",", "")) * UNITS.get(unit, 1)


def value(text: str) -> float:
    """The value of terms joined by signs, from left to right: the page mixes no sums with products."""
    first, *rest = re.split(r" ([×÷+−]) ", text)
    found = number(first)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        right = number(term)
        found = {"×": found * right, "÷": found / right, "+": found + right, "−": found - right}[sign]
    return found


def tolerance(term: str) -> float:
    """Half of the last digit that is shown."""
    digits, _, unit = term.removeprefix("$").partition(" ")
    last: float = 10 ** -len(digits.partition(".")[2])
    return last / 2 * UNITS.get(unit, 1) + 1e-9


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the first table whose head begins with a cell."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def wrong_sums(text: str) -> list[str]:
    return [match[0] for match in SUM.finditer(text) if abs(value(match[1]) - number(match[2])) > tolerance(match[2])]


def test_every_sum_on_the_page_is_right() -> None:
    assert len(SUM.findall(PAGE)) >= 15
    assert wrong_sums(PAGE) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("2 × 3 = 7", 1),
        ("1,000 workers × 2 metrics = 2,000 metrics", 0),
        ("10 × 1.26 B = 13 B", 0),
        ("10 × 1.26 B = 12 B", 1),
        ("2,000 samples × 500 B = 1.0 MB", 0),
        ("2,000 samples × 500 B = 1.1 MB", 1),
        ("10 − 4 ÷ 2 = $3.00", 0),
    ],
)
def test_a_wrong_sum_is_found(text: str, wrong: int) -> None:
    assert len(wrong_sums(text)) == wrong


def fleet(workers: int, regions: int) -> Fleet:
    worker = Worker("", "", "", "running", instance_type="m5zn.metal")
    return Fleet(
        NOW,
        tuple(
            replace(worker, id=f"worker-{n:06d}", region=f"region-{n % regions}", instance_id=f"i-{n:017x}")
            for n in range(workers)
        ),
    )


def test_the_costs_are_those_that_estimate_prints() -> None:
    check_costs(most_workers=10_000)


@pytest.mark.nightly("test_the_costs_are_those_that_estimate_prints")
def test_the_costs_of_large_fleets_are_those_that_estimate_prints() -> None:
    check_costs(most_workers=100_000)


def check_costs(most_workers: int) -> None:
    rows = list(table("workers | regions"))
    assert len(rows) >= 6
    for workers, regions, interval, n_calls, metrics, day, month in rows:
        if (count := int(workers.replace(",", ""))) > most_workers:
            continue
        seconds = parse_duration(interval)
        rules = Rules(period=min(seconds, 300), interval=seconds)
        usage = estimate(fleet(count, int(regions)), {}, rules).usage
        shown = [f"{usage.calls:,}", f"{usage.metrics:,}"]
        shown += [f"{usage.times(length / seconds).dollars:,.2f}" for length in (DAY, MONTH)]
        assert [n_calls, metrics, day, month] == shown


def test_the_share_of_a_core_is_the_cpu_of_a_cycle_over_its_interval() -> None:
    rows = list(table("workers | CPU of a cycle, s"))
    assert len(rows) == 3
    for _, cpu, _, share, *_ in rows:
        assert float(share.removesuffix(" %")) == pytest.approx(float(cpu) / 300 * 100, abs=0.005)


def test_the_disk_is_that_of_a_month_of_samples() -> None:
    rows = list(table("workers | samples of 30 days"))
    assert len(rows) == 4
    for workers, samples, most, least in rows:
        count = int(workers.replace(",", "")) * MONTH // 300
        assert samples == f"{count:,}"
        for shown, size in ((most, 80), (least, 20)):
            assert abs(float(shown) - count * size / 1e9) <= tolerance(shown), workers


def test_the_price_is_that_of_the_budget() -> None:
    assert set(re.findall(r"\$0\.0000\d*", PAGE)) == {f"${DOLLARS_PER_METRIC:.5f}"}
    assert f"${DOLLARS_PER_METRIC * 1000:.2f} per 1,000" in PAGE


def test_the_series_of_a_worker_are_those_of_metrics() -> None:
    workers = {
        "what every version of the manager writes": running_worker(NOW),
        "every field that the exporter knows": running_worker(NOW, every_field=True),
    }
    rows = list(table("a worker whose document has"))
    assert [row[0] for row in rows] == [name for name in workers for _ in range(2)]
    for name, form, n_series, size in rows:
        gauge = WorkerGauges(workers[name], NOW, True, True, 50.12, NOW, 40.3, NOW)
        other = gauge._replace(worker=replace(workers[name], id="worker-00002"))
        status: StatusForm = "code" if form == "`code`" else "state_set"
        one, two = (render(each, status=status) for each in ([gauge], [gauge, other]))
        assert n_series == str(sum(1 for line in one.decode().splitlines() if line and not line.startswith("#"))), name
        assert size == f"{len(two) - len(one):,}", name
    assert (
        f"saves {['', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'][len(STATUS_CODES) - 1]} of them" in PAGE
    )


def test_the_recorded_series_of_a_worker_are_those_of_the_rules() -> None:
    names = {
        rule["record"]
        for file in (ROOT / "prometheus" / "rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if rule.get("record", "").startswith("cml_worker:")
    }
    assert f"add up to {len(names)} series for each worker" in PAGE
    assert f"5,000 workers × {len(names)} series = " in PAGE, "the plan"


def test_the_limits_are_those_of_the_code() -> None:
    modules = (queries, calls, parameters, series, hourly_cache, connections)
    rows = list(table("limit"))
    assert len(rows) >= 6
    for name, shown, _ in rows:
        (found,) = {getattr(module, name.strip("`")) for module in modules if hasattr(module, name.strip("`"))}
        assert shown == f"{found:,}", name
    assert memory_series.LISTING_TTL_SECONDS == 600
    assert "at most every ten minutes" in PAGE


def test_metrics_that_the_page_names_exist() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    for name in set(re.findall(r"`(cml_[a-z_]+)[`{]", PAGE)) - {STATE}:  # a collection
        assert f"`{name}`" in metrics, name

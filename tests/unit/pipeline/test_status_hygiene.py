"""Workers that do not run, that lack a region, or that were first read terminated: gauges, samples and queries of each."""

from dataclasses import replace

import pytest

from exporter.core.instances import updated_entry
from exporter.core.model import (
    IDLE_STATUSES,
    STATUSES,
    Datapoint,
    InstanceInterval,
    InventoryEntry,
    MetricName,
    Worker,
    WorkerGauges,
)
from exporter.pipeline.gaps import find_gaps
from exporter.pipeline.lifecycle import Rules, WorkerState, close_missing, initial_state, observe
from exporter.pipeline.planning import live_queries
from exporter.pipeline.publisher import gauges
from tests.helpers.worker_families import render

RULES = Rules()
P = RULES.period
T = 1_767_225_600
"""2026-01-01T00:00:00Z, the start of a period."""
WORKER = Worker("w1", "eu-west-1", "i-1", "running", active_labs=3, cpu=40.0, memory=50.0, collected_at=T + 100)
LOST = replace(WORKER, region="")
STATE = WorkerState("w1", "eu-west-1", ("i-1",), "running", 0, T - P + 12, T)
ENTRY = InventoryEntry(
    "w1",
    "eu-west-1",
    None,
    None,
    None,
    None,
    None,
    "running",
    T - 9 * P,
    T,
    (InstanceInterval("i-1", "eu-west-1", T - 9 * P, T),),
)


def families(gauge: WorkerGauges) -> set[str]:
    """The names of the families that have a series."""
    return {line.partition("{")[0] for line in render([gauge], []).decode().splitlines() if not line.startswith("#")}


# -- a worker that does not run has no load


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_stopped_or_terminated_worker_has_no_load(status: str) -> None:
    worker = replace(WORKER, status=status)
    shown = gauges(worker, {"cpu": Datapoint(T - P, 5.0)}, T, T + 120, RULES)
    load = (shown.cpu, shown.cpu_time, shown.memory, shown.memory_time, shown.active_labs)
    assert load == ((None,) * 5 if status in IDLE_STATUSES else (5.0, T, 50.0, T + 100, 3))
    assert shown.show_load is (status not in IDLE_STATUSES)
    times = [
        line for line in render([shown], []).decode().splitlines() if line.startswith("cml_worker_sample_timestamp_seconds{")
    ]
    assert len(times) == (1 if status in IDLE_STATUSES else 3), "the age of a value that is not shown would grow for ever"
    assert {"cml_worker_info", "cml_worker_status"} <= families(shown)


def test_the_load_returns_with_the_status() -> None:
    points: dict[MetricName, Datapoint] = {"cpu": Datapoint(T - P, 5.0)}
    stopped, started = (gauges(replace(WORKER, status=status), points, T, T, RULES) for status in ("stopped", "starting"))
    assert (stopped.cpu, started.cpu) == (None, 5.0)
    assert "cml_worker_active_labs" not in families(stopped)
    assert "cml_worker_active_labs" in families(started)


def test_the_last_sample_of_a_worker_that_has_just_stopped_keeps_its_load() -> None:
    worker = replace(WORKER, status="stopped")
    (row,), _ = observe(worker, STATE, T + P + 12, RULES)
    assert (row.status, row.active_labs, row.own_cpu, row.instances, row.final) == ("stopped", 3, 40.0, ("i-1",), False)


# -- a worker without a region


def test_a_worker_without_a_region_has_all_its_gauges() -> None:
    shown = gauges(LOST, {}, T, T + 120, RULES)
    assert (shown.cpu, shown.memory, shown.active_labs, shown.show_state) == (40.0, 50.0, 3, True)
    assert 'cml_worker_active_labs{region="",worker_id="w1"} 3.0\n' in render([shown], []).decode()


def test_a_worker_without_a_region_is_not_polled() -> None:
    assert [query.worker_id for query in live_queries([LOST, replace(WORKER, id="w2")], T, RULES)] == ["w2"]


def test_the_samples_of_a_worker_that_never_had_a_region_are_final_at_once() -> None:
    entry = updated_entry(None, LOST, T + P + 12)
    assert (entry.region, entry.instances) == ("", ())
    rows, state = observe(LOST, initial_state(LOST, None, T + P + 12, RULES), T + P + 12, RULES, entry)
    assert [(row.start, row.region, row.instances, row.status, row.active_labs) for row in rows] == [(T, "", (), "running", 3)]
    assert (rows[0].final, rows[0].cpu, rows[0].memory) == (True, 40.0, 50.0)
    rows, _ = observe(LOST, state, T + 9 * P, RULES, entry)
    assert [row.start for row in rows] == [T + 8 * P], "an observation stands for one period, the others have nothing"
    assert find_gaps(LOST, state.next, entry, set(), (), T + P + 12, RULES) == []


def test_a_region_that_comes_later_opens_no_period_again() -> None:
    entry = updated_entry(None, LOST, T + P + 12)
    _, state = observe(LOST, initial_state(LOST, None, T + P + 12, RULES), T + P + 12, RULES, entry)
    now = T + 2 * P + 12
    (row,), state = observe(WORKER, state, now, RULES, updated_entry(entry, WORKER, now))
    assert (row.start, row.region, row.instances, row.final) == (T + P, "eu-west-1", ("i-1",), False)
    assert state.next == T + 2 * P


def test_a_region_that_is_missing_for_a_while_changes_no_sample() -> None:
    now = T + P + 12
    entry = updated_entry(ENTRY, LOST, now)
    assert (entry.region, entry.instances) == ("eu-west-1", ENTRY.instances)
    for inventory in (entry, None):
        (row,), state = observe(LOST, STATE, now, RULES, inventory)
        assert (row.region, row.instances, row.status, row.final) == ("eu-west-1", ("i-1",), "running", False)
        assert (state.region, state.instances) == ("eu-west-1", ("i-1",))
    assert initial_state(LOST, ENTRY, now, RULES).region == "eu-west-1"
    assert initial_state(LOST, ENTRY, now, RULES).instances == ("i-1",)
    (last,), _ = close_missing(state, T + 9 * P, RULES)
    assert (last.start, last.region, last.instances) == (T + P, "eu-west-1", ("i-1",))


# -- a worker that was first read terminated


@pytest.mark.parametrize(
    ("terminated_at", "read_at", "observed"),
    [
        (T + 200, T + P + 12, T),  # in the period that has just closed
        (T + P + 5, T + P + 12, None),  # after the boundary: that period is still open, the one before was observed terminated
        (T - 2 * P, T + P + 12, None),  # long ago
        (None, T + P + 12, None),
    ],
)
def test_a_worker_first_read_terminated_has_its_last_partial_period(
    terminated_at: int | None, read_at: int, observed: int | None
) -> None:
    worker = replace(WORKER, status="terminated", terminated_at=terminated_at, created_at=T - P)
    rows, state = observe(worker, initial_state(worker, None, read_at, RULES), read_at, RULES)
    assert [(row.start, row.status, row.final) for row in rows] == (
        [] if observed is None else [(observed, "terminated", False)]
    )
    entry = updated_entry(None, worker, read_at)
    found = find_gaps(worker, state.next, entry, set(), (), read_at, RULES)
    gaps = {start for gap in found for start in range(gap.start, gap.end, P)}
    later, state = observe(worker, state, T + 2 * P + 12, RULES, entry)
    opened = gaps | {row.start for row in (*rows, *later)}
    if terminated_at is not None and terminated_at >= T - P:
        assert max(opened) == terminated_at // P * P
        assert opened == set(range(T - P, max(opened) + 1, P))
    assert observe(worker, state, T + 9 * P, RULES, entry)[0] == [], "nothing after its end"


def test_a_worker_that_ends_between_a_boundary_and_its_observation_has_the_period_of_its_end() -> None:
    worker = replace(WORKER, status="terminated", terminated_at=T + P + 5)
    rows, state = observe(worker, STATE, T + P + 12, RULES)
    assert [(row.start, row.status) for row in rows] == [(T, "terminated")]
    rows, state = observe(worker, state, T + 2 * P + 12, RULES)
    assert [(row.start, row.status, row.instances, row.final) for row in rows] == [(T + P, "terminated", ("i-1",), False)]
    assert observe(worker, state, T + 3 * P + 12, RULES)[0] == []


def test_a_shown_datapoint_shortens_the_window_of_the_next_query() -> None:
    rules = Rules(period=60, interval=60, max_age=900)
    instance, now = WORKER.instance_id or "", T + 10

    def oldest(**shown: int) -> int:
        points = [{instance: Datapoint(T + start, 1.0)} for start in shown.values()]
        (live,) = live_queries([WORKER], now, rules, [*points, {"i-other": Datapoint(T - 60, 1.0)}])
        return live.oldest - T

    assert oldest() == -960, "nothing is shown: as far back as max_age"
    assert oldest(cpu=-60, memory=-120) == -300, "three periods before the older one"
    assert oldest(cpu=-60, memory=-800) == -960, "a metric that stopped is looked for as before"
    assert oldest(cpu=+600) == -240, "a clock that went back leaves a window"

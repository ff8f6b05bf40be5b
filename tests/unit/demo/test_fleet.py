"""The demo's fleet: each worker's purpose, and that any moment can be computed again."""

import functools
import itertools
import statistics
from datetime import UTC, datetime

import pytest

from exporter.core.model import MetricName
from exporter.core.periods import DAY, HOUR, MINUTE, align, rfc3339
from exporter.core.workers_settings import WorkersSettings
from exporter.demo import fleet as fleet_module
from exporter.demo.documents import worker_document, worker_documents
from exporter.demo.fleet import (
    PERIOD,
    DemoWorker,
    World,
    active_labs,
    published,
    published_at,
    status,
)
from exporter.sources.worker_documents import parse

START = 1_795_459_447
WORLD = World(seed=7, start=START)
NOW = START + 40 * MINUTE
LAST_DAY = range(align(NOW, PERIOD) - DAY, align(NOW, PERIOD), PERIOD)


def named(name: str) -> DemoWorker:
    return next(worker for worker in fleet_module.fleet(WORLD) if worker.name == name)


@functools.cache
def everything() -> dict[tuple[str, MetricName, int], float]:
    """What CloudWatch holds at NOW."""
    return published(WORLD, 0, NOW, NOW)


def held(worker: DemoWorker, metric: MetricName) -> dict[int, float]:
    """The worker's part of it."""
    return {key[2]: value for key, value in everything().items() if key[:2] == (worker.instance_id, metric)}


def test_twelve_workers_in_two_regions_have_distinct_ids() -> None:
    fleet = fleet_module.fleet(WORLD)
    assert len(fleet) == len({w.id for w in fleet}) == len({w.instance_id for w in fleet}) == len({w.name for w in fleet}) == 12
    assert {w.region for w in fleet} == {"us-east-1", "eu-west-1"}


def test_at_least_eight_workers_run_all_day() -> None:
    whole = [w for w in fleet_module.fleet(WORLD) if set(held(w, "cpu")) >= set(LAST_DAY[:-1])]
    assert len(whole) == 8
    assert all(status(w, time) == "running" for w in whole for time in range(NOW - DAY, NOW, MINUTE))


def test_the_same_world_gives_the_same_values_in_any_order() -> None:
    at_once = published(WORLD, NOW - DAY, NOW, NOW)
    again = World(seed=7, start=START)
    piecemeal: dict[tuple[str, MetricName, int], float] = {}
    for period in reversed(range(align(NOW - DAY, PERIOD), NOW, PERIOD)):
        piecemeal |= published(again, period, period + PERIOD, NOW)
    assert {key: value for key, value in piecemeal.items() if key in at_once} == at_once
    assert published(World(seed=8, start=START), NOW - DAY, NOW, NOW) != at_once


def test_what_was_published_never_changes_later() -> None:
    before = everything()
    after = published(WORLD, 0, NOW + 5 * HOUR, NOW + 5 * HOUR)
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_cloudwatch_holds_the_gap_fill_window_before_the_start() -> None:
    periods = set(held(named("cml-iad-01"), "cpu"))
    assert min(periods) <= START - 25 * HOUR - PERIOD


def test_a_datapoint_is_published_one_to_two_minutes_after_its_period() -> None:
    delays = {published_at(WORLD, w, p) - p - PERIOD for w in fleet_module.fleet(WORLD) for p in LAST_DAY}
    assert min(delays) >= MINUTE
    assert max(delays) < 2 * MINUTE


@pytest.mark.parametrize("worker", fleet_module.fleet(WORLD), ids=lambda worker: worker.name)
def test_there_are_datapoints_of_exactly_the_periods_the_instance_ran_in(worker: DemoWorker) -> None:
    def up(period: int) -> bool:
        seconds = range(period, period + PERIOD, 20)
        return any(status(worker, second) in ("running", "stopping", "shutting-down") for second in seconds)

    assert set(held(worker, "cpu")) & set(LAST_DAY[:-1]) == {period for period in LAST_DAY[:-1] if up(period)}


@pytest.mark.parametrize("worker", fleet_module.fleet(WORLD), ids=lambda worker: worker.name)
def test_utilizations_are_percent(worker: DemoWorker) -> None:
    values = [*held(worker, "cpu").values(), *held(worker, "memory").values()]
    assert all(0 < value < 100 for value in values)


def test_one_worker_idles() -> None:
    idle = named("cml-iad-04")
    assert max(held(idle, "cpu").values()) < 5
    assert {active_labs(WORLD, idle, time) for time in range(NOW - DAY, NOW, MINUTE)} == {0}
    assert worker_document(WORLD, idle, NOW)["last_activity_at"] < datetime.fromtimestamp(NOW - DAY, UTC)


def test_one_worker_is_stopped_all_day() -> None:
    stopped = named("cml-iad-06")
    assert {status(stopped, time) for time in range(NOW - DAY, NOW + DAY, MINUTE)} == {"stopped"}
    assert not held(stopped, "cpu")


def test_one_worker_is_stopped_and_restarted() -> None:
    states = [status(named("cml-iad-07"), time) for time in range(NOW - DAY, NOW, MINUTE)]
    changes = [(old, new) for old, new in itertools.pairwise(states) if old != new]
    turns = [("running", "stopping"), ("stopping", "stopped"), ("stopped", "pending"), ("pending", "starting")]
    assert set(changes) == {*turns, ("starting", "running")}
    assert len(changes) == 8 * 5


def test_one_worker_was_terminated_and_later_replaced() -> None:
    gone, heir = named("cml-dub-04"), named("cml-dub-05")
    assert gone.terminated_at is not None
    assert gone.terminated_at < heir.created_at < START
    assert status(gone, gone.terminated_at - MINUTE) == "shutting-down"
    assert status(gone, gone.terminated_at) == status(gone, NOW + DAY) == "terminated"
    assert max(held(gone, "cpu")) < gone.terminated_at < min(held(heir, "cpu")) + PERIOD
    document = worker_document(WORLD, gone, NOW)
    assert document["terminated_at"] == datetime.fromtimestamp(gone.terminated_at, UTC)
    assert status(heir, heir.created_at - 1) is None


def test_one_worker_has_no_cloudwatch_agent() -> None:
    bare = named("cml-iad-05")
    assert held(bare, "cpu")
    assert not held(bare, "memory")
    assert worker_document(WORLD, bare, NOW)["state"]["cloudwatch_memory_utilization"] == 0.0


def test_labs_come_and_go_and_cpu_follows_them() -> None:
    busy = named("cml-iad-01")
    cpu = held(busy, "cpu")
    labs = [statistics.mean(active_labs(WORLD, busy, p + second) for second in range(0, PERIOD, 30)) for p in sorted(cpu)]
    assert len(set(labs)) > 10
    assert statistics.correlation(labs, [cpu[period] for period in sorted(cpu)]) > 0.95


def test_the_exporter_parses_every_document_without_a_complaint() -> None:
    documents = list(worker_documents(WORLD, NOW).values())
    assert {"state" in document for document in documents} == {True, False}
    fleet = parse(documents, NOW, WorkersSettings())
    assert {worker.address for worker in fleet.workers} == {None}, "Prometheus would ask whoever has the address"
    assert not fleet.complaints
    assert not fleet.skipped
    by_id = {worker.id: worker for worker in fleet.workers}
    for demo in fleet_module.fleet(WORLD):
        worker = by_id[demo.id]
        assert (worker.name, worker.region, worker.instance_id) == (demo.name, demo.region, demo.instance_id)
        assert (worker.status, worker.created_at) == (status(demo, NOW), demo.created_at)
        assert worker.active_labs == active_labs(WORLD, demo, NOW)


@pytest.mark.parametrize("worker", fleet_module.fleet(WORLD), ids=lambda worker: worker.name)
def test_a_document_holds_a_value_that_cloudwatch_had_when_it_was_collected(worker: DemoWorker) -> None:
    for time in range(NOW - 8 * HOUR, NOW, 7 * MINUTE):
        if status(worker, time) is None:
            continue
        (seen,) = parse([worker_document(WORLD, worker, time)], time, WorkersSettings()).workers
        if seen.collected_at is None or seen.collected_at < WORLD.begin + HOUR:
            continue
        assert seen.collected_at <= time
        assert status(worker, seen.collected_at) == "running"
        period = next(period for period, cpu in held(worker, "cpu").items() if cpu == seen.cpu)
        assert seen.collected_at - 4 * PERIOD < period
        assert published_at(WORLD, worker, period) <= seen.collected_at
        assert held(worker, "memory").get(period) == seen.memory


def test_the_newer_generation_writes_iso_strings() -> None:
    worker = named("cml-iad-02")
    assert worker_document(WORLD, worker, NOW)["state"]["created_at"] == rfc3339(worker.created_at)

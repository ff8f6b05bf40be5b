"""The history as Prometheus series, from a real mongod: which there are, with which samples, within which limits."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from exporter.errors import StoreUnavailable
from exporter.history import WorkerMetricsRepository
from exporter.model import InventoryEntry, Sighting, WorkerMetricsSample
from exporter.mongo import Database
from exporter.periods import DAY, to_datetime
from exporter.remote_read import BadRequest, Matcher, Query, encode_answer
from exporter.series import read
from tests import prompb
from tests.fixtures.mongo import connect

START, PERIOD = 1_767_225_600, 300
CPU = "cml_worker_cpu_utilization_ratio"
EVERYTHING = Matcher("__name__", "=~", ".+")
Labels = tuple[tuple[str, str], ...]


def entry(
    worker_id: str, *, status: str = "running", last_seen: int = START + DAY, region: str = "eu-west-1"
) -> InventoryEntry:
    return InventoryEntry(
        worker_id, region, f"cml {worker_id}", "m5zn.metal", "2.8.1", START, None, status, START, last_seen,
        (Sighting("i-1", region, START, START + 600), Sighting("i-2", region, START + 600, last_seen)),
    )  # fmt: skip


def sample(worker_id: str, n: int, *, region: str = "eu-west-1", **fields: object) -> WorkerMetricsSample:
    bare = WorkerMetricsSample(worker_id, region, to_datetime(START + n * PERIOD), 10.0 + n, None, 3, "running")
    return replace(bare, **fields)  # type: ignore[arg-type]


@pytest.fixture
async def history(database: Database) -> WorkerMetricsRepository:
    repository = WorkerMetricsRepository(
        database,
        collection="worker_metrics_timeseries",
        period=PERIOD,
        retention=30 * DAY,
        apply_retention=False,
        wall=lambda: START + DAY,
    )
    await repository.ensure_collection()
    return repository


async def ask(
    history: WorkerMetricsRepository,
    entries: Sequence[InventoryEntry],
    *matchers: Matcher,
    first: int = 0,
    last: int = 287,
    labels_only: bool = False,
    most: int = 10**6,
) -> prompb.Found:
    query = Query((START + first * PERIOD) * 1000, (START + last * PERIOD) * 1000, matchers, labels_only)
    (found,) = prompb.answer(encode_answer([await read(query, entries, history, period=PERIOD, most=most)]))
    return found


def of(metric: str, worker_id: str, /, **labels: str) -> Labels:
    return tuple(
        sorted({"__name__": metric, "worker_id": worker_id, "region": "eu-west-1", "store": "history", **labels}.items())
    )


def at(n: int) -> int:
    return (START + n * PERIOD) * 1000


async def test_every_field_is_a_series_at_the_start_of_its_period_and_percent_is_a_ratio(
    history: WorkerMetricsRepository,
) -> None:
    await history.add_samples(
        [
            sample("w1", 0, cpu_utilization=45.2, memory_utilization=62.8),
            sample("w1", 1, cpu_utilization=None, status="stopped", active_labs_count=0),
            sample("w1", 2, status=None, active_labs_count=None),
        ]
    )
    found = await ask(history, [entry("w1")], EVERYTHING)
    assert found == {
        of(CPU, "w1"): [(at(0), 45.2 / 100), (at(2), 0.12)],
        of("cml_worker_memory_utilization_ratio", "w1"): [(at(0), 62.8 / 100)],
        of("cml_worker_active_labs", "w1"): [(at(0), 3.0), (at(1), 0.0)],
        of("cml_worker_status", "w1", status="running"): [(at(0), 1.0), (at(1), 0.0)],
        of("cml_worker_status", "w1", status="stopped"): [(at(0), 0.0), (at(1), 1.0)],
        of(
            "cml_worker_info", "w1", name="cml w1", instance_id="i-2", instance_type="m5zn.metal", cml_version="2.8.1"
        ): [(at(0), 1.0), (at(1), 1.0), (at(2), 1.0)],
    }  # fmt: skip


async def test_both_ends_of_the_range_are_included(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n) for n in range(6)])
    found = await ask(history, [entry("w1")], Matcher("__name__", "=", CPU), first=1, last=4)
    assert [time for time, _ in found[of(CPU, "w1")]] == [at(1), at(2), at(3), at(4)]


async def test_matchers_select_by_name_worker_region_status_and_info(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample(worker, n) for worker in ("a", "b", "c/ä%") for n in range(2)])
    await history.add_samples([sample("a", 2, region="us-east-1", status="stopped")])  # it moved
    entries = [entry("a"), entry("b"), entry("c/ä%")]

    async def selected(*matchers: tuple[str, str, str]) -> set[tuple[str, ...]]:
        found = await ask(history, entries, *(Matcher(*each) for each in matchers))  # type: ignore[arg-type]
        return {tuple(dict(labels)[name] for name in ("__name__", "worker_id", "region")) for labels in found}

    cpu = ("__name__", "=", CPU)
    assert await selected(cpu) == {
        (CPU, "a", "eu-west-1"),
        (CPU, "a", "us-east-1"),
        (CPU, "b", "eu-west-1"),
        (CPU, "c/ä%", "eu-west-1"),
    }
    assert await selected(cpu, ("worker_id", "=~", "a|b"), ("region", "=", "eu-west-1")) == {
        (CPU, "a", "eu-west-1"),
        (CPU, "b", "eu-west-1"),
    }
    assert await selected(cpu, ("worker_id", "!~", "[ab]")) == {(CPU, "c/ä%", "eu-west-1")}
    assert await selected(("status", "=", "stopped")) == {("cml_worker_status", "a", "us-east-1")}
    assert await selected(("name", "=~", "cml [bc].*")) == {
        ("cml_worker_info", "b", "eu-west-1"),
        ("cml_worker_info", "c/ä%", "eu-west-1"),
    }
    assert await selected(("__name__", "=~", ".*_ratio"), ("worker_id", "!=", "a"), ("job", "=", "")) == {
        (CPU, "b", "eu-west-1"),
        (CPU, "c/ä%", "eu-west-1"),
    }
    assert await selected(cpu, ("job", "!=", "")) == set()
    assert await selected(cpu, ("store", "!=", "history")) == set()
    assert await selected(("__name__", "=", "up")) == set()


async def test_a_worker_that_is_gone_ends_with_a_stale_marker_and_a_living_one_does_not(
    history: WorkerMetricsRepository,
) -> None:
    await history.add_samples([sample(worker, n) for worker in ("alive", "terminated", "left") for n in range(3)])
    entries = [entry("alive"), entry("terminated", status="terminated"), entry("left", last_seen=START + 900)]
    found = await ask(history, entries, Matcher("__name__", "=", CPU))
    for worker_id in ("terminated", "left"):
        *values, (time, value) = found[of(CPU, worker_id)]
        assert len(values) == 3
        assert time == at(3)
        assert prompb.is_stale(value)
    assert len(found[of(CPU, "alive")]) == 3
    found = await ask(history, entries, Matcher("worker_id", "=", "left"), Matcher("__name__", "=", CPU), last=2)
    assert len(found[of(CPU, "left")]) == 3, "the marker would lie outside the range"


async def test_a_request_for_series_brings_labels_without_samples(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n) for n in range(3)])
    found = await ask(history, [entry("w1"), entry("never")], Matcher("worker_id", "=~", ".*"), labels_only=True)
    assert {dict(labels)["__name__"] for labels in found} == {
        CPU,
        "cml_worker_active_labs",
        "cml_worker_status",
        "cml_worker_info",
    }
    assert all(samples == [] for samples in found.values())


async def test_too_many_samples_are_refused_with_what_to_do(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample(f"w{k}", n) for k in range(5) for n in range(20)])
    entries = [entry(f"w{k}") for k in range(5)]
    assert len(await ask(history, entries, Matcher("__name__", "=", CPU), most=100)) == 5
    with pytest.raises(BadRequest, match="fewer workers"):
        await ask(history, entries, Matcher("__name__", "=", CPU), most=99)


async def test_a_range_longer_than_one_read_is_one_series(
    history: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.history._COLUMN", 7)
    await history.add_samples([sample(worker, n) for worker in ("a", "b") for n in range(50)])
    found = await ask(history, [entry("a"), entry("b")], Matcher("__name__", "=", CPU))
    for worker_id in ("a", "b"):
        assert found[of(CPU, worker_id)] == [(at(n), (10.0 + n) / 100) for n in range(50)]


async def test_what_is_past_retention_is_not_there_though_mongodb_has_not_deleted_it_yet(
    history: WorkerMetricsRepository,
) -> None:
    await history.add_samples([sample("w1", n) for n in range(-30 * 288, -30 * 288 + 600, 100)])
    found = await ask(history, [entry("w1")], Matcher("__name__", "=", CPU), first=-40 * 288)
    assert [time for time, _ in found[of(CPU, "w1")]] == [at(n) for n in range(-29 * 288 + 12, -30 * 288 + 600, 100)]


async def test_a_range_that_ends_before_it_begins_is_empty(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", 0)])
    assert await ask(history, [entry("w1")], EVERYTHING, first=5, last=2) == {}


async def test_a_mongodb_that_is_away_is_said_to_be(database: Database) -> None:
    async with connect("mongodb://127.0.0.1:1/?directConnection=true", patience=0.3) as client:
        away = WorkerMetricsRepository(
            client.nowhere, collection="h", period=PERIOD, retention=DAY, apply_retention=False, wall=lambda: START
        )
        with pytest.raises(StoreUnavailable):
            await ask(away, [entry("w1")], EVERYTHING)

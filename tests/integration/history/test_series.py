"""The history as Prometheus series from a real mongod: the selected series, their samples, and the limits."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from bson import Decimal128

from exporter.core.errors import RequestError, StoreUnavailableError
from exporter.core.model import InstanceInterval, InventoryEntry, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, to_datetime, to_seconds
from exporter.history import series
from exporter.history.hourly_cache import HourlyCache
from exporter.history.matching import Matcher
from exporter.history.remote_read import SeriesSelector, encode_response
from exporter.history.series import read
from exporter.storage import sample_reader
from exporter.storage.hourly import column
from exporter.storage.lease import BACKFILL, Lease
from exporter.storage.mongo import Database
from exporter.storage.repository import WorkerMetricsRepository
from tests.fixtures.mongo import connect
from tests.helpers import prompb

START, PERIOD = 1_767_225_600, 300
CPU = "cml_worker_cpu_utilization_ratio"
EVERYTHING = Matcher("__name__", "=~", "cml_worker_.+")
HOURLY = Matcher("__name__", "=~", "cml_worker:.+")
Labels = tuple[tuple[str, str], ...]


def entry(
    worker_id: str, *, status: str = "running", last_seen: int = START + DAY, region: str = "eu-west-1"
) -> InventoryEntry:
    return InventoryEntry(
        worker_id, region, f"cml {worker_id}", "m5zn.metal", "2.8.1", START, None, status, START, last_seen,
        (InstanceInterval("i-1", region, START, START + 600), InstanceInterval("i-2", region, START + 600, last_seen)),
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


async def read_series(
    history: WorkerMetricsRepository,
    entries: Sequence[InventoryEntry],
    *matchers: Matcher,
    first: int = 0,
    last: int = 287,
    labels_only: bool = False,
    oldest: int = 0,
    most: int = 10**6,
    sole_window: str = "",
) -> prompb.Found:
    query = SeriesSelector((START + first * PERIOD) * 1000, (START + last * PERIOD) * 1000, matchers, labels_only, sole_window)
    (found,) = prompb.parse_response(
        encode_response(
            [await read(query, entries, history.reader, hourly_cache(history), period=PERIOD, oldest=oldest, most=most)]
        )
    )
    return found


async def no_backfill() -> str:
    return ""


def hourly_cache(history: WorkerMetricsRepository) -> HourlyCache:
    return HourlyCache(history.reader, no_backfill, gap_fill_window=DAY, wall=lambda: START + DAY)


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
    found = await read_series(history, [entry("w1")], EVERYTHING)
    assert found == {
        of(CPU, "w1"): [(at(0), 45.2 / 100), (at(2), 0.12)],
        of("cml_worker_memory_utilization_ratio", "w1"): [(at(0), 62.8 / 100)],
        of("cml_worker_active_labs", "w1"): [(at(0), 3.0), (at(1), 0.0)],
        of("cml_worker_status", "w1", status="running"): [(at(0), 1.0), (at(1), 0.0)],
        of("cml_worker_status", "w1", status="stopped"): [(at(0), 0.0), (at(1), 1.0)],
        of(
            "cml_worker_info",
            "w1",
            worker="cml w1",
            name="cml w1",
            instance_id="i-2",
            instance_type="m5zn.metal",
            cml_version="2.8.1",
        ): [(at(0), 1.0), (at(1), 1.0), (at(2), 1.0)],
    }  # fmt: skip


async def test_both_ends_of_the_range_are_included(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n) for n in range(6)])
    found = await read_series(history, [entry("w1")], Matcher("__name__", "=", CPU), first=1, last=4)
    assert [time for time, _ in found[of(CPU, "w1")]] == [at(1), at(2), at(3), at(4)]


async def test_matchers_select_by_name_worker_region_status_and_info(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample(worker, n) for worker in ("a", "b", "c/ä%") for n in range(2)])
    await history.add_samples([sample("a", 2, region="us-east-1", status="stopped")])  # it moved
    entries = [entry("a"), entry("b"), entry("c/ä%")]

    async def selected(*matchers: tuple[str, str, str]) -> set[tuple[str, ...]]:
        found = await read_series(history, entries, *(Matcher(*each) for each in matchers))  # type: ignore[arg-type]
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


async def test_the_series_of_a_worker_that_is_gone_ends_with_a_stale_marker_and_others_do_not(
    history: WorkerMetricsRepository,
) -> None:
    await history.add_samples([sample(worker, n) for worker in ("alive", "terminated", "left") for n in range(3)])
    entries = [entry("alive"), entry("terminated", status="terminated"), entry("left", last_seen=START + 900)]
    found = await read_series(history, entries, Matcher("__name__", "=", CPU))
    for worker_id in ("terminated", "left"):
        *values, (time, value) = found[of(CPU, worker_id)]
        assert len(values) == 3
        assert time == at(3)
        assert prompb.is_stale(value)
    assert len(found[of(CPU, "alive")]) == 3
    found = await read_series(history, entries, Matcher("worker_id", "=", "left"), Matcher("__name__", "=", CPU), last=2)
    assert len(found[of(CPU, "left")]) == 3, "the marker would lie outside the range"


async def test_a_request_for_series_returns_labels_without_samples(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n) for n in range(3)])
    found = await read_series(history, [entry("w1"), entry("never")], Matcher("worker_id", "=~", ".*"), labels_only=True)
    assert {dict(labels)["__name__"] for labels in found} == {
        CPU,
        "cml_worker_active_labs",
        "cml_worker_status",
        "cml_worker_info",
    }
    assert all(samples == [] for samples in found.values())


async def test_too_many_samples_are_refused_with_advice(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample(f"w{k}", n) for k in range(5) for n in range(20)])
    entries = [entry(f"w{k}") for k in range(5)]
    assert len(await read_series(history, entries, Matcher("__name__", "=", CPU), most=100)) == 5
    with pytest.raises(RequestError, match="fewer workers"):
        await read_series(history, entries, Matcher("__name__", "=", CPU), most=99)


async def test_a_range_longer_than_one_read_is_one_series(
    history: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.storage.sample_reader.COLUMN_SAMPLES", 7)
    await history.add_samples([sample(worker, n) for worker in ("a", "b") for n in range(50)])
    found = await read_series(history, [entry("a"), entry("b")], Matcher("__name__", "=", CPU))
    for worker_id in ("a", "b"):
        assert found[of(CPU, worker_id)] == [(at(n), (10.0 + n) / 100) for n in range(50)]


async def test_samples_past_retention_are_not_returned_although_mongodb_has_not_deleted_them(
    history: WorkerMetricsRepository,
) -> None:
    await history.add_samples([sample("w1", n) for n in range(-30 * 288, -30 * 288 + 600, 100)])
    found = await read_series(history, [entry("w1")], Matcher("__name__", "=", CPU), first=-40 * 288)
    assert [time for time, _ in found[of(CPU, "w1")]] == [at(n) for n in range(-29 * 288 + 12, -30 * 288 + 600, 100)]


async def test_a_range_that_ends_before_it_begins_is_empty(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", 0)])
    assert await read_series(history, [entry("w1")], EVERYTHING, first=5, last=2) == {}


async def test_an_unreachable_mongodb_is_an_error(database: Database) -> None:
    async with connect("mongodb://127.0.0.1:1/?directConnection=true", patience=0.3) as client:
        away = WorkerMetricsRepository(
            client.nowhere, collection="h", period=PERIOD, retention=DAY, apply_retention=False, wall=lambda: START
        )
        with pytest.raises(StoreUnavailableError):
            await read_series(away, [entry("w1")], EVERYTHING)


# -- hourly aggregates


def hour(n: int) -> int:
    """The end of the n-th hour."""
    return (START + (n + 1) * HOUR) * 1000


def hourly_labels(what: str, worker_id: str, /, region: str = "eu-west-1") -> Labels:
    return of(f"cml_worker:{what}1h", worker_id, region=region)


def distribution_of(
    what: str, threshold: str, hours: Sequence[tuple[int, tuple[float, float, float, float]]]
) -> dict[Labels, list[tuple[int, float]]]:
    """The series of percentiles and time above a threshold, from (end of the hour, (p50, p95, p99, seconds)) of w1."""
    found = {}
    for number, quantile in enumerate(("0.5", "0.95", "0.99")):
        labels = of(f"cml_worker:{what}:quantile1h", "w1", quantile=quantile)
        found[labels] = [(time, values[number]) for time, values in hours]
    above = of(f"cml_worker:{what}:above_seconds1h", "w1", threshold=threshold)
    return found | {above: [(time, values[3]) for time, values in hours]}


async def test_an_hour_has_one_value_of_each_metric_at_its_end(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n, memory_utilization=50.0 if n < 6 else None) for n in range(12)])
    await history.add_samples(
        [
            sample("w1", 12, cpu_utilization=None, active_labs_count=0, status="stopped"),
            sample("w1", 13, cpu_utilization=None, active_labs_count=5),
            sample("w1", 14, cpu_utilization=None, active_labs_count=None, status=None),
        ]
    )
    found = await read_series(history, [entry("w1")], HOURLY)
    facts = {"worker": "cml w1", "name": "cml w1", "instance_id": "i-2", "instance_type": "m5zn.metal", "cml_version": "2.8.1"}
    cpu, memory = ([f"{name}_utilization_ratio:{how}" for how in ("avg", "min", "max")] for name in ("cpu", "memory"))
    assert found == {
        **{hourly_labels(what, "w1"): [(hour(0), value)] for what, value in zip(cpu, (0.155, 0.1, 0.21), strict=True)},
        **{hourly_labels(what, "w1"): [(hour(0), 0.5)] for what in memory},
        hourly_labels("active_labs:avg", "w1"): [(hour(0), 3.0), (hour(1), 2.5)],
        hourly_labels("active_labs:min", "w1"): [(hour(0), 3.0), (hour(1), 0.0)],
        hourly_labels("active_labs:max", "w1"): [(hour(0), 3.0), (hour(1), 5.0)],
        **distribution_of("cpu_utilization_ratio", "0.9", [(hour(0), (0.15, 0.21, 0.21, 0.0))]),
        **distribution_of("memory_utilization_ratio", "0.9", [(hour(0), (0.5, 0.5, 0.5, 0.0))]),
        **distribution_of("active_labs", "0", [(hour(0), (3.0, 3.0, 3.0, 3600.0)), (hour(1), (0.0, 5.0, 5.0, 300.0))]),
        hourly_labels("running:avg", "w1"): [(hour(0), 1.0), (hour(1), 0.5)],
        hourly_labels("cpu_utilization_ratio_running:avg", "w1"): [(hour(0), 0.155)],
        hourly_labels("memory_utilization_ratio_running:avg", "w1"): [(hour(0), 0.5)],
        hourly_labels("active_labs_running:avg", "w1"): [(hour(0), 3.0), (hour(1), 2.5)],
        hourly_labels("unused_cpu_utilization_ratio:avg", "w1"): [(hour(0), math.inf)],
        hourly_labels("sample_timestamp_seconds:max", "w1"): [
            (hour(0), START + 12.0 * PERIOD),
            (hour(1), START + 15.0 * PERIOD),
        ],
        of("cml_worker:info:max1h", "w1", **facts): [(hour(0), 1.0), (hour(1), 1.0)],
    }


async def test_a_period_with_cpu_and_without_status_was_running(history: WorkerMetricsRepository) -> None:
    """The exporter was down and its gaps were filled: AWS has CPU of running instances only, so this is no hour of 0."""
    await history.add_samples(
        [
            *(sample("w1", n, active_labs_count=None, status=None) for n in range(12)),
            sample("w1", 12, active_labs_count=None, status=None),
            sample("w1", 13, cpu_utilization=None, status="stopped"),
            sample("w1", 14, status="stopping"),
            sample("w1", 15, status="running"),
            sample("w1", 24, cpu_utilization=None, memory_utilization=5.0, active_labs_count=None, status=None),
        ]
    )
    found = await read_series(history, [entry("w1")], HOURLY)
    assert found[hourly_labels("running:avg", "w1")] == [(hour(0), 1.0), (hour(1), 0.5)]


async def test_the_cpu_of_an_unused_hour_and_the_values_of_a_running_one(history: WorkerMetricsRepository) -> None:
    """A share of the hour is not enough to be unused, and enough to run. Without one of their values there is none."""
    rows: list[Any] = [
        {"active_labs_count": 0},
        {"active_labs_count": 0, "status": "stopped"},
        {"active_labs_count": 1},
        {"active_labs_count": None},
        {"active_labs_count": 0, "cpu_utilization": None},
        {"active_labs_count": 4, "status": "stopped"},
        {"active_labs_count": 4, "status": None, "cpu_utilization": None},
        {"active_labs_count": None, "status": "stopped"},
    ]
    for number, values in enumerate(rows):
        await history.add_samples([sample("w1", 12 * number, **{"cpu_utilization": 10.0, **values})])
    await history.add_samples([sample("w1", 12 + 1, cpu_utilization=10.0, active_labs_count=0)])
    found = await read_series(history, [entry("w1")], HOURLY)
    assert found[hourly_labels("unused_cpu_utilization_ratio:avg", "w1")] == [
        (hour(0), 0.1),
        *((hour(n), math.inf) for n in (1, 2, 5)),
    ]
    ran = [(hour(0), 0.1), (hour(1), 0.1), (hour(2), 0.1), (hour(3), 0.1)]
    assert found[hourly_labels("cpu_utilization_ratio_running:avg", "w1")] == ran
    assert found[hourly_labels("active_labs_running:avg", "w1")] == [
        (hour(0), 0.0),
        (hour(1), 0.0),
        (hour(2), 1.0),
        *((hour(n), 0.0) for n in (4, 5, 7)),
    ]


async def test_hourly_aggregates_equal_those_of_the_repositorys_own_aggregation(history: WorkerMetricsRepository) -> None:
    values = [(n * 7919) % 9973 / 100 for n in range(288)]
    await history.add_samples([sample("w1", n, cpu_utilization=value) for n, value in enumerate(values)])
    found = await read_series(history, [entry("w1")], HOURLY, last=300)
    own = await history.get_aggregated_stats("w1", to_datetime(START), to_datetime(START + DAY), timedelta(hours=1))
    assert len(own) == 24
    for how in ("avg", "min", "max"):
        hourly = found[hourly_labels(f"cpu_utilization_ratio:{how}", "w1")]
        assert [time for time, _ in hourly] == [(to_seconds(each.timestamp) + HOUR) * 1000 for each in own]
        ours = [getattr(each.cpu_utilization, how) / 100 for each in own]
        assert [value for _, value in hourly] == pytest.approx(ours, rel=1e-12)


async def test_hourly_percentiles_and_time_above_a_threshold_are_those_of_the_samples(history: WorkerMetricsRepository) -> None:
    dice = random.Random(5)
    values = [None if n % 17 == 3 else dice.uniform(60, 100) for n in range(288)]
    values[24:36] = [None] * 12
    await history.add_samples(
        [
            sample("w1", n, region="eu-west-1" if n < 150 else "us-east-1", cpu_utilization=value, active_labs_count=n // 5 % 3)
            for n, value in enumerate(values)
        ]
    )
    name = Matcher("__name__", "=~", "cml_worker:cpu_utilization_ratio:(quantile|above_seconds)1h")
    found = await read_series(history, [entry("w1")], name, last=300)
    wanted: prompb.Found = {}
    for number in range(24):
        for region, first, last in (("eu-west-1", 0, 150), ("us-east-1", 150, 288)):
            of_hour = range(max(first, number * 12), min(last, number * 12 + 12))
            known = sorted(value for n in of_hour if (value := values[n]) is not None)
            if not known:
                continue
            for quantile, percent in (("0.5", 50), ("0.95", 95), ("0.99", 99)):
                series_labels = of("cml_worker:cpu_utilization_ratio:quantile1h", "w1", region=region, quantile=quantile)
                rank = math.ceil(percent * len(known) / 100)
                wanted.setdefault(series_labels, []).append((hour(number), known[rank - 1] / 100))
            above = of("cml_worker:cpu_utilization_ratio:above_seconds1h", "w1", region=region, threshold="0.9")
            wanted.setdefault(above, []).append((hour(number), float(PERIOD * sum(value > 90 for value in known))))
    assert found == wanted
    assert len(found) == 8
    one = await read_series(history, [entry("w1")], name, Matcher("quantile", "=", "0.95"), last=300)
    assert one == {key: of_key for key, of_key in wanted.items() if dict(key).get("quantile") == "0.95"}
    assert await read_series(history, [entry("w1")], name, Matcher("threshold", "=", "0.8"), last=300) == {}
    plain = Matcher("__name__", "=", "cml_worker:cpu_utilization_ratio:avg1h")
    assert await read_series(history, [entry("w1")], plain, Matcher("quantile", "=", "0.95"), last=300) == {}


async def test_hourly_percentiles_of_a_long_range_are_read_in_parts(
    history: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history.add_samples([sample(f"w{k}", n * 12, cpu_utilization=float(n + k)) for n in range(24) for k in range(3)])
    monkeypatch.setattr(sample_reader, "HOURLY_DAYS_PER_QUERY", 1)
    monkeypatch.setattr(sample_reader, "HOURLY_WORKER_DAYS_PER_QUERY", 2)
    days = range(START - DAY, START + 2 * DAY, DAY)
    for distribution in (None, "cpu_utilization"):
        found = await history.reader.hours(["w0", "w1", "w2"], days, distribution)
        assert [(each.worker_id, each.day, len(each.hours)) for each in sorted(found)] == [
            (f"w{k}", START, 24) for k in range(3)
        ]
    of_day = [list(column(each, "cpu_utilization_p99")) for each in sorted(found)]
    assert of_day == [[float(n + k) for n in range(24)] for k in range(3)]


async def test_non_numeric_values_are_left_out_of_an_hour(history: WorkerMetricsRepository, database: Database) -> None:
    non_numeric: list[object] = ["97", math.nan, math.inf, True, None, {"a": 1}, [3], 12.5, 7]
    between = [7.0, Decimal128("9"), 12.5]  # which is neither the lowest nor the highest
    await database.worker_metrics_timeseries.insert_many(
        [
            {"worker_id": "w1", "timestamp": to_datetime(START + n * PERIOD), "region": "eu-west-1", "cpu_utilization": value}
            for n, value in enumerate([*non_numeric, None, None, None, *between])
        ]
    )
    await history.add_samples([sample("w1", 24, cpu_utilization=None)])
    found = await read_series(history, [entry("w1")], HOURLY)
    values = [found[hourly_labels(f"cpu_utilization_ratio:{how}", "w1")] for how in ("avg", "min", "max")]
    assert values == [[(hour(n), value) for n in (0, 1)] for value in (0.0975, 0.07, 0.125)]
    samples = await read_series(history, [entry("w1")], Matcher("__name__", "=", CPU))
    assert sorted({value for _, value in samples[of(CPU, "w1")]}) == [0.07, 0.125]
    for quantile, value in (("0.5", 0.07), ("0.95", 0.125), ("0.99", 0.125)):
        series_labels = of("cml_worker:cpu_utilization_ratio:quantile1h", "w1", quantile=quantile)
        assert found[series_labels] == [(hour(n), value) for n in (0, 1)]
    assert found[hourly_labels("running:avg", "w1")] == [(hour(n), 1.0) for n in (0, 1, 2)], "a number is a CPU datapoint"
    rows, _ = await history.reader.read_statistics("w1", START, START + DAY, HOUR, limit=24)
    assert [row["cpu_utilization"]["avg"] for row in rows] == [9.75, 9.75, None]


async def test_samples_without_a_region_are_one_series_with_each_hour_once(
    history: WorkerMetricsRepository, database: Database
) -> None:
    regions: list[dict[str, object]] = [{}, {"region": None}, {"region": ""}, {"region": 7}, {"region": "7"}]
    await database.worker_metrics_timeseries.insert_many(
        [
            {"worker_id": "w1", "timestamp": to_datetime(START + n * PERIOD), "active_labs_count": n % 3, **regions[n % 5]}
            for n in range(36)
        ]
    )
    found = await read_series(history, [entry("w1", region="7")], Matcher("__name__", "=", "cml_worker:active_labs:max1h"))
    assert {dict(labels).get("region", ""): [time for time, _ in values] for labels, values in found.items()} == {
        "": [hour(0), hour(1), hour(2)],
        "7": [hour(0), hour(1), hour(2)],
    }


@pytest.mark.parametrize("samples_per_call", [1, 5, 10**6])
async def test_each_of_many_workers_has_its_own_values_however_many_are_encoded_together(
    history: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch, samples_per_call: int
) -> None:
    monkeypatch.setattr(series, "_SAMPLES_PER_CALL", samples_per_call)
    workers = [f"w{number}" for number in range(1, 6)]
    await history.add_samples(
        [
            sample(worker_id, 12 * at, cpu_utilization=10.0 * number + at, region="us-east-1" if number == 3 else "eu-west-1")
            for number, worker_id in enumerate(workers, 1)
            for at in range(2 if number != 4 else 1)
        ]
    )
    cpu = Matcher("__name__", "=", "cml_worker:cpu_utilization_ratio:avg1h")
    found = await read_series(history, [entry(worker_id) for worker_id in workers], cpu, Matcher("region", "=", "eu-west-1"))
    assert found == {
        hourly_labels("cpu_utilization_ratio:avg", worker_id): [
            (hour(at), (10 * number + at) / 100) for at in range(2 if number != 4 else 1)
        ]
        for number, worker_id in enumerate(workers, 1)
        if number != 3
    }


async def test_a_worker_that_moved_has_the_hourly_aggregates_of_each_region(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n, region="eu-west-1" if n < 18 else "us-east-1") for n in range(36)])
    name = Matcher("__name__", "=", "cml_worker:active_labs:max1h")
    found = await read_series(history, [entry("w1")], name)
    assert found == {
        hourly_labels("active_labs:max", "w1"): [(hour(0), 3.0), (hour(1), 3.0)],
        hourly_labels("active_labs:max", "w1", region="us-east-1"): [(hour(1), 3.0), (hour(2), 3.0)],
    }
    found = await read_series(history, [entry("w1")], name, Matcher("region", "=", "us-east-1"))
    assert list(found) == [hourly_labels("active_labs:max", "w1", region="us-east-1")]


@pytest.mark.parametrize(
    ("function", "of_all", "of_infos"),
    [
        ("avg_over_time", statistics.fmean, 1),
        ("max_over_time", max, 1),
        ("min_over_time", min, 1),
        ("sum_over_time", math.fsum, 3),
        ("last_over_time", lambda values: values[-1], 1),
    ],
)
async def test_a_function_with_one_window_gets_one_sample_of_each_series_with_its_result(
    history: WorkerMetricsRepository, function: str, of_all: Callable[[list[float]], float], of_infos: float
) -> None:
    rows = [sample(worker, 12 * n, cpu_utilization=value) for worker in ("a", "b") for n, value in enumerate((7.0, 90.0, 2.0))]
    await history.add_samples([*rows, sample("late", 15)])
    cpu, info = "cml_worker:cpu_utilization_ratio:avg1h", "cml_worker:info:max1h"
    entries = [entry("a"), entry("b"), entry("late")]
    several = await read_series(history, entries, Matcher("__name__", "=~", f"{cpu}|{info}"))
    found = await read_series(history, entries, Matcher("__name__", "=~", f"{cpu}|{info}"), sole_window=function)
    assert found.keys() == several.keys()
    assert len(several[of(cpu, "a")]) == 3
    for labels, samples in found.items():
        values = [value for _, value in several[labels]]
        assert samples == [(several[labels][-1][0], of_all(values))]
    assert [samples[0][1] for labels, samples in found.items() if ("__name__", info) in labels] == [of_infos, of_infos, 1]


async def test_a_function_of_which_one_sample_would_make_another_value_gets_all_samples(
    history: WorkerMetricsRepository,
) -> None:
    await history.add_samples([sample("a", 12 * n) for n in range(3)])
    cpu = Matcher("__name__", "=", "cml_worker:cpu_utilization_ratio:avg1h")
    for function in ("count_over_time", "stddev_over_time", "quantile_over_time", "rate", "changes", "absent_over_time", ""):
        (samples,) = (await read_series(history, [entry("a")], cpu, sole_window=function)).values()
        assert len(samples) == 3


async def test_hourly_aggregates_are_returned_only_to_queries_by_name(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n) for n in range(12)])
    everything = await read_series(history, [entry("w1")], Matcher("store", "=", "history"))
    assert not [labels for labels in everything if dict(labels)["__name__"].startswith("cml_worker:")]
    assert await read_series(history, [entry("w1")], HOURLY, Matcher("store", "=", "elsewhere")) == {}
    listed = await read_series(history, [entry("w1")], HOURLY, labels_only=True)
    assert {dict(labels)["__name__"] for labels in listed} >= {"cml_worker:info:max1h", "cml_worker:running:avg1h"}
    assert all(samples == [] for samples in listed.values())


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        (Matcher("__name__", "=", "cml_worker:running:avg1h"), True),
        (Matcher("__name__", "=", CPU), False),
        (Matcher("__name__", "=~", "cml_worker:running:avg1h"), False),
        (Matcher("worker_id", "=", "cml_worker:running:avg1h"), False),
    ],
)
def test_only_queries_that_name_an_hourly_metric_are_recognized_as_small(name: Matcher, hours: bool) -> None:
    known = Matcher("__name__", "=", "cml_worker:info:max1h")
    queries = [SeriesSelector(0, 1, (Matcher("store", "=", "history"), each), False) for each in (known, name)]
    assert series.only_hourly_metrics(queries) == hours


async def test_an_hour_that_begins_before_the_retention_is_left_out(history: WorkerMetricsRepository) -> None:
    await history.add_samples([sample("w1", n) for n in range(48)])
    name = Matcher("__name__", "=", "cml_worker:running:avg1h")
    found = await read_series(history, [entry("w1")], name, oldest=START + 1)
    assert [time for time, _ in found[hourly_labels("running:avg", "w1")]] == [hour(1), hour(2), hour(3)]


async def test_more_worker_days_than_the_limit_are_refused_before_they_are_read(
    history: WorkerMetricsRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "MAX_WORKER_DAYS", 10)
    await history.add_samples([sample(f"w{k}", n) for k in range(5) for n in range(12)])
    entries = [entry(f"w{k}") for k in range(5)]
    name = Matcher("__name__", "=", "cml_worker:running:avg1h")
    assert len(await read_series(history, entries, name, last=288)) == 5
    refused = r"5 workers on 3 days exceed the limit of 10 worker days .* name fewer workers, a region"
    with pytest.raises(RequestError, match=refused):
        await read_series(history, entries, name, last=2 * 288)
    # Workers that cannot have a sample in the range do not count: gone, not created yet, or in another region.
    others = [entry(f"gone{k}", last_seen=START - 2 * DAY) for k in range(50)]
    others += [replace(entry(f"new{k}"), first_seen=START + 4 * DAY, created_at=START + 4 * DAY) for k in range(50)]
    moved = [replace(entry(f"us{k}", region="us-east-1"), instances=()) for k in range(50)]
    assert len(await read_series(history, [*entries, *others], name, last=288)) == 5
    assert len(await read_series(history, [*entries, *moved], name, Matcher("region", "=", "eu-west-1"), last=288)) == 5


async def test_an_hour_that_a_backfill_writes_is_read_again(history: WorkerMetricsRepository, database: Database) -> None:
    writer, reader = (Lease(database, owner=owner, name=BACKFILL) for owner in ("backfill", "exporter"))
    clock = [0.0]
    cache = HourlyCache(
        history.reader, reader.change_marker, gap_fill_window=DAY, wall=lambda: START + 9 * DAY, monotonic=lambda: clock[0]
    )
    query = SeriesSelector(
        START * 1000, (START + DAY) * 1000, (Matcher("__name__", "=", "cml_worker:active_labs:max1h"),), False
    )

    async def read_hours() -> list[tuple[int, float]]:
        (found,) = prompb.parse_response(
            encode_response([await read(query, [entry("w1")], history.reader, cache, period=PERIOD)])
        )
        return found[hourly_labels("active_labs:max", "w1")]

    await history.add_samples([sample("w1", n) for n in range(12)])
    assert await read_hours() == [(hour(0), 3.0)]
    await history.add_samples([sample("w1", n) for n in range(12, 24)])
    clock[0] += 61
    assert await read_hours() == [(hour(0), 3.0)], "the change marker is the same"
    assert await writer.acquire_or_renew()
    await history.add_samples([sample("w1", n) for n in range(24, 36)])
    assert await read_hours() == [(hour(n), 3.0) for n in range(3)]
    await writer.release()
    clock[0] += 61  # what was read while the backfill might write is cached for a minute
    assert await read_hours() == [(hour(n), 3.0) for n in range(3)]
    assert await writer.acquire_or_renew()
    await history.add_samples([sample("w1", n) for n in range(36, 48)])
    await writer.release()
    clock[0] += 61
    assert await read_hours() == [(hour(n), 3.0) for n in range(4)]

"""The history as OpenMetrics and CSV text: golden bytes, strict parsers, and whatever others may have written."""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from exporter.commands.export.command import CSV_COLUMNS, csv_rows
from exporter.commands.export.openmetrics import text
from exporter.commands.export.spool import SampleSpool, open_spool
from exporter.core.model import InstanceInterval, InventoryEntry
from exporter.core.periods import parse_time
from exporter.storage.sample_stream import TIME

START = 1_767_225_600
NOW = START + 90 * 86400
ODD = 'lab "7"\\a/b%20,é\nπ'


def document(period: int, region: str = "eu-west-1", **values: Any) -> dict[str, Any]:  # noqa: ANN401  # as others write them
    return {TIME: (START + 300 * period) * 1000, "region": region, **values}


def entry(worker_id: str, name: str | None = "lab-1") -> InventoryEntry:
    instances = (InstanceInterval("i-1", "eu-west-1", 0, 1), InstanceInterval("i-2", "eu-west-1", 1, 2))
    return InventoryEntry(worker_id, "eu-west-1", name, "c5.metal", "2.8.0", None, None, "running", 0, 2, instances)


@pytest.fixture
def gathered() -> Iterator[SampleSpool]:
    with open_spool() as made:
        yield made


def render(gathered: SampleSpool, entries: Iterable[InventoryEntry] = ()) -> str:
    gathered.finish()
    return "".join(text(gathered, {each.worker_id: each for each in entries}, lambda points: None))


def parsed(body: str) -> list[Metric]:
    """What a strict parser reads; it refuses interleaved series, times that go back and a missing # EOF."""
    return list(text_string_to_metric_families(body))  # type: ignore[no-untyped-call]


def points(body: str, family: str) -> list[tuple[dict[str, str], float, float]]:
    return [
        (sample.labels, float(sample.timestamp or 0), sample.value)
        for each in parsed(body)
        for sample in each.samples
        if each.name == family
    ]


def test_one_sample_is_these_bytes(gathered: SampleSpool) -> None:
    full = document(0, cpu_utilization=45.2, memory_utilization=62.8, active_labs_count=3, status="running")
    gathered.add("w1", [full])
    assert render(gathered, [entry("w1")]) == (
        "# TYPE cml_worker_info gauge\n"
        "# HELP cml_worker_info Name, instance, version and AWS account of the worker as labels; "
        "`worker` is the name, else the id. Always 1.\n"
        'cml_worker_info{account_id="",cml_version="2.8.0",instance_id="i-2",instance_type="c5.metal",name="lab-1",region="eu-west-1",'
        'store="history",worker="lab-1",worker_id="w1"} 1.0 1767225600\n'
        "# TYPE cml_worker_status gauge\n"
        "# HELP cml_worker_status Whether the worker is in this status; exactly one of its series is 1.\n"
        'cml_worker_status{region="eu-west-1",status="running",store="history",worker_id="w1"} 1.0 1767225600\n'
        "# TYPE cml_worker_cpu_utilization_ratio gauge\n"
        "# UNIT cml_worker_cpu_utilization_ratio ratio\n"
        "# HELP cml_worker_cpu_utilization_ratio Average CPU utilization of the newest period, 0 to 1.\n"
        'cml_worker_cpu_utilization_ratio{region="eu-west-1",store="history",worker_id="w1"} 0.452 1767225600\n'
        "# TYPE cml_worker_memory_utilization_ratio gauge\n"
        "# UNIT cml_worker_memory_utilization_ratio ratio\n"
        "# HELP cml_worker_memory_utilization_ratio Average memory utilization of the newest period, 0 to 1.\n"
        'cml_worker_memory_utilization_ratio{region="eu-west-1",store="history",worker_id="w1"} 0.628 1767225600\n'
        "# TYPE cml_worker_active_labs gauge\n"
        "# HELP cml_worker_active_labs Labs on the worker as counted by the manager.\n"
        'cml_worker_active_labs{region="eu-west-1",store="history",worker_id="w1"} 3.0 1767225600\n'
        "# EOF\n"
    )


def test_no_sample_is_an_empty_but_whole_text(gathered: SampleSpool) -> None:
    assert [family.samples for family in parsed(render(gathered))] == [[]] * 5


def test_odd_labels_come_back_as_they_were(gathered: SampleSpool) -> None:
    gathered.add(ODD, [document(0, region=ODD, status=ODD)])
    ((labels, _, _),) = points(render(gathered, [entry(ODD, name=ODD)]), "cml_worker_info")
    assert (labels["worker_id"], labels["region"], labels["name"]) == (ODD, ODD, ODD)
    ((labels, _, _),) = points(render(gathered), "cml_worker_status")
    assert labels["status"] == ODD


def test_the_worker_label_is_the_id_of_a_worker_without_a_name(gathered: SampleSpool) -> None:
    gathered.add("w1", [document(0)])
    for entries, shown in (([], "w1"), ([entry("w1", name="")], "w1"), ([entry("w1", name="lab")], "lab")):
        ((labels, _, _),) = points(render(gathered, entries), "cml_worker_info")
        assert labels["worker"] == shown


def test_each_status_has_a_series_with_a_value_at_every_sample_that_has_a_status(gathered: SampleSpool) -> None:
    statuses = ["running", "stopped", None, "running"]
    gathered.add("w1", [document(n, **({"status": status} if status else {})) for n, status in enumerate(statuses)])
    found = points(render(gathered), "cml_worker_status")
    assert [(labels["status"], (time - START) / 300, value) for labels, time, value in found] == [
        *(("running", 0, 1), ("running", 1, 0), ("running", 3, 1)),
        *(("stopped", 0, 0), ("stopped", 1, 1), ("stopped", 3, 0)),
    ]


def test_the_series_of_a_worker_that_moved_and_came_back_stand_together(gathered: SampleSpool) -> None:
    for n, region in enumerate("abab"):  # in pages of one sample
        gathered.add("w1", [document(n, region, cpu_utilization=float(n))])
    gathered.add("w2", [document(n, region, cpu_utilization=float(n)) for n, region in enumerate("abba")])
    found = points(render(gathered), "cml_worker_cpu_utilization_ratio")
    assert [(labels["worker_id"], labels["region"], value * 100) for labels, _, value in found] == [
        *(("w1", "a", 0), ("w1", "a", 2), ("w1", "b", 1), ("w1", "b", 3)),
        *(("w2", "a", 0), ("w2", "a", 3), ("w2", "b", 1), ("w2", "b", 2)),
    ]


@pytest.mark.parametrize("value", [None, "high", True, math.nan, math.inf, -math.inf, [1.0]])
def test_what_is_no_value_has_no_point(gathered: SampleSpool, value: object) -> None:
    gathered.add("w1", [document(0, cpu_utilization=1.5), document(1, cpu_utilization=value), document(2, cpu_utilization=7)])
    found = points(render(gathered), "cml_worker_cpu_utilization_ratio")
    assert [((time - START) / 300, value) for _, time, value in found] == [(0, 0.015), (2, 0.07)]


def test_of_two_samples_at_one_time_the_first_counts_in_a_page_and_across_pages(gathered: SampleSpool) -> None:
    def at(*samples: tuple[int, float]) -> None:
        gathered.add("w1", [document(period, cpu_utilization=value) for period, value in samples])

    at((0, 1.0), (1, 2.0), (1, 9.0), (2, 3.0))
    at((2, 9.0), (3, 4.0))
    at((3, 9.0))
    assert [value * 100 for _, _, value in points(render(gathered), "cml_worker_cpu_utilization_ratio")] == [1, 2, 3, 4]


def test_values_are_the_shortest_text_of_percent_by_100_and_times_between_seconds_keep_their_milliseconds(
    gathered: SampleSpool,
) -> None:
    percent = [0.1, 33.333333333333336, 1e-9, 99.99999999999999, 0.0, 100.0]
    between = {TIME: START * 1000 + 57, "region": "r", "cpu_utilization": 1.0}
    gathered.add("w0", [between])
    gathered.add("w1", [document(n, cpu_utilization=value) for n, value in enumerate(percent)])
    lines = [line.rpartition("} ")[2].split() for line in render(gathered).splitlines() if "cpu_utilization_ratio{" in line]
    assert lines[0][1] == "1767225600.057"
    assert [value for value, _ in lines[1:]] == [repr(value / 100) for value in percent]


def test_csv_rows_are_read_back_by_any_csv_reader_and_what_is_missing_is_empty() -> None:
    documents = [
        document(0, cpu_utilization=45.2, memory_utilization=62.8, active_labs_count=3, status="running"),
        document(1, "us-east-1", cpu_utilization=7, active_labs_count=2.0),
        document(2, status=ODD, cpu_utilization=math.nan, memory_utilization="x", active_labs_count=True),
        {TIME: START * 1000 + 5},
    ]
    body = csv_rows(ODD, "a, b", documents)
    assert body.startswith('"lab ""7""\\a/b%20,é\nπ","a, b",eu-west-1,2026-01-01T00:00:00Z,45.2,62.8,3,running\r\n')
    rows = list(csv.DictReader(io.StringIO(body, newline=""), CSV_COLUMNS, strict=True))
    assert [tuple(row.values()) for row in rows] == [
        (ODD, "a, b", "eu-west-1", "2026-01-01T00:00:00Z", "45.2", "62.8", "3", "running"),
        (ODD, "a, b", "us-east-1", "2026-01-01T00:05:00Z", "7", "", "2", ""),
        (ODD, "a, b", "eu-west-1", "2026-01-01T00:10:00Z", "", "", "", ODD),
        (ODD, "a, b", "", "2026-01-01T00:00:00.005Z", "", "", "", ""),
    ]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("now", NOW),
        ("30d", NOW - 30 * 86400),
        ("1h30m", NOW - 5400),
        ("300y", 0),
        ("2026-01-01T00:00:00Z", START),
        ("2026-01-01t01:00:00.5+01:00", START),
        ("2026-01-01", START),
        ("2026-01-01T00:00", START),
        ("2026-01-01 00:00Z", START),
        ("2026-01-01T01:00+01:00", START),
        ("2026-01-01T01:00 01:00", START),
        ("2026-01-01T00:00:00", START),
        (str(START), START),
        (f"{START}000", START),
        (f"{START}999.5", START),
        ("1960-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59-14:00", 253_402_300_799),
    ],
)
def test_times_are_durations_back_from_now_or_rfc_3339(given: str, seconds: int) -> None:
    assert parse_time(given, NOW) == seconds


@pytest.mark.parametrize(
    "given",
    [
        "",
        "yesterday",
        "0d",
        "+5m",
        "30 d",
        "2026-01-01T00",
        "2026-01-01T00:00:00Q",
        "2026-02-30",
        "2026-W01-1",
        "2026-01-01T25:00:00Z",
    ],
)
def test_other_times_are_refused_with_an_example(given: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write a duration before now such as 30d, RFC 3339"):
        parse_time(given, NOW)

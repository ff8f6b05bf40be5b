"""CloudWatch that lies, over HTTP: each malformed part costs only itself, is counted by kind, and is never shown or stored."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import MALFORMED_KINDS
from exporter.core.periods import DAY, HOUR, align
from exporter.sources.cloudwatch.transport import MAX_BODY_BYTES
from exporter.storage.mongo import Database
from tests.helpers.cases import by_day
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series
from tests.helpers.reliability import record

NOW = align(1_790_000_000, DAY) + 2 * HOUR
REGION = "eu-west-1"
BEGAN = NOW - 4 * HOUR
LIAR, HONEST = Member("liar", instance_id(1), REGION, BEGAN), Member("honest", instance_id(2), REGION, BEGAN)
Result = dict[str, Any]
Lie = Callable[[Result], object]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def exporter(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[InProcessExporter]:
    """An exporter of two running workers whose history is complete up to now."""
    for member in (LIAR, HONEST):
        fake.add(member.instance_id, runs=[(BEGAN, None)])
    await database["workers"].insert_many([member.aggregate() for member in (LIAR, HONEST)])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.history.ensure_collection()
    yield exporter
    await exporter.close()


def about_the_liar(lie: Lie) -> Callable[[str, Any, Any], object]:
    """Change every result of the liar's CPU; `lie` changes it in place, or returns what takes its place."""

    def change(operation: str, request: Any, answer: Any) -> object:  # noqa: ANN401  # JSON
        if operation == "GetMetricData":
            numbers = {
                query["Id"]
                for query in request["MetricDataQueries"]
                if query["MetricStat"]["Metric"]["MetricName"] == "CPUUtilization"
                and query["MetricStat"]["Metric"]["Dimensions"][0]["Value"] == LIAR.instance_id
            }
            results = answer["MetricDataResults"]
            answer["MetricDataResults"] = [
                result if result["Id"] not in numbers else other if (other := lie(result)) is not None else result
                for result in results
            ]
        return answer

    return change


def of_values(change: Callable[[float], object]) -> Lie:
    def lie(result: Result) -> None:
        result["Values"] = [change(value) for value in result["Values"]]

    return lie


def of_times(change: Callable[[float], object]) -> Lie:
    def lie(result: Result) -> None:
        result["Timestamps"] = [change(at) for at in result["Timestamps"]]

    return lie


LIES: dict[str, tuple[Lie, str]] = {
    "one value too few": (lambda result: result["Values"].pop() and None, "length"),
    "one time too few": (lambda result: result["Timestamps"].pop() and None, "length"),
    "values are a number": (lambda result: result.update(Values=7), "length"),
    "negative": (of_values(lambda value: -value), "negative"),
    "huge": (of_values(lambda value: 1e300), "too_large"),
    "above 100 %": (of_values(lambda value: value + 101.5), "too_large"),
    "infinite": (of_values(lambda value: float("inf")), "too_large"),
    "NaN": (of_values(lambda value: float("nan")), "not_a_number"),
    "a boolean": (of_values(lambda value: True), "not_a_number"),
    "a text": (of_values(str), "not_a_number"),
    "null": (of_values(lambda value: None), "not_a_number"),
    "a list": (of_values(lambda value: [value]), "not_a_number"),
    "unaligned": (of_times(lambda at: at + 1), "timestamp"),
    "a fraction of a second": (of_times(lambda at: at + 0.5), "timestamp"),
    "a time that is a boolean": (of_times(lambda at: True), "timestamp"),
    "a time that is null": (of_times(lambda at: None), "timestamp"),
    "a time that is a word": (of_times(lambda at: "yesterday"), "timestamp"),
    "a time beyond all calendars": (of_times(lambda at: 1e300), "timestamp"),
    "a result that is a text": (lambda result: "m0", "result"),
    "a result without Id": (lambda result: {"Values": result["Values"], "Timestamps": result["Timestamps"]}, "result"),
    "a result with another Id": (lambda result: {**result, "Id": "m77"}, "result"),
    "an Id that is a list": (lambda result: {**result, "Id": ["m0"]}, "result"),
}


def counts(exporter: InProcessExporter) -> dict[str, float]:
    return {
        kind: value
        for kind in MALFORMED_KINDS
        if (value := exporter.value("cml_exporter_cloudwatch_malformed_total", kind=kind) or 0)
    }


LIES_BY_DAY = (
    *("one value too few", "values are a number", "negative", "huge", "NaN", "a list", "unaligned", "a time that is a word"),
    *("a result that is a text", "an Id that is a list"),
)
LIES_AT_NIGHT = pytest.mark.nightly("test_a_lie_about_one_metric_costs_only_that_metric")


@pytest.mark.parametrize("name", by_day(LIES_BY_DAY, LIES, LIES_AT_NIGHT))
async def test_a_lie_about_one_metric_costs_only_that_metric(
    exporter: InProcessExporter, fake: FakeCloudWatch, clock: Clock, name: str
) -> None:
    lie, kind = LIES[name]
    await exporter.round(2)
    fake.lie = about_the_liar(lie)
    began = align(int(clock()), PERIOD)
    await exporter.round(8)

    assert set(counts(exporter)) == {kind}
    text = await exporter.scrape()
    assert f'cml_exporter_cloudwatch_malformed_total{{kind="{kind}"}}' in text
    newest = align(int(clock()), PERIOD) - PERIOD
    shown = series(text, "cml_worker_cpu_utilization_ratio")
    (honest_value,) = [value for labels, value in shown.items() if "honest" in labels]
    assert honest_value == pytest.approx(fake.value(HONEST.instance_id, "cpu", newest) / 100)
    assert not [labels for labels in shown if "liar" in labels], "older than max_age, and nothing newer is true"
    assert len(series(text, "cml_worker_memory_utilization_ratio")) == 2
    honest = await exporter.documents(worker_id="honest")
    assert all(document["cpu_utilization"] == fake.value(HONEST.instance_id, "cpu", at(document)) for document in honest)
    assert at(honest[-1]) >= newest - 3 * PERIOD, "the other worker's history goes on"
    liar = await exporter.documents(worker_id="liar")
    for document in liar:
        start, cpu = at(document), document.get("cpu_utilization")
        assert cpu in (None, fake.value(LIAR.instance_id, "cpu", start))
        if start >= began:
            assert cpu is None, "nothing true was ever sent of it"
        if start < began - 2 * PERIOD:
            assert cpu is not None, "it was decided before"
        assert document["memory_utilization"] == fake.value(LIAR.instance_id, "memory", start)

    fake.lie = None
    await exporter.round()
    assert len(series(await exporter.scrape(), "cml_worker_cpu_utilization_ratio")) == 2
    doubled = len(honest) + len(liar) - len({(one["worker_id"], at(one)) for one in (*honest, *liar)})
    assert doubled == 0
    record("cloudwatch-lies", lost=0, doubled=doubled, note=f"of the other worker; {len(LIES)} kinds of lies")


def at(document: dict[str, Any]) -> int:
    return int(document["timestamp"].timestamp())


async def test_while_lengths_differ_nothing_is_decided_and_afterwards_the_history_is_whole(
    exporter: InProcessExporter, fake: FakeCloudWatch
) -> None:
    await exporter.round(2)
    fake.lie = about_the_liar(LIES["one value too few"][0])
    await exporter.round(6)
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 0
    fake.lie = None
    await exporter.round(8)
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1
    assert await exporter.assert_history_is_true(fake, [LIAR, HONEST]) > 80


async def test_a_percentage_that_rounding_took_over_100_is_100(exporter: InProcessExporter, fake: FakeCloudWatch) -> None:
    fake.lie = about_the_liar(of_values(lambda value: 100.0000001))
    await exporter.round(2)
    assert counts(exporter) == {}
    (value,) = series(await exporter.scrape(), 'cml_worker_cpu_utilization_ratio{region="eu-west-1",worker_id="liar"').values()
    assert value == 1.0


MALFORMED_METRICS: dict[str, object] = {
    "a text": "CWAgent",
    "null": None,
    "a list": [],
    "dimensions are null": {"Namespace": "CWAgent", "MetricName": "mem_used_percent", "Dimensions": None},
    "dimensions are a text": {"Namespace": "CWAgent", "MetricName": "mem_used_percent", "Dimensions": "InstanceId"},
    "a dimension is a number": {"Dimensions": [5]},
    "a dimension without a name": {"Dimensions": [{"Value": LIAR.instance_id}]},
    "a value that is a number": {"Dimensions": [{"Name": "InstanceId", "Value": 5}]},
    "a name that is a list": {"Dimensions": [{"Name": ["InstanceId"], "Value": LIAR.instance_id}]},
}


METRICS_BY_DAY = ("a text", "dimensions are a text", "a dimension without a name", "a name that is a list")
METRICS_AT_NIGHT = pytest.mark.nightly("test_a_malformed_listed_metric_hides_no_other")


@pytest.mark.parametrize("name", by_day(METRICS_BY_DAY, MALFORMED_METRICS, METRICS_AT_NIGHT))
async def test_a_malformed_listed_metric_hides_no_other(exporter: InProcessExporter, fake: FakeCloudWatch, name: str) -> None:
    def lie(operation: str, request: Any, answer: Any) -> object:  # noqa: ANN401  # JSON
        if operation == "ListMetrics":
            answer["Metrics"].insert(1, MALFORMED_METRICS[name])
        return answer

    fake.lie = lie
    await exporter.round(2)
    assert set(counts(exporter)) == {"listed_metric"}
    assert len(series(await exporter.scrape(), "cml_worker_memory_utilization_ratio")) == 2
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1


SHAPES_AT_NIGHT = pytest.mark.nightly("test_an_answer_of_another_shape_is_a_failure_of_the_source")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="nested without end"),
        pytest.param(b"[]", id="a list", marks=SHAPES_AT_NIGHT),
        pytest.param(b'{"MetricDataResults": 5}', id="results are a number", marks=SHAPES_AT_NIGHT),
        pytest.param(b'{"MetricDataResults": null}', id="results are null"),
        pytest.param(b"<html></html>", id="a page", marks=SHAPES_AT_NIGHT),
    ],
)
async def test_an_answer_of_another_shape_is_a_failure_of_the_source(
    exporter: InProcessExporter, fake: FakeCloudWatch, body: bytes
) -> None:
    await exporter.round()
    fake.lie = lambda operation, request, answer: body if operation == "GetMetricData" else answer
    await exporter.round()
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 0
    assert exporter.collector.healthy[f"cloudwatch {REGION}"]
    assert "unexpected" not in str(exporter.collector.healthy[f"cloudwatch {REGION}"])
    fake.lie = None
    await exporter.round(8)
    assert await exporter.assert_history_is_true(fake, [LIAR, HONEST]) > 80


@pytest.mark.parametrize(
    "operation",
    ["GetMetricData", pytest.param("ListMetrics", marks=pytest.mark.nightly("test_a_body_above_32_mb_is_refused"))],
)
async def test_a_body_above_32_mb_is_refused(
    exporter: InProcessExporter, fake: FakeCloudWatch, clock: Clock, operation: str
) -> None:
    await exporter.round()
    clock.now += 600  # the listing is old
    calls = fake.calls[operation]

    def lie(name: str, request: Any, answer: Any) -> object:  # noqa: ANN401  # JSON
        if name == operation:
            answer["Messages"] = ["x" * (MAX_BODY_BYTES + 1)]
        return answer

    fake.lie = lie
    await exporter.round()
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 0
    assert exporter.collector.healthy[f"cloudwatch {REGION}"] == (
        f"CloudWatch in {REGION}: the answer to cloudwatch:{operation} is larger than 32 MB, so it is not CloudWatch's and was "
        "not read; check cloudwatch.endpoint_url and proxies"
    )
    assert fake.calls[operation] == calls + 1, "it is not retried"
    code = {"operation": operation, "region": REGION, "code": "BodyTooLarge"}
    assert exporter.value("cml_exporter_cloudwatch_request_failures_total", **code) == 1

    fake.lie = lambda name, request, answer: json.dumps({**answer, "Messages": ["x" * (MAX_BODY_BYTES // 2)]}).encode()
    clock.now += 600
    await exporter.round()
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1


async def test_a_page_that_repeats_itself_is_billed_twice_at_most(exporter: InProcessExporter, fake: FakeCloudWatch) -> None:
    token = base64.b64encode(f"0,0,{NOW}".encode()).decode()
    fake.lie = lambda operation, request, answer: {**answer, "NextToken": token} if operation == "GetMetricData" else answer
    await exporter.round()
    assert fake.metrics_billed == 2 * 4
    assert "sent the same page twice" in str(exporter.collector.healthy[f"cloudwatch {REGION}"])

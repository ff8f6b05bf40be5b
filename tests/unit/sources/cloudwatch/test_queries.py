"""Queries, merged pages and limits of GetMetricData."""

import json
import math
from typing import Any

import pytest

from exporter.core.model import MetricQuery, MetricResult
from exporter.core.settings import CloudWatchSettings
from exporter.sources.cloudwatch.answers import Malformed, parse_body
from exporter.sources.cloudwatch.queries import (
    CloudWatchMetric,
    build_queries,
    check_limits,
    cloudwatch_metrics,
    merge_pages,
    queries_as_json,
    series_by_instance,
)

RESULTS = "MetricDataResults"
METRICS = cloudwatch_metrics(CloudWatchSettings())
CPU = MetricQuery("i-0a", "cpu", (("InstanceId", "i-0a"),))
MEMORY = MetricQuery("i-0a", "memory", (("ImageId", "ami-1"), ("InstanceId", "i-0a")))


def merged_of(pages: list[Any], start: int, end: int, malformed: Malformed | None = None) -> MetricResult:
    counts = Malformed() if malformed is None else malformed
    return merge_pages([CPU], pages, start, end, 300, METRICS, counts)[CPU]


def result(id: str, status: str = "Complete", **points: float) -> dict[str, Any]:
    """t300=1.5 is the datapoint 1.5 at 300."""
    return {
        "Id": id,
        "StatusCode": status,
        "Timestamps": [float(at[1:]) for at in points],
        "Values": list(points.values()),
    }


def test_a_query_names_namespace_metric_dimensions_and_average() -> None:
    cpu, memory = build_queries([CPU, MEMORY], 300, METRICS)

    assert cpu == {
        "Id": "m0",
        "MetricStat": {
            "Metric": {
                "Namespace": "AWS/EC2",
                "MetricName": "CPUUtilization",
                "Dimensions": [{"Name": "InstanceId", "Value": "i-0a"}],
            },
            "Period": 300,
            "Stat": "Average",
        },
    }
    assert memory["MetricStat"]["Metric"] == {
        "Namespace": "CWAgent",
        "MetricName": "mem_used_percent",
        "Dimensions": [{"Name": "ImageId", "Value": "ami-1"}, {"Name": "InstanceId", "Value": "i-0a"}],
    }


def test_a_series_spans_pages_and_its_last_status_decides() -> None:
    pages = [[result("m0", "PartialData", t0=1.0)], [result("m0", t300=2.0)]]

    merged = merged_of(pages, 0, 600)

    assert (merged.outcome, merged.values, merged.start, merged.end) == ("ok", {0: 1.0, 300: 2.0}, 0, 600)


@pytest.mark.parametrize(
    ("results", "outcome", "values"),
    [
        pytest.param([result("m0")], "empty", {}, id="complete without values"),
        pytest.param([result("m0", "PartialData", t0=1.0)], "partial", {0: 1.0}, id="partial at the end"),
        pytest.param([result("m0", "InternalError", t0=1.0)], "failed", {0: 1.0}, id="internal error"),
        pytest.param([result("m0", "Forbidden")], "failed", {}, id="forbidden"),
        pytest.param([], "failed", {}, id="not mentioned at all"),
        pytest.param([result("m1", t0=1.0)], "failed", {}, id="only another id"),
    ],
)
def test_only_a_complete_result_decides_anything(results: list[Any], outcome: str, values: dict[int, float]) -> None:
    merged = merged_of([results], 0, 600)

    assert (merged.outcome, merged.values) == (outcome, values)
    assert merged.complete == (outcome in ("ok", "empty"))


def test_values_that_are_not_finite_or_outside_the_window_are_dropped() -> None:
    page = [result("m0", t0=math.nan, t300=math.inf, t600=3.0, t900=4.0)]

    assert merged_of([page], 300, 900).values == {600: 3.0}


def test_a_series_of_nothing_but_nan_is_empty() -> None:
    assert merged_of([[result("m0", t0=math.nan)]], 0, 300).outcome == "empty"


def test_each_value_is_checked_although_all_results_have_the_same_times() -> None:
    queries = [MetricQuery(f"i-{k}", "cpu", (("InstanceId", f"i-{k}"),)) for k in range(8)]
    times = [0.0, 300.0, 600]
    columns: list[list[Any]] = [
        [1.5, 2.5, 3.5],
        [1, 2, 3],
        [1.5, math.nan, 3.5],
        [math.nan, 2.5, 3.5],
        [True, 2.5, 3.5],
        [1.5, None, 100.5],
        ["1", 2.5, 101.5],
        [-1.0, 1e400, 3.5],
    ]
    page = [
        {"Id": f"m{k}", "StatusCode": "Complete", "Timestamps": [*times], "Values": values} for k, values in enumerate(columns)
    ]
    malformed = Malformed()

    merged = merge_pages(queries, [page], 0, 900, 300, METRICS, malformed)

    assert [[*each.values.items()] for each in merged.values()] == [
        [(0, 1.5), (300, 2.5), (600, 3.5)],
        [(0, 1.0), (300, 2.0), (600, 3.0)],
        [(0, 1.5), (600, 3.5)],
        [(300, 2.5), (600, 3.5)],
        [(300, 2.5), (600, 3.5)],
        [(0, 1.5), (600, 100.0)],
        [(300, 2.5)],
        [(600, 3.5)],
    ]
    assert malformed == {"not_a_number": 5, "too_large": 2, "negative": 1}
    values = [value for each in merged.values() for value in each.values.values()]
    assert {*map(type, values)} == {float}
    assert {type(at) for each in merged.values() for at in each.values} == {int}


def test_each_time_is_checked_although_the_one_before_was_the_same() -> None:
    queries = [MetricQuery(f"i-{k}", "cpu", (("InstanceId", f"i-{k}"),)) for k in range(7)]
    columns: list[list[Any]] = [
        [300.0, 600.0],
        [300, 900.0],
        [300.0, 601.0],
        [True, 600.0],
        ["1970-01-01T00:05:00Z", math.inf],
        [600.0, 300.0],
        [300.0, 600.0],
    ]
    page = [
        {"Id": f"m{k}", "StatusCode": "Complete", "Timestamps": times, "Values": [1.5, 2.5]} for k, times in enumerate(columns)
    ]
    malformed = Malformed()

    merged = merge_pages(queries, [page], 300, 900, 300, METRICS, malformed)

    assert [each.values for each in merged.values()] == [
        {300: 1.5, 600: 2.5},
        {300: 1.5},
        {300: 1.5},
        {600: 2.5},
        {300: 1.5},
        {600: 1.5, 300: 2.5},
        {300: 1.5, 600: 2.5},
    ]
    assert malformed == {"timestamp": 3}


def test_results_whose_values_do_not_match_their_times_are_failed_and_cost_no_other() -> None:
    short = {**result("m0", t300=2.0), "Values": [2.0, 3.0]}
    malformed = Malformed()

    merged = merge_pages(
        [CPU, MEMORY], [[result("m0", t0=1.0)], [short, result("m1", t0=1.0)]], 0, 600, 300, METRICS, malformed
    )

    assert [(each.outcome, each.values) for each in merged.values()] == [("failed", {}), ("ok", {0: 1.0})]
    assert malformed == {"length": 1}


def test_queries_as_json_are_what_any_writer_makes_of_them() -> None:
    odd = MetricQuery("i-0a", "memory", (("Größe", 'a"\\\n'), ("half", "\ud800")))
    account = MetricQuery("i-0b", "cpu", (("InstanceId", "i-0b"),), "012345678901")
    for queries in ([CPU, MEMORY], [CPU, odd], [account, CPU], [MetricQuery("i-0c", "memory", ())]):
        for linked in (False, True):
            built = build_queries(queries, 300, METRICS, linked=linked)
            assert json.loads(queries_as_json(queries, 300, METRICS, linked=linked)) == built


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        pytest.param('[1,{"a":2.5}],"NextToken":"t"', {RESULTS: [1, {"a": 2.5}], "NextToken": "t"}, id="JSON"),
        pytest.param("[Infinity," + "9" * 5000 + "]", {RESULTS: [math.inf, math.inf]}, id="more than JSON"),
        pytest.param('["\\ud800"]', {RESULTS: ["\ud800"]}, id="half a surrogate pair"),
        pytest.param('{},"NextToken":3', {}, id="other types"),
        pytest.param("[" * 100_000, {}, id="too deep"),
    ],
)
def test_a_body_is_parsed_in_place_of_botocore(text: str, parsed: dict[str, Any]) -> None:
    response: dict[str, Any] = {"status_code": 200, "body": f'{{"{RESULTS}":{text}}}'.encode()}
    found: dict[str, Any] = {}
    parse_body(response, found, "before-parse.cloudwatch.GetMetricData")
    assert found == parsed
    assert response["body"] == b"{}"


@pytest.mark.parametrize("body", [b"", b'{"MetricDataResults":[', b"<html>", b'{"a": "\xff"}'])
def test_a_body_that_is_no_json_is_left_to_botocore(body: bytes) -> None:
    response: dict[str, Any] = {"status_code": 200, "body": body}
    found: dict[str, Any] = {}
    parse_body(response, found, "before-parse.cloudwatch.GetMetricData")
    assert (response["body"], found) == (body, {})


@pytest.mark.parametrize(
    ("count", "start", "end", "period", "message"),
    [
        (0, 0, 300, 300, "0 queries"),
        (501, 0, 300, 300, "501 queries"),
        (500, 0, 202 * 300, 300, "101000 datapoints"),
        (1, 10, 310, 300, "not a window of whole periods"),
        (1, 300, 610, 300, "not a window of whole periods"),
        (1, 300, 300, 300, "not a window of whole periods"),
    ],
)
def test_a_call_beyond_the_limits_is_refused(count: int, start: int, end: int, period: int, message: str) -> None:
    queries = [MetricQuery(f"i-{k:x}", "cpu", (("InstanceId", f"i-{k:x}"),)) for k in range(count)]

    with pytest.raises(ValueError, match=message):
        check_limits(queries, start, end, period)


def test_the_largest_call_of_cloudwatch_is_allowed() -> None:
    queries = [MetricQuery(f"i-{k:x}", "cpu", (("InstanceId", f"i-{k:x}"),)) for k in range(480)]

    check_limits(queries, 0, 210 * 300, 300)  # 100,800 datapoints


def test_the_same_query_twice_in_a_call_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        check_limits([CPU, CPU], 0, 300, 300)


def test_listed_series_have_the_instance_in_its_dimension_and_all_further_dimensions() -> None:
    def listed(**names: str) -> dict[str, Any]:
        return {"Dimensions": [{"Name": name, "Value": value} for name, value in names.items()]}

    metric = CloudWatchMetric("CWAgent", "disk", "host", further=(("fstype", "ext4"), ("path", "/")))
    whole = listed(host="i-0a", path="/", fstype="ext4", device="xvda")
    others = [listed(host="i-0a", path="/", fstype="xfs"), listed(host="i-0a", path="/"), listed(path="/", fstype="ext4")]
    malformed = Malformed()
    assert series_by_instance([*others, whole, whole], metric, malformed) == {
        "i-0a": ((("host", "i-0a"), ("path", "/"), ("fstype", "ext4"), ("device", "xvda")),)
    }
    assert not malformed


def test_listed_series_share_the_texts_of_their_dimensions() -> None:
    body = json.dumps({"Dimensions": [{"Name": "InstanceId", "Value": "i-1"}, {"Name": "ImageId", "Value": "ami-1"}]})
    metric = CloudWatchMetric("CWAgent", "mem_used_percent", "InstanceId")
    (first,), (second,) = (series_by_instance([json.loads(body)], metric, Malformed())["i-1"] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one[0] is other[0]
        assert one[1] is other[1]

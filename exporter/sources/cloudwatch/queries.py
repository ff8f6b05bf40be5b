"""Build GetMetricData queries and merge the pages of the answer. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exporter.core.model import Dimensions, MetricName, MetricQuery, MetricResult, Outcome

MAX_QUERIES = 500
MAX_DATAPOINTS = 100_800

_NAMES: Mapping[MetricName, tuple[str, str]] = {
    "cpu": ("AWS/EC2", "CPUUtilization"),
    "memory": ("CWAgent", "mem_used_percent"),
}


# Pure: queries, pages, dimension sets


def build_queries(queries: Sequence[MetricQuery], period: int) -> list[dict[str, Any]]:
    """Write MetricDataQueries for the Average per `period` seconds; the n-th query gets the Id m<n>."""
    return [
        {
            "Id": f"m{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": _NAMES[query.metric][0],
                    "MetricName": _NAMES[query.metric][1],
                    "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions],
                },
                "Period": period,
                "Stat": "Average",
            },
        }
        for number, query in enumerate(queries)
    ]


def merge_pages(
    queries: Sequence[MetricQuery], pages: Iterable[Sequence[Mapping[str, Any]]], start: int, end: int
) -> dict[MetricQuery, MetricResult]:
    """Merge the MetricDataResults of all pages into one answer for each query about [start, end).

    A result may go on over several pages; its last StatusCode decides: Complete → ok or empty, PartialData → partial, anything
    else and a query that no page mentions → failed. Values that are not finite or lie outside the window are dropped.

    Args:
        queries: as they were given to `build_queries`.
        pages: one sequence of results a page, their Timestamps in UTC seconds.
        start: first second of the window.
        end: the second after the window.
    """
    statuses: dict[str, str] = {}
    values: dict[str, dict[int, float]] = {}
    for page in pages:
        for result in page:
            statuses[result["Id"]] = result.get("StatusCode", "InternalError")
            points = zip(result.get("Timestamps", ()), result.get("Values", ()), strict=False)
            values.setdefault(result["Id"], {}).update(
                (int(at), float(value)) for at, value in points if start <= at < end and math.isfinite(value)
            )
    answers = {}
    for number, query in enumerate(queries):
        found = values.get(f"m{number}", {})
        answers[query] = MetricResult(_outcome(statuses.get(f"m{number}"), found), start, end, found)
    return answers


def _outcome(status: str | None, values: Mapping[int, float]) -> Outcome:
    if status == "Complete":
        return "ok" if values else "empty"
    return "partial" if status == "PartialData" else "failed"


def check_limits(queries: Sequence[MetricQuery], start: int, end: int, period: int) -> None:
    """Refuse what one GetMetricData call cannot answer.

    CloudWatch rounds a start time silently, hence the aligned window.

    Raises:
        ValueError: no query, more than 500, one twice, more than 100,800 datapoints, or a window that is empty or not aligned.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"{len(queries)} queries; a call takes 1 to {MAX_QUERIES}")
    if len(set(queries)) < len(queries):
        raise ValueError("the same query twice in one call; AWS would bill both")
    if start >= end or start % period or end % period:
        raise ValueError(f"[{start}, {end}) is not a window of whole periods of {period} s")
    if (points := len(queries) * ((end - start) // period)) > MAX_DATAPOINTS:
        raise ValueError(f"{points} datapoints; a call answers at most {MAX_DATAPOINTS}")


def instance_queries(instance_id: str, series: Iterable[Dimensions] = ()) -> tuple[MetricQuery, ...]:
    """Return what an instance is asked for: its CPU, and its memory under each of these dimension sets."""
    cpu = MetricQuery(instance_id, "cpu", (("InstanceId", instance_id),))
    return cpu, *(MetricQuery(instance_id, "memory", dimensions) for dimensions in series)


def _by_instance(metrics: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Dimensions, ...]]:
    """Group listed metrics by InstanceId, each set once; metrics without an instance are not ours."""
    found: dict[str, dict[Dimensions, None]] = {}
    for metric in metrics:
        dimensions = tuple((each["Name"], each["Value"]) for each in metric.get("Dimensions", ()))
        instance = dict(dimensions).get("InstanceId")
        if instance:
            found.setdefault(instance, {})[dimensions] = None
    return {instance: tuple(sets) for instance, sets in found.items()}

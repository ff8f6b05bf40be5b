"""Build GetMetricData queries, check their limits and merge the pages of the answer. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exporter.core.model import Dimensions, MetricName, MetricQuery, MetricResult, Outcome

MAX_QUERIES = 500
"""Queries of one GetMetricData call."""
MAX_DATAPOINTS = 100_800
"""Datapoints of one GetMetricData call."""

METRIC_NAMES: Mapping[MetricName, tuple[str, str]] = {
    "cpu": ("AWS/EC2", "CPUUtilization"),
    "memory": ("CWAgent", "mem_used_percent"),
}
"""CloudWatch's namespace and name of each metric."""


def is_account_id(account: str | None) -> bool:
    """Return whether the account of a query is known by its id: twelve digits."""
    return account is not None and len(account) == 12 and account.isdecimal()


def build_queries(queries: Sequence[MetricQuery], period: int, *, linked: bool = False) -> list[dict[str, Any]]:
    """Return MetricDataQueries for the Average per `period` seconds; the n-th query has the Id m<n>.

    Args:
        queries: 1 to 500.
        period: seconds.
        linked: the call goes to a monitoring account, so each query names the account that has its metric.
    """
    return [
        {
            "Id": f"m{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": METRIC_NAMES[query.metric][0],
                    "MetricName": METRIC_NAMES[query.metric][1],
                    "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions],
                },
                "Period": period,
                "Stat": "Average",
            },
            **({"AccountId": query.account} if linked and is_account_id(query.account) else {}),
        }
        for number, query in enumerate(queries)
    ]


def merge_pages(
    queries: Sequence[MetricQuery], pages: Iterable[Sequence[Mapping[str, Any]]], start: int, end: int
) -> dict[MetricQuery, MetricResult]:
    """Merge the MetricDataResults of all pages into one result per query for [start, end).

    A result may span several pages; its last StatusCode decides: Complete → ok or empty, PartialData → partial, any other
    status, or a query that no page mentions → failed. Values that are not finite or lie outside the window are dropped.

    Args:
        queries: the queries that were passed to `build_queries`.
        pages: the results of each page, with Timestamps in UTC seconds.
        start: first UTC second of the window.
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
    merged = {}
    for number, query in enumerate(queries):
        found = values.get(f"m{number}", {})
        merged[query] = MetricResult(_outcome(statuses.get(f"m{number}"), found), start, end, found)
    return merged


def _outcome(status: str | None, values: Mapping[int, float]) -> Outcome:
    if status == "Complete":
        return "ok" if values else "empty"
    return "partial" if status == "PartialData" else "failed"


def check_limits(queries: Sequence[MetricQuery], start: int, end: int, period: int) -> None:
    """Refuse queries that one GetMetricData call cannot answer.

    The window must be aligned, because CloudWatch silently rounds a start time.

    Raises:
        ValueError: no query, more than 500, a duplicate, more than 100,800 datapoints, or a window that is empty or unaligned.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"{len(queries)} queries; a call takes 1 to {MAX_QUERIES}")
    if len(set(queries)) < len(queries):
        raise ValueError("the same query twice in one call; AWS would bill both")
    if start >= end or start % period or end % period:
        raise ValueError(f"[{start}, {end}) is not a window of whole periods of {period} s")
    if (points := len(queries) * ((end - start) // period)) > MAX_DATAPOINTS:
        raise ValueError(f"{points} datapoints; a call returns at most {MAX_DATAPOINTS}")


def instance_queries(instance_id: str, series: Iterable[Dimensions] = (), account: str | None = "") -> tuple[MetricQuery, ...]:
    """Return the queries of an instance in an account: its CPU, and its memory under each of these dimension sets."""
    cpu = MetricQuery(instance_id, "cpu", (("InstanceId", instance_id),), account)
    return cpu, *(MetricQuery(instance_id, "memory", dimensions, account) for dimensions in series)


def series_by_instance(metrics: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Dimensions, ...]]:
    """Return the dimension sets of listed metrics by InstanceId, each once; skip metrics without an InstanceId."""
    found: dict[str, dict[Dimensions, None]] = {}
    for metric in metrics:
        dimensions = tuple((each["Name"], each["Value"]) for each in metric.get("Dimensions", ()))
        instance = dict(dimensions).get("InstanceId")
        if instance:
            found.setdefault(instance, {})[dimensions] = None
    return {instance: tuple(sets) for instance, sets in found.items()}


def owners(metrics: Iterable[Mapping[str, Any]], accounts: Iterable[str]) -> dict[str, str]:
    """Return the account of each instance from ListMetrics in a monitoring account; `accounts` has one for each metric."""
    found: dict[str, str] = {}
    for metric, account in zip(metrics, accounts, strict=False):
        for instance in series_by_instance([metric]):
            found.setdefault(instance, account)
    return found

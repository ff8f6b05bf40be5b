"""Build GetMetricData queries, check their limits and merge the pages of the answer. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from exporter.core.model import Dimensions, MetricQuery, MetricResult, Outcome
from exporter.core.settings import CloudWatchSettings
from exporter.sources.cloudwatch.answers import LARGEST_VALUE, Malformed, Window, dimensions, result_id

MAX_QUERIES = 500
"""Queries of one GetMetricData call."""
MAX_DATAPOINTS = 100_800
"""Datapoints of one GetMetricData call."""
_IDS = tuple(f"m{number}" for number in range(MAX_QUERIES))
"""The Id of each query of a call."""


@dataclass(frozen=True, slots=True)
class CloudWatchMetric:
    """What CloudWatch calls a metric, and how it is queried."""

    namespace: str
    name: str
    dimension: str = "InstanceId"
    """Dimension whose value is the instance id."""
    statistic: str = "Average"
    further: Dimensions = ()
    """Further dimensions that a series must have."""
    limits: tuple[float, float] = (0, 100)
    """The lowest and the highest value that counts; others are malformed."""


CloudWatchMetrics = Mapping[str, CloudWatchMetric]
"""By the `metric` of a query: "cpu", "memory", and the names of `cloudwatch.extra`."""


def cloudwatch_metrics(settings: CloudWatchSettings) -> CloudWatchMetrics:
    """Return what CloudWatch calls each metric that the settings name."""
    memory = settings.memory
    return {
        "cpu": CloudWatchMetric("AWS/EC2", "CPUUtilization"),
        "memory": CloudWatchMetric(memory.namespace, memory.metric, memory.dimension),
        **{
            each.name: CloudWatchMetric(
                each.namespace,
                each.metric,
                each.dimension,
                each.statistic,
                tuple(sorted(each.dimensions.items())),
                (-LARGEST_VALUE if each.unit == "none" else 0, LARGEST_VALUE),
            )
            for each in settings.extra
        },
    }


def is_account_id(account: str | None) -> bool:
    """Return whether the account of a query is known by its id: twelve digits."""
    return account is not None and len(account) == 12 and account.isdecimal()


def build_queries(
    queries: Sequence[MetricQuery], period: int, metrics: CloudWatchMetrics, *, linked: bool = False
) -> list[dict[str, Any]]:
    """Return MetricDataQueries for the statistic per `period` seconds; the n-th query has the Id m<n>.

    Args:
        queries: 1 to 500.
        period: seconds.
        metrics: what CloudWatch calls each metric.
        linked: the call goes to a monitoring account, so each query names the account that has its metric.
    """
    stats = {name: (each.namespace, each.name, {"Period": period, "Stat": each.statistic}) for name, each in metrics.items()}
    built = []
    for id_, query in zip(_IDS, queries, strict=False):
        namespace, name, stat = stats[query.metric]
        pairs = [{"Name": key, "Value": value} for key, value in query.dimensions]
        metric = {"Namespace": namespace, "MetricName": name, "Dimensions": pairs}
        one: dict[str, Any] = {"Id": id_, "MetricStat": {"Metric": metric, **stat}}
        if linked and is_account_id(query.account):
            one["AccountId"] = query.account
        built.append(one)
    return built


def queries_as_json(queries: Sequence[MetricQuery], period: int, metrics: CloudWatchMetrics, *, linked: bool = False) -> bytes:
    """Return what `build_queries` does as JSON, as the body of a request has it; the arguments are the same.

    It is put together as text: most of a fleet's dimensions are the same, and a query is half a dozen dicts else.
    """
    frames = {}
    for name, each in metrics.items():
        metric = f'"Namespace":{_json(each.namespace)},"MetricName":{_json(each.name)},"Dimensions":['
        frames[name] = f'"MetricStat":{{"Metric":{{{metric}', f']}},"Period":{period},"Stat":{_json(each.statistic)}}}}}'
    pairs: dict[tuple[str, str], str] = {}
    built = []
    for id_, query in zip(_IDS, queries, strict=False):
        texts = []
        for pair in query.dimensions:
            text = pairs.get(pair)
            if text is None:
                text = pairs[pair] = f'{{"Name":{_json(pair[0])},"Value":{_json(pair[1])}}}'
            texts.append(text)
        begin, end = frames[query.metric]
        account = f'"AccountId":"{query.account}",' if linked and is_account_id(query.account) else ""
        built.append(f'{{"Id":"{id_}",{account}{begin}{",".join(texts)}{end}')
    return f"[{','.join(built)}]".encode()


def _json(text: str) -> str:
    try:
        return orjson.dumps(text).decode()
    except TypeError:  # a text that is not Unicode, such as half of a surrogate pair; CloudWatch may refuse it, this does not
        return json.dumps(text)


def merge_pages(
    queries: Sequence[MetricQuery],
    pages: Iterable[Iterable[Any]],
    start: int,
    end: int,
    period: int,
    metrics: CloudWatchMetrics,
    malformed: Malformed,
) -> dict[MetricQuery, MetricResult]:
    """Merge the MetricDataResults of all pages into one result per query for [start, end).

    A result may span several pages; its last StatusCode decides: Complete → ok or empty, PartialData → partial, any other
    status, a query that no page mentions, or one whose values do not match their times → failed. Malformed datapoints, and
    those outside the window, are dropped.

    Args:
        queries: the queries that were passed to `build_queries`.
        pages: the results of each page, as CloudWatch sent them.
        start: first UTC second of the window.
        end: the second after the window.
        period: seconds.
        metrics: what was queried.
        malformed: counts what is dropped.
    """
    by_id = dict(zip(_IDS, queries, strict=False))
    limits = {name: metric.limits for name, metric in metrics.items()}
    window = Window(start, end, period, malformed)
    statuses: dict[str, object] = {}
    values: dict[str, dict[int, float]] = {}
    unmatched: set[str] = set()
    for page in pages:
        for result in page:
            id_ = result_id(result, by_id, malformed)
            if id_ is None:
                continue
            statuses[id_] = result.get("StatusCode")
            found = window.datapoints(result, limits[by_id[id_].metric])
            if found is None:
                unmatched.add(id_)
            elif id_ in values:
                values[id_].update(found)
            else:
                values[id_] = found
    for id_ in unmatched:
        del statuses[id_]
        values.pop(id_, None)
    merged = {}
    for id_, query in by_id.items():
        found = values.get(id_, {})
        merged[query] = MetricResult(_outcome(statuses.get(id_), found), start, end, found)
    return merged


def _outcome(status: object, values: Mapping[int, float]) -> Outcome:
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


def series_by_instance(
    listed: Iterable[object], metric: CloudWatchMetric, malformed: Malformed
) -> dict[str, tuple[Dimensions, ...]]:
    """Return the dimension sets of a listed metric by instance, each once, that have it and the further dimensions.

    Args:
        listed: the elements of ListMetrics, as CloudWatch sent them.
        metric: what was listed.
        malformed: counts what is dropped.
    """
    found: dict[str, dict[Dimensions, None]] = {}
    for each in listed:
        pairs = dimensions(each, malformed)
        instance = dict(pairs).get(metric.dimension)
        if instance and {*metric.further} <= {*pairs}:
            found.setdefault(instance, {})[pairs] = None
    return {instance: tuple(sets) for instance, sets in found.items()}


def owners(
    pages: Iterable[tuple[Sequence[object], Sequence[object]]], metric: CloudWatchMetric, malformed: Malformed
) -> dict[str, str]:
    """Return the account of each instance from ListMetrics in a monitoring account; without one where that is malformed.

    Args:
        pages: the elements of each page, as CloudWatch sent them, and an account for each, or none at all.
        metric: what was listed.
        malformed: counts the accounts that are dropped.
    """
    found: dict[str, str] = {}
    for listed, accounts in pages:
        if not accounts:
            continue
        for each, account in zip_longest(listed, accounts[: len(listed)]):
            if not isinstance(account, str) or not account:
                malformed["listed_metric"] += 1
                continue
            for instance in series_by_instance([each], metric, Malformed()):  # counted where the series are read
                found.setdefault(instance, account)
    return found

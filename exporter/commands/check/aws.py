"""The AWS part of `check`: identity, and one CloudWatch call per region."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry

from exporter.commands.check.finding import CheckResult, counted, first_few, shortened, skipped
from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.errors import RejectedQueryError, SourceError
from exporter.core.metric_settings import CloudWatchGauge, MemoryMetric
from exporter.core.model import Fleet, Listing, MetricResult, Worker
from exporter.core.periods import align, format_duration, rfc3339
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.queries import instance_queries

T = TypeVar("T")
IDENTITY, CPU, MEMORY, EXTRA = "AWS identity", "CloudWatch CPU", "CloudWatch memory", "CloudWatch extra"

CALL_SECONDS = 30.0
"""The limit for each AWS call: shorter than that of `serve`, since an operator waits for the table."""
_LOOKBACK_SECONDS = 1800  # basic monitoring publishes every 5 minutes, so half an hour of a running instance is never empty


async def check_aws(settings: Settings, fleet: Fleet | None, wall: Callable[[], float]) -> list[CheckResult]:
    """Check identity, GetMetricData and ListMetrics in every region of the workers, all regions at once.

    Args:
        settings: of the exporter.
        fleet: the workers, None where they could not be read.
        wall: UTC seconds.
    """
    checks = (IDENTITY, CPU, MEMORY)
    if not settings.cloudwatch.enabled:
        text = "cloudwatch.enabled is false: the values of the worker documents are used"
        return [CheckResult(check, "skipped", text) for check in checks]
    if fleet is None:
        return skipped(checks, "the workers, and so their regions, could not be read")
    regions = sorted({worker.region for worker in fleet.workers if worker.region})
    if not regions:
        reason = "no worker document has a region" if fleet.workers else "without workers no region is known"
        return [CheckResult(check, "warn", f"not queried: {reason}") for check in checks]
    cloudwatch = CloudWatch(settings, Telemetry(CollectorRegistry()), wall=wall, deadline=CALL_SECONDS)
    try:
        by_region = (_check_region(cloudwatch, region, fleet.workers, settings, wall) for region in regions)
        reports = await asyncio.gather(*by_region)
    finally:
        await cloudwatch.close()
    return [*_identities(reports), *(result for report in reports for result in (report.cpu, report.memory, *report.extra))]


@dataclass(frozen=True, slots=True)
class _Report:
    """What was found in one region."""

    region: str
    identity: str | SourceError
    cpu: CheckResult
    memory: CheckResult
    extra: Sequence[CheckResult] = ()
    """One row for each metric of `cloudwatch.extra` that is listed."""


async def _check_region(
    cloudwatch: CloudWatch, region: str, fleet: Iterable[Worker], settings: Settings, wall: Callable[[], float]
) -> _Report:
    workers = [worker for worker in fleet if worker.region == region]
    identity = await _or_error(cloudwatch.identity(region))
    cpu = await _check_cpu(cloudwatch, region, workers, settings.period, wall)
    listing = await _or_error(cloudwatch.list_memory(region, recent=True))
    memory = _check_memory(region, workers, listing, settings.cloudwatch.memory)
    if isinstance(identity, SourceError):
        cpu, memory = [_unless_repeated(result, str(identity)) for result in (cpu, memory)]
    listed = [gauge for gauge in settings.cloudwatch.extra if gauge.listed]
    extra = [
        _check_extra(region, workers, gauge, await _or_error(cloudwatch.list_metric(region, gauge.name, recent=True)))
        for gauge in listed
    ]
    return _Report(region, identity, cpu, memory, extra)


async def _or_error(call: Awaitable[T]) -> T | SourceError:
    try:
        return await call
    except SourceError as error:
        return error


def _unless_repeated(result: CheckResult, identity_error: str) -> CheckResult:
    """Skip a result that repeats the identity's error: credentials that AWS refuses are refused for every action."""
    return CheckResult(result.check, "skipped", f"because {IDENTITY} failed") if result.text == identity_error else result


def _identities(reports: Sequence[_Report]) -> Iterator[CheckResult]:
    """Yield one row for each identity with its regions, and one for each region where it is unknown."""
    known: dict[str, list[str]] = {}
    for report in reports:
        if isinstance(report.identity, str):
            known.setdefault(report.identity, []).append(report.region)
        elif report.cpu.status in ("ok", "warn") and report.memory.status in ("ok", "warn"):
            text = f"{report.identity}; CloudWatch itself answers, so the exporter works without STS"
            yield CheckResult(f"{IDENTITY}, {report.region}", "warn", text)
        else:
            yield CheckResult(f"{IDENTITY}, {report.region}", "FAIL", str(report.identity))
    for arn, regions in known.items():
        yield CheckResult(IDENTITY, "ok", f"{arn} in {', '.join(regions)}")


async def _check_cpu(
    cloudwatch: CloudWatch, region: str, workers: Collection[Worker], period: int, wall: Callable[[], float]
) -> CheckResult:
    """Query one metric of one worker, a running one if there is any."""
    check = f"{CPU}, {region}"
    worker = min((w for w in workers if w.instance_id), key=lambda w: w.status != "running", default=None)
    if worker is None or worker.instance_id is None:
        return CheckResult(check, "skipped", "not queried: no worker of this region names its instance")
    end = align(int(wall()), period)
    start = end - max(6 * period, align(_LOOKBACK_SECONDS, period))
    (query,) = instance_queries(worker.instance_id)
    results = await _or_error(cloudwatch.get_metric_data(region, [query], start, end, period))
    if isinstance(results, RejectedQueryError):
        return CheckResult(check, "warn", f"{results}; the other workers are not affected")
    if isinstance(results, SourceError):
        return CheckResult(check, "FAIL", str(results))
    return _interpret(check, worker, results.by_query[query], period)


def _interpret(check: str, worker: Worker, found: MetricResult, period: int) -> CheckResult:
    """Return what the result of the query means; the price is in it because no other check costs anything."""
    price = f"this check queried 1 metric: {DOLLARS_PER_METRIC:.5f} dollars"
    name = f"{shortened(worker.name or worker.id)} ({worker.instance_id})"
    if not found.complete:
        text = f"GetMetricData answered only in part; run check again, serve queries again in its next cycle ({price})"
        return CheckResult(check, "warn", text)
    if found.values:
        newest = max(found.values)
        value = f"{found.values[newest]:.1f} % in the period ending {rfc3339(newest + period)}"
        return CheckResult(check, "ok", f"GetMetricData works: {name} had {value} ({price})")
    if worker.status != "running":
        return CheckResult(check, "ok", f"GetMetricData works: {name} is {worker.status}, so it has no datapoint ({price})")
    window = format_duration(found.end - found.start)
    text = (
        f"GetMetricData works, but {name} is running and has no datapoint in the last {window}; "
        f"check that instance, region and AWS account belong together ({price})"
    )
    return CheckResult(check, "warn", text)


def _check_memory(
    region: str, workers: Collection[Worker], listing: Listing | SourceError, metric: MemoryMetric
) -> CheckResult:
    """Compare the running workers with the memory series of the last three hours."""
    check = f"{MEMORY}, {region}"
    if isinstance(listing, SourceError):
        return CheckResult(check, "FAIL", str(listing))
    running = [worker for worker in workers if worker.status == "running" and worker.instance_id]
    without = [worker for worker in running if worker.instance_id not in listing.series]
    text = (
        f"ListMetrics works: {counted(len(listing.series), 'instance')} with {metric.words} in the last 3 h, "
        f"{len(running) - len(without)} of {counted(len(running), 'running worker')} among them"
    )
    if without:
        names = first_few([f"{shortened(worker.name or worker.id)} ({worker.instance_id})" for worker in without])
        text += f"; no memory for {', '.join(names)}: install or start the CloudWatch agent there"
        text += ", or set cloudwatch.memory to the metric that it publishes"
    return CheckResult(check, "warn" if without else "ok", text)


def _check_extra(
    region: str, workers: Collection[Worker], gauge: CloudWatchGauge, listing: Listing | SourceError
) -> CheckResult:
    """Tell of how many running workers ListMetrics has a metric of `cloudwatch.extra`, and of how many more than one series."""
    check = f"{EXTRA} {gauge.name}, {region}"
    if isinstance(listing, SourceError):
        return CheckResult(check, "FAIL", str(listing))
    running = [worker for worker in workers if worker.status == "running" and worker.instance_id]
    found = [sets for worker in running if (sets := listing.series.get(worker.instance_id or ""))]
    text = f"{gauge.namespace} {gauge.metric} is listed for {len(found)} of {counted(len(running), 'running worker')}"
    several = next((sets for sets in found if len(sets) > 1), None)
    if several:
        names = " and ".join(", ".join(f"{name}={value}" for name, value in sorted(each)) for each in several[:2])
        return CheckResult(check, "warn", f"{text}, some with several series, such as {names}; tell them apart by dimensions")
    if running and not found:
        return CheckResult(check, "warn", f"{text}; compare namespace, metric, dimension and dimensions with what is published")
    return CheckResult(check, "ok", text)

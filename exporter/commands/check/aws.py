"""The AWS part of `check`: identity, and one CloudWatch call per region."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry

from exporter.commands.check.result import CheckResult, counted, first_few, shortened, skipped
from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.errors import SourceError
from exporter.core.model import Fleet, Listing, MetricResult, Worker
from exporter.core.periods import align, format_duration, rfc3339
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.queries import instance_queries

T = TypeVar("T")
IDENTITY, CPU, MEMORY = "AWS identity", "CloudWatch CPU", "CloudWatch memory"

CALL_DEADLINE_SECONDS = 30.0
"""Seconds for each AWS call; less than in `serve`, because the operator waits for the result."""
_LOOKBACK_SECONDS = 1800  # basic monitoring publishes every 5 minutes, so half an hour of a running instance is never empty


async def check_aws(settings: Settings, fleet: Fleet | None, wall: Callable[[], float]) -> list[CheckResult]:
    """Check identity, GetMetricData and ListMetrics in every region of the workers, all regions at once."""
    rows = (IDENTITY, CPU, MEMORY)
    if not settings.cloudwatch.enabled:
        return [
            CheckResult(row, "skipped", "cloudwatch.enabled is false: the values in the worker documents are used")
            for row in rows
        ]
    if fleet is None:
        return skipped(rows, "the workers, and so their regions, could not be read")
    regions = sorted({worker.region for worker in fleet.workers})
    if not regions:
        return [CheckResult(row, "warn", "not queried: without workers no region is known") for row in rows]
    cloudwatch = CloudWatch(settings, Telemetry(CollectorRegistry()), wall=wall, deadline=CALL_DEADLINE_SECONDS)
    try:
        checks = (_region(cloudwatch, region, fleet.workers, settings.period, wall) for region in regions)
        reports = await asyncio.gather(*checks)
    finally:
        await cloudwatch.close()
    return [*_identities(reports), *(finding for report in reports for finding in (report.cpu, report.memory))]


@dataclass(frozen=True, slots=True)
class _Report:
    """The results of one region."""

    region: str
    identity: str | SourceError
    cpu: CheckResult
    memory: CheckResult


async def _region(
    cloudwatch: CloudWatch, region: str, fleet: Iterable[Worker], period: int, wall: Callable[[], float]
) -> _Report:
    workers = [worker for worker in fleet if worker.region == region]
    identity = await _attempt(cloudwatch.identity(region))
    cpu = await _cpu(cloudwatch, region, workers, period, wall)
    memory = _memory(region, workers, await _attempt(cloudwatch.list_memory(region, recent=True)))
    if isinstance(identity, SourceError):
        cpu, memory = [_skip_repeated(finding, str(identity)) for finding in (cpu, memory)]
    return _Report(region, identity, cpu, memory)


async def _attempt(call: Awaitable[T]) -> T | SourceError:
    try:
        return await call
    except SourceError as error:
        return error


def _skip_repeated(finding: CheckResult, told: str) -> CheckResult:
    """Skip a row whose failure is that of the identity: refused credentials are reported once."""
    return CheckResult(finding.what, "skipped", f"because {IDENTITY} failed") if finding.text == told else finding


def _identities(reports: Sequence[_Report]) -> Iterator[CheckResult]:
    """Yield one row for each identity with its regions, and one for each region where it is unknown."""
    known: dict[str, list[str]] = {}
    for report in reports:
        if isinstance(report.identity, str):
            known.setdefault(report.identity, []).append(report.region)
        elif report.cpu.result in ("ok", "warn") and report.memory.result in ("ok", "warn"):
            text = f"{report.identity}; CloudWatch answers, so the exporter works without STS"
            yield CheckResult(f"{IDENTITY}, {report.region}", "warn", text)
        else:
            yield CheckResult(f"{IDENTITY}, {report.region}", "FAIL", str(report.identity))
    for arn, regions in known.items():
        yield CheckResult(IDENTITY, "ok", f"{arn} in {', '.join(regions)}")


async def _cpu(
    cloudwatch: CloudWatch, region: str, workers: Collection[Worker], period: int, wall: Callable[[], float]
) -> CheckResult:
    """Query one metric of one worker, of a running one if there is any."""
    what = f"{CPU}, {region}"
    worker = min((w for w in workers if w.instance_id), key=lambda w: w.status != "running", default=None)
    if worker is None or worker.instance_id is None:
        return CheckResult(what, "skipped", "not queried: no worker of this region has an instance")
    end = align(int(wall()), period)
    start = end - max(6 * period, align(_LOOKBACK_SECONDS, period))
    (query,) = instance_queries(worker.instance_id)
    results = await _attempt(cloudwatch.get_metric_data(region, [query], start, end, period))
    if isinstance(results, SourceError):
        return CheckResult(what, "FAIL", str(results))
    if worker.instance_id in cloudwatch.malformed:
        text = f"CloudWatch rejects {worker.instance_id!r} of {shortened(worker.name or worker.id)} as an instance id; "
        return CheckResult(what, "warn", text + "correct the worker document; the other workers are not affected")
    return _cpu_result(what, worker, results.by_query[query], period)


def _cpu_result(what: str, worker: Worker, result: MetricResult, period: int) -> CheckResult:
    """Word the result of the one query, with its price: no other check costs anything."""
    price = f"this check queried 1 metric: {DOLLARS_PER_METRIC:.5f} dollars"
    name = f"{shortened(worker.name or worker.id)} ({worker.instance_id})"
    if not result.complete:
        return CheckResult(
            what, "warn", f"GetMetricData answered only in part; run check again; serve queries it again by itself ({price})"
        )
    if result.values:
        newest = max(result.values)
        value = f"{result.values[newest]:.1f} % in the period ending {rfc3339(newest + period)}"
        return CheckResult(what, "ok", f"GetMetricData works: {name} had {value} ({price})")
    if worker.status != "running":
        return CheckResult(what, "ok", f"GetMetricData works: {name} is {worker.status}, so it has no datapoint ({price})")
    window = format_duration(result.end - result.start)
    text = (
        f"GetMetricData works, but {name} is running and has no datapoint in the last {window}; "
        f"check that instance, region and AWS account belong together ({price})"
    )
    return CheckResult(what, "warn", text)


def _memory(region: str, workers: Collection[Worker], listing: Listing | SourceError) -> CheckResult:
    """Compare the running workers with the memory series of the last three hours."""
    what = f"{MEMORY}, {region}"
    if isinstance(listing, SourceError):
        return CheckResult(what, "FAIL", str(listing))
    running = [worker for worker in workers if worker.status == "running" and worker.instance_id]
    without = [worker for worker in running if worker.instance_id not in listing.series]
    text = (
        f"ListMetrics works: {counted(len(listing.series), 'instance')} with mem_used_percent in the last 3 h, "
        f"{len(running) - len(without)} of {counted(len(running), 'running worker')} among them"
    )
    if without:
        names = first_few([f"{shortened(worker.name or worker.id)} ({worker.instance_id})" for worker in without])
        text += f"; no memory for {', '.join(names)}: install or start the CloudWatch agent there"
    return CheckResult(what, "warn" if without else "ok", text)

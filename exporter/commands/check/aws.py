"""The AWS part of `check`: identity, and one CloudWatch call per region."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from exporter.sources.cloudwatch.accounts import Access
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.default_region import default_region
from exporter.sources.cloudwatch.errors import PartialListingError
from exporter.sources.cloudwatch.queries import instance_queries

T = TypeVar("T")
IDENTITY, ACCOUNTS, CPU, MEMORY = "AWS identity", "AWS accounts", "CloudWatch CPU", "CloudWatch memory"
EXTRA = "CloudWatch extra"

CALL_SECONDS = 30.0
"""The limit for each AWS call: shorter than that of `serve`, since an operator waits for the table."""
FALLBACK_REGION = "us-east-1"
"""Where AWS is asked for the identity when no region is known."""
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
        return await _check_without_workers(settings, wall)
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
    return [*_identities(reports), *(result for report in reports for result in (*report.results, *report.extra))]


async def _check_without_workers(settings: Settings, wall: Callable[[], float]) -> list[CheckResult]:
    """Ask AWS for the identity, and list the memory metric, where MongoDB does not say which regions there are."""
    regions = _known_regions(settings)
    cloudwatch = CloudWatch(settings, Telemetry(CollectorRegistry()), wall=wall, deadline=CALL_SECONDS)
    try:
        by_region = (_check_region(cloudwatch, region, (), settings, wall) for region in regions or (FALLBACK_REGION,))
        reports = await asyncio.gather(*by_region)
    finally:
        await cloudwatch.close()
    rows = [*_identities(reports), *skipped((CPU,), "the workers could not be read")]
    if not regions:
        why = "the workers could not be read, and neither aws.roles, AWS_REGION nor the profile names a region"
        return [*rows, *skipped((MEMORY,), why)]
    return [*rows, *(row for report in reports for row in report.results if not row.check.startswith(CPU))]


def _known_regions(settings: Settings) -> list[str]:
    """Return the regions of the settings, else the one of AWS_REGION, AWS_DEFAULT_REGION, or the profile."""
    named = {str(region) for role in settings.aws.roles for region in role.regions}
    own = default_region()
    return sorted(named) or ([own] if own else [])


@dataclass(frozen=True, slots=True)
class _Report:
    """What was found in one region."""

    region: str
    identities: Mapping[Access, str | SourceError]
    results: Sequence[CheckResult]
    """Of CPU and memory."""
    extra: Sequence[CheckResult]
    """One row for each metric of `cloudwatch.extra` that is listed, and for each further account that does not answer."""


async def _check_region(
    cloudwatch: CloudWatch, region: str, fleet: Iterable[Worker], settings: Settings, wall: Callable[[], float]
) -> _Report:
    workers = [worker for worker in fleet if worker.region == region]
    accesses = cloudwatch.accesses(region)
    identities = {access: await _or_error(cloudwatch.identity(region, access)) for access in accesses}
    listing = await _or_error(cloudwatch.list_memory(region, recent=True))
    usable = listing.listing if isinstance(listing, PartialListingError) else listing
    results: list[CheckResult] = []
    if isinstance(usable, SourceError) or usable.account is not None:  # one account
        account = usable.account if isinstance(usable, Listing) else ""
        results.append(await _check_cpu(cloudwatch, region, f"{CPU}, {region}", workers, account, settings.period, wall))
    else:
        places = {access.account_id: access.name for access in accesses if access.account_id}
        for name, account, some in _by_account(workers, places, usable):
            check = f"{CPU}, {region}, account {name}"
            results.append(await _check_cpu(cloudwatch, region, check, some, account, settings.period, wall))
        results += _check_accounts(region, workers, usable, listing)
        workers = [worker for worker in workers if worker.instance_id and usable.account_of(worker.instance_id)]
    results.append(_check_memory(region, workers, usable, settings.cloudwatch.memory))
    errors = [str(identity) for identity in identities.values() if isinstance(identity, SourceError)]
    extra = await _check_extras(cloudwatch, region, workers, settings.cloudwatch.extra, listing)
    shown = [[_unless_repeated(result, errors) for result in rows] for rows in (results, extra)]
    return _Report(region, identities, *shown)


def _by_account(
    workers: Collection[Worker], places: Mapping[str, str], listing: Listing
) -> list[tuple[str, str, list[Worker]]]:
    """Return name, id, and workers of each account: those of the roles, and those that have a worker."""
    found: dict[str, list[Worker]] = {account: [] for account in places}
    for worker in workers:
        account = listing.account_of(worker.instance_id or "")
        if account:
            found.setdefault(account, []).append(worker)
    return [(places.get(account) or account, account, some) for account, some in found.items()]


def _check_accounts(
    region: str, workers: Collection[Worker], usable: Listing, listing: Listing | SourceError
) -> list[CheckResult]:
    """Return a row for each account that did not answer, and one for the workers that no account lists."""
    check = f"{ACCOUNTS}, {region}"
    errors = listing.errors if isinstance(listing, PartialListingError) else ()
    rows = [CheckResult(check, "FAIL", str(error)) for error in errors]
    nowhere = [w for w in workers if w.status == "running" and w.instance_id and not usable.account_of(w.instance_id)]
    if nowhere and not errors:
        names = first_few([f"{shortened(worker.display_name)} ({worker.instance_id})" for worker in nowhere])
        text = (
            f"{counted(len(nowhere), 'running worker')} in no account that was listed: {', '.join(names)}; CloudWatch is not "
            "queried for them, add the role of their account to aws.roles or link it to the monitoring account"
        )
        rows.append(CheckResult(check, "warn", text))
    elif not errors:
        count = len({usable.account_of(w.instance_id) for w in workers if w.instance_id} - {None})
        rows.append(CheckResult(check, "ok", f"every running worker was found, in {counted(count, 'account')}"))
    return rows


async def _or_error(call: Awaitable[T]) -> T | SourceError:
    try:
        return await call
    except SourceError as error:
        return error


def _unless_repeated(result: CheckResult, identity_errors: Collection[str]) -> CheckResult:
    """Skip a result that repeats an identity's error: credentials that AWS refuses are refused for every action."""
    return CheckResult(result.check, "skipped", f"because {IDENTITY} failed") if result.text in identity_errors else result


def _identities(reports: Sequence[_Report]) -> Iterator[CheckResult]:
    """Yield one row for each identity with its regions, and one for each region where it is unknown."""
    known: dict[str, list[str]] = {}
    for report in reports:
        answers = all(result.status in ("ok", "warn") for result in report.results)
        for access, identity in report.identities.items():
            place = f"{report.region}, account {access.name}" if access.name else report.region
            if isinstance(identity, str):
                known.setdefault(identity, []).append(report.region)
            elif answers:
                text = f"{identity}; CloudWatch itself answers, so the exporter works without STS"
                yield CheckResult(f"{IDENTITY}, {place}", "warn", text)
            else:
                yield CheckResult(f"{IDENTITY}, {place}", "FAIL", str(identity))
    for arn, regions in known.items():
        yield CheckResult(IDENTITY, "ok", f"{arn} in {', '.join(regions)}")


async def _check_cpu(
    cloudwatch: CloudWatch,
    region: str,
    check: str,
    workers: Collection[Worker],
    account: str | None,
    period: int,
    wall: Callable[[], float],
) -> CheckResult:
    """Query one metric of one worker, a running one if there is any; `check` names the row, `account` has the workers."""
    worker = min((w for w in workers if w.instance_id), key=lambda w: w.status != "running", default=None)
    if worker is None or worker.instance_id is None:
        return CheckResult(
            check,
            "skipped",
            f"not queried: no worker of this {'account' if ', account ' in check else 'region'} names its instance",
        )
    end = align(int(wall()), period)
    start = end - max(6 * period, align(_LOOKBACK_SECONDS, period))
    (query,) = instance_queries(worker.instance_id, (), account)
    results = await _or_error(cloudwatch.get_metric_data(region, [query], start, end, period))
    if isinstance(results, RejectedQueryError):
        return CheckResult(check, "warn", f"{results}; the other workers are not affected")
    if isinstance(results, SourceError):
        return CheckResult(check, "FAIL", str(results))
    return _interpret(check, worker, results.by_query[query], period)


def _interpret(check: str, worker: Worker, found: MetricResult, period: int) -> CheckResult:
    """Return what the result of the query means; the price is in it because no other check costs anything."""
    price = f"this check queried 1 metric: {DOLLARS_PER_METRIC:.5f} dollars"
    name = f"{shortened(worker.display_name)} ({worker.instance_id})"
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
        names = first_few([f"{shortened(worker.display_name)} ({worker.instance_id})" for worker in without])
        text += f"; no memory for {', '.join(names)}: install or start the CloudWatch agent there"
        text += ", or set cloudwatch.memory to the metric that it publishes"
    return CheckResult(check, "warn" if without else "ok", text)


async def _check_extras(
    cloudwatch: CloudWatch,
    region: str,
    workers: Collection[Worker],
    gauges: Iterable[CloudWatchGauge],
    memory: Listing | SourceError,
) -> list[CheckResult]:
    """Return a row for each metric of `cloudwatch.extra` that is listed, and one for each account that newly fails.

    Args:
        cloudwatch: lists the metrics.
        region: AWS region.
        workers: of the region, those of the accounts that are known.
        gauges: of `cloudwatch.extra`.
        memory: the listing of the memory series; what failed there has a row.
    """
    reported = {str(error) for error in memory.errors} if isinstance(memory, PartialListingError) else set()
    rows: list[CheckResult] = []
    for gauge in gauges:
        if not gauge.listed:
            continue
        listing = await _or_error(cloudwatch.list_metric(region, gauge.name, recent=True))
        if isinstance(listing, PartialListingError):
            texts = [str(error) for error in listing.errors if str(error) not in reported]
            rows += [CheckResult(f"{EXTRA} {gauge.name}, {region}", "FAIL", text) for text in texts]
            listing = listing.listing
        rows.append(_check_extra(region, workers, gauge, listing))
    return rows


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

"""`cml-worker-exporter estimate`: what CloudWatch will cost with the current fleet and settings."""

import asyncio
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from prometheus_client import CollectorRegistry

from exporter.commands import terminal, worker_documents
from exporter.commands.terminal import say
from exporter.core.budget import MONTH, Budget, ReaderBudget, Usage
from exporter.core.errors import SourceError
from exporter.core.model import Fleet, Listing, MetricQuery
from exporter.core.periods import DAY, format_duration
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.planning import QueriesOf, live_queries, plan, plan_extra
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.sources.cloudwatch.errors import PartialListingError
from exporter.sources.cloudwatch.extra_series import ExtraSeries, refreshed
from exporter.sources.cloudwatch.memory_series import LISTING_TTL_SECONDS, ranked
from exporter.sources.cloudwatch.queries import instance_queries
from exporter.storage.mongo import connect

_PAGE = 500
"""Metrics on a page of ListMetrics: AWS CloudWatch API Reference, ListMetrics."""
_ASSUMED: tuple[tuple[str, str], ...] = (("InstanceId", "assumed"),)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one collection cycle sends when there is no gap to fill."""

    running: int
    """Workers that are polled."""
    agents: int
    """Those of them whose memory CloudWatch lists, or is assumed to list."""
    by_region: Mapping[str, Usage]
    listing_pages: int
    """Requests of one ListMetrics over all regions, at least one each; nothing is billed for them up to a million a month."""
    extra: int = 0
    """Metrics of `cloudwatch.extra` that a cycle queries."""

    @property
    def usage(self) -> Usage:
        """Return the usage of all regions together."""
        return Usage(sum(u.calls for u in self.by_region.values()), sum(u.metrics for u in self.by_region.values()))


def estimate(
    fleet: Fleet,
    listings: Mapping[str, Listing | None],
    rules: Rules,
    extra_of: QueriesOf | None = None,
    extra_listings: Iterable[Listing] = (),
) -> Estimate:
    """Return what the collection cycle after this read of the worker documents sends.

    Args:
        fleet: the workers.
        listings: ListMetrics result of each region; None: unknown, every worker is assumed to have an agent.
        rules: the settings.
        extra_of: the queries of an instance for the gauges of `cloudwatch.extra`; None without any.
        extra_listings: the ListMetrics results that those follow from.
    """
    live = live_queries(fleet.workers, fleet.date, rules)
    types = {worker.instance_id: worker.instance_type for worker in fleet.workers}

    def queries_of(worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
        listing = listings.get(region)
        if listing is not None and listing.account_of(instance) is None:
            return ()  # in none of several accounts, so nothing is sent
        sets = [_ASSUMED] if listing is None else ranked(listing.series.get(instance, ()), types[instance])[:1]
        return instance_queries(instance, sets)

    calls = plan(live, queries_of, fleet.date, rules)
    further = plan_extra(live, live, extra_of, fleet.date, rules) if extra_of else []
    regions = sorted({query.region for query in live})
    known = [*(listing for listing in listings.values() if listing is not None), *extra_listings]
    return Estimate(
        running=len(live),
        agents=sum(len(queries_of(query.worker_id, query.region, query.instances[0])) > 1 for query in live),
        by_region={
            region: Usage.of(len(call.queries) for call in (*calls, *further) if call.region == region) for region in regions
        },
        extra=sum(len(call.queries) for call in further),
        listing_pages=sum(max(1, math.ceil(sum(map(len, listing.series.values())) / _PAGE)) for listing in known)
        + sum(listing is None for listing in listings.values()),
    )


async def run(settings: Settings, out: TextIO, *, as_json: bool = False) -> int:
    """Read the worker documents (the manager's aggregates), list the memory series, print the table; nothing is billed.

    Returns:
        The exit status, always 0.

    Raises:
        ConfigError: the connection string is malformed.
        NoWorkersError: there is no worker document.
        SourceError: MongoDB does not result.
    """
    client, database = connect(settings)
    async with client:
        fleet = await Aggregates(database, settings.mongodb.worker_collections, settings.workers, settings.workers.part).read()
    worker_documents.require(fleet)
    if not settings.cloudwatch.enabled:
        free = "cloudwatch.enabled is false: CloudWatch is not queried and costs nothing."
        documents = worker_documents.describe(fleet)
        if as_json:
            print(json.dumps({"worker_documents": documents, "notes": [free]}), file=out)
        else:
            say(f"{documents}.\n{free}", out)
        return 0
    rules = Rules.from_settings(settings)
    regions = sorted({query.region for query in live_queries(fleet.workers, fleet.date, rules)})
    types = {worker.instance_id: worker.instance_type for worker in fleet.workers}
    listings, extra, extra_of, problems = await _listings(settings, regions, types)
    found = estimate(fleet, listings, rules, extra_of, extra.listings)
    (show_json if as_json else show)(settings, fleet, found, rules, problems, out)
    return 0


async def _listings(
    settings: Settings, regions: Sequence[str], types: Mapping[str | None, str | None]
) -> tuple[dict[str, Listing | None], ExtraSeries, QueriesOf, list[str]]:
    """List the metrics of each region; return the memory series, those of `cloudwatch.extra`, its queries, and what failed."""
    source = CloudWatch(settings, Telemetry(CollectorRegistry()))
    extra = ExtraSeries(settings.cloudwatch.extra, partial(source.list_metric, recent=True))
    listings: dict[str, Listing | None] = {}
    problems = []
    try:
        results = await asyncio.gather(*(source.list_memory(r, recent=True) for r in regions), return_exceptions=True)
        failures = await asyncio.gather(*(refreshed(extra, region) for region in regions))
    finally:
        await source.close()
    for region, result in zip(regions, results, strict=True):
        if isinstance(result, PartialListingError):
            problems += [f"{error}; its workers are not in the estimate" for error in result.errors]
            result = result.listing
        elif isinstance(result, SourceError):
            problems.append(f"{result}; every worker there is assumed to have an agent")
        elif isinstance(result, BaseException):
            raise result
        listings[region] = None if isinstance(result, BaseException) else result
    partial_failures = [failure for failure in failures if isinstance(failure, PartialListingError)]
    problems += [
        f"{error}; cloudwatch.extra of its workers is not in the estimate"
        for failure in partial_failures
        for error in failure.errors
        if not any(problem.startswith(str(error)) for problem in problems)
    ]
    unlisted = {
        region: failure
        for region, failure in zip(regions, failures, strict=True)
        if failure and failure not in partial_failures
    }
    problems += [f"{failure}; every worker there is assumed to publish cloudwatch.extra" for failure in unlisted.values()]

    def extra_of(worker_id: str, region: str, instance: str) -> tuple[MetricQuery, ...]:
        listing = listings[region]
        if listing is not None and listing.account_of(instance) is None:
            return ()  # in none of several accounts, so nothing is sent
        if region in unlisted:
            return extra.assumed(instance)
        return extra.queries(region, instance, types.get(instance), most_likely=True)

    return listings, extra, extra_of, problems


def show(settings: Settings, fleet: Fleet, found: Estimate, rules: Rules, problems: Sequence[str], out: TextIO) -> None:
    """Print the estimate as a table, and what it means for the budget."""
    every = max(rules.interval, rules.period)
    say(f"{worker_documents.describe(fleet)}.", out)
    rows = [
        *((f"a cycle in {region}", *_cells(usage)) for region, usage in found.by_region.items()),
        (f"a cycle (every {format_duration(every)})", *_cells(found.usage)),
        ("a day", *_cells(found.usage.times(DAY / every))),
        ("a month (30 days)", *_cells(found.usage.times(MONTH / every))),
    ]
    terminal.print_table(("CloudWatch", "GetMetricData calls", "metrics billed", "dollars"), rows, out)
    for line in _notes(settings, fleet, found, rules, problems):
        say(line, out)


def show_json(settings: Settings, fleet: Fleet, found: Estimate, rules: Rules, problems: Sequence[str], out: TextIO) -> None:
    """Print the same as one JSON object, numbers as numbers."""
    every = max(rules.interval, rules.period)
    usage = found.usage
    body = {
        "worker_documents": worker_documents.describe(fleet),
        "running": found.running,
        "with_agent": found.agents,
        "cycle_seconds": every,
        "regions": {region: _figures(one) for region, one in found.by_region.items()},
        "cycle": _figures(usage),
        "day": _figures(usage.times(DAY / every)),
        "month": _figures(usage.times(MONTH / every)),
        "notes": _notes(settings, fleet, found, rules, problems),
    }
    print(json.dumps(body, indent=2), file=out)


def _figures(usage: Usage) -> dict[str, float]:
    return {"calls": round(usage.calls, 3), "metrics": round(usage.metrics, 3), "dollars": round(usage.dollars, 6)}


def _notes(settings: Settings, fleet: Fleet, found: Estimate, rules: Rules, problems: Sequence[str]) -> list[str]:
    """Return what the figures mean, one sentence or two each."""
    every = max(rules.interval, rules.period)
    cap = settings.cloudwatch.max_usd_per_day
    readers = ReaderBudget(Budget(cap), settings.cloudwatch.reader_budget_share).max_usd
    lines = [
        *(
            []
            if fleet.part.is_whole
            else [f"This is the price of {fleet.part} alone; {len(fleet.elsewhere)} workers are in other parts of the fleet."]
        ),
        f"{found.running} of {len(fleet.workers)} workers are running; {found.agents} of them have a CloudWatch agent, "
        "which is a second metric. Stopped and terminated workers are not polled.",
        *(
            [f"{found.extra} of the metrics of a cycle are those of cloudwatch.extra ({_names(settings)})."]
            if settings.cloudwatch.extra
            else []
        ),
        f"ListMetrics is called too, {'at least' if problems else 'about'} "
        f"{round(found.listing_pages * DAY / max(every, LISTING_TTL_SECONDS))} times a day; "
        "AWS does not bill it up to a million requests a month.",
        "The price is per metric and call, whatever the number of datapoints: a 1m period costs no more than 5m, and "
        "filling a gap of a running worker costs nothing extra.",
        f"Besides, HTTP readers (/resources, history older than MongoDB's) can spend up to {readers:.2f} dollars a day "
        "(cloudwatch.reader_budget_share).",
        *problems,
    ]
    if cap is not None:
        cycles = math.inf if not found.usage.dollars else math.floor(cap / found.usage.dollars + 1e-9)
        enough = cycles >= DAY / every
        lines.append(
            f"cloudwatch.max_usd_per_day is {cap:g} dollars: "
            + ("enough for every cycle of a day." if enough else f"enough for {cycles} of {DAY // every} cycles a day, then ")
            + ("" if enough else "polling pauses until 00:00 UTC; raise it, or cloudwatch.interval.")
        )
    return lines


def _names(settings: Settings) -> str:
    return ", ".join(gauge.name for gauge in settings.cloudwatch.extra)


def _cells(usage: Usage) -> tuple[str, str, str]:
    return f"{usage.calls:,.0f}", f"{usage.metrics:,.0f}", f"{usage.dollars:,.4f}"

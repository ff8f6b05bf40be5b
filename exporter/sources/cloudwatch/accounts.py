"""The AWS accounts of a region: which credentials reach them, and what their ListMetrics answers say together. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exporter.core.aws_settings import AwsSettings, Role
from exporter.core.errors import SourceError
from exporter.core.model import Dimensions, Listing, MetricQuery, MetricResult, MetricResults

UNNAMED_ACCOUNT = "unnamed"
"""The account of an instance that a monitoring account lists without its owner: queried without an AccountId."""


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials, and the accounts that they reach."""

    role: Role | None = None
    """None: the exporter's own credentials."""
    account_id: str = ""
    """The account of the credentials; empty: not known."""
    name: str = ""
    """What errors call it; empty where there is only one account."""
    linked: bool = False
    """Whether it is a monitoring account, which reaches the source accounts that are linked to it, too."""

    def __hash__(self) -> int:
        return hash(self.account_id)  # a Role cannot be hashed; a region has one access to each account


def accesses(settings: AwsSettings, region: str) -> tuple[Access, ...]:
    """Return the accesses of a region, in the order of the settings; at least one."""
    roles = settings.roles_in(region)
    if not roles:
        return (Access(linked=settings.linked_accounts),)
    several = len(roles) > 1
    return tuple(
        Access(role, role.account_id, (role.account or role.account_id) if several else "", settings.linked_accounts)
        for role in roles
    )


def combined(found: Mapping[Access, tuple[Listing, Listing]], every: Sequence[Access]) -> Listing:
    """Return one listing of several accounts.

    Args:
        found: the newest listings of CPU, and of what was listed, of each access that has ever answered.
        every: the accesses of the region; where one of them has never answered, no instance is certain to be nowhere.
    """
    series: dict[str, tuple[Dimensions, ...]] = {}
    accounts: dict[str, str] = {}
    for access in reversed(every):  # the first access that lists an instance wins
        if access in found:
            cpu, listed = found[access]
            series |= listed.series
            accounts |= {**listed.accounts, **cpu.accounts}
    complete = all(access in found for access in every)
    listings = [listed for _, listed in found.values()]
    return Listing(
        min(listed.date for listed in listings) if complete else -1,
        max(listed.since for listed in listings),
        series,
        accounts,
        None,
        {access.account_id: (listed.since, listed.date) for access, (_, listed) in found.items() if not access.linked},
    )


def divided(
    queries: Iterable[MetricQuery], every: Sequence[Access], *, known: bool
) -> tuple[list[tuple[Access, list[MetricQuery]]], list[MetricQuery]]:
    """Divide the queries of a call among the accesses of its region; return the parts, and the queries of unlisted instances.

    Args:
        queries: of one call.
        every: the accesses of the region.
        known: whether the listings cover the call's window. ListMetrics forgets a metric after two weeks, so an instance that
            is not listed may have older datapoints; then the first access is asked, and no other, for AWS would bill both.
    """
    owner = {access.account_id: access for access in every}
    parts: dict[Access, list[MetricQuery]] = {}
    unlisted: list[MetricQuery] = []
    for query in queries:
        if not query.account and known:
            unlisted.append(query)
        else:
            access = owner.get(query.account or "", every[0])
            parts.setdefault(access, []).append(query)
    return list(parts.items()), unlisted


def by_account(queries: Iterable[MetricQuery]) -> list[list[MetricQuery]]:
    """Return the queries of each account apart."""
    parts: dict[str | None, list[MetricQuery]] = {}
    for query in queries:
        parts.setdefault(query.account, []).append(query)
    return list(parts.values())


def unlisted_results(
    queries: Iterable[MetricQuery], since: int, until: int, start: int, end: int
) -> dict[MetricQuery, MetricResult]:
    """Return the results of instances that no account lists, for which nothing is sent.

    What is listed nowhere has no datapoint, so the results are empty as far as the listings reach. Beyond that nothing is
    known: an instance is listed up to 15 minutes after its first datapoint.

    Args:
        queries: of such instances.
        since, until: the UTC seconds between which the listings of all accounts have every datapoint.
        start: of the window, UTC second.
        end: of the window, UTC second.
    """
    first, last = max(start, since), min(end, until)
    if first >= last:
        return {query: MetricResult("failed", start, end, {}) for query in queries}
    return {query: MetricResult("empty", first, last, {}) for query in queries}


def merged(
    parts: Sequence[MetricResults], failed: Iterable[tuple[Sequence[MetricQuery], SourceError]], start: int, end: int
) -> MetricResults:
    """Return the results of the accounts of one call together.

    Args:
        parts: the accounts that answered, at least one.
        failed: the queries of the others, and why each was not answered.
        start: of the window, UTC second.
        end: of the window, UTC second.
    """
    failed = tuple(failed)
    if len(parts) == 1 and not failed:
        return parts[0]
    by_query = {query: MetricResult("failed", start, end, {}) for queries, _ in failed for query in queries}
    dates: dict[MetricQuery, int] = {}
    for part in parts:
        by_query |= part.by_query
        dates |= {query: part.date_of(query) for query in part.by_query}
    failures = tuple(error for _, error in failed) + tuple(error for part in parts for error in part.failures)
    return MetricResults(min(part.date for part in parts), by_query, dates, failures)

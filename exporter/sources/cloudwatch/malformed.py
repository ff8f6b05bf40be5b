"""Find the instance ids that CloudWatch refuses: one malformed id fails its whole GetMetricData call."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from exporter.core import logs
from exporter.core.errors import RejectedQueryError, SourceError
from exporter.core.model import MetricQuery, MetricResult, MetricResults

INSTANCE_ID = re.compile(r"i-[0-9a-f]{8}([0-9a-f]{9})?")
"""EC2's form of an id: 8 or 17 hexadecimal digits. CloudWatch never rejects a call because of an id of this form."""

GetMetricData = Callable[[Sequence[MetricQuery]], Awaitable[MetricResults]]
"""One GetMetricData call for the same window; raises SourceError."""

_log = logs.get("cloudwatch")


class MalformedInstances:
    """Malformed instance ids found so far, kept until the process ends, and the search for further ones.

    CloudWatch holds no data of an id that it refuses, so the result of such a query is empty and final.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    @property
    def known(self) -> frozenset[str]:
        """The ids found so far."""
        return frozenset(self._known)

    async def query(self, call: GetMetricData, queries: Sequence[MetricQuery], start: int, end: int, now: int) -> MetricResults:
        """Return a result for every query; split a rejected call until each malformed id is alone in a call.

        Args:
            call: queries CloudWatch once.
            queries: 1 to 500, each once.
            start: first UTC second of the window.
            end: the second after the window.
            now: UTC second; the date of the results if no call is needed.

        Raises:
            RejectedQueryError: CloudWatch refuses the content for another reason than an instance id.
            SourceError: no part of the call was answered. If some parts were answered, the results of the others are "failed".
        """
        empty = {q: MetricResult("empty", start, end, {}) for q in queries if q.instance_id in self._known}
        rest = [query for query in queries if query not in empty]
        if not rest:
            return MetricResults(now, empty)
        try:
            results = await call(rest)
        except RejectedQueryError as error:
            results = await self._split(call, rest, start, end, now, error)
        return replace(results, by_query={**results.by_query, **empty})

    async def _split(
        self,
        call: GetMetricData,
        queries: Sequence[MetricQuery],
        start: int,
        end: int,
        now: int,
        rejection: RejectedQueryError,
    ) -> MetricResults:
        ids = {query.instance_id for query in queries}
        suspects = sorted(each for each in ids if not INSTANCE_ID.fullmatch(each))
        if not suspects:
            raise rejection
        if len(ids) == 1:
            self._known.add(suspects[0])
            _log.warning("malformed instance id skipped", instance_id=suspects[0], error=str(rejection))
            return await self.query(call, queries, start, end, now)
        # First all well-formed ids in one call: they are nearly the whole fleet, malformed ids are rare.
        first = ids - {*suspects} or {*suspects[: len(suspects) // 2]}
        by_query: dict[MetricQuery, MetricResult] = {}
        dates: dict[MetricQuery, int] = {}
        for half in ([q for q in queries if q.instance_id in first], [q for q in queries if q.instance_id not in first]):
            try:
                results = await self.query(call, half, start, end, now)
            except SourceError:
                # The rejection may have had another reason, so no further id is marked as malformed.
                if not dates:
                    raise
                by_query |= {query: MetricResult("failed", start, end, {}) for query in half}
                break
            by_query |= results.by_query
            dates |= {query: results.date_of(query) for query in half}
        return MetricResults(next(iter(dates.values())), by_query, dates)

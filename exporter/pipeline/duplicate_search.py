"""Search the newest range of the history for samples that are stored twice, once an hour, and show their number."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from exporter.core import logs
from exporter.core.errors import StoreError
from exporter.core.periods import DAY, HOUR
from exporter.metrics.telemetry import Telemetry

SEARCH_INTERVAL_SECONDS = HOUR
SEARCH_RANGE_SECONDS = DAY
"""The range that is searched: gap filling inserts no older samples, with the default of `gap_fill_window`."""
_CHECK_SECONDS = 15
"""How often the lease is looked at: the exporter that writes the history searches, the others show nothing."""

CountDuplicates = Callable[[int, int], Awaitable[dict[str, int]]]
"""(start, end) in UTC seconds → how many samples of each worker are copies of others."""

_log = logs.get("history")


class WriterLease(Protocol):
    """The lease of the process that writes the history."""

    @property
    def held(self) -> bool:
        """Whether this process writes."""


async def search_forever(
    count: CountDuplicates, lease: WriterLease, telemetry: Telemetry, now: Callable[[], int], *, check: float = _CHECK_SECONDS
) -> None:
    """Search once an hour while the lease is held, until cancelled; a failed search is logged and repeated.

    Args:
        count: searches the history.
        lease: of the writer.
        telemetry: shows the number that was found last.
        now: MongoDB's time in UTC seconds, 0 until it is known.
        check: seconds between two looks at the lease.
    """
    clock = asyncio.get_running_loop().time
    due = clock() + check
    while True:
        await asyncio.sleep(check)
        if not lease.held:
            telemetry.history_duplicates.value = None
            due = clock()
        elif clock() >= due and now() and await _search(count, telemetry, now()):
            due = clock() + SEARCH_INTERVAL_SECONDS


async def _search(count: CountDuplicates, telemetry: Telemetry, until: int) -> bool:
    """Search once; return whether MongoDB answered."""
    try:
        # With the period that begins now: a clock may be ahead.
        found = await count(until - SEARCH_RANGE_SECONDS, until + HOUR)
    except StoreError as error:
        _log.warning("cannot search the history for duplicates; retried", error=str(error))
        return False
    if found:
        worker_id, copies = max(found.items(), key=lambda each: each[1])
        _log.error(
            "samples are stored twice; `verify --repair` removes the copies",
            copies=sum(found.values()),
            workers=len(found),
            most=worker_id,
            of_it=copies,
        )
    telemetry.history_duplicates.value = sum(found.values())
    return True

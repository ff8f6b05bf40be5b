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
"""The range that is searched, and beyond it what was inserted since the last search: after an outage that may be older."""
_CHECK_SECONDS = 15
"""How often the lease is looked at: the exporter that writes the history searches, the others show nothing."""

CountDuplicates = Callable[[int, int], Awaitable[dict[str, int]]]
"""(start, end) in UTC seconds → how many samples of each worker are copies of others."""

_log = logs.get("history")


class Inserted(Protocol):
    """What the mirror has inserted."""

    oldest_inserted: int | None
    """Start of the oldest period since it was set to None; UTC seconds."""


class WriterLease(Protocol):
    """The lease of the process that writes the history."""

    @property
    def held(self) -> bool:
        """Whether this process writes."""


async def search_forever(
    count: CountDuplicates,
    lease: WriterLease,
    inserted: Inserted,
    telemetry: Telemetry,
    now: Callable[[], int],
    *,
    check: float = _CHECK_SECONDS,
) -> None:
    """Search once an hour while the lease is held, until cancelled; a failed search is logged and repeated.

    Args:
        count: searches the history.
        lease: of the writer.
        inserted: its mirror.
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
        elif clock() >= due and now() and await _search(count, inserted, telemetry, now()):
            due = clock() + SEARCH_INTERVAL_SECONDS


async def _search(count: CountDuplicates, inserted: Inserted, telemetry: Telemetry, until: int) -> bool:
    """Search once; return whether MongoDB answered."""
    start, oldest = until - SEARCH_RANGE_SECONDS, inserted.oldest_inserted
    inserted.oldest_inserted = None
    try:
        # With the period that begins now: a clock may be ahead.
        found = await count(start if oldest is None else min(start, oldest), until + HOUR)
    except StoreError as error:
        later = inserted.oldest_inserted
        inserted.oldest_inserted = oldest if later is None or oldest is None else min(oldest, later)
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

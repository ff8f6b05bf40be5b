"""What shows between two cycles: MongoDB that no longer answers, and the space left for the outbox."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from exporter.core import logs
from exporter.core.condition import Condition
from exporter.core.errors import SourceError
from exporter.core.periods import DAY
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.source_health import SourceHealth, unexpected

PING_SECONDS = 10
"""Time between two pings of MongoDB."""
PING_RETRY_SECONDS = 1
"""Time between a failed ping and the second one, which decides: one lost connection is no outage."""
BYTES_PER_SAMPLE = 200
"""Space of one sample in the outbox; measured are 163 (473 MB for 2.9 million), the rest is for the write-ahead log."""
MIN_FREE_BYTES = 16 * 2**20
"""Space that SQLite's write-ahead log and temporary files need, however small the fleet is."""

_log = logs.get("collector")


class OutboxDisk:
    """Watches whether the disk of the outbox has room for a day of samples.

    Args:
        directory: a folder on the disk.
        telemetry: shows both sizes.
        wall: UTC seconds of this host.
    """

    def __init__(self, directory: Path, telemetry: Telemetry, wall: Callable[[], float] = time.time) -> None:
        self._directory, self._telemetry, self._wall = directory, telemetry, wall
        self._repeats = logs.Repeats()
        self.condition = Condition()
        """Why the disk is too small, no error if a day of samples fits; and since when."""

    async def measure(self, workers: int, period: int) -> None:
        """Measure the disk, for so many workers and a period in seconds; log a problem."""
        needed = day_bytes(workers, period)
        free: int | None = None
        try:
            free = await asyncio.to_thread(free_bytes, self._directory)
            problem = space_problem(self._directory, free, needed)
        except OSError as error:
            problem = f"data_dir: the disk of {self._directory} cannot be measured ({error.strerror}); check the mount"
        self.condition = self.condition.then(problem, self._wall())
        self._telemetry.outbox_free.value, self._telemetry.outbox_day.value = free, needed
        if problem and self._repeats.is_due("disk"):
            _log.warning("disk of the outbox nearly full", problem=problem, **self._repeats.count)
        elif not problem:
            self._repeats.reset()


async def watch_mongodb(
    ping: Callable[[], Awaitable[None]],
    health: SourceHealth,
    on_recovery: Callable[[], object],
    wall: Callable[[], float],
    *,
    read_failed: Callable[[], bool] = lambda: False,
) -> None:
    """Ping MongoDB until cancelled, so that an outage shows within 30 seconds instead of at the next observation.

    An observation that failed is repeated, each time after twice the pause: at the next tick the period whose status and labs
    it lacks has ended.

    Args:
        ping: raises SourceError when MongoDB does not answer.
        health: records the failure.
        on_recovery: called when MongoDB answers after a failure, to read the worker documents at once.
        wall: UTC seconds of this host.
        read_failed: whether the worker documents could not be read last; a ping needs no privileges.
    """
    lost, pause, retry_at = False, PING_SECONDS, 0.0
    while True:
        began = wall()
        error = await _ping_error(ping)
        if error is not None and not lost:
            await asyncio.sleep(PING_RETRY_SECONDS)
            error = await _ping_error(ping)
        if error is not None:
            health.failed(error, began)
        elif lost:
            on_recovery()
        elif not read_failed():
            pause = PING_SECONDS
        elif began >= retry_at:
            on_recovery()
            retry_at, pause = began + pause, 2 * pause
        lost = error is not None
        await asyncio.sleep(PING_SECONDS)


async def _ping_error(ping: Callable[[], Awaitable[None]]) -> SourceError | None:
    try:
        await ping()
    except SourceError as error:
        return error
    except Exception as bug:  # noqa: BLE001  # whatever the reason, MongoDB was not reached
        return unexpected("mongodb", bug)
    return None


def day_bytes(workers: int, period: int) -> int:
    """Return the space that a day's samples of so many workers need in the outbox, at a period in seconds."""
    return MIN_FREE_BYTES + workers * (DAY // period) * BYTES_PER_SAMPLE


def free_bytes(directory: Path) -> int:
    """Return the space on the disk of a folder that this process may use; raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def space_problem(directory: Path, free: int, needed: int) -> str | None:
    """Return the sentence for a disk with `free` bytes of which a day without MongoDB needs `needed`; None if they suffice."""
    if free >= needed:
        return None
    return (
        f"data_dir: the disk of {directory} has {free / 2**20:.0f} MiB left, and a day of samples without MongoDB needs "
        f"{needed / 2**20:.0f} MiB; make room"
    )

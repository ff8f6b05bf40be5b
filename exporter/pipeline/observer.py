"""Read the worker documents after each period and open the closed periods in the outbox."""

from collections.abc import Collection, Mapping
from typing import Protocol

from exporter.core.model import (
    Fleet,
    InventoryEntry,
)

OBSERVE_OFFSET_SECONDS = 12
"""Seconds after a period's end: the manager has written, and a server's clock a little behind ours has passed the end too."""
GAP_CHUNK_WORKERS = 500
"""Workers whose gaps are looked for at once: a day of them fits easily into memory."""


class SampleTimes(Protocol):
    """What observing needs of the history."""

    async def timestamps(self, worker_ids: Collection[str], since: int) -> dict[str, set[int]]:
        """Starts of the periods the history has of each worker since then."""


class InventoryStore(Protocol):
    """What is remembered of every worker for good."""

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        """By worker id, as loaded and recorded."""

    async def load(self) -> None:
        """Read it all."""

    async def record(self, fleet: Fleet) -> None:
        """Write what a reading changed."""


class Leadership(Protocol):
    """Who may write."""

    @property
    def held(self) -> bool:
        """Whether this process may open and mirror."""

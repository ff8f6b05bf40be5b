"""The labels of the info series of workers, which VictoriaMetrics stores: from the inventory, as remote read has them."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from exporter.core.errors import StoreError
from exporter.core.model import InventoryEntry
from exporter.forwarding.sample_batches import Labels
from exporter.history.series import info_labels

MAX_AGE_SECONDS = 300
"""Age of what is known of a worker, at most, while MongoDB answers."""
UNKNOWN_SECONDS = 10
"""The same of a worker that is not in the inventory: a new one is there soon, one that was purged never again."""


class Inventory(Protocol):
    """The whole inventory."""

    @property
    def entries(self) -> Mapping[str, InventoryEntry]:
        """Worker id → entry, as of the last `load`."""

    async def load(self) -> None:
        """Read all entries; raises StoreError."""


class WorkerLabels:
    """Returns the labels of workers; reads the inventory when what it knows is old.

    Args:
        inventory: of this object alone.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(self, inventory: Inventory, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._inventory, self._monotonic = inventory, monotonic
        self._loaded_at: float | None = None

    async def __call__(self, worker_ids: Collection[str]) -> Labels:
        """Return worker id → labels.

        Raises:
            StoreError: the inventory cannot be read, and never was; later the last one is used.
        """
        age = None if self._loaded_at is None else self._monotonic() - self._loaded_at
        known = self._inventory.entries.keys() >= set(worker_ids)
        if age is None or age > (MAX_AGE_SECONDS if known else UNKNOWN_SECONDS):
            try:
                await self._inventory.load()
                self._loaded_at = self._monotonic()
            except StoreError:
                if age is None:
                    raise
        entries = self._inventory.entries
        return {worker_id: info_labels(worker_id, entries.get(worker_id)) for worker_id in worker_ids}

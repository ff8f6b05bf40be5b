"""One cache for results of coroutines: time to live, least recently used eviction, one load for concurrent callers."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    loaded_at: float
    ttl: float
    weight: int


class AsyncCache(Generic[K, V]):
    """Values by key; a key that is being loaded is not loaded a second time, and a failed load leaves nothing behind.

    Belongs to one event loop. A caller that is cancelled does not cancel the load that others wait for.

    Args:
        max_weight: total weight above which the least recently used values are evicted; one value is always kept.
        weigh: weight of a value; 1 by default, so that `max_weight` is a number of values.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(
        self,
        *,
        max_weight: float = inf,
        weigh: Callable[[V], int] = lambda _: 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_weight = max_weight
        self._weigh = weigh
        self._monotonic = monotonic
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._weight = 0
        self._loading: dict[K, asyncio.Task[Mapping[K, V]]] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[V]], ttl: float = inf) -> V:
        """Return the value of `key`; load it if it is missing or older than the `ttl` (seconds) it was loaded with.

        Raises:
            Whatever `load` raises.
        """

        async def load_one(_: Sequence[K]) -> Mapping[K, V]:
            return {key: await load()}

        return (await self._get((key,), load_one, None, ttl))[key]

    async def get_many(
        self,
        keys: Iterable[K],
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        is_fresh: Callable[[V, float], bool],
    ) -> dict[K, V]:
        """Return the value of every key; load all keys that are missing or not fresh with one call.

        Args:
            keys: what is wanted.
            load: returns a value for each key it is given.
            is_fresh: decides by a value and its age in seconds whether it may still be used.

        Raises:
            Whatever `load` raises, this caller's or that of another caller who was first to load a wanted key.
        """
        return await self._get(dict.fromkeys(keys), load, is_fresh, inf)

    def peek(self, key: K) -> V | None:
        """Return the value of `key` where it is cached and not older than its `ttl`; None otherwise."""
        entry = self._entries.get(key)
        if entry is None or self._monotonic() - entry.loaded_at >= entry.ttl:
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: K, value: V, ttl: float = inf) -> None:
        """Cache the value of `key` for `ttl` seconds, for a load that must end with its caller."""
        self._remove(key)
        entry = self._entries[key] = _Entry(value, self._monotonic(), ttl, self._weigh(value))
        self._weight += entry.weight
        self.evict(self._max_weight)

    def touch(self, keys: Iterable[K]) -> None:
        """Mark the cached ones of `keys` as used, each more recently than the one before it."""
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)

    def evict(self, max_weight: float) -> None:
        """Evict the least recently used values until their weight is at most `max_weight`; one value is always kept."""
        while self._weight > max_weight and len(self._entries) > 1:
            self._remove(next(iter(self._entries)))

    async def _get(
        self,
        keys: Iterable[K],
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        is_fresh: Callable[[V, float], bool] | None,
        ttl: float,
    ) -> dict[K, V]:
        now = self._monotonic()
        found: dict[K, V] = {}
        missing: list[K] = []
        awaited: dict[asyncio.Task[Mapping[K, V]], list[K]] = {}
        for key in keys:  # tens of thousands in one query of the hourly aggregates
            if self._loading and key in self._loading:
                awaited.setdefault(self._loading[key], []).append(key)
                continue
            entry = self._entries.get(key)
            if entry is None or not (
                now - entry.loaded_at < entry.ttl if is_fresh is None else is_fresh(entry.value, now - entry.loaded_at)
            ):
                missing.append(key)
                continue
            self._entries.move_to_end(key)
            found[key] = entry.value
        if missing:
            task = asyncio.create_task(self._load(missing, load, ttl))
            task.add_done_callback(_retrieve_exception)
            self._loading |= dict.fromkeys(missing, task)
            awaited[task] = missing
        for task, its_keys in awaited.items():
            values = await asyncio.shield(task)
            found |= {key: values[key] for key in its_keys}
        return found

    async def _load(
        self, keys: Sequence[K], load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], ttl: float
    ) -> Mapping[K, V]:
        try:
            values = await load(keys)
        finally:
            for key in keys:
                del self._loading[key]
        for key in keys:
            self.put(key, values[key], ttl)
        return values

    def _remove(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry.weight


def _retrieve_exception(task: "asyncio.Task[Mapping[K, V]]") -> None:
    """Keep asyncio from reporting the error of a load whose callers were all cancelled."""
    if not task.cancelled():
        task.exception()

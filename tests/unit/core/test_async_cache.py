"""AsyncCache: time to live, eviction, and one load for concurrent callers."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from exporter.core.async_cache import AsyncCache
from tests.helpers.in_process_exporter import Clock


class Loader:
    """Loads values that count its calls, when its gate is open; fails while `failure` is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def many(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.calls.append(tuple(keys))
        number = len(self.calls)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return dict.fromkeys(keys, number)

    async def one(self) -> int:
        return (await self.many(("one",)))["one"]


@pytest.fixture
def loader() -> Loader:
    return Loader()


def always(_value: int, _age: float) -> bool:
    return True


async def test_a_value_is_loaded_again_when_its_ttl_has_passed(loader: Loader) -> None:
    clock = Clock(0.0)
    cache: AsyncCache[str, int] = AsyncCache(monotonic=clock)
    assert [await cache.get("a", loader.one, 60), await cache.get("a", loader.one, 60)] == [1, 1]
    clock.now = 59.9
    assert await cache.get("a", loader.one, 60) == 1
    clock.now = 60
    assert await cache.get("a", loader.one, 10) == 2
    clock.now = 71
    assert await cache.get("a", loader.one, 60) == 3, "the ttl that a value was loaded with counts"


async def test_the_age_of_a_value_counts_from_the_end_of_its_load(loader: Loader) -> None:
    clock = Clock(0.0)
    cache: AsyncCache[str, int] = AsyncCache(monotonic=clock)
    loader.gate.clear()
    loading = asyncio.create_task(cache.get("a", loader.one, 60))
    await asyncio.sleep(0)
    clock.now = 50
    loader.gate.set()
    assert await loading == 1
    clock.now = 100
    assert await cache.get("a", loader.one, 60) == 1


async def test_without_a_ttl_a_value_stays(loader: Loader) -> None:
    clock = Clock(0.0)
    cache: AsyncCache[str, int] = AsyncCache(monotonic=clock)
    await cache.get("a", loader.one)
    clock.now = 1e12
    assert await cache.get("a", loader.one) == 1


async def test_the_least_recently_used_values_are_evicted_by_weight() -> None:
    weights = {"a": 4, "b": 3, "c": 3, "d": 5, "large": 50}
    loaded: list[str] = []
    cache: AsyncCache[str, str] = AsyncCache(max_weight=10, weigh=weights.__getitem__)

    async def cached(key: str) -> bool:
        begun = len(loaded)

        async def load() -> str:
            loaded.append(key)
            return key

        assert await cache.get(key, load) == key
        return len(loaded) == begun

    for key in "abc":
        assert not await cached(key)
    assert await cached("a")
    assert not await cached("d")  # 4 + 5: neither b nor c fits beside them
    assert await cached("a")
    assert await cached("d")
    assert not await cached("b")
    assert not await cached("large")
    assert await cached("large"), "one value stays, however heavy"
    assert not await cached("a")
    assert await cached("a"), "the weight of what was evicted no longer counts"


async def test_a_value_that_is_loaded_again_is_weighed_once(loader: Loader) -> None:
    clock = Clock(0.0)
    cache: AsyncCache[str, int] = AsyncCache(max_weight=2, monotonic=clock)
    for _ in range(5):
        clock.now += 60
        await cache.get("a", loader.one, 60)
    await cache.get("b", loader.one)
    assert await cache.get("a", loader.one) == 5


async def test_touch_and_evict_decide_which_values_stay(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    await cache.get_many("abcd", loader.many, always)
    cache.touch(["c", "unknown", "a"])
    cache.evict(2)
    assert await cache.get_many("abcd", loader.many, always) == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert loader.calls[1:] == [("b", "d")]


async def test_concurrent_callers_share_one_load(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    assert await asyncio.gather(*(cache.get("a", loader.one, 0) for _ in range(5))) == [1] * 5
    assert len(loader.calls) == 1
    assert await cache.get("a", loader.one, 0) == 2, "a ttl of 0 shares a load but keeps nothing"


async def test_a_cancelled_caller_leaves_the_load_running(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    loader.gate.clear()
    first, second = (asyncio.create_task(cache.get("a", loader.one)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    loader.gate.set()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first

    loader.gate.clear()
    only = asyncio.create_task(cache.get("b", loader.one))
    await asyncio.sleep(0)
    only.cancel()
    await asyncio.sleep(0)
    loader.gate.set()
    assert await cache.get("b", loader.one) == 2
    assert len(loader.calls) == 2


async def test_a_failure_reaches_every_caller_and_is_not_kept(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    loader.failure = ValueError("no")
    results = await asyncio.gather(*(cache.get("a", loader.one) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in results] == [ValueError] * 3
    assert len(loader.calls) == 1
    loader.failure = None
    assert await cache.get("a", loader.one) == 2


async def test_a_failed_reload_leaves_the_old_value_in_its_place(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    await cache.get_many("a", loader.many, always)
    loader.failure = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await cache.get_many("a", loader.many, lambda _value, _age: False)
    assert await cache.get_many("a", loader.many, always) == {"a": 1}


async def test_get_many_loads_what_is_missing_or_not_fresh_with_one_call(loader: Loader) -> None:
    clock = Clock(0.0)
    cache: AsyncCache[str, int] = AsyncCache(monotonic=clock)
    await cache.get_many("ab", loader.many, always)
    clock.now = 30
    assert await cache.get_many("cbad", loader.many, always) == {"a": 1, "b": 1, "c": 2, "d": 2}
    assert await cache.get_many("abcd", loader.many, lambda value, age: value == 2 and age < 30) == {
        **{"a": 3, "b": 3},
        **{"c": 2, "d": 2},
    }
    clock.now = 60
    assert await cache.get_many("ac", loader.many, lambda _value, age: age < 30) == {"a": 4, "c": 4}
    assert loader.calls == [("a", "b"), ("c", "d"), ("a", "b"), ("a", "c")]
    assert await cache.get_many([], loader.many, always) == {}
    assert len(loader.calls) == 4


async def test_get_many_waits_for_the_keys_that_another_caller_loads(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    loader.gate.clear()
    first = asyncio.create_task(cache.get_many("ab", loader.many, always))
    await asyncio.sleep(0)
    second = asyncio.create_task(cache.get_many("bbc", loader.many, always))
    await asyncio.sleep(0.001)
    assert loader.calls == [("a", "b"), ("c",)]
    assert not second.done()
    loader.gate.set()
    assert await second == {"b": 1, "c": 2}
    assert await first == {"a": 1, "b": 1}


async def test_a_failure_of_keys_that_a_caller_does_not_want_is_not_its_failure(loader: Loader) -> None:
    cache: AsyncCache[str, int] = AsyncCache()
    loader.failure = ValueError("no")
    loader.gate.clear()
    failing = asyncio.create_task(cache.get_many("ab", loader.many, always))
    await asyncio.sleep(0)
    other = Loader()
    assert await cache.get_many("c", other.many, always) == {"c": 1}
    sharing = asyncio.create_task(cache.get_many("bd", other.many, always))
    await asyncio.sleep(0.001)
    loader.gate.set()
    for task in (failing, sharing):
        with pytest.raises(ValueError, match="no"):
            await task
    assert await cache.get_many("d", other.many, always) == {"d": 2}, "its own load went on"


async def test_a_value_that_was_put_is_there_until_its_time_and_counts_for_the_limit() -> None:
    clock = Clock(0.0)
    cache: AsyncCache[str, int] = AsyncCache(max_weight=5, weigh=lambda value: value, monotonic=clock)
    assert cache.peek("a") is None
    cache.put("a", 2, ttl=20)
    cache.put("b", 3)
    assert (cache.peek("a"), cache.peek("b")) == (2, 3)
    cache.put("c", 1)
    assert (cache.peek("a"), cache.peek("c")) == (None, 1), "the one that was used longest ago made room"
    cache.put("c", 2, ttl=20)
    clock.now += 20
    assert (cache.peek("b"), cache.peek("c")) == (3, None)

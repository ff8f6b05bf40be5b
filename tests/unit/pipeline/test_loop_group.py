"""Loops end together, also one that loses its cancellation."""

import asyncio

import pytest

from exporter.pipeline import loop_group
from exporter.pipeline.loop_group import LoopGroup


class Loops:
    def __init__(self) -> None:
        self.ended: list[str] = []

    async def loses(self, count: int) -> None:
        """Lose so many cancellations, as the driver of MongoDB does."""
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                count -= 1
                if count < 0:
                    self.ended.append("stubborn")
                    raise

    async def fails(self) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("a bug")

    async def ends(self) -> None:
        self.ended.append("one that ends by itself")


async def run(loops: Loops, *, failing: bool) -> None:
    async with LoopGroup() as group:
        group.create_task(loops.loses(3), name="stubborn")
        group.create_task(loops.ends(), name="ends")
        if failing:
            group.create_task(loops.fails(), name="fails")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_group, "AGAIN_SECONDS", 0.01)


async def test_a_loop_that_loses_cancellations_ends() -> None:
    loops = Loops()
    task = asyncio.create_task(run(loops, failing=False))
    await asyncio.sleep(0.05)
    assert loops.ended == ["one that ends by itself"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loops.ended == ["one that ends by itself", "stubborn"]


async def test_the_error_of_a_loop_ends_the_others_and_is_raised() -> None:
    loops = Loops()
    with pytest.raises(BaseExceptionGroup) as caught:
        await run(loops, failing=True)
    assert [str(error) for error in caught.value.exceptions] == ["a bug"]
    assert loops.ended == ["one that ends by itself", "stubborn"]


async def test_an_error_in_the_block_ends_the_loops() -> None:
    loops = Loops()

    async def block() -> None:
        async with LoopGroup() as group:
            group.create_task(loops.loses(0), name="stubborn")
            await asyncio.sleep(0)
            raise ValueError("block")

    with pytest.raises(ValueError, match="block"):
        await block()
    assert loops.ended == ["stubborn"]

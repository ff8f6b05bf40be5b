"""Run a collection step on a schedule. A failed run is logged and never ends the loop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from exporter.core import logs
from exporter.core.errors import ExporterError
from exporter.core.periods import next_tick

_MIN_SLEEP_SECONDS = 0.05

_log = logs.get("collector")


async def run_on_schedule(
    name: str,
    step: Callable[[], Awaitable[None]],
    *,
    every: int,
    offset: int,
    wall: Callable[[], float],
    finished: asyncio.Event,
    wake: asyncio.Event | None = None,
    report: Callable[[str, str | None], object] = lambda name, problem: None,
    beat: Callable[[], object] = lambda: None,
    soon: Callable[[], float | None] = lambda: None,
) -> None:
    """Run `step` at once, then on every tick, and whenever `wake` is set; never return.

    Args:
        name: names the step in log events.
        step: runs to its end before the next tick is awaited, so that two runs never overlap.
        every: seconds between two ticks.
        offset: seconds from a multiple of `every` to its tick.
        wall: UTC seconds of this host.
        finished: set after each run, successful or not.
        wake: starts a run before the next tick.
        report: receives `name` and what was unexpected about each run, None if nothing was.
        beat: called before and after each run, as the sign of life of this loop.
        soon: called after each run; returns after how many seconds the next one begins, None: at the tick, which is the latest.
    """
    while True:
        if wake is not None:
            wake.clear()
        beat()
        report(name, await guard(name, step))
        beat()
        finished.set()
        tick, pause = next_tick(wall(), every, offset), soon()
        await sleep_until(tick if pause is None else min(tick, wall() + pause), wall, wake)


def doubling(first: float, needed: Callable[[], bool]) -> Callable[[], float | None]:
    """Return a `soon` of `run_on_schedule`: while `needed`, pauses of `first` seconds, then each twice as long as the last."""
    following = first

    def pause() -> float | None:
        nonlocal following
        if not needed():
            following = first
            return None
        current, following = following, 2 * following
        return current

    return pause


async def guard(name: str, step: Callable[[], Awaitable[None]]) -> str | None:
    """Run `step` once and log its error instead of raising it; return one that is a bug, None if there was none."""
    try:
        await step()
    except ExporterError as error:
        _log.error(f"{name} failed", error=str(error))
    except Exception as bug:  # noqa: BLE001  # a bug in one run must not end collection; the log has its traceback
        _log.exception(f"{name} failed with an unexpected error; please report it")
        return f"{name} failed with an unexpected {type(bug).__name__}: {bug}; please report it with the traceback in the log"
    return None


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait until `event` is set, at most so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def sleep_until(when: float, wall: Callable[[], float], wake: asyncio.Event | None = None) -> None:
    """Sleep until the UTC second `when` of the clock `wall`, or until `wake` is set."""
    seconds = max(_MIN_SLEEP_SECONDS, when - wall())
    if wake is None:
        await asyncio.sleep(seconds)
    else:
        await wait(wake, seconds)

"""Child processes and background tasks of the demo."""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from exporter.core.errors import ExporterError, StoreUnavailableError
from exporter.demo.mongod import LOG, Mongod

_READY_SECONDS = 90.0
STOP_SECONDS = 15.0


async def check_mongod(mongod: Mongod) -> None:
    """Raise StoreUnavailableError if mongod has ended."""
    if _has_ended(mongod.pid):
        raise StoreUnavailableError(f"mongod ended by itself; see {mongod.dbpath / LOG}")


def _has_ended(child: int) -> bool:
    # Without reaping it, because `Mongod.stop` waits for it too.
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def repeat(pause: Callable[[], float], action: Callable[[], Awaitable[object]]) -> None:
    """Run an action again and again, after a pause of `pause()` seconds each time; never returns."""
    while True:
        await asyncio.sleep(pause())
        await action()


@contextmanager
def background_task(work: Coroutine[Any, Any, None]) -> Iterator["asyncio.Task[None]"]:
    """Run a coroutine as a task that is canceled on leaving."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()


async def wait_for_first(wanted: Coroutine[Any, Any, object], others: Sequence["asyncio.Task[None]"]) -> None:
    """Wait for `wanted`, or raise what one of `others` raises before; the others end only by an exception."""
    task = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done():
                other.result()
        task.result()
    finally:
        task.cancel()


@asynccontextmanager
async def child_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a child process that dies with this one, and whose output replaces the file `log`; end it on leaving.

    It runs in a session of its own, so that Ctrl-C reaches only this process, which ends the children in order.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def _die_with_parent() -> Callable[[], None]:
    """Return the function a child runs between fork and exec, so that kill -9 of this process ends it too (Linux only)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def arrange() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; the exporter loses nothing by SIGKILL
        if os.getppid() != parent:  # the parent died before prctl, so no signal will come
            os._exit(1)

    return arrange


async def raise_when_ended(process: asyncio.subprocess.Process, name: str, log: Path) -> None:
    """Wait for the end of a child and raise ExporterError with its exit status and the end of its log."""
    status = await process.wait()
    raise ExporterError(f"{name} ended by itself with status {status}; {_end_of(log)}")


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return "\n  ".join([f"see {log}, which ends with", *lines]) if lines else f"{log} is empty"


async def wait_until_ready(url: str, name: str, log: Path) -> None:
    """Wait until the URL of a child answers 200.

    Raises:
        ExporterError: it did not within 90 s.
    """
    deadline = time.monotonic() + _READY_SECONDS
    while not await asyncio.to_thread(_answers, url):
        if time.monotonic() > deadline:
            raise ExporterError(f"{name} was not ready within {_READY_SECONDS:g} s; {_end_of(log)}")
        await asyncio.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=2) as response:
            return bool(response.status == 200)
    except HTTPError as error:
        error.close()
    except (URLError, TimeoutError, ConnectionError):
        pass  # not listening yet
    return False

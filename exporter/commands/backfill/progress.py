"""Show the progress of a long command: a bar on a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from exporter.core.periods import format_duration

LINE_INTERVAL_SECONDS = 5
"""Time between two lines of progress where there is no terminal."""
BAR_INTERVAL_SECONDS = 0.5


class Progressing(Protocol):
    """Work whose progress is shown."""

    command: str
    """The command that does it."""
    unit: str
    """What is counted, in the plural."""

    @property
    def finished(self) -> int:
        """The number of units that are done."""

    @property
    def total(self) -> int | None:
        """The number of units of this run; None: not known."""

    @property
    def detail(self) -> str:
        """Words beside the numbers."""


@asynccontextmanager
async def show_progress(work: Progressing, err: TextIO) -> AsyncIterator[None]:
    """Show how far the work is while the block runs: a bar on a terminal, else a line every few seconds."""
    console = Console(file=err, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        printing = asyncio.create_task(_repeat(LINE_INTERVAL_SECONDS, _line_printer(work, err)))
        try:
            yield
        finally:
            printing.cancel()
        return
    columns = (
        TextColumn(work.command),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(work.command, total=None, detail="")

        def update() -> None:
            bar.update(task, total=work.total, completed=work.finished, detail=work.detail)

        updating = asyncio.create_task(_repeat(BAR_INTERVAL_SECONDS, update))
        try:
            yield
        finally:
            updating.cancel()
            update()


async def _repeat(seconds: float, action: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        action()


def _line_printer(work: Progressing, err: TextIO) -> Callable[[], None]:
    began = time.monotonic()

    def print_line() -> None:
        left, finished, total = "", work.finished, work.total
        if finished and total is not None:
            seconds = (time.monotonic() - began) * (total - finished) / finished
            left = f", about {format_duration(int(seconds))} left"
        done = f"{finished:,}" if total is None else f"{finished:,} of {total:,}"
        print(f"{work.command}: {done} {work.unit}, {work.detail}{left}", file=err, flush=True)

    return print_line

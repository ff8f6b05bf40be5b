"""Show the progress of a backfill: a bar on a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from exporter.commands.backfill.plan import Plan
from exporter.commands.backfill.report import RunReport
from exporter.core.periods import format_duration

LINE_INTERVAL_SECONDS = 5
"""Time between two lines of progress where there is no terminal."""
BAR_INTERVAL_SECONDS = 0.5


@asynccontextmanager
async def show_progress(report: RunReport, plan: Plan, err: TextIO) -> AsyncIterator[None]:
    """Show how far the run is while the block runs: a bar on a terminal, else a line every few seconds."""
    if not plan.calls:
        yield
        return
    console = Console(file=err, highlight=False)
    if not console.is_terminal:
        printing = asyncio.create_task(_repeat(LINE_INTERVAL_SECONDS, _line_printer(report, err)))
        try:
            yield
        finally:
            printing.cancel()
        return
    columns = (
        TextColumn("backfill"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[cost]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("backfill", total=plan.periods, cost="")

        def update() -> None:
            bar.update(task, completed=report.finished, cost=report.cost)

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


def _line_printer(report: RunReport, err: TextIO) -> Callable[[], None]:
    began = time.monotonic()

    def print_line() -> None:
        left, finished, total = "", report.finished, report.state.total
        if finished:
            seconds = (time.monotonic() - began) * (total - finished) / finished
            left = f", about {format_duration(int(seconds))} left"
        print(f"backfill: {finished:,} of {total:,} periods, {report.cost}{left}", file=err, flush=True)

    return print_line

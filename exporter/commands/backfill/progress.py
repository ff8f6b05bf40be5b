"""Show the progress of a backfill: a bar on a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from exporter.commands.backfill.job import BackfillRun, counted
from exporter.commands.backfill.plan import Plan
from exporter.core.periods import format_duration

PLAIN_EVERY = 5
"""Seconds between two lines of progress where there is no terminal."""


# -- progress ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _progress(job: BackfillRun, plan: Plan, err: TextIO) -> AsyncIterator[None]:
    """Show how far the job is while the block runs: a bar on a terminal, else a line every few seconds."""
    if not plan.calls:
        yield
        return
    console = Console(file=err, highlight=False)
    if not console.is_terminal:
        ticking = asyncio.create_task(_tick(PLAIN_EVERY, _plain(job, err)))
        try:
            yield
        finally:
            ticking.cancel()
        return
    columns = (
        TextColumn("backfill"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("backfill", total=plan.periods, said="")

        def update() -> None:
            bar.update(task, completed=job.finished, said=_said(job))

        ticking = asyncio.create_task(_tick(0.5, update))
        try:
            yield
        finally:
            ticking.cancel()
            update()


async def _tick(seconds: float, show_it: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        show_it()


def _plain(job: BackfillRun, err: TextIO) -> Callable[[], None]:
    began = time.monotonic()

    def line() -> None:
        left = ""
        if job.finished:
            seconds = (time.monotonic() - began) * (job.total - job.finished) / job.finished
            left = f", about {format_duration(int(seconds))} left"
        print(f"backfill: {job.finished:,} of {job.total:,} periods, {_said(job)}{left}", file=err, flush=True)

    return line


def _said(job: BackfillRun) -> str:
    return f"{counted(job.requests(), 'call')}, {job.telemetry.dollars:.5f} dollars"

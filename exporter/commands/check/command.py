"""`cml-worker-exporter check`: validates the settings and every connection, changes nothing, and prints what it found.

Each check is a row: its name, ok / warn / FAIL / skipped, and what was found or what to do. A failed check never hides the
others; one that depends on a failed one is skipped and says so. A problem with which `serve` still works is a warning.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from exporter.commands.check.aws import check_aws
from exporter.commands.check.finding import CheckResult, Status, one_line
from exporter.commands.check.mongodb import check_mongodb
from exporter.commands.check.targets import check_targets
from exporter.commands.terminal import columns_of, say
from exporter.core.errors import ConfigError, IncompatibleStoreError, StoreError
from exporter.core.periods import format_duration
from exporter.core.settings import Settings
from exporter.pipeline.outbox_file import DAMAGED, aside_files, damaged, translate, verify
from exporter.web import webconfig
from exporter.web.listen import bind

_COLORS: Mapping[Status, str] = {"ok": "green", "warn": "yellow", "FAIL": "bold red", "skipped": "dim"}
_NARROW = 60
"""Columns of a terminal below which the texts would be a column of a word or two."""


async def run(settings: Settings, out: TextIO, *, as_json: bool = False, wall: Callable[[], float] = time.time) -> int:
    """Make all checks, print the table, and return the exit status: 0 when `serve` would work, warnings allowed, else 1.

    Args:
        settings: what `serve` would run with.
        out: for the table.
        as_json: print JSON in place of a table: {"works", "checks": [{"check", "status", "text"}]}.
        wall: UTC seconds.
    """
    if as_json:
        results = await examine(settings, wall)
        works = all(result.status != "FAIL" for result in results)
        checks = [{"check": result.check, "status": result.status, "text": one_line(result.text)} for result in results]
        print(json.dumps({"works": works, "checks": checks}, indent=2), file=out)
        return 0 if works else 1
    console = Console(file=out, highlight=False, width=columns_of(out))
    # Not `console.status`: it leaves the first frame to its thread, which can come into the middle of a line of the log.
    with Live(Spinner("dots", "checking MongoDB and AWS …", style="status.spinner"), console=console, transient=True):
        results = await examine(settings, wall)
    failed = sum(result.status == "FAIL" for result in results)
    if console.is_terminal:
        if console.width < _NARROW or console.is_dumb_terminal:  # of which rich takes every one for 80 columns wide
            _print_lines(results, console, out)
        else:
            _print_table(results, console)
    else:
        out.writelines(f"{line}\n" for line in _plain_lines(results))
    say(f"{failed} of {len(results)} checks failed." if failed else "The exporter would work.", out)
    return 1 if failed else 0


async def examine(settings: Settings, wall: Callable[[], float] = time.time) -> list[CheckResult]:
    """Make all checks, in the order in which a failure explains later ones; never raises an ExporterError.

    Args:
        settings: what `serve` would run with.
        wall: UTC seconds.
    """
    folder, in_use = _check_data_folder(settings.data_dir, settings.period)
    results = [_describe_settings(settings), folder, _check_web(settings, in_use)]
    mongodb, fleet = await check_mongodb(settings, wall)
    return results + mongodb + await check_targets(settings) + await check_aws(settings, fleet, wall)


# -- this machine ------------------------------------------------------------------------------------------------------


def _describe_settings(settings: Settings) -> CheckResult:
    """Return the settings that decide cost and resolution; all were validated when they were loaded."""
    show = format_duration
    if settings.cloudwatch.enabled:
        polled = f"CloudWatch is polled every {show(settings.cloudwatch.interval)}"
    else:
        polled = "no CloudWatch"
    kept = f"history in {settings.mongodb.history}" if settings.mongodb.history else "no history (mongodb.history is null)"
    return CheckResult("settings", "ok", f"valid; period {show(settings.period)}, {polled}, {kept}")


def _check_data_folder(directory: Path, period: int) -> tuple[CheckResult, bool]:
    """Check the outbox's folder without creating it; return too whether a running exporter holds it."""

    def result(status: Status, text: str) -> CheckResult:
        return CheckResult("data folder", status, text)

    try:
        existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    except OSError as error:
        text = f"data_dir: {directory} cannot be examined ({error.strerror}); give this user its folder or set another data_dir"
        return result("FAIL", text), False
    if not existing.is_dir():
        return result("FAIL", f"data_dir: {existing} is not a folder; move it away or set another data_dir"), False
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "give this user the folder or set another data_dir"
        return result("FAIL", f"data_dir: {existing} cannot be written by this user; {remedy}"), False
    if existing != directory:
        return result("ok", f"{directory} does not exist yet; serve will create it"), False
    holder = _holder(directory / "lock")
    if holder is not None:
        text = f"an exporter is running here (process id {holder}); a second one needs another data_dir"
        return result("warn", text), True
    return _check_outbox(directory, period), False


def _check_outbox(directory: Path, period: int) -> CheckResult:
    """Check the outbox that no exporter holds, as `serve` would open it."""
    status: Status = "ok"
    text = f"{directory} can be written, no exporter holds it"
    try:
        _read_outbox(directory / "outbox.db", period)
    except IncompatibleStoreError as error:
        # What is damaged is replaced by `serve`; an outbox of another period or a later release is refused.
        status, text = "warn" if error.reason == DAMAGED else "FAIL", str(error)
    except StoreError as error:
        status, text = "FAIL", str(error)
    aside = aside_files(directory)
    if status == "ok" and aside:
        text = f"{aside[-1]} was damaged and set aside; the history lacks status and labs of it; delete it once inspected"
        return CheckResult("data folder", "warn", text)
    return CheckResult("data folder", status, text)


def _holder(lock: Path) -> str | None:
    """Return the process id in the lock file when a process holds it."""
    try:
        file = lock.open()
    except OSError:
        return None  # no exporter ever ran here, or the file is another user's, which the check of the folder reports
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "unknown"
    return None


def _read_outbox(path: Path, period: int) -> None:
    """Read the outbox without changing anything.

    It is opened as immutable, since merely reading a WAL database makes files beside it. What a killed exporter left in the WAL
    is then not seen, so only a whole database without one can be called damaged.

    Raises:
        StoreError: why `serve` would refuse or replace it.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?immutable=1", uri=True)) as database:
            verify(path, database)
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                return
            row = database.execute("SELECT value FROM meta WHERE key='period'").fetchone()
    except (sqlite3.Error, IncompatibleStoreError) as error:
        if path.with_name(path.name + "-wal").exists():
            return
        if isinstance(error, sqlite3.Error):
            raise translate(path, error) from error
        raise
    if row and not row[0].isdecimal():
        raise damaged(path, f"its period is {row[0]}")
    if row and int(row[0]) != period:
        raise IncompatibleStoreError(
            f"{path} holds samples of {format_duration(int(row[0]))} but period is {format_duration(period)}; "
            "set period back, or give this exporter another data_dir"
        )


def _check_web(settings: Settings, in_use: bool) -> CheckResult:
    """Listen for a moment where `serve` would, and read the TLS and authentication file."""
    addresses = ", ".join(settings.web.listen_address)
    try:
        if settings.web.config_file:
            webconfig.load(settings.web.config_file)
        for listener in bind(settings.web.listen_address):
            listener.close()
    except ConfigError as error:
        if in_use and str(error).startswith("web.listen_address"):
            return CheckResult("web server", "warn", f"{addresses} is taken, most likely by the exporter that is running here")
        return CheckResult("web server", "FAIL", str(error))
    return CheckResult("web server", "ok", f"{addresses} is free")


def _plain_lines(results: Sequence[CheckResult]) -> Iterator[str]:
    """Yield one line for each check, never wrapped or cut: for a file, a pipe, grep."""
    width = max(len(one_line(result.check)) for result in results)
    for result in results:
        yield f"{result.status:<7}  {one_line(result.check):<{width}}  {one_line(result.text)}"


def _print_lines(results: Sequence[CheckResult], console: Console, out: TextIO) -> None:
    """Print the same for a terminal that is too narrow for a table: two lines and more for each check."""
    for result in results:
        console.print(Text(f"{result.status}  ", style=_COLORS[result.status]) + Text(one_line(result.check)))
        say(f"  {one_line(result.text)}", out)


def _print_table(results: Sequence[CheckResult], console: Console) -> None:
    """Print the same as a table that wraps where the terminal ends."""
    table = Table("check", "result", "found")
    for column in table.columns:
        column.overflow = "fold"  # breaks a long word instead of cutting it
    for result in results:
        status = Text(result.status, style=_COLORS[result.status])
        table.add_row(Text(one_line(result.check)), status, Text(one_line(result.text)))
    console.print(table)

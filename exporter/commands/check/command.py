"""`cml-worker-exporter check`: validate the settings and every connection, change nothing, and print the result.

Each check is a row: its name, ok / warn / FAIL / skipped, and what was found or what to do. A failed check never hides the
others; one that cannot run without another is skipped with the reason. A warning is what `serve` can work with.

The history is verified by `HistoryCollection.verify`, the code that `serve` runs before it writes, so both refuse the same
collections in the same words.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.commands.check.aws import check_aws
from exporter.commands.check.mongodb import check_mongodb
from exporter.commands.check.result import CheckResult, Result, one_line
from exporter.core.errors import ConfigError
from exporter.core.periods import format_duration
from exporter.core.settings import Settings
from exporter.web import webconfig
from exporter.web.listen import bind

_COLORS: Mapping[Result, str] = {"ok": "green", "warn": "yellow", "FAIL": "bold red", "skipped": "dim"}


async def run(settings: Settings, out: TextIO, *, wall: Callable[[], float] = time.time) -> int:
    """Check everything, print the table, and return the exit status: 0 when `serve` would work, warnings allowed, else 1."""
    console = Console(file=out, highlight=False)
    with console.status("checking MongoDB and AWS …"):
        findings = await examine(settings, wall)
    failed = sum(finding.result == "FAIL" for finding in findings)
    if console.is_terminal:
        _print_table(findings, console)
    else:
        out.writelines(f"{line}\n" for line in _plain(findings))
    print(f"{failed} of {len(findings)} checks failed." if failed else "The exporter would work.", file=out)
    return 1 if failed else 0


async def examine(settings: Settings, wall: Callable[[], float] = time.time) -> list[CheckResult]:
    """Make all checks, in the order in which a failure explains later ones; never raises an ExporterError."""
    folder, in_use = _data_folder(settings.data_dir, settings.period)
    findings = [_settings(settings), folder, _web(settings, in_use)]
    mongodb, fleet = await check_mongodb(settings, wall)
    return findings + mongodb + await check_aws(settings, fleet, wall)


# -- this machine ------------------------------------------------------------------------------------------------------


def _settings(settings: Settings) -> CheckResult:
    """Show the settings that decide cost and resolution; all were validated when they were loaded."""
    show = format_duration
    polled = (
        f"CloudWatch is polled every {show(settings.cloudwatch.interval)}" if settings.cloudwatch.enabled else "no CloudWatch"
    )
    kept = f"history in {settings.mongodb.history}" if settings.mongodb.history else "no history (mongodb.history is null)"
    return CheckResult("settings", "ok", f"valid; period {show(settings.period)}, {polled}, {kept}")


def _data_folder(directory: Path, period: int) -> tuple[CheckResult, bool]:
    """Check the outbox's folder without creating it; return also whether a running exporter holds it."""

    def found(result: Result, text: str) -> CheckResult:
        return CheckResult("data folder", result, text)

    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        return found("FAIL", f"data_dir: {existing} is not a folder; move it away or set another data_dir"), False
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "give this user the folder or set another data_dir"
        return found("FAIL", f"data_dir: {existing} cannot be written by this user; {remedy}"), False
    if existing != directory:
        return found("ok", f"{directory} is not there yet; serve will create it"), False
    holder = _holder(directory / "lock")
    if holder is not None:
        text = f"an exporter is running here (process id {holder}); a second one needs another data_dir"
        return found("warn", text), True
    damage = _outbox_damage(directory / "outbox.db", period)
    return (found("FAIL", damage) if damage else found("ok", f"{directory} can be written, and no exporter runs in it")), False


def _holder(lock: Path) -> str | None:
    """Return the process id in the lock file when a process holds the lock."""
    try:
        file = lock.open()
    except OSError:
        return None  # no exporter ran here yet, or another user's did, which the check of the folder reports
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "unknown"
    return None


def _outbox_damage(path: Path, period: int) -> str | None:
    """Return why `serve` would refuse the outbox.

    It is opened as immutable, because reading a WAL database creates files beside it. What a killed exporter left in the WAL
    is not visible then, so only a database without a WAL can be called damaged.
    """
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?immutable=1", uri=True)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                return None
            row = database.execute("SELECT value FROM meta WHERE key='period'").fetchone()
    except sqlite3.Error as error:
        if path.with_name(path.name + "-wal").exists():
            return None
        return f"{path} cannot be read ({error}); move it away: what it held is read from CloudWatch anew"
    if row and int(row[0]) != period:
        return (
            f"{path} holds samples of {format_duration(int(row[0]))} but period is {format_duration(period)}; "
            "set period back, or give this exporter another data_dir"
        )
    return None


def _web(settings: Settings, in_use: bool) -> CheckResult:
    """Bind the addresses of `serve` for a moment, and read the TLS and authentication file."""
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


def _plain(findings: Sequence[CheckResult]) -> Iterator[str]:
    """Yield one line per check, never wrapped or cut: for files, pipes and grep."""
    width = max(len(one_line(finding.what)) for finding in findings)
    for finding in findings:
        yield f"{finding.result:<7}  {one_line(finding.what):<{width}}  {one_line(finding.text)}"


def _print_table(findings: Sequence[CheckResult], console: Console) -> None:
    """Print a table that wraps at the width of the terminal."""
    table = Table("check", "result", "found")
    for column in table.columns:
        column.overflow = "fold"  # breaks a long word instead of cutting it
    for finding in findings:
        result = Text(finding.result, style=_COLORS[finding.result])
        table.add_row(Text(one_line(finding.what)), result, Text(one_line(finding.text)))
    console.print(table)

"""Runs each command with its parsed flags: loads the settings, imports the command, returns the exit status.

A command is imported by its function here, so that `--version` and `--help` load no boto3, pymongo, or uvicorn.
"""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from exporter.commands import flags, terminal
from exporter.commands.exit_status import CLOSED_PIPE
from exporter.core.errors import ConfigError, ExporterError

if TYPE_CHECKING:
    from exporter.core.settings import Settings


def serve(options: argparse.Namespace) -> int:
    """Run the exporter."""
    import uvloop

    from exporter.commands import serve as command
    from exporter.core import logs

    wanted: object = None
    try:
        settings = _settings(options)
        wanted = settings.log.format
        return uvloop.run(command.serve(settings, lambda: _loaded(options)))
    except ExporterError as error:
        if (wanted or getattr(error, "log_format", None)) != "json":
            raise
        # What reads the log reads no plain text.
        logs.configure("error", "json", sys.stderr)
        for line in str(error).splitlines():
            logs.get("exporter").error("not started, or ended" if wanted is None else "ended", error=line)
        return int(options.command.failure)


def check(options: argparse.Namespace) -> int:
    """Validate settings and connections."""
    import asyncio

    from exporter.commands.check import command

    return asyncio.run(command.run(_settings(options, "error"), sys.stdout, as_json=options.json))


def retention(options: argparse.Namespace) -> int:
    """Show or change the retention."""
    import asyncio

    from exporter.commands import retention as command
    from exporter.core.periods import parse_duration

    settings = _settings(options, "error")
    try:
        wanted = None if options.wanted is None else parse_duration(options.wanted)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from error
    return asyncio.run(command.run(settings, wanted, options.yes, sys.stdout, as_json=options.json))


def estimate(options: argparse.Namespace) -> int:
    """Print what CloudWatch will cost."""
    import asyncio

    from exporter.commands import estimate as command

    return asyncio.run(command.run(_settings(options, "error"), sys.stdout, as_json=options.json))


def backfill(options: argparse.Namespace) -> int:
    """Fill older gaps from CloudWatch."""
    import asyncio

    from exporter.commands.backfill import command
    from exporter.commands.backfill.planner import Options

    since, text = options.since
    wanted = Options(since, text, tuple(options.workers), options.dry_run, options.max_usd)
    return asyncio.run(command.main(_settings(options, "warn"), wanted, sys.stdout, sys.stderr))


def import_events(options: argparse.Namespace) -> int:
    """Fill older gaps from the manager's events."""
    import asyncio

    from exporter.commands.import_events import command
    from exporter.commands.import_events.planner import Options

    (since, text), (until, until_text) = options.since, options.until
    wanted = Options(since, text, until, until_text, tuple(options.workers), options.dry_run, options.quiet)
    return asyncio.run(command.main(_settings(options, "warn"), wanted, sys.stdout, sys.stderr))


def verify(options: argparse.Namespace) -> int:
    """Compare the history with CloudWatch."""
    import asyncio

    from exporter.commands.verify import command
    from exporter.commands.verify.planner import Options

    since, text = options.since
    if options.repair:
        return _repair(options, since)
    if options.yes:
        raise ConfigError("--yes confirms a repair, and there is none without --repair")
    wanted = Options(
        since, text, tuple(options.workers), options.sample, options.dry_run, options.max_usd, options.quiet, options.json
    )
    settings = _settings(options, "error")
    try:
        return asyncio.run(command.main(settings, wanted, sys.stdout, sys.stderr))
    except OSError as error:  # those of MongoDB, AWS and the disk are translated: it is the output's
        terminal.discard_output()
        if isinstance(error, BrokenPipeError):
            return CLOSED_PIPE
        raise ExporterError(
            f"cannot write the result ({error.strerror}); make room and run the same command again: it pays for no call twice"
        ) from error


def _repair(options: argparse.Namespace, since: int) -> int:
    """Remove samples that are stored twice."""
    import asyncio

    from exporter.commands.verify import repair

    given = {"--sample": options.sample, "--max-usd": options.max_usd, "--json": options.json or None}
    refused = [flag for flag, value in given.items() if value is not None]
    if refused:
        raise ConfigError(f"--repair compares nothing with CloudWatch, so it does not take {', '.join(refused)}; leave it out")
    wanted = repair.Options(since, tuple(options.workers), options.dry_run, options.yes)
    prompt = _confirm if sys.stdin.isatty() else None
    return asyncio.run(repair.run(_settings(options, "warn"), wanted, sys.stdout, sys.stderr, prompt=prompt))


def export(options: argparse.Namespace) -> int:
    """Write the history to a file, or copy it into another database."""
    import asyncio

    from exporter.commands.export import command
    from exporter.commands.export.request import ExportRequest

    settings, now = _settings(options, "error"), int(time.time())
    since = flags.time_bound("--since", options.since, now, options.tz)
    until = flags.time_bound("--until", options.until, now, options.tz)
    if options.to is not None and options.output is not None:
        raise ConfigError("--to: the samples go into a store or into a file; leave out --to or --output")
    request = ExportRequest(
        since,
        until,
        tuple(options.workers),
        options.format,
        options.output,
        options.tz,
        options.to,
        options.rate,
        f"{options.since} {options.until} {options.tz}",
        options.json,
    )
    return asyncio.run(command.run(settings, request, sys.stderr))


def purge(options: argparse.Namespace) -> int:
    """Delete all stored data of a worker."""
    import asyncio

    from exporter.commands import purge as command

    settings = _settings(options, "error")
    prompt = _confirm if sys.stdin.isatty() else None
    return asyncio.run(
        command.run(
            settings, options.workers, yes=options.yes, even_if_listed=options.even_if_listed, prompt=prompt, out=sys.stdout
        )
    )


def _confirm(question: str) -> str:
    """Return the answer typed at the terminal; empty after Ctrl-D."""
    try:
        return input(question)
    except EOFError:
        print()
        return ""


def migrate(options: argparse.Namespace) -> int:
    """Print settings made from another exporter's configuration."""
    from exporter.commands import migrate as command

    return command.run(options.file, sys.stdout)


def assets(options: argparse.Namespace) -> int:
    """List or write the files for other programs."""
    from exporter.commands import assets as command
    from exporter.core.assets import ALERTMANAGER, EXPORTER

    addresses = {EXPORTER: options.exporter, ALERTMANAGER: options.alertmanager}
    return command.run(options.output, addresses, sys.stdout, force=options.force, as_json=options.json)


def _settings(options: argparse.Namespace, level: str | None = None) -> "Settings":
    """Load the settings and configure the log; `level` replaces log.level in commands that write to a person."""
    from exporter.core import logs

    settings = _loaded(options)
    logs.configure(level or settings.log.level, settings.log.format, sys.stderr)
    return settings


def _loaded(options: argparse.Namespace) -> "Settings":
    """Load the settings from file, environment, and flags as they are now."""
    from exporter.core import settings_loader

    given = {s.key: value for s in options.command.setting_flags() if (value := getattr(options, s.key)) is not None}
    return settings_loader.load(options.config_file, flags=given)

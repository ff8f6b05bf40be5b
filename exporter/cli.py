"""The command line: `cml-worker-exporter COMMAND`, see `_parser`. Each setting is a flag too, from one table."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from exporter import __version__
from exporter.commands import estimate, purge, retention
from exporter.commands import serve as serve_module
from exporter.commands.backfill import command as backfill
from exporter.commands.backfill.planner import Options
from exporter.commands.check import command as check
from exporter.commands.export import command as export
from exporter.core import logs
from exporter.core.errors import ConfigError, ExporterError
from exporter.core.periods import parse_duration, parse_time
from exporter.core.settings import Settings
from exporter.core.settings_loader import load, table
from exporter.demo import command as demo

_EPILOG = """\
Settings come from --config.file, then CML_EXPORTER_… in the environment, then flags; later ones win.
docs/settings.md describes them all. `cml-worker-exporter demo` needs no settings and no AWS account.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 it cannot work as things are, 2 the command line is wrong."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
    except ExporterError as error:
        for line in str(error).splitlines():
            print(f"cml-worker-exporter: {line}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cml-worker-exporter",
        description="CPU, memory, labs and status of Cisco Modeling Labs workers: gauges for Prometheus, and a history that "
        "outlives the worker.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cml-worker-exporter {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the exporter", description="Run the exporter until SIGINT or SIGTERM.")
    _add_settings(serve)
    serve.set_defaults(run=_serve)

    checking = commands.add_parser(
        "check",
        help="validate the settings and every connection, change nothing",
        description="Validate the settings, MongoDB (version, privileges, the collection) and AWS (identity, one "
        "CloudWatch call per region), and print what was found. Exit status 1 when serve would not work.",
    )
    _add_settings(checking)
    checking.set_defaults(run=_check)

    keeping = commands.add_parser(
        "retention",
        help="show how long the history keeps its samples, or change it",
        description="Show how long the history keeps its samples. With --set, say what the change deletes, and with --yes do "
        "it; the setting mongodb.retention alone never shortens a history.",
    )
    keeping.add_argument("--set", dest="wanted", metavar="DURATION", help="keep samples for so long, such as 14d")
    keeping.add_argument("--yes", action="store_true", help="really delete what is older")
    _add_settings(keeping)
    keeping.set_defaults(run=_retention)

    reckoning = commands.add_parser(
        "estimate",
        help="what CloudWatch will cost with this fleet and these settings",
        description="Read the aggregates, find out who has a CloudWatch agent, and print calls, metrics billed and dollars per "
        "round, day and month. Asks CloudWatch for nothing that is billed.",
    )
    _add_settings(reckoning)
    reckoning.set_defaults(run=_estimate)

    _add_backfill(commands)
    _add_export(commands)
    _add_purge(commands)

    trying = commands.add_parser(
        "demo",
        help="a fake AWS, MongoDB, 12 simulated workers and the exporter",
        description="Start a fake AWS, a MongoDB, a simulated manager with 12 workers in two regions, and the exporter; "
        "no account needed. Ctrl-C ends it all.",
    )
    demo.add_arguments(trying)
    trying.set_defaults(run=demo.main)
    return parser


_EXPORT_EXAMPLE = """\
example:
  cml-worker-exporter export --config.file exporter.yml --since 30d --output history.om
  promtool tsdb create-blocks-from openmetrics --max-block-duration=744h history.om /var/lib/prometheus

docs/export.md has the rest: what is in the file, and what Prometheus needs so that it keeps such old blocks.
"""
_BACKFILL_EXAMPLE = """\
example:
  cml-worker-exporter backfill --config.file exporter.yml --since 14d --dry-run
  cml-worker-exporter backfill --config.file exporter.yml --since 14d --max-usd 0.05

docs/backfill.md says what is filled, what it costs, and what happens when it is interrupted.
"""
_PURGE_EXAMPLE = """\
example:
  cml-worker-exporter purge --config.file exporter.yml --worker 2f1c… --worker 77ab…

The user of mongodb.uri needs `remove` on the history and the inventory, which only this command uses; see README.md.
"""


def _add_backfill(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    filling = commands.add_parser(
        "backfill",
        help="fill older gaps of the history from CloudWatch",
        description="Fill what the history lacks and serve no longer heals, from CloudWatch: CPU and memory. Prints\n"
        "first what it costs. May be interrupted at any moment: the same command goes on and asks nothing\n"
        "twice. An exporter may run beside it. Exit status 1 when something is missing.",
        epilog=_BACKFILL_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    filling.add_argument(
        "--since", required=True, type=_past, metavar="TIME", help="how far back: 14d, or RFC 3339 such as 2026-01-31T12:00:00Z"
    )
    filling.add_argument(
        "--worker", dest="workers", action="append", default=[], metavar="ID", help="only this one; repeatable"
    )
    filling.add_argument("--dry-run", action="store_true", help="print the plan and its price, change nothing")
    filling.add_argument(
        "--max-usd",
        type=_dollars,
        metavar="DOLLARS",
        help="do nothing if it costs more (default: the setting cloudwatch.max_usd_per_day, if there is one)",
    )
    _add_settings(filling)
    filling.set_defaults(run=_backfill)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    exporting = commands.add_parser(
        "export",
        help="write the history as OpenMetrics, for Prometheus, or as CSV",
        description="Write the history of all workers or some, as OpenMetrics text that promtool turns into\n"
        "blocks of Prometheus, or as CSV. A file appears under its name only when it is complete.\n"
        "TIME is a duration back from now, such as 30d, or RFC 3339, such as 2026-01-31T12:00:00Z.",
        epilog=_EXPORT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    exporting.add_argument("--since", required=True, metavar="TIME", help="the oldest samples wanted")
    exporting.add_argument("--until", default="now", metavar="TIME", help="only samples before it (default: now)")
    exporting.add_argument(
        "--worker", dest="workers", action="append", default=[], metavar="ID", help="only this one; repeatable"
    )
    exporting.add_argument("--format", choices=export.FORMATS, default=export.FORMATS[0], help="(default: openmetrics)")
    exporting.add_argument("--output", metavar="FILE", type=Path, help="where to write (default: standard output)")
    _add_settings(exporting)
    exporting.set_defaults(run=_export)


def _add_purge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    purging = commands.add_parser(
        "purge",
        help="delete all that is stored of a worker",
        description="Say what is stored of a worker (samples and inventory entry), and delete it for good after its\n"
        "id is typed at the terminal, or with --yes. A worker that an exporter may still write is refused.",
        epilog=_PURGE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    purging.add_argument(
        "--worker", dest="workers", action="append", required=True, metavar="ID", help="whose traces to delete; repeatable"
    )
    purging.add_argument("--yes", action="store_true", help="delete without asking")
    purging.add_argument(
        "--even-if-listed",
        action="store_true",
        help="also delete a worker that is still listed, or was seen within gap_fill_window; "
        "the exporter may write some of it again",
    )
    _add_settings(purging)
    purging.set_defaults(run=_purge)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config.file", dest="config_file", type=Path, metavar="FILE", help="YAML file with the settings")
    group = parser.add_argument_group("settings", "each one also in the file and in the environment")
    for setting in table():
        default = "" if setting.default in (None, [], {}) else f" (default: {_shown(setting.default)})"
        group.add_argument(
            setting.flag,
            dest=setting.key,
            metavar="VALUE",
            help=(setting.description + default).replace("%", "%%"),
        )


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def _settings(options: argparse.Namespace) -> Settings:
    flags = {s.key: value for s in table() if (value := getattr(options, s.key)) is not None}
    return load(options.config_file, flags=flags)


def _quiet(options: argparse.Namespace, level: str = "error") -> Settings:
    """The settings of a command that speaks to a person: the log says only what went wrong."""
    settings = _settings(options)
    logs.configure(level, settings.log.format, sys.stderr)
    return settings


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    logs.configure(settings.log.level, settings.log.format, sys.stderr)
    return uvloop.run(serve_module.serve(settings))


def _check(options: argparse.Namespace) -> int:
    settings = _quiet(options)
    return asyncio.run(check.run(settings, sys.stdout))


def _estimate(options: argparse.Namespace) -> int:
    settings = _quiet(options)
    return asyncio.run(estimate.run(settings, sys.stdout))


def _retention(options: argparse.Namespace) -> int:
    settings = _quiet(options)
    try:
        wanted = None if options.wanted is None else parse_duration(options.wanted)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from error
    return asyncio.run(retention.run(settings, wanted, options.yes, sys.stdout))


def _past(text: str) -> tuple[int, str]:
    now = int(time.time())
    try:
        since = parse_time(text, now)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if since > now:
        raise argparse.ArgumentTypeError(f"{text} is in the future; write a time that has passed")
    return since, text


def _dollars(text: str) -> float:
    try:
        dollars = float(text)
    except ValueError:
        dollars = -1
    if not 0 <= dollars < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of dollars; write a number such as 0.05")
    return dollars


def _backfill(options: argparse.Namespace) -> int:
    settings = _quiet(options, "warn")
    since, text = options.since
    wanted = Options(since, text, tuple(options.workers), options.dry_run, options.max_usd)
    return asyncio.run(backfill.main(settings, wanted, sys.stdout, sys.stderr))


def _export(options: argparse.Namespace) -> int:
    settings = _quiet(options)
    now = int(time.time())
    since, until = _time("--since", options.since, now), _time("--until", options.until, now)
    request = export.Request(since, until, tuple(options.workers), options.format, options.output)
    return asyncio.run(export.run(settings, request, sys.stderr))


def _time(flag: str, text: str, now: int) -> int:
    try:
        return parse_time(text, now)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _purge(options: argparse.Namespace) -> int:
    settings = _quiet(options)
    ask = _ask if sys.stdin.isatty() else None
    return asyncio.run(
        purge.run(settings, options.workers, yes=options.yes, even_if_listed=options.even_if_listed, prompt=ask, out=sys.stdout)
    )


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:  # Ctrl-D
        print()
        return ""


if __name__ == "__main__":
    main()

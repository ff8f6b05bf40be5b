"""The own flags of each command. Imports nothing heavy: `--help` loads this module."""

import argparse
import time
from datetime import UTC, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from exporter.commands.export.request import FORMATS, RATE
from exporter.core.errors import ConfigError
from exporter.core.local_time import time_zone
from exporter.core.periods import parse_time

_SINCE = "such as 30d (ago), 2026-01-31, 2026-01-31T12:00:00Z, or Unix seconds"


def json_flag(parser: argparse.ArgumentParser) -> None:
    """Declare --json, of commands whose result programs read too."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def completion_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the shell of `completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that completes")


def retention_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `retention`."""
    parser.add_argument("--set", dest="wanted", metavar="DURATION", help="new retention, such as 14d (default: only show it)")
    parser.add_argument("--yes", action="store_true", help="apply a shorter retention; MongoDB deletes older samples")
    json_flag(parser)


def backfill_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `backfill`."""
    parser.add_argument("--since", required=True, type=_past, metavar="TIME", help=f"start of the window to fill, {_SINCE}")
    _add_workers(parser, "id of a worker to fill; repeatable (default: all workers)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its price, change nothing")
    _add_max_usd(parser)


def verify_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `verify`."""
    parser.add_argument("--since", required=True, type=_past, metavar="TIME", help=f"start of the window to compare, {_SINCE}")
    _add_workers(parser, "id of a worker to compare; repeatable (default: all workers)")
    parser.add_argument(
        "--sample",
        type=_percent,
        metavar="PERCENT",
        help="compare so many percent of the workers, such as 5%%, at least one; on one day the same, on the next others "
        "(default: all workers)",
    )
    _add_max_usd(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its price, compare nothing")
    parser.add_argument(
        "--repair", action="store_true", help="instead of comparing, remove samples that are stored twice; makes no AWS call"
    )
    parser.add_argument("--yes", action="store_true", help="with --repair: do it without a confirmation at the terminal")
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON on standard output, the plan on standard error"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def import_events_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `import-events`."""
    parser.add_argument("--since", required=True, type=_past, metavar="TIME", help=f"time of the oldest event, {_SINCE}")
    parser.add_argument(
        "--until", default="now", type=_past, metavar="TIME", help="end of the window, exclusive (default: now)"
    )
    _add_workers(parser, "id of a worker to import; repeatable (default: all workers)")
    parser.add_argument("--dry-run", action="store_true", help="read the events, print the plan, change nothing")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def export_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `export`."""
    parser.add_argument("--since", required=True, metavar="TIME", help=f"time of the oldest sample, inclusive; {_SINCE}")
    parser.add_argument("--until", default="now", metavar="TIME", help="end of the window, exclusive (default: now)")
    parser.add_argument(
        "--tz",
        type=_zone,
        metavar="ZONE",
        help="time zone of dates without an offset in --since and --until, and of the times in CSV, such as America/New_York "
        "(default: UTC)",
    )
    _add_workers(parser, "id of a worker to export; repeatable (default: all workers)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="output format (default: openmetrics); csv has texts as they are stored, "
        "also those that a spreadsheet takes for formulas",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="output file (default: standard output)")
    parser.add_argument(
        "--to",
        metavar="ADDRESS",
        help="instead of a file: copy into this VictoriaMetrics, InfluxDB, or PostgreSQL, and count there",
    )
    parser.add_argument(
        "--rate", type=_rate, default=RATE, metavar="N", help=f"with --to: samples per second at most (default: {RATE})"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was exported as JSON on standard error, in place of text"
    )


def purge_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `purge`."""
    _add_workers(parser, "id of a worker whose data is deleted; repeatable", required=True)
    parser.add_argument("--yes", action="store_true", help="delete without a confirmation at the terminal")
    parser.add_argument(
        "--even-if-listed",
        action="store_true",
        help="also delete a worker that is still listed, or was seen within gap_fill_window; "
        "the exporter may write some of its samples again",
    )


def migrate_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `migrate`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="configuration of YACE or cloudwatch_exporter")


def assets_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `assets`."""
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder to write the files into (default: only list them)")
    parser.add_argument("--force", action="store_true", help="replace files in DIR that have another content")
    parser.add_argument(
        "--exporter",
        default="127.0.0.1:9877",
        metavar="HOST:PORT",
        help="the exporter's address for prometheus.yml (default: 127.0.0.1:9877)",
    )
    parser.add_argument(
        "--alertmanager",
        default="127.0.0.1:9093",
        metavar="HOST:PORT",
        help="Alertmanager's address for prometheus.yml (default: 127.0.0.1:9093)",
    )
    parser.add_argument("--json", action="store_true", help="print the paths as a JSON array")


def demo_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `demo`."""
    parser.add_argument("--fresh", action="store_true", help="remove the data of earlier runs from the folder first")
    parser.add_argument(
        "--port",
        type=int,
        help="port of the exporter on 127.0.0.1 (default: 9877, or if it is taken a free one, which the folder keeps; "
        "0: a free one)",
    )
    parser.add_argument("--dir", type=Path, default=Path(".demo"), help="folder for all data of the demo (default: .demo)")


def _add_workers(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    parser.add_argument("--worker", dest="workers", action="append", required=required, default=[], metavar="ID", help=text)


def _add_max_usd(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-usd",
        type=_dollars,
        metavar="DOLLARS",
        help="highest price of a plan that is carried out (default: cloudwatch.max_usd_per_day, if it is set)",
    )


def time_bound(flag: str, text: str, now: int, zone: tzinfo | None) -> int:
    """Return the UTC second that a TIME flag names; raises ConfigError."""
    try:
        return parse_time(text, now, zone or UTC)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _past(text: str) -> tuple[int, str]:
    """Return a time that has passed in UTC seconds, and its text."""
    now = int(time.time())
    try:
        since = parse_time(text, now)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if since > now:
        raise argparse.ArgumentTypeError(f"{text} is in the future; write a time that has passed")
    return since, text


def _zone(name: str) -> ZoneInfo:
    try:
        return time_zone(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _rate(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of samples per second; write a whole number above 0")
    return int(text)


def _percent(text: str) -> float:
    try:
        percent = float(text.removesuffix("%")) if text.endswith("%") else 0
    except ValueError:
        percent = 0
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage above 0; write a number and %, such as 5%")
    return percent


def _dollars(text: str) -> float:
    try:
        dollars = float(text)
    except ValueError:
        dollars = -1
    if not 0 <= dollars < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of dollars; write a number such as 0.05")
    return dollars

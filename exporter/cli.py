"""The command line: `cml-worker-exporter serve | check | retention | demo`. Each setting is a flag too, from one table."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from exporter import __version__, app, check, config, demo, estimate, logs, retention
from exporter.errors import ConfigError, ExporterError
from exporter.periods import parse_duration

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

    trying = commands.add_parser(
        "demo",
        help="a fake AWS, MongoDB, 12 simulated workers and the exporter",
        description="Start a fake AWS, a MongoDB, a simulated manager with 12 workers in two regions, and the exporter; "
        "no account needed. Ctrl-C ends it all.",
    )
    demo.add_arguments(trying)
    trying.set_defaults(run=demo.main)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config.file", dest="config_file", type=Path, metavar="FILE", help="YAML file with the settings")
    group = parser.add_argument_group("settings", "each one also in the file and in the environment")
    for setting in config.table():
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


def _settings(options: argparse.Namespace) -> config.Settings:
    flags = {s.key: value for s in config.table() if (value := getattr(options, s.key)) is not None}
    return config.load(options.config_file, flags=flags)


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    logs.configure(settings.log.level, settings.log.format, sys.stderr)
    return uvloop.run(app.serve(settings))


def _check(options: argparse.Namespace) -> int:
    settings = _settings(options)
    logs.configure("error", settings.log.format, sys.stderr)
    return asyncio.run(check.run(settings, sys.stdout))


def _estimate(options: argparse.Namespace) -> int:
    settings = _settings(options)
    logs.configure("error", settings.log.format, sys.stderr)
    return asyncio.run(estimate.run(settings, sys.stdout))


def _retention(options: argparse.Namespace) -> int:
    settings = _settings(options)
    logs.configure("error", settings.log.format, sys.stderr)
    try:
        wanted = None if options.wanted is None else parse_duration(options.wanted)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from error
    return asyncio.run(retention.run(settings, wanted, options.yes, sys.stdout))


if __name__ == "__main__":
    main()

"""The command line: `cml-worker-exporter COMMAND`.

`COMMANDS` is the table of commands: help texts, the command's own flags, the settings it reads, the function that runs it.
The functions are in `commands.run`.
"""

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence

from exporter.commands import flags, manual, run, terminal
from exporter.commands.command import EVERY_SETTING, Command, add_settings
from exporter.commands.exit_status import NO_WORKERS
from exporter.core import version
from exporter.core.errors import ExporterError, NoWorkersError

_EPILOG = """\
Settings come from --config.file, then CML_EXPORTER_… in the environment, then flags; later ones win.
docs/settings.md describes them all. `cml-worker-exporter demo` needs no settings and no AWS account.
"""
_TIME = """\
TIME is a duration before now (30d, -30d, now-30d), RFC 3339 (2026-01-31T12:00:00Z; a date alone is 00:00 UTC),
unix seconds, or now.
"""
_TIME_FLAGS = ("--since", "--until")


PROGRAM = "cml-worker-exporter"
_MONGODB = ("mongodb.uri", "mongodb.uri_file")
_HISTORY = (*_MONGODB, "mongodb.workers", "mongodb.history", "mongodb.retention")
_WORKERS = ("workers.fields", "workers.extra")
"""What commands need that read the worker documents; the price is for gauges and pages."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    The exit status is 0: done, 1 (`verify`: 3): it failed, 2: the command line is wrong or the database has no workers, 130:
    interrupted by Ctrl-C, 141: the reader of the output has gone.
    """
    sys.exit(terminal.run(lambda: _run(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: Sequence[str]) -> int:
    options = _parse(_join_times(arguments))
    try:
        return terminal.run(lambda: int(options.run(options)))
    except ExporterError as error:
        for line in str(error).splitlines():
            print(f"cml-worker-exporter: {line}", file=sys.stderr)
        return NO_WORKERS if isinstance(error, NoWorkersError) else int(options.command.failure)
    except KeyboardInterrupt:
        return 130


# -- parsing -----------------------------------------------------------------------------------------------------------


def parser_of(chosen: str | None) -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the command line, and those of the commands.

    Args:
        chosen: the command that declares its flags, since the settings take 100 ms to import; "*": all, None: none.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="CPU, memory, labs and status of Cisco Modeling Labs workers: gauges for Prometheus, and a history that "
        "outlives the worker.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show version, revision and Python, and exit")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if chosen in (name, "*"):
            command.add_flags(subparser)
            add_settings(subparser, command)
            subparser.set_defaults(command=command, run=command.run)
    return parser, subparsers.choices


class _Version(argparse.Action):
    """Prints the version only when it is asked for: it reads a file."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version.line())
        parser.exit()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; end with 2 where it is wrong, naming the nearest command or flag."""
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser, commands = parser_of(chosen)
    if chosen is not None and chosen not in COMMANDS:
        parser.error(f"{chosen!r} is not a command{_nearest(chosen, COMMANDS)}")
    if chosen is None:
        return parser.parse_args(arguments)
    command = commands[chosen]
    flags_of = [flag for action in command._actions for flag in action.option_strings]
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"]
    unknown = [flag for flag in given if not any(known.startswith(flag) for known in [*flags_of, "--version"])]
    if unknown:  # before argparse, which would rather complain that the right flag is missing
        command.error(_refusal(unknown, flags_of))
    return parser.parse_args(arguments)


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]}?" if match else ""


def _join_times(arguments: Sequence[str]) -> list[str]:
    """Write `--since -30d` as `--since=-30d`: argparse takes a separate value that begins with - for a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _TIME_FLAGS and argument.startswith("-") and argument[1:2].isdigit():
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _refusal(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Return the error message for flags that the command does not have; it explains those that are settings."""
    from exporter.core.settings_loader import OF_BOTO3, table

    settings = {setting.flag for setting in table()}
    unread = [flag for flag in unknown if flag in settings]
    if unread:
        return f"this command does not read {', '.join(unread)}; a setting may stay in the file or in the environment"
    told = (flag + (OF_BOTO3.get(flag[2:].replace("-", "_")) or _nearest(flag, known)) for flag in unknown)
    return f"unrecognized arguments: {', '.join(told)}"


def _print(text: str) -> int:
    print(text, end="")
    return 0


def completion(shell: str) -> str:
    """Return the script that completes commands and flags in a shell, bash or zsh."""
    import shtab

    return str(shtab.complete(parser_of("*")[0], shell=shell))


def _demo(options: argparse.Namespace) -> int:
    from exporter.demo import command

    return command.main(options)


COMMANDS: dict[str, Command] = {
    "serve": Command(
        run.serve,
        "run the exporter",
        "Run the exporter until SIGINT or SIGTERM: collect, answer HTTP on port 9877, write the history. SIGHUP reloads.",
        settings=EVERY_SETTING,
        notes="""\
example:
  cml-worker-exporter serve --config.file exporter.yml
  CML_EXPORTER_MONGODB__URI=mongodb://127.0.0.1/cml_cloud_manager cml-worker-exporter serve --web.listen-address :9877

In a database without any worker document nothing is created before the first one is there.
""",
        statuses="0 ended by a signal, 1 it cannot start or cannot go on, 2 wrong command line",
    ),
    "check": Command(
        run.check,
        "validate the settings and every connection, change nothing",
        "Validate the settings, MongoDB (version, privileges, the collection) and AWS (identity, one CloudWatch call\n"
        "per region), and print the findings. Exit status 1 when `serve` would not work.",
        flags.json_flag,
        settings=EVERY_SETTING,
        usage="[--json]",
        notes="""\
example:
  cml-worker-exporter check --config.file exporter.yml
  cml-worker-exporter check --config.file exporter.yml --json | jq '.checks[] | select(.status == "FAIL")'
""",
        statuses="0 serve would work, warnings allowed, 1 a check failed, 2 wrong command line",
    ),
    "retention": Command(
        run.retention,
        "show how long the history keeps its samples, or change it",
        "Show how long the history keeps its samples. With --set, print what the change deletes, and with --yes apply\n"
        "it; the setting mongodb.retention alone never shortens a history.",
        flags.retention_flags,
        (*_MONGODB, "mongodb.history", "mongodb.retention", "period", "gap_fill_window", "log.format"),
        "[--set DURATION] [--yes] [--json]",
        """\
example:
  cml-worker-exporter retention --config.file exporter.yml
  cml-worker-exporter retention --config.file exporter.yml --set 90d
  cml-worker-exporter retention --config.file exporter.yml --set 14d --yes
""",
        statuses="0 done, 1 it failed, or nothing was changed because --yes is missing, 2 wrong command line",
    ),
    "estimate": Command(
        run.estimate,
        "what CloudWatch will cost with this fleet and these settings",
        "Read the worker documents, find out which workers have a CloudWatch agent, and print calls, metrics billed,\n"
        "and dollars per collection cycle, day, and month. Makes no CloudWatch call that is billed.",
        flags.json_flag,
        # Those below `period` change no figure, but other intervals are valid only together with them.
        settings=(
            *(*_MONGODB, "mongodb.workers", "period"),
            *("settle_delay", "absence_timeout", "gap_fill_window", "max_age"),
            *("cloudwatch", "aws", *_WORKERS, "log.format"),
        ),
        usage="[--json]",
        notes="""\
example:
  cml-worker-exporter estimate --config.file exporter.yml
  cml-worker-exporter estimate --config.file exporter.yml --cloudwatch.interval 15m --json
""",
        statuses="0 done, 1 it failed, 2 wrong command line, or there is no worker document",
    ),
    "backfill": Command(
        run.backfill,
        "fill older gaps of the history from CloudWatch",
        "Fill gaps of the history that `serve` no longer fills, from CloudWatch: CPU and memory. Prints the price\n"
        "first. May be interrupted at any moment: the same command continues and repeats no completed call. An\n"
        "exporter may run at the same time. Exit status 1 when samples are still missing.",
        flags.backfill_flags,
        (
            *(*_HISTORY, "period", "gap_fill_window", "cloudwatch.enabled", "cloudwatch.endpoint_url"),
            *("cloudwatch.memory", "cloudwatch.max_usd_per_day", "aws", *_WORKERS, "data_dir", "log.format"),
        ),
        "--since TIME [--worker ID ...] [--dry-run] [--max-usd DOLLARS]",
        f"""\
{_TIME}
example:
  cml-worker-exporter backfill --config.file exporter.yml --since 14d --dry-run
  cml-worker-exporter backfill --config.file exporter.yml --since 14d --max-usd 0.05

docs/backfill.md explains what is filled, what it costs, and what happens after an interruption.
""",
        statuses="0 done, 1 it failed or samples are still missing, 2 wrong command line, or there is no worker",
    ),
    "verify": Command(
        run.verify,
        "compare the history with CloudWatch",
        "Compare CPU and memory of the history with CloudWatch, value by value, and name what is missing, extra,\n"
        "different or stored twice. Prints the price first, changes nothing. May be interrupted at any moment: the\n"
        "same command continues and repeats no completed call. An exporter may run at the same time. With --repair,\n"
        "print which samples are stored twice, and remove the copies after a confirmation.",
        flags.verify_flags,
        (
            *(*_HISTORY, "period", "absence_timeout", "cloudwatch.enabled", "cloudwatch.interval", "cloudwatch.endpoint_url"),
            *("cloudwatch.memory", "cloudwatch.max_usd_per_day", "aws", *_WORKERS, "data_dir", "log.format"),
        ),
        "--since TIME [--worker ID ...] [--sample PERCENT] [--max-usd DOLLARS] [--dry-run] [--json] [--quiet]\n"
        "       cml-worker-exporter verify --repair --since TIME [--worker ID ...] [--dry-run] [--yes]",
        f"""\
{_TIME}
example:
  cml-worker-exporter verify --config.file exporter.yml --since 7d --dry-run
  cml-worker-exporter verify --config.file exporter.yml --since 7d --sample 5% --max-usd 0.01
  cml-worker-exporter verify --config.file exporter.yml --since 1d --json > verify.json
  cml-worker-exporter verify --config.file exporter.yml --since 30d --repair --dry-run

docs/verify.md explains what is compared, what each kind of difference means, and what it costs.
""",
        failure=3,
        statuses="0 all equal, 1 a difference was found, 2 wrong command line, or there is no worker,\n"
        "3 it failed, or not all could be compared and the rest is equal",
    ),
    "import-events": Command(
        run.import_events,
        "fill older gaps of the history from the manager's events",
        "Write what the manager's events tell of a worker (CPU, memory, labs, status, at the time of the event) into\n"
        "periods that the history lacks and `serve` no longer fills. Prints the plan first: events by type, periods,\n"
        "what is skipped and why. Costs nothing, makes no AWS call, and never changes a sample that is there.",
        flags.import_events_flags,
        (*(*_HISTORY, "events", "period", "gap_fill_window", *_WORKERS, "data_dir", "log.format"),),
        "--since TIME [--until TIME] [--worker ID ...] [--dry-run] [--quiet]",
        f"""\
{_TIME}
example:
  cml-worker-exporter import-events --config.file exporter.yml --since 90d --dry-run
  cml-worker-exporter import-events --config.file exporter.yml --since 90d

May be interrupted at any moment: the same command continues. An exporter may run at the same time. Where CloudWatch
still has datapoints (63 days), run `backfill` first: its values are the more exact ones, and a period is written once.

The user of mongodb.uri needs `find` on the events, which only this command uses; see README.md.
docs/import-events.md explains which events and fields are read, and which period a value belongs to.
""",
        statuses="0 done or nothing to do, 1 it failed or MongoDB rejects a sample, 2 wrong command line",
    ),
    "export": Command(
        run.export,
        "write the history as a file, or copy it into another database",
        "Write the history of all or some workers: as OpenMetrics text that promtool turns into blocks of Prometheus, as\n"
        "CSV, InfluxDB's line protocol, or Parquet. A file appears under its name only when it is complete.\n"
        "With --to, copy it into VictoriaMetrics, InfluxDB, or PostgreSQL: may be interrupted at any moment, the same\n"
        "command continues. Exit status 1 when the database has fewer samples than were sent.",
        flags.export_flags,
        (*_MONGODB, "mongodb.history", "period", "data_dir", "log.format"),
        "--since TIME [--until TIME] [--tz ZONE] [--worker ID ...] [--format FORMAT] [--output FILE] [--json]\n"
        "       cml-worker-exporter export --since TIME [--until TIME] [--worker ID ...] --to ADDRESS [--rate N] [--json]",
        f"""\
{_TIME}
example:
  cml-worker-exporter export --config.file exporter.yml --since 30d --output history.om
  promtool tsdb create-blocks-from openmetrics --max-block-duration=744h history.om /var/lib/prometheus
  cml-worker-exporter export --config.file exporter.yml --since 90d --to victoriametrics+http://127.0.0.1:8428
  cml-worker-exporter export --config.file exporter.yml --since 90d --to influxdb+http://user:password@127.0.0.1:8086/cml
  cml-worker-exporter export --config.file exporter.yml --since 90d --to postgresql://user:password@127.0.0.1/cml

docs/export.md explains what is in the file, and how to make Prometheus keep such old blocks.
""",
        statuses="0 done, 1 it failed, or the other database has fewer samples than were sent, 2 wrong command line",
    ),
    "purge": Command(
        run.purge,
        "delete all stored data of a worker",
        "Print what is stored of a worker (samples and inventory entry), and delete it permanently after its id is\n"
        "typed at the terminal, or with --yes. A worker that an exporter may still write is refused.",
        flags.purge_flags,
        (*_MONGODB, "mongodb.workers", "mongodb.history", "period", "gap_fill_window", *_WORKERS, "log.format"),
        "--worker ID [--worker ID ...] [--yes] [--even-if-listed]",
        """\
example:
  cml-worker-exporter purge --config.file exporter.yml --worker 2f1c… --worker 77ab…

The user of mongodb.uri needs `remove` on the history and the inventory, which only this command uses; see README.md.
""",
        statuses="0 deleted, 1 it failed, or nothing was deleted, 2 wrong command line",
    ),
    "demo": Command(
        _demo,
        "a fake AWS, MongoDB, 12 simulated workers and the exporter",
        "Start a fake AWS, a MongoDB, a simulated manager with 12 workers in two regions, and the exporter. Needs no\n"
        "account. Ctrl-C stops all of them.",
        flags.demo_flags,
        usage="[--fresh] [--port PORT] [--dir DIR]",
        notes="""\
example:
  cml-worker-exporter demo
  cml-worker-exporter demo --fresh --port 9977
""",
        statuses="0 ended by a signal, 1 a part did not start or has ended, 2 wrong command line",
    ),
    "completion": Command(
        lambda options: _print(completion(options.shell)),
        "print the completion of commands and flags for a shell",
        "Print a script that completes commands and flags in bash or zsh.",
        flags.completion_flags,
        usage="{bash,zsh}",
        notes="""\
example:
  cml-worker-exporter completion bash > ~/.local/share/bash-completion/completions/cml-worker-exporter
  cml-worker-exporter completion zsh > ~/.zfunc/_cml-worker-exporter
""",
    ),
    "manual": Command(
        lambda options: _print(manual.page(*parser_of("*"))),
        "print the manual page",
        "Print the manual page, of every command and flag, in the format of man.",
        notes="""\
example:
  cml-worker-exporter manual | man -l -
  cml-worker-exporter manual > /usr/local/share/man/man1/cml-worker-exporter.1
""",
    ),
}


if __name__ == "__main__":
    main()

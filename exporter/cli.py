"""The command line: `cml-worker-exporter COMMAND`.

Parses it, with the help texts of the commands, and runs the command; `commands.table` has them all but three.
"""

import argparse
import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence

from exporter.commands import flags, manual, table, terminal
from exporter.commands.command import Command, add_settings
from exporter.commands.exit_status import NO_WORKERS
from exporter.commands.help_text import HelpFormatter
from exporter.core import version
from exporter.core.errors import ExporterError, NoWorkersError
from exporter.core.heap import collect_rarely

_EPILOG = """\
Settings come from --config.file, then CML_EXPORTER_… in the environment, then flags; later ones win.
docs/settings.md describes them all. `cml-worker-exporter demo` needs no settings and no AWS account.
"""
_BEFORE_COMMAND = ("-h", "--help", "--version")
_TIME_FLAGS = ("--since", "--until")


PROGRAM = "cml-worker-exporter"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    The exit status is 0: done, 1 (`verify`: 3): it failed, 2: the command line is wrong or the database has no workers, 130:
    interrupted by Ctrl-C, 141: the reader of the output has gone.
    """
    collect_rarely()
    # Such as that of the driver about an unknown option in mongodb.uri: a sentence, without a path and a line of its source.
    warnings.formatwarning = lambda message, *_, **__: f"{PROGRAM}: {message}\n"
    sys.exit(terminal.run(lambda: _run(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: Sequence[str]) -> int:
    failure = 1

    def parsed_and_run() -> int:
        nonlocal failure
        options = _parse(_join_times(arguments))
        failure = options.command.failure
        return int(options.run(options))

    try:
        return terminal.run(parsed_and_run)
    except ExporterError as error:
        for line in str(error).splitlines():
            terminal.say(f"{PROGRAM}: {line}", sys.stderr)
        return NO_WORKERS if isinstance(error, NoWorkersError) else failure
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
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show version, revision and Python, and exit")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.description,
            epilog=command.epilog,
            formatter_class=HelpFormatter,
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
    first = arguments[0] if arguments else ""
    if first.startswith("-") and not any(flag.startswith(first) for flag in _BEFORE_COMMAND):
        meant = next((argument for argument in arguments if argument in COMMANDS), "COMMAND")
        parser.error(f"{first} is not a flag of the program; a command comes first, then its flags: {PROGRAM} {meant} …")
    if chosen is not None and chosen not in COMMANDS:
        parser.error(f"{chosen!r} is not a command{_nearest(chosen, (*COMMANDS, *_BEFORE_COMMAND))}")
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
    """Return the script that completes commands and flags in a shell: bash, zsh or tcsh."""
    import shtab

    from exporter.core import settings_loader

    parser, commands = parser_of("*")
    paths = {setting.flag for setting in settings_loader.table() if setting.is_path}
    for action in (action for command in commands.values() for action in command._actions):
        if action.metavar == "DIR" or "--data-dir" in action.option_strings:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab reads it, argparse does not know it
        elif action.metavar == "FILE" or not paths.isdisjoint(action.option_strings):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))


def _demo(options: argparse.Namespace) -> int:
    from exporter.demo import command

    return command.main(options)


COMMANDS: dict[str, Command] = {
    **table.COMMANDS,
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
        "Print a script that completes commands and flags in bash, zsh or tcsh.",
        flags.completion_flags,
        usage="{bash,zsh,tcsh}",
        notes="""\
example:
  cml-worker-exporter completion bash > ~/.local/share/bash-completion/completions/cml-worker-exporter
  cml-worker-exporter completion zsh > ~/.zfunc/_cml-worker-exporter
  cml-worker-exporter completion tcsh > ~/.cml-worker-exporter.tcsh   # and source it in ~/.tcshrc
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

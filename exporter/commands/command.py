"""What one command declares: its help texts, its own flags, and the settings it reads, which are flags, too."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from exporter.core.settings_loader import Setting

EVERY_SETTING = ("*",)
_GONE = "141 the reader of the output has gone"
_BY_SIGNAL = "0 ended by a signal"


class Command(NamedTuple):
    """One command: its help texts, its own flags, the settings it reads, and the function that runs it."""

    run: Callable[[argparse.Namespace], int]
    """Returns the exit status."""
    summary: str
    """The line in the list of commands."""
    description: str
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    settings: tuple[str, ...] = ()
    """Keys ("mongodb.uri") and whole sections ("workers") of `Settings`; `EVERY_SETTING`; empty: none, and no --config.file."""
    usage: str = ""
    """The command's own flags, as the usage line shows them."""
    notes: str = ""
    """The text below the flags: examples, and where to read more."""
    failure: int = 1
    """Exit status after an error; another one where 1 is a result."""
    statuses: str = "0 done, 1 it failed, 2 wrong command line"
    """The exit statuses besides 130 and 141."""

    @property
    def epilog(self) -> str:
        """The text below the flags."""
        interrupted = "130 interrupted" + (" before it began" if self.statuses.startswith(_BY_SIGNAL) else "")
        return f"{self.notes}\nExit status: {self.statuses},\n{interrupted}, {_GONE}.\n"

    def setting_flags(self) -> Iterator["Setting"]:
        """Yield the settings that are flags of this command, in the order of the file."""
        from exporter.core.settings_loader import table

        for setting in table():
            if self.settings == EVERY_SETTING or any(f"{setting.key}.".startswith(f"{key}.") for key in self.settings):
                yield setting


def add_settings(parser: argparse.ArgumentParser, command: Command) -> None:
    """Declare the settings of a command as flags, a group for each section, and its usage."""
    usage = command.usage
    if command.settings:
        usage = "\n".join(f"{line} [--config.file FILE] [--SETTING VALUE ...]" for line in usage.splitlines() or [""])
        group = parser.add_argument_group("settings", "Each is also a key of the file and a variable of the environment.")
        sections = {"": group}
        group.add_argument(
            "--config.file", dest="config_file", type=Path, metavar="FILE", help="YAML file with settings (default: none)"
        )
        for setting in command.setting_flags():
            default = "" if setting.default in (None, [], {}) else f" (default: {_shown(setting.default)})"
            section = setting.key.partition(".")[0] if "." in setting.key else ""
            if section not in sections:
                sections[section] = parser.add_argument_group(f"settings of {section}")
            sections[section].add_argument(
                setting.flag,
                dest=setting.key,
                metavar="VALUE",
                help=(setting.description + default).replace("%", "%%"),
                **_arity(setting),
            )
    parser.usage = f"{parser.prog} {usage.strip()}"


def _arity(setting: "Setting") -> dict[str, Any]:
    """Return how often a flag may be given, and whether with a value."""
    if setting.default is False:
        return {"nargs": "?", "const": "true"}  # a switch needs no value: --web.enable-lifecycle, as in Prometheus
    return {"action": "append" if setting.is_list else "store"}  # repeated flags of a list add up


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)

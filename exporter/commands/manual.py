"""The manual page of the command line, in the format of man (roff), from the same parsers as `--help`. Pure.

`argparse-manpage` and `shtab` know no usage text of one's own and no groups by section of the settings.
"""

import argparse
from collections.abc import Iterator, Mapping

from exporter.commands.help_text import blocks, continued, wrapped_usage

_SECTION = 1
COLUMNS = 70
"""Of usage and examples: what man, which indents them, shows in 80."""


def page(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return the manual page.

    Args:
        parser: of the program.
        commands: name → the parser of the command, with all its flags.
    """
    program = parser.prog
    lines = [
        f'.TH "{program.upper()}" "{_SECTION}"',
        ".SH NAME",
        f"{_text(program)} \\- {_text(_sentence(parser.description or ''))}",
        ".SH SYNOPSIS",
        f".B {_text(program)}",
        r"\fICOMMAND\fR [\fIFLAGS\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(parser.epilog or ""),
        ".SH COMMANDS",
    ]
    for name, command in commands.items():
        lines += [f'.SS "{_text(name)}"', *_paragraphs(command.description or "")]
        lines += [
            # Not format_usage(), which has colors on a terminal from Python 3.14 on.
            *_verbatim(wrapped_usage(command.usage or "", COLUMNS)),
            *_flags(command),
            *_notes(command.epilog or ""),
        ]
    return "\n".join(lines) + "\n"


def _flags(command: argparse.ArgumentParser) -> Iterator[str]:
    for group in command._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield from (".PP", rf"\fB{_text(str(group.title))}\fR")
        for action in actions:
            names = ", ".join(rf"\fB{_text(name)}\fR" for name in action.option_strings or [str(action.dest)])
            value = (
                "" if action.nargs == 0 or not action.option_strings else rf" \fI{_text(str(action.metavar or action.dest))}\fR"
            )
            yield from (".TP", names + value, _text((action.help or "").replace("%%", "%")))


def _paragraphs(text: str) -> Iterator[str]:
    yield from (_text(line) for line in text.splitlines())


def _notes(text: str) -> Iterator[str]:
    """Yield paragraphs for man to fill, and examples as they are, long ones continued as a shell takes them."""
    for as_it_is, lines in blocks(text):
        if as_it_is:
            yield from _verbatim("\n".join(part for line in lines for part in continued(line, COLUMNS)))
        else:
            yield from (".PP", *map(_text, lines))


def _verbatim(text: str) -> Iterator[str]:
    """Yield the lines as they are: examples and usage are not to be filled."""
    if text.strip():
        yield from (".PP", ".nf", *(_text(line) for line in text.strip("\n").splitlines()), ".fi")


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _text(line: str) -> str:
    """Return a line without anything that roff would take for a command."""
    line = line.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{line}" if line.startswith((".", "'")) else line

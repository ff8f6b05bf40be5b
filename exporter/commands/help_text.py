"""How `--help` breaks its lines at the width of the terminal: texts between words, examples as a shell takes them."""

import argparse
import re
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain, groupby

_FLAG = re.compile(r"\[[^\]]*\]|--\S+ [A-Z]+")
_BEFORE_FLAG = re.compile(r" (?=--|[|>] )")
_UNBROKEN = "\0"
"""In place of a blank inside a flag of the usage, where no line ends."""


class HelpFormatter(argparse.HelpFormatter):
    """argparse's own fills a text as one paragraph, or breaks no line at all."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_filled(text, width, indent))

    def _format_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None,
    ) -> str:
        text = super()._format_usage(usage, actions, groups, prefix)
        if usage is None:
            return text
        return wrapped_usage(text, self._width) + "\n\n"


def wrapped_usage(text: str, width: int) -> str:
    """Return the usage in lines of that width, a flag with its value in one of them."""
    unbroken = _FLAG.sub(lambda flag: flag[0].replace(" ", _UNBROKEN), text.strip("\n"))
    wrapper = textwrap.TextWrapper(width, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, unbroken.splitlines())).replace(_UNBROKEN, " ")


def blocks(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Yield the parts of a text, each with whether its lines stay as they are: headings, and what is indented."""
    for as_it_is, group in groupby(text.splitlines(), key=lambda line: not line or line[0] == " " or line.endswith(":")):
        yield as_it_is, list(group)


def _filled(text: str, width: int, indent: str) -> Iterator[str]:
    """Yield lines: paragraphs filled; headings and what is indented as they are."""
    for as_it_is, lines in blocks(text):
        yield from (
            chain.from_iterable(continued(line, width) for line in lines)
            if as_it_is
            else textwrap.wrap(" ".join(lines), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        )


def continued(command: str, width: int) -> list[str]:
    """Return an example as lines for a shell: a long one goes on after a backslash, before a flag or a pipe."""
    if len(command) <= width or not command.startswith("  "):
        return [command]
    lines, indent = [""], " " * 4
    for part in _BEFORE_FLAG.split(command):
        if lines[-1].strip() and len(f"{lines[-1]} {part} \\") > width:
            lines[-1] += " \\"
            lines.append(indent + part)
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines

"""How every command writes: to a terminal, however narrow; into a pipe or a file; into a pipe whose reader has gone.

On a terminal there are colors, unless NO_COLOR is set, and lines end where it ends. Elsewhere text is plain and never cut or
wrapped, so that `grep` and `awk` find every line whole.
"""

import errno
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TextIO

from exporter.commands.exit_status import CLOSED_PIPE
from exporter.core.errors import ExporterError

_GAP = "  "


def is_terminal(out: TextIO) -> bool:
    """Return whether a person sees the text at once."""
    return out.isatty()


def columns_of(out: TextIO) -> int | None:
    """Return the width of the terminal; None where the text goes into a pipe or a file, which has no width."""
    if not is_terminal(out):
        return None
    with suppress(OSError, ValueError):  # COLUMNS is no number, or the terminal does not tell
        if columns := int(os.environ.get("COLUMNS") or os.get_terminal_size(out.fileno()).columns):
            return columns
    return 80


def say(text: str, out: TextIO) -> None:
    """Print sentences: on a terminal broken between words, what is indented with its indentation; elsewhere as they are."""
    columns = columns_of(out)
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        # A word longer than the line, such as a URL, stays whole: it is there to be copied.
        lines = columns and textwrap.wrap(
            line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
        )
        print("\n".join(lines or [line]), file=out)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], out: TextIO) -> None:
    """Print a table without lines: the first column aligned left, figures right.

    Where a terminal is too narrow for it, each row becomes its first cell, and below it lines of the form "heading: figure".
    """
    table = [[*headings], *([*row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    columns = columns_of(out)
    if columns is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > columns:
        for first, *rest in table[1:]:
            print(first, file=out)
            for heading, text in zip(headings[1:], rest, strict=True):
                say(f"{_GAP}{heading}: {text}", out)
        return
    for row in table:
        first, *rest = (
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print(_GAP.join((first, *rest)).rstrip(), file=out)


def run(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; end quietly with `CLOSED_PIPE` where the reader of the output has gone.

    Raises:
        ExporterError: the last of the output cannot be written, such as onto a full disk; or by the command.
    """
    _replace_closed()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # here, and not at the end of the interpreter, which complains
    except BrokenPipeError:
        discard_output()
        return CLOSED_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        discard_output()
        raise ExporterError(f"cannot write the output ({error.strerror}); make room and run the command again") from error


def _replace_closed() -> None:
    """Open what was closed by the one who started the command (`>&-`): else printing fails, and a file gets the number."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def discard_output() -> None:
    """Discard what standard output and error hold and cannot write: else the interpreter complains at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

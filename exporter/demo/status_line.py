"""What the demo says on its terminal while it starts and runs: one line that is replaced, or plain lines in a file or pipe."""

import shutil
import sys

_ERASE = "\r\x1b[2K"


def show_step(text: str) -> None:
    """Say what the demo does now: on a terminal in place of the last step, else as a line."""
    if sys.stdout.isatty():
        show_status(text)
    else:
        print(text, flush=True)


def show_status(text: str) -> None:
    """Replace the line on a terminal; say nothing elsewhere, where it would grow without an end."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and could not be replaced
        print(_ERASE + text[:width], end="", flush=True)


def end_status(text: str) -> None:
    """Print text below what was said, in place of the line on a terminal."""
    print((_ERASE if sys.stdout.isatty() else "") + text, flush=True)

"""Results of `check`, and the words they share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from exporter.core import logs

Status = Literal["ok", "warn", "FAIL", "skipped"]
_MAX_LISTED = 3
_MAX_NAME_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One row of the table."""

    check: str
    """What was checked."""
    status: Status
    text: str
    """What was found, or what to do."""


def skipped(checks: Iterable[str], reason: str) -> list[CheckResult]:
    """Return a row for each check that could not run because of another one."""
    return [CheckResult(check, "skipped", f"because {reason}") for check in checks]


def counted(count: int, noun: str) -> str:
    """Return "1 worker", "2 workers"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def first_few(texts: Sequence[str]) -> list[str]:
    """Return the first texts, and how many more there are."""
    more = len(texts) - _MAX_LISTED
    return [*texts[:_MAX_LISTED], f"and {more} more"] if more > 0 else list(texts)


def shortened(name: str) -> str:
    """Return a worker's name, cut where it is long."""
    return name if len(name) <= _MAX_NAME_CHARACTERS else f"{name[: _MAX_NAME_CHARACTERS - 1]}…"


def one_line(text: str) -> str:
    """Return the text on one line, without secrets, and without control characters that a name could send to a terminal."""
    text = logs.mask(" ".join(text.split()))
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

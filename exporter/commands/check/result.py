"""Results of `check` and how they are worded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from exporter.core import logs

T = TypeVar("T")
Result = Literal["ok", "warn", "FAIL", "skipped"]
MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One row of the table."""

    what: str
    result: Result
    text: str


def skipped(rows: Iterable[str], because: str) -> list[CheckResult]:
    """Return a skipped row for each name, with the reason."""
    return [CheckResult(row, "skipped", f"because {because}") for row in rows]


def counted(count: int, noun: str) -> str:
    """Return the number with its noun: 1 worker, 2 workers."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def first_few(texts: Sequence[str]) -> list[str]:
    """Return the first MAX_SHOWN texts, and how many more there are."""
    more = len(texts) - MAX_SHOWN
    return [*texts[:MAX_SHOWN], f"and {more} more"] if more > 0 else list(texts)


def shortened(name: str) -> str:
    """Return the first 40 characters of a name."""
    return name if len(name) <= 40 else f"{name[:39]}…"


def one_line(text: str) -> str:
    """Return the text as one line, secrets masked and control characters replaced."""
    text = logs.mask(" ".join(text.split()))
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

"""Results of `check` and how they are worded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from exporter.core import logs

T = TypeVar("T")
Result = Literal["ok", "warn", "FAIL", "skipped"]
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One row of the table."""

    what: str
    result: Result
    text: str


# -- words and paper ---------------------------------------------------------------------------------------------------


def _skipped(rows: Iterable[str], because: str) -> list[CheckResult]:
    return [CheckResult(row, "skipped", f"because {because}") for row in rows]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _first(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _SHOWN
    return [*texts[:_SHOWN], f"and {more} more"] if more > 0 else list(texts)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _clean(text: str) -> str:
    """One line without secrets, and without what a foreign name could do to a terminal."""
    text = logs.mask(" ".join(text.split()))
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

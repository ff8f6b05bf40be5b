"""What `export` is told to write; imported by the command line for its flags, so it imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

Format = Literal["openmetrics", "csv"]
FORMATS: tuple[Format, ...] = ("openmetrics", "csv")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The samples to export, their format, and where to write them."""

    since: int
    """UTC second, inclusive."""
    until: int
    """UTC second, exclusive."""
    workers: tuple[str, ...]
    """Worker ids; empty: all workers of the history."""
    format: Format
    output: Path | None
    """None: standard output."""
    zone: ZoneInfo | None = None
    """The time zone of the times in CSV; None: UTC."""

"""What `export` is told to write; imported by the command line for its flags, so it imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from exporter.core.periods import rfc3339

Format = Literal["openmetrics", "csv", "influx", "parquet"]
FORMATS: tuple[Format, ...] = ("openmetrics", "csv", "influx", "parquet")
RATE = 20_000
"""Samples per second that are sent to a store, unless told otherwise: a month of 1,000 workers takes 7 minutes."""


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
    to: str | None = None
    """Address of a store; then `format` and `output` are not used."""
    rate: int = RATE
    """Samples per second that a store gets at most."""
    window: str = ""
    """The window as it was typed, by which an interrupted export is recognized: `30d` is another one each time."""
    json: bool = False
    """Whether the figures are printed as JSON."""

    @property
    def figures(self) -> dict[str, object]:
        """What was exported, for JSON."""
        output = None if self.output is None else str(self.output)
        return {"since": rfc3339(self.since), "until": rfc3339(self.until), "format": self.format, "output": output}

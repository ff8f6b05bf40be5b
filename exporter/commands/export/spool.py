"""Samples of any number of workers as columns in a temporary file: read from MongoDB once, written in another order.

40 bytes a sample, a tenth of what they are as text. The first 32 MiB stay in memory, so that most exports need no disk.
"""

import math
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from exporter.core.errors import ExporterError
from exporter.core.history_metrics import METRIC_FIELDS
from exporter.storage.rows import number
from exporter.storage.sample_stream import TIME

KEYS = ("region", "status", *METRIC_FIELDS)
"""What of a document is kept, besides its time."""
_ORDER = (TIME, "status", *METRIC_FIELDS)
_BYTES = 8
_IN_MEMORY = 32 * 2**20
_PLAIN = {float, int}

Documents = Sequence[Mapping[str, Any]]


class Block(NamedTuple):
    """The samples of one worker in one region, oldest first, no two at the same time."""

    worker_id: str
    region: str
    statuses: tuple[str, ...]
    """What the numbers in its `status` column stand for."""
    samples: int
    offset: int
    """Where its columns begin in the file."""


@dataclass(slots=True)
class _Open:
    """A block that is being filled."""

    times: "array[int]"
    status: "array[float]"
    numbers: tuple["array[float]", ...]
    codes: dict[str, int]


class SampleSpool:
    """The samples, to be added worker by worker, then read column by column; missing is NaN. Made by `open_spool`."""

    def __init__(self, file: "tempfile.SpooledTemporaryFile[bytes]") -> None:
        self._file = file
        self._end = 0
        self._worker_id = ""
        self._open: dict[str, _Open] = {}
        self.blocks: list[Block] = []
        """In the order of the workers; what was added last is here after `finish`."""

    def add(self, worker_id: str, documents: Documents) -> None:
        """Take some of a worker's samples with TIME, oldest first; a worker must be complete before the next one.

        Of two at the same time in the same region the first counts.
        """
        if worker_id != self._worker_id:
            self.finish()
            self._worker_id = worker_id
        for region, part in _by_region(documents).items():
            block = self._open.get(region)
            if block is None:
                block = _Open(array("q"), array("d"), tuple(array("d") for _ in METRIC_FIELDS), {})
                self._open[region] = block
            _extend(block, part)

    def finish(self) -> None:
        """Put the columns of the current worker away."""
        for region, block in self._open.items():
            with _failing():
                self._file.seek(self._end)
                self._file.write(block.times.tobytes())
                for column in (block.status, *block.numbers):
                    self._file.write(column.tobytes())
            self.blocks.append(Block(self._worker_id, region, tuple(block.codes), len(block.times), self._end))
            self._end += len(block.times) * _BYTES * len(_ORDER)
        self._open = {}

    def times(self, block: Block) -> "array[int]":
        """The times in milliseconds."""
        times: array[int] = array("q")
        times.frombytes(self._read(block, TIME))
        return times

    def values(self, block: Block, key: str) -> "array[float]":
        """The values of one of METRIC_FIELDS, or of `status` as indexes of the block's `statuses`; NaN where there is none."""
        values: array[float] = array("d")
        values.frombytes(self._read(block, key))
        return values

    def _read(self, block: Block, key: str) -> bytes:
        size = block.samples * _BYTES
        self._file.seek(block.offset + size * _ORDER.index(key))
        return self._file.read(size)


@contextmanager
def open_spool() -> Iterator[SampleSpool]:
    """Make an empty set of columns; its file has no name and is gone in the end, whatever happens.

    Raises:
        ExporterError: the temporary folder is full or cannot be written; also from `add` and `finish`.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        yield SampleSpool(file)


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExporterError(
            f"cannot write temporary data ({error.strerror or error}); make room in the temporary folder, "
            "or name another one in TMPDIR"
        ) from error


def _by_region(documents: Documents) -> dict[str, Documents]:
    regions = {str(document.get("region", "")) for document in documents}
    if len(regions) == 1:
        return {regions.pop(): documents}
    return {region: [one for one in documents if str(one.get("region", "")) == region] for region in sorted(regions)}


def _extend(block: _Open, documents: Documents) -> None:
    times = [document[TIME] for document in documents]
    if len({*block.times[-1:], *times}) != len(block.times[-1:]) + len(times):
        first = dict(zip(reversed(times), reversed(documents), strict=True))
        for time in block.times[-1:]:
            first.pop(time, None)
        times, documents = sorted(first), [first[time] for time in sorted(first)]
    block.times.extend(times)
    codes = block.codes
    for status in [document.get("status") for document in documents]:
        block.status.append(math.nan if status is None else codes.setdefault(str(status), len(codes)))
    for key, column in zip(METRIC_FIELDS, block.numbers, strict=True):
        column.extend(_numbers([document.get(key, math.nan) for document in documents]))


def _numbers(values: list[Any]) -> list[float]:
    """Values as floats, NaN for what counts as none; a whole page of ordinary ones is not looked at one by one."""
    if set(map(type, values)) <= _PLAIN and all(map(math.isfinite, values)):
        return values
    return [math.nan if (value := number(each)) is None else value for each in values]

"""The worker block of /metrics in text format 0.0.4, rendered and compressed piece by piece, so that a piece is reused.

A *piece* is a family, or the lines of one that have one label in common. A read of the worker documents changes hardly more
than its own time, and a poll of CloudWatch the values of two metrics and their times; everything else is what it was.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from exporter.core.catalog import StatusForm
from exporter.core.metric_settings import CloudWatchGauge
from exporter.core.model import Snapshot, WorkerGauges
from exporter.core.workers_settings import ExtraMetric
from exporter.metrics.exposition import Ids, Piece, Rows, escaped, pieces

_GZIP_HEADER = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x04\xff"
"""Of a member without a time, compressed fast (RFC 1952)."""
_LAST_BLOCK = b"\x03\x00"
"""An empty last deflate block."""


class _Rendered(NamedTuple):
    """A piece as it was rendered, and of what."""

    values: list[Any]
    text: bytes
    deflated: bytes


class WorkerBlock:
    """The worker block, rendered again and again. Not safe for two threads at once.

    Args:
        extra: the metrics of `workers.extra`.
        cloudwatch: the gauges of `cloudwatch.extra`.
        status: the form of the status, from `metrics.status`.
    """

    def __init__(
        self,
        extra: Sequence[ExtraMetric] = (),
        cloudwatch: Sequence[CloudWatchGauge] = (),
        status: StatusForm = "state_set",
    ) -> None:
        self._pieces = tuple(pieces(extra, cloudwatch, status))
        self._names: list[tuple[str, str]] = []
        """(region, worker id) of the workers of the last rendering, and the same escaped."""
        self._ids: Ids = []
        self._rendered: list[_Rendered | None] = [None] * len(self._pieces)

    def snapshot(self, gauges: Sequence[WorkerGauges], fresh_until: float) -> Snapshot:
        """Return the block of these workers; run it in a thread.

        What the worker document says is left out where `show_state` is false, labs and everything else that only a running
        instance has where `show_load` is, and every value that is None.

        Args:
            gauges: one per worker.
            fresh_until: UTC second of the local clock after which the block is left out of /metrics.
        """
        names = [(gauge.worker.region, gauge.worker.id) for gauge in gauges]
        if names != self._names:
            self._names = names
            self._ids = [(escaped(region), escaped(worker_id)) for region, worker_id in names]
            self._rendered = [None] * len(self._pieces)
        rows = Rows.of(gauges)
        checksum = size = 0
        for index, piece in enumerate(self._pieces):
            done = self._rendered[index] = self._current(piece, rows, self._rendered[index])
            checksum, size = zlib.crc32(done.text, checksum), size + len(done.text)
        made = [each for each in self._rendered if each is not None]
        trailer = struct.pack("<II", checksum, size % 2**32)
        gzipped = b"".join((_GZIP_HEADER, *(each.deflated for each in made), _LAST_BLOCK, trailer))
        return Snapshot(tuple(gauges), tuple(each.text for each in made), gzipped, fresh_until)

    def _current(self, piece: Piece, rows: Rows, before: _Rendered | None) -> _Rendered:
        """Return the piece for these workers: the one before, if its values are the same."""
        values = piece.values(rows)
        if before is not None and before.values == values:
            return before
        text = "".join((piece.header, *piece.lines(values, self._ids))).encode()
        # Level 1 takes a third of the default's time for a few percent more bytes. The flush ends the blocks at a byte, so that
        # those of the next piece can follow.
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return _Rendered(values, text, packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH))

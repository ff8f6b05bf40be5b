"""Append to a gzip body without compressing its first part again."""

import struct
import zlib
from collections.abc import Sequence

from exporter.core.model import ExporterMetrics


def deflated(text: bytes) -> bytes:
    """Return text as raw deflate blocks that can follow the flush of a gzip member; the last block is marked as such."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush()


_FLUSHED = b"\x00\x00\xff\xff\x03\x00"
"""End of deflate data that was flushed (Z_SYNC_FLUSH) before its empty last block."""
_EMPTY = zlib.compress(b"", 1, zlib.MAX_WBITS | 16)


def continued(member: bytes, exporter_metrics: ExporterMetrics) -> Sequence[bytes | memoryview]:
    """Return the parts of a gzip member of `snapshot` continued by the exporter metrics; of these alone if `member` is empty.

    A second member would be correct (RFC 1952, 2.2), but curl, wget, chromium and httpx read only the first. So the member,
    which ends with a flush, is continued: the new blocks replace its empty last block and its trailer.
    """
    if not member:
        checksum, size, begun = 0, 0, memoryview(_EMPTY)[:-10]
    else:
        assert member.endswith(_FLUSHED, 0, -8), "the member was not made by `snapshot`"
        (checksum, size), begun = struct.unpack("<II", member[-8:]), memoryview(member)[:-10]
    trailer = struct.pack("<II", zlib.crc32(exporter_metrics.text, checksum), (size + len(exporter_metrics.text)) % 2**32)
    return begun, exporter_metrics.deflated, trailer

"""Gzip bodies that a scrape can append to without compressing the first part again."""

import struct
import zlib

from exporter.core.model import ExporterMetrics


def deflated(text: bytes) -> bytes:
    """Compress text into what can follow a gzip member's flush: raw deflate blocks, the last one marked as such."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush()


_FLUSHED = b"\x00\x00\xff\xff\x03\x00"
"""How deflate data ends that was flushed (Z_SYNC_FLUSH) before its empty last block."""
_EMPTY = zlib.compress(b"", 1, zlib.MAX_WBITS | 16)


def continued(member: bytes, own: ExporterMetrics) -> bytes:
    """Append the exporter metrics to the gzip member of `snapshot`, or make a member of them alone where it is empty.

    A second member would be correct (RFC 1952, 2.2), but curl, wget, chromium and httpx read only the first. So the member,
    which ends with a flush, is reopened: its last block, which is empty, and its trailer give way to the rest.
    """
    if not member:
        checksum, size, begun = 0, 0, memoryview(_EMPTY)[:-10]
    else:
        assert member.endswith(_FLUSHED, 0, -8), "not a member that `snapshot` made"
        (checksum, size), begun = struct.unpack("<II", member[-8:]), memoryview(member)[:-10]
    trailer = struct.pack("<II", zlib.crc32(own.text, checksum), (size + len(own.text)) % 2**32)
    return b"".join((begun, own.deflated, trailer))

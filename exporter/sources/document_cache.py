"""Parse only the worker documents that have changed since the last read: MongoDB's bytes tell."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import bson
from bson import CodecOptions

from exporter.core.model import Fleet
from exporter.core.workers_settings import WorkersSettings
from exporter.sources.worker_documents import DocumentParser, ParsedDocument, assemble

DIGEST_BYTES = 16
_LENGTH_BYTES = 4
"""A BSON document begins with its length, a little-endian integer."""


class DocumentCache:
    """What was parsed of each document of the last read, by a digest of its bytes.

    A document with the same bytes has the same worker, whatever its `updated_at` says: other programs may change a document
    without it. The digest takes a tenth of the memory of the document. One thread at a time may call it.

    Args:
        settings: additional field names and gauges.
        options: how documents are decoded.
    """

    def __init__(self, settings: WorkersSettings, options: CodecOptions[dict[str, Any]]) -> None:
        self._parser = DocumentParser.of(settings)
        self._options = options
        self._parsed: dict[bytes, ParsedDocument] = {}

    def fleet(self, batches: Iterable[bytes], date: int) -> Fleet:
        """Return the workers of one complete read.

        Args:
            batches: BSON documents one after another.
            date: MongoDB's clock in UTC seconds when the read began.

        Raises:
            bson.errors.BSONError: a changed document is no BSON; what is known of the last read stays.
        """
        before, parsed = self._parsed, dict[bytes, ParsedDocument]()
        read: list[ParsedDocument] = []
        for document in documents(batches):
            digest = blake2b(document, digest_size=DIGEST_BYTES).digest()
            known = before.get(digest)
            if known is None:
                known = self._parser.parse(self._decoded(document))
            parsed[digest] = known
            read.append(known)
        self._parsed = parsed
        return assemble(read, date)

    def _decoded(self, document: bytes) -> Mapping[str, Any]:
        return bson.decode(document, self._options)


def documents(batches: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each of the BSON documents that stand one after another."""
    for batch in batches:
        at = 0
        while at < len(batch):
            end = at + int.from_bytes(batch[at : at + _LENGTH_BYTES], "little")
            yield batch[at:end]
            at = end

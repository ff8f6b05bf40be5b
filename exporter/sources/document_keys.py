"""Tell by a few fields of each worker document which exporter has the worker; whole documents of others are not read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import bson
from bson import CodecOptions

from exporter.core.shards import Part, WorkerKey
from exporter.core.workers_settings import WorkersSettings
from exporter.sources.document_cache import documents
from exporter.sources.worker_documents import DocumentParser, key_projection


@dataclass(frozen=True, slots=True)
class Division:
    """The documents of one read, divided by who has their workers."""

    own: list[object]
    """The `_id` of each document to be read as a whole."""
    elsewhere: dict[str, WorkerKey]
    """The other workers, by id."""
    count: int
    """All documents."""


class DocumentKeys:
    """What was found out about each document of the last read, by the bytes of the fields that decide.

    One thread at a time may call it.

    Args:
        settings: additional field names.
        options: how documents are decoded.
    """

    def __init__(self, settings: WorkersSettings, options: CodecOptions[dict[str, Any]]) -> None:
        self.projection = key_projection(settings)
        """Of the fields that decide."""
        self._parser = DocumentParser.of(settings)
        self._options = options
        self._part = Part()
        self._known: dict[bytes, tuple[object, WorkerKey | None]] = {}
        """Bytes → `_id`, and the key of a worker that is elsewhere."""

    def divide(self, batches: Iterable[bytes], part: Part) -> Division:
        """Divide one complete read.

        A document without a usable id is in the first shard, so that one exporter reports it.

        Args:
            batches: BSON documents one after another, with the fields of `projection`.
            part: the workers of this exporter.

        Raises:
            bson.errors.BSONError: a document is no BSON.
        """
        before = self._known if part == self._part else {}
        known: dict[bytes, tuple[object, WorkerKey | None]] = {}
        own: list[object] = []
        elsewhere: dict[str, WorkerKey] = {}
        for document in documents(batches):
            found = known[document] = before.get(document) or self._decide(document, part)
            id_, other = found
            if other is not None:
                elsewhere[other.id] = other
            elif id_ is not _NOBODYS:
                own.append(id_)
        self._known, self._part = known, part
        return Division(own, elsewhere, len(known))

    def _decide(self, document: bytes, part: Part) -> tuple[object, WorkerKey | None]:
        decoded = bson.decode(document, self._options)
        key = self._parser.key(decoded)
        if key is not None:
            return decoded["_id"], None if part.has(key) else key
        return (decoded["_id"] if part.shard.index == 0 and not part.idle else _NOBODYS), None


_NOBODYS = object()
"""In place of the `_id` of a document that another shard reports."""

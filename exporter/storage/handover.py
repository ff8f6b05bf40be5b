"""Workers on their way from one exporter to another: what an outbox has of them, in cml_exporter_state until it is taken.

Nothing is deleted, as the exporter's role allows it nothing of the kind: a document whose workers were all taken stays, empty.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from uuid import uuid4

from exporter.core.model import HandedWorker
from exporter.core.shards import WorkerKey
from exporter.storage.mongo import STATE, Database, durable, operation

MAX_DOCUMENT_CHARACTERS = 4_000_000
"""Of the contents of one document; MongoDB takes 16 MiB, and a character may have four bytes."""
_IDS = {"$gte": "handover:", "$lt": "handover;"}


class HandedWorkers:
    """The workers that exporters have handed over. Every method raises StoreError where MongoDB does not answer.

    Args:
        database: of an AsyncMongoClient; its options don't matter.
    """

    def __init__(self, database: Database) -> None:
        self._database = durable(database)
        self._state = self._database[STATE]

    async def give(self, workers: Sequence[HandedWorker]) -> None:
        """Store workers permanently; after an error some may be stored, and storing them again is harmless."""
        for some in _documents(workers):
            items = [{**worker.key._asdict(), "content": worker.content} for worker in some]
            async with operation(self._database, STATE, "insert"):
                await self._state.insert_one({"_id": f"handover:{uuid4().hex}", "workers": items})

    async def pieces(self) -> list[str]:
        """Return the ids of the documents that have workers."""
        async with operation(self._database, STATE, "find"):
            return [each["_id"] async for each in self._state.find({"_id": _IDS, "workers.0": {"$exists": True}}, {"_id": 1})]

    async def read(self, piece: str) -> list[HandedWorker]:
        """Return the workers of a document."""
        async with operation(self._database, STATE, "find"):
            found = await self._state.find_one({"_id": piece}) or {}
        return [
            HandedWorker(WorkerKey(each["id"], each["region"], each["name"]), each["content"])
            for each in found.get("workers", ())
        ]

    async def remove(self, piece: str, worker_ids: Collection[str]) -> None:
        """Remove workers that were taken from a document."""
        async with operation(self._database, STATE, "update"):
            await self._state.update_one({"_id": piece}, {"$pull": {"workers": {"id": {"$in": sorted(worker_ids)}}}})


def _documents(workers: Iterable[HandedWorker]) -> Iterator[list[HandedWorker]]:
    some: list[HandedWorker] = []
    size = 0
    for worker in workers:
        if some and size + len(worker.content) > MAX_DOCUMENT_CHARACTERS:
            yield some
            some, size = [], 0
        some.append(worker)
        size += len(worker.content)
    if some:
        yield some

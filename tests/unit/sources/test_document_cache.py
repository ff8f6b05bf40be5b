"""Which worker documents are parsed again, and that the result is the same as if all were."""

from typing import Any

import bson
import pytest

from exporter.core.workers_settings import WorkersSettings
from exporter.sources.aggregates import LENIENT
from exporter.sources.document_cache import DocumentCache, documents
from exporter.sources.worker_documents import parse

DATE = 1_767_225_600
DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"_id": "w1", "aws_region": "eu-west-1", "aws_instance_id": "i-1", "status": "running", "active_labs_count": 3},
    {"_id": "w2", "aws_region": "eu-west-1", "aws_instance_id": "i-1", "status": "sleepy"},
    {"status": "running"},
    {"_id": "w1", "status": "stopped"},
    {"_id": "w3", "status": "stopped", "note": "x" * 300},
)


@pytest.fixture
def cache() -> DocumentCache:
    return DocumentCache(WorkersSettings(), LENIENT)


def batches(*documents: dict[str, Any]) -> list[bytes]:
    encoded = [bson.encode(document) for document in documents]
    return [b"".join(encoded[:2]), b"".join(encoded[2:])]


def test_batches_are_cut_into_their_documents() -> None:
    assert [bson.decode(each) for each in documents(batches(*DOCUMENTS))] == list(DOCUMENTS)
    assert list(documents([b""])) == []


def test_every_read_finds_what_parsing_all_documents_finds(cache: DocumentCache) -> None:
    expected = parse(DOCUMENTS, DATE, WorkersSettings())
    assert expected.skipped == {"no_id": 1, "duplicate_id": 1}
    assert len(expected.complaints) == 5
    for _ in range(3):  # of what is not parsed again too, the complaints stay
        assert cache.fleet(batches(*DOCUMENTS), DATE) == expected


def test_only_a_changed_document_is_parsed_again(cache: DocumentCache) -> None:
    first = cache.fleet(batches(*DOCUMENTS), DATE).workers
    changed = {**DOCUMENTS[0], "active_labs_count": 4}  # and no `updated_at` beside it
    second = cache.fleet(batches(changed, *DOCUMENTS[1:]), DATE + 300).workers
    assert [worker.active_labs for worker in second] == [4, None, None]
    assert [new is old for new, old in zip(second, first, strict=True)] == [False, True, True]
    assert cache.fleet(batches(*DOCUMENTS), DATE + 600).workers == first  # back again


def test_a_document_that_is_gone_is_forgotten(cache: DocumentCache) -> None:
    cache.fleet(batches(*DOCUMENTS), DATE)
    assert [worker.id for worker in cache.fleet(batches(DOCUMENTS[4]), DATE).workers] == ["w3"]
    assert len(cache._parsed) == 1


def test_an_undecodable_document_fails_the_read_and_the_next_one_finds_all(cache: DocumentCache) -> None:
    with pytest.raises(bson.errors.BSONError):
        cache.fleet([bson.encode(DOCUMENTS[0]), b"\x09\x00\x00\x00\x7f\x61\x00\x01\x00"], DATE)
    assert [worker.id for worker in cache.fleet([bson.encode(DOCUMENTS[0])], DATE).workers] == ["w1"]

"""Samples become the customer's documents; those that MongoDB can never store are found before anything is sent."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import bson
import pytest

from exporter.core.model import FinalSample, WorkerMetricsSample
from exporter.storage import sample_documents
from exporter.storage.sample_documents import BYTES_PER_INSERT, MAX_DOCUMENT_BYTES, inserts

T, P = 1_767_225_600, 300


def sample(number: int = 0, **fields: object) -> WorkerMetricsSample:
    known: dict[str, Any] = {"worker_id": f"w{number}", "region": "eu-west-1", "timestamp": datetime.fromtimestamp(T, UTC)}
    known |= {"cpu_utilization": 1.5, "memory_utilization": 0.0, "active_labs_count": 0, "status": "running"}
    return WorkerMetricsSample(**known | fields)


@pytest.fixture
def careful(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that has every sample encoded by itself."""
    return lambda: monkeypatch.setattr(sample_documents, "_are_usual", lambda columns: False)


def bodies(samples: list[Any], limit: int = 100) -> list[list[dict[str, Any]]]:
    made, rejected = inserts(samples, limit)
    assert rejected == []
    return [[{key: value for key, value in document.items() if key != "_id"} for document in each[1]] for each in made]


def test_a_document_has_the_fields_of_the_record_and_an_id_of_its_own() -> None:
    ((part, documents),), rejected = inserts([FinalSample("w1", T, "eu", 1.5, 2.5, 3, "running")] * 2, 100)
    assert (len(part), rejected) == (2, [])
    assert list(documents[0]) == [
        "_id", "worker_id", "timestamp", "region", "cpu_utilization", "memory_utilization", "active_labs_count", "status",
    ]  # fmt: skip
    assert documents[0] | {"_id": 0} == {
        "_id": 0, "worker_id": "w1", "timestamp": datetime(2026, 1, 1), "region": "eu", "cpu_utilization": 1.5,
        "memory_utilization": 2.5, "active_labs_count": 3, "status": "running",
    }  # fmt: skip
    assert documents[0]["_id"] != documents[1]["_id"]


@pytest.mark.parametrize("mode", ["usual", "careful"])
def test_a_missing_value_is_an_omitted_key(mode: str, careful: Callable[[], None]) -> None:
    if mode == "careful":
        careful()
    found = bodies([FinalSample("w1", T, "eu", None, 0.0, 0), FinalSample("w2", T, "eu", 2.0, None, None, "stopped")])
    timestamp = datetime(2026, 1, 1)
    assert found == [
        [
            {"worker_id": "w1", "timestamp": timestamp, "region": "eu", "memory_utilization": 0.0, "active_labs_count": 0},
            {"worker_id": "w2", "timestamp": timestamp, "region": "eu", "cpu_utilization": 2.0, "status": "stopped"},
        ]
    ]


@pytest.mark.parametrize("mode", ["usual", "careful"])
def test_both_kinds_of_samples_make_the_same_documents(mode: str, careful: Callable[[], None]) -> None:
    if mode == "careful":
        careful()
    record, row = sample(1), FinalSample("w1", T, "eu-west-1", 1.5, 0.0, 0, "running")
    ((one,),), ((other,),) = bodies([record]), bodies([row])
    assert bson.encode(one) == bson.encode(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["cpu_utilization", "memory_utilization", "active_labs_count"])
def test_a_value_that_is_not_finite_is_left_out(field: str, value: float) -> None:
    samples = [sample(0), sample(1, **{field: value}), sample(2)]
    (documents,) = bodies(samples)
    assert [field in document for document in documents] == [True, False, True]


UNUSUAL: dict[str, dict[str, Any]] = {
    "surrogate": {"status": "\ud800"},
    "no BSON": {"status": object()},
    "no text": {"status": ["a"]},
    "number for a text": {"region": 1},
    "number for a worker id": {"worker_id": 5},
    "no time": {"timestamp": object()},
    "too many labs": {"active_labs_count": 2**63},
    "too few labs": {"active_labs_count": -(2**63) - 1},
    "boolean": {"active_labs_count": True},
    "labs not a number": {"active_labs_count": math.nan},
    "text for a number": {"cpu_utilization": "1"},
    "infinite": {"cpu_utilization": math.inf},
    "large": {"status": "x" * (MAX_DOCUMENT_BYTES // 4)},
    "large in UTF-8": {"region": "é" * (BYTES_PER_INSERT // 100)},
}


@pytest.mark.parametrize("fields", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("at", [0, 50, 99])
def test_one_unusual_value_has_all_samples_of_its_insert_encoded_one_by_one(
    fields: dict[str, Any], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = 0
    encode = bson.encode

    def count(document: dict[str, Any]) -> bytes:
        nonlocal encoded
        encoded += 1
        return encode(document)

    monkeypatch.setattr(bson, "encode", count)
    samples = [sample(n, **(fields if n == at else {})) for n in range(100)]
    made, rejected = inserts(samples, 100)
    assert sum(len(part) for part, _ in made) + len(rejected) == 100
    assert encoded >= 99
    assert inserts([each for n, each in enumerate(samples) if n != at], 100)[1] == []
    assert encoded <= 100, "the others alone are usual"


@pytest.mark.parametrize("fields", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_not_rejected_can_be_encoded_within_the_limits(fields: dict[str, Any]) -> None:
    made, rejected = inserts([sample(n, **(fields if n in (3, 7) else {})) for n in range(10)], 4)
    assert sum(len(part) for part, _ in made) + len(rejected) == 10
    for part, documents in made:
        assert len(part) == len(documents) <= 4
        assert [each.worker_id for each in part] == [each["worker_id"] for each in documents]
        assert len(bson.encode({"documents": documents})) < BYTES_PER_INSERT + 1000


def test_usual_samples_are_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(document: object) -> bytes:
        raise AssertionError("encoded twice: here and by the driver")

    monkeypatch.setattr(bson, "encode", fail)
    made, rejected = inserts([sample(n, status=None if n % 2 else "running") for n in range(5000)], 2000)
    assert ([len(part) for part, _ in made], rejected) == ([2000, 2000, 1000], [])


def test_the_bound_of_usual_documents_holds_for_the_longest_texts() -> None:
    longest = (BYTES_PER_INSERT // 1000 - sample_documents._BYTES_WITHOUT_TEXTS) // 12
    text = "\U0001f600" * longest
    samples = [FinalSample(text, T, text, 1e18, -1e18, 2**63 - 1, text)] * 1000
    longer = samples[0]._replace(worker_id="x" * (longest + 1))
    assert sample_documents._are_usual(sample_documents._columns(samples))
    assert not sample_documents._are_usual(sample_documents._columns([*samples[1:], longer]))
    ((_, documents),), _ = inserts(samples, 1000)
    assert sum(len(bson.encode(document)) for document in documents) <= BYTES_PER_INSERT

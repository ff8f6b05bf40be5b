"""Parsing the manager's events: every shape tells the same, malformed fields cost themselves only."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import DatetimeMS, ObjectId

from exporter.commands.import_events.events import TEXT_PAYLOAD, EventParser, Observation, SkippedEvent, milliseconds
from exporter.core.event_settings import EVENT_TYPES, EventFields, EventsSettings

AT = 1_764_000_123_456
DATE = datetime.fromtimestamp(AT / 1000, UTC)
PARSER = EventParser(EventsSettings().fields)
TELEMETRY = "CMLWorkerTelemetryUpdatedDomainEvent"


def observed(document: dict[str, Any], parser: EventParser = PARSER) -> Observation:
    parsed = parser.parse(document)
    assert parsed is not None
    assert isinstance(parsed.result, Observation), parsed.result
    return parsed.result


LATER = datetime(2026, 1, 1, tzinfo=UTC)
BY_TYPE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    TELEMETRY: (
        {
            "last_activity_at": datetime(2020, 1, 1, tzinfo=UTC),
            "active_labs_count": 3,
            "cpu_utilization": 41.5,
            "memory_utilization": 60.0,
            "updated_at": DATE,
        },
        {"cpu": 41.5, "memory": 60.0, "labs": 3},
    ),
    "CloudWatchMetricsUpdatedDomainEvent": (
        {"cpu_utilization": 5.0, "memory_utilization": 7.5, "collected_at": DATE, "updated_at": LATER},
        {"cpu": 5.0, "memory": 7.5},
    ),
    "CMLMetricsUpdatedDomainEvent": (
        {"labs_count": 4, "ready": True, "system_info": {"a": 1}, "synced_at": DATE, "updated_at": LATER},
        {"labs": 4},
    ),
    "CMLWorkerStatusUpdatedDomainEvent": (
        {"old_status": "pending", "new_status": "RUNNING", "updated_at": DATE},
        {"status": "running"},
    ),
    "CMLWorkerCreatedDomainEvent": (
        {"name": "cml 1", "aws_region": "eu-west-1", "status": {"value": "pending"}, "created_at": DATE},
        {"status": "pending", "region": "eu-west-1", "name": "cml 1"},
    ),
    "CMLWorkerImportedDomainEvent": (
        {"instance_state": "running", "aws_region": "eu-west-1", "created_at": DATE},
        {"status": "running", "region": "eu-west-1"},
    ),
    "CMLWorkerTerminatedDomainEvent": (
        {"name": "cml 1", "terminated_at": DATE},
        {"status": "terminated", "name": "cml 1"},
    ),
}
"""Event → its fields, and what it tells."""
CLOUDEVENT = dict(zip(list(EVENT_TYPES)[0::2], list(EVENT_TYPES)[1::2], strict=True))


def shapes(name: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The same event, flat and in envelopes."""
    payload = {"aggregate_id": "w1", **fields}
    recorded = datetime(2026, 5, 5, tzinfo=UTC)
    envelope = {"id": "e1", "timestamp": recorded, "status": "failed", "cpu_utilization": 1.0}
    return [
        {"__type__": name, **payload},
        {"event_type": name, **payload},
        {"type": name, "data": payload, **envelope},
        {"type": CLOUDEVENT[name], "data": payload, "specversion": "1.0", **envelope},
        {"name": name, "payload": payload, **envelope},
        {"stream_id": "cml_worker-w1", "event": {**payload, "__type__": name}, **envelope},
    ]


@pytest.mark.parametrize("name", BY_TYPE)
def test_an_event_tells_the_same_in_every_shape(name: str) -> None:
    fields, told = BY_TYPE[name]
    for document in shapes(name, fields):
        assert observed(document) == Observation("w1", AT, **told), document


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [(5.0, 0.0, (5.0, None)), (0.0, 0.0, (None, None)), (0.0, 12.0, (0.0, 12.0)), (0.0, None, (0.0, None))],
)
def test_a_zero_that_was_not_measured_is_no_value(
    cpu: float, memory: float | None, expected: tuple[float | None, float | None]
) -> None:
    document = {
        "type": TELEMETRY,
        "aggregate_id": "w",
        "updated_at": DATE,
        "cpu_utilization": cpu,
        "memory_utilization": memory,
    }
    found = observed(document)
    assert (found.cpu, found.memory) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu_utilization", "many"), ("cpu_utilization", -1), ("cpu_utilization", 1e300), ("cpu_utilization", float("nan")),
        ("cpu_utilization", [1]), ("memory_utilization", 101), ("active_labs_count", 2.5), ("active_labs_count", 10**30),
        ("active_labs_count", True), ("status", "sleeping"), ("aws_region", {"a": 1}),
    ],
)  # fmt: skip
def test_a_malformed_value_is_left_out_alone_and_shown(key: str, value: object) -> None:
    good = {"cpu_utilization": 1.0, "memory_utilization": 2.0, "active_labs_count": 3, "status": "running", "aws_region": "r"}
    parsed = PARSER.parse({"type": TELEMETRY, "aggregate_id": "w", "updated_at": DATE, **good, key: value})
    assert parsed is not None
    ((field, example),) = parsed.invalid
    assert field == key
    assert ", not " in example
    assert isinstance(parsed.result, Observation)
    assert [told is None for told in parsed.result[2:7]] == [name == key for name in good]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"updated_at": DATE}, "no_worker_id"),
        ({"aggregate_id": None, "updated_at": DATE}, "no_worker_id"),
        ({"aggregate_id": "", "updated_at": DATE}, "no_worker_id"),
        ({"aggregate_id": ["w"], "updated_at": DATE}, "no_worker_id"),
        ({"aggregate_id": "w" * 2000, "updated_at": DATE}, "no_worker_id"),
        ({"aggregate_id": "w"}, "no_time"),
        ({"aggregate_id": "w", "updated_at": "yesterday"}, "no_time"),
        ({"aggregate_id": "w", "updated_at": datetime(1, 1, 1, tzinfo=UTC)}, "no_time"),
        ({"data": '{"aggregate_id": "w"}', TEXT_PAYLOAD: True}, "text_payload"),
    ],
)
def test_an_event_without_worker_or_time_is_skipped_with_an_example(document: dict[str, Any], reason: str) -> None:
    parsed = PARSER.parse({"type": TELEMETRY, "_id": 7, **document})
    assert parsed is not None
    assert isinstance(parsed.result, SkippedEvent)
    assert parsed.result.reason == reason
    assert parsed.result.example


@pytest.mark.parametrize("name", ["LabStarted", 7, None, {"a": 1}, TELEMETRY.lower()])
def test_an_event_of_another_type_is_none_of_ours(name: object) -> None:
    assert PARSER.parse({"type": name, "aggregate_id": "w", "updated_at": DATE}) is None


@pytest.mark.parametrize("raw", [ObjectId("6" * 24), UUID(int=5), 17])
def test_a_worker_id_may_be_what_the_id_of_a_document_may_be(raw: object) -> None:
    assert observed({"type": TELEMETRY, "aggregate_id": raw, "updated_at": DATE}).worker_id == str(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (DATE, AT),
        (DATE.replace(tzinfo=None), AT),
        (DATE.isoformat(), AT),
        (DATE.isoformat().replace("+00:00", "Z"), AT),
        (DATE.replace(tzinfo=None).isoformat(), AT),
        (AT, AT),
        (AT / 1000, AT),
        (AT // 1000, AT // 1000 * 1000),
        (DatetimeMS(AT), AT),
        (DatetimeMS(10**17), None),
        (10**400, None),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        (-5, None),
        ("", None),
        ({"$date": 1}, None),
    ],
)
def test_times_are_dates_texts_or_unix_times(raw: object, expected: int | None) -> None:
    assert milliseconds(raw) == expected


def test_settings_add_types_and_replace_the_fields_of_built_in_ones() -> None:
    sampled = EventFields(cpu=["use.cpu"], time=["at"], worker_id=["w"])
    settings = EventsSettings(types={"Sampled": sampled, TELEMETRY: EventFields(cpu=["c"])})
    parser = EventParser(settings.fields)
    assert observed({"type": "Sampled", "w": "a", "at": AT, "use": {"cpu": 3}}, parser) == Observation("a", AT, cpu=3.0)
    found = observed({"type": TELEMETRY, "aggregate_id": "a", "updated_at": AT, "c": 4, "cpu_utilization": 9}, parser)
    assert found.cpu == 4.0

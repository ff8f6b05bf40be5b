"""Worker documents → workers: both generations of field names, and no document hides another."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Binary, DatetimeMS, Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.model import STATUSES, Fleet, Worker
from exporter.core.workers_settings import ALIASABLE, ExtraMetric, WorkersSettings
from exporter.sources.worker_documents import FIELDS, parse, projection

NOON = 1_769_860_800
DEFAULTS = WorkersSettings()


def read(*documents: object, settings: WorkersSettings = DEFAULTS) -> Fleet:
    return parse(documents, NOON, settings)  # a collection may hold anything


def one(fields: dict[str, Any], settings: WorkersSettings = DEFAULTS) -> Worker:
    """The worker of a document with these valid fields."""
    fleet = read({"id": "w1", "aws_region": "eu-west-1"} | fields, settings=settings)
    assert fleet.complaints == ()
    return fleet.workers[0]


def complaint(fields: dict[str, Any], settings: WorkersSettings = DEFAULTS) -> tuple[Worker, str]:
    """The worker of a document with one malformed field, and the complaint about it."""
    fleet = read({"id": "w1", "aws_region": "eu-west-1"} | fields, settings=settings)
    (sentence,) = fleet.complaints
    return fleet.workers[0], sentence


FIRST_GENERATION = {
    "id": "w1",
    "name": "lab one",
    "aws_region": "eu-west-1",
    "aws_instance_id": "i-1",
    "private_ip": "10.0.0.1",
    "status": "running",
    "cpu_utilization": 45.2,
    "memory_utilization": 62.8,
    "cloudwatch_last_collected_at": datetime(2026, 1, 31, 12),
    "active_labs_count": 3,
    "last_activity_at": datetime(2026, 1, 31, 12),
    "instance_type": "m5zn.metal",
    "cml_version": "2.8.0",
    "created_at": datetime(2026, 1, 31, 12),
    "terminated_at": datetime(2026, 1, 31, 12),
}
RENAMED = {
    "id": "_id",
    "cpu_utilization": "cloudwatch_cpu_utilization",
    "memory_utilization": "cloudwatch_memory_utilization",
    "active_labs_count": "cml_labs_count",
}
SECOND_GENERATION = {RENAMED.get(name, name): value for name, value in FIRST_GENERATION.items()}
# From v0.1.1 on labs and version are part of a value object.
THIRD_GENERATION = {
    name: value for name, value in SECOND_GENERATION.items() if name not in ("cml_labs_count", "cml_version")
} | {"metrics": {"version": "2.8.0", "labs_count": 3, "system_info": None}}
AS_READ = Worker(
    id="w1",
    region="eu-west-1",
    instance_id="i-1",
    status="running",
    name="lab one",
    address="10.0.0.1",
    instance_type="m5zn.metal",
    cml_version="2.8.0",
    active_labs=3,
    cpu=45.2,
    memory=62.8,
    collected_at=NOON,
    last_activity_at=NOON,
    created_at=NOON,
    terminated_at=NOON,
)


@pytest.mark.parametrize("document", [FIRST_GENERATION, SECOND_GENERATION, THIRD_GENERATION], ids=["first", "second", "third"])
@pytest.mark.parametrize("nested", [False, True], ids=["top level", "under state"])
def test_all_generations_of_names_are_read_at_top_level_and_under_state(document: dict[str, Any], nested: bool) -> None:
    fleet = read({"_id": "w1", "state": document} if nested else document)
    assert fleet == Fleet(NOON, (AS_READ,), {}, ())


def test_a_document_may_hold_fields_in_both_places() -> None:
    worker = one({"state": {"name": "lab", "cpu_utilization": 1}, "cml_labs_count": 2})
    assert (worker.name, worker.cpu, worker.active_labs) == ("lab", 1, 2)


def test_the_first_name_present_wins_and_a_null_is_not_present() -> None:
    both = {"cpu_utilization": 1, "cloudwatch_cpu_utilization": 2}
    assert one(both).cpu == 1
    assert one(both | {"cpu_utilization": None}).cpu == 2
    assert one({"cpu_utilization": None, "state": {"cpu_utilization": 3}, "cloudwatch_cpu_utilization": 2}).cpu == 3
    assert one({"cpu_utilization": 4, "state": {"cpu_utilization": 3}}).cpu == 4
    assert one({"cpu_utilization": None}).cpu is None


@pytest.mark.parametrize(
    ("cpu", "memory", "read_cpu", "read_memory"),
    [
        (12.5, 0.0, 12.5, None),
        (12.5, 0, 12.5, None),
        (12.5, "0.0", 12.5, None),
        (0.0, 0.0, None, None),
        (0.0, 35.5, 0.0, 35.5),
        (0.0, None, 0.0, None),
        (None, 0.0, None, None),
        (0.5, 0.1, 0.5, 0.1),
    ],
)
def test_a_zero_that_cloudwatch_did_not_measure_is_no_value(
    cpu: object, memory: object, read_cpu: float | None, read_memory: float | None
) -> None:
    worker = one({"cloudwatch_cpu_utilization": cpu, "cloudwatch_memory_utilization": memory})
    assert (worker.cpu, worker.memory) == (read_cpu, read_memory)


def test_names_of_the_settings_are_tried_first_and_dots_go_deeper() -> None:
    settings = WorkersSettings(fields={"cpu": ["cpu_pct", "metrics.cpu"], "id": ["uuid"]})
    document = {"cpu_utilization": 1, "uuid": "w2"}
    assert one(document, settings).id == "w2"
    assert one(document | {"cpu_pct": 2}, settings).cpu == 2
    assert one(document | {"metrics": {"cpu": 3}}, settings).cpu == 3
    assert one(document | {"state": {"metrics": {"cpu": 4}}}, settings).cpu == 4
    assert one(document | {"metrics": [3]}, settings).cpu == 1


def test_every_field_may_have_further_names() -> None:
    assert tuple(FIELDS) == ALIASABLE


@pytest.mark.parametrize(
    ("raw", "read_as"),
    [
        *((status, status) for status in STATUSES),
        ("RUNNING", "running"),
        ("Shutting_Down", "shutting-down"),
        (" shutting down ", "shutting-down"),
        ({"value": "Stopped"}, "stopped"),
    ],
)
def test_a_status_is_recognized_in_every_spelling(raw: object, read_as: str) -> None:
    assert one({"status": raw}).status == read_as


def test_an_undocumented_status_reads_unknown_and_is_reported() -> None:
    worker, sentence = complaint({"status": "hibernating"})
    assert worker.status == "unknown"
    assert sentence == (
        "worker 'w1': status is 'hibernating', not one of pending, starting, running, stopping, stopped, shutting-down, "
        "terminated, failed, unknown; it reads unknown until the manager corrects it"
    )
    for raw in (5, ["running"], {"value": 1}, {}):
        assert complaint({"status": raw})[0].status == "unknown"


def test_a_missing_status_is_unknown() -> None:
    assert one({}).status == "unknown"


@pytest.mark.parametrize("raw", [45.2, "45.2", " 45.2 ", Decimal128("45.2")])
def test_a_utilization_may_be_any_kind_of_number(raw: object) -> None:
    assert one({"cpu_utilization": raw, "memory_utilization": raw}).cpu == 45.2


@pytest.mark.parametrize(("raw", "percent"), [(0, "0.0"), (100, "100.0"), (Int64(7), "7.0"), ("0", "0.0"), (-0.0, "0.0")])
def test_a_utilization_may_be_at_its_bounds_and_zero_has_no_sign(raw: object, percent: str) -> None:
    assert str(one({"cpu_utilization": raw}).cpu) == percent


@pytest.mark.parametrize(
    "raw",
    [
        float("nan"),
        float("inf"),
        "NaN",
        "-inf",
        -3,
        250,
        100.01,
        True,
        "busy",
        "1e999",
        [45.2],
        {"value": 1},
        Decimal128("sNaN"),
        b"4",
    ],
    ids=repr,
)
def test_an_invalid_utilization_is_left_out_and_reported(raw: object) -> None:
    worker, sentence = complaint({"cpu_utilization": raw, "memory_utilization": 5})
    assert (worker.cpu, worker.memory) == (None, 5)
    assert sentence.startswith("worker 'w1': cpu_utilization is ")
    assert sentence.endswith(", not a number from 0 to 100; it is left out until the manager corrects it")


@pytest.mark.parametrize("raw", [3, 3.0, "3", Int64(3), Decimal128("3")])
def test_labs_are_a_whole_number_of_any_type(raw: object) -> None:
    labs = one({"active_labs_count": raw}).active_labs
    assert labs == 3
    assert type(labs) is int


@pytest.mark.parametrize("raw", [-1, 2.5, True, "many", 1e300, float("nan"), [1, 2]], ids=repr)
def test_labs_that_are_no_count_are_left_out_and_reported(raw: object) -> None:
    worker, sentence = complaint({"cml_labs_count": raw})
    assert worker.active_labs is None
    assert "cml_labs_count is " in sentence
    assert "not a whole number of at least 0" in sentence


@pytest.mark.parametrize(
    "raw",
    [
        datetime(2026, 1, 31, 12),
        datetime(2026, 1, 31, 12, 0, 0, 999_000),
        datetime(2026, 1, 31, 12, tzinfo=UTC),
        datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))),
        DatetimeMS(NOON * 1000 + 1),
        "2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00.123456789Z",
        "2026-01-31T14:00:00+02:00",
        "2026-01-31T12:00:00",
        "2026-01-31 12:00:00",
        NOON,
        NOON + 0.5,
        Int64(NOON * 1000),
    ],
    ids=repr,
)
def test_a_date_is_read_in_every_notation_and_a_naive_one_is_utc(raw: object) -> None:
    assert one({"created_at": raw}).created_at == NOON


@pytest.mark.parametrize(
    "raw",
    ["yesterday", "31.01.2026", -5, 0, 1e18, float("nan"), True, [], {"$date": 5}, datetime(1, 1, 1), DatetimeMS(2**62)],
    ids=repr,
)
def test_a_malformed_date_is_left_out_and_reported(raw: object) -> None:
    worker, sentence = complaint({"last_activity_at": raw})
    assert worker.last_activity_at is None
    assert "last_activity_at is " in sentence
    assert "not a date, such as 2026-01-31T12:00:00Z" in sentence


OBJECT_ID, UUID = ObjectId("65b9f0a0c0ffee0000000001"), uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("raw", "read_as"),
    [
        ("w-1", "w-1"),
        (OBJECT_ID, str(OBJECT_ID)),
        (UUID, str(UUID)),
        (Binary.from_uuid(UUID), str(UUID)),
        (Binary(UUID.bytes, 3), str(UUID)),
        (42, "42"),
        ("x" * 1024, "x" * 1024),
    ],
    ids=["text", "ObjectId", "UUID", "Binary", "old Binary", "number", "longest"],
)
def test_an_id_may_be_any_key_of_mongodb(raw: object, read_as: str) -> None:
    assert one({"id": raw}).id == read_as


HEALTHY = {"_id": "healthy", "aws_region": "eu-west-1"}


@pytest.mark.parametrize(
    ("document", "reason", "sentence"),
    [
        ({"aws_region": "x"}, "no_id", "a worker document has no id and is left out; the manager must write id"),
        ({"_id": "", "aws_region": "x"}, "no_id", "a worker document has no id and is left out; the manager must write id"),
        (HEALTHY, "duplicate_id", "two worker documents have the id 'healthy' and the second is left out; remove one of them"),
        ("text", "not_a_document", "a worker document is 'text' instead of a document; remove it"),
        (
            {"_id": "x" * 1025, "aws_region": "x"},
            "bad_id",
            "_id of a worker document is 'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx', not a text of at most "
            "1024 characters, an ObjectId or a UUID; the document is left out",
        ),
    ],
    ids=["no id", "empty id", "twice", "no document", "id too long"],
)
def test_an_unidentifiable_document_is_left_out_counted_and_reported(document: object, reason: str, sentence: str) -> None:
    fleet = read(HEALTHY, document)
    assert [worker.id for worker in fleet.workers] == ["healthy"]
    assert (fleet.skipped, fleet.complaints) == ({reason: 1}, (sentence,))


@pytest.mark.parametrize("raw", [True, 1.5, [1], {"a": 1}, Binary(b"short", 4), Binary(b"other", 0)], ids=repr)
def test_an_id_that_is_no_key_is_left_out_and_counted(raw: object) -> None:
    assert read({"_id": raw, "aws_region": "x"}, HEALTHY).skipped == {"bad_id": 1}


@pytest.mark.parametrize("fields", [{}, {"aws_region": ""}, {"aws_region": None}], ids=repr)
def test_a_worker_without_a_region_keeps_everything_else_and_is_reported(fields: dict[str, object]) -> None:
    fleet = read(
        HEALTHY, {"_id": "w1", "status": "running", "active_labs_count": 3, "aws_instance_id": "i-1", "name": "lab"} | fields
    )
    worker = fleet.workers[1]
    assert (worker.id, worker.region, worker.status, worker.active_labs, worker.name) == ("w1", "", "running", 3, "lab")
    assert (worker.instance_id, worker.cloudwatch_instance) == ("i-1", None)
    assert (fleet.skipped, fleet.complaints) == (
        {},
        ("worker 'w1' has no region, so CloudWatch is not queried for it; the manager must write aws_region",),
    )


def test_a_region_that_is_no_text_is_reported_as_such() -> None:
    fleet = read({"_id": "w1", "aws_region": ["eu-west-1"]})
    assert ([worker.region for worker in fleet.workers], fleet.skipped) == ([""], {})
    assert fleet.complaints[0].startswith("worker 'w1': aws_region is ['eu-west-1'], not a text")


@pytest.mark.parametrize(
    ("raw", "region"),
    [
        ("eu-west-1 ", "eu-west-1"),
        ("EU-WEST-1", "eu-west-1"),
        ("\tus-gov-west-1\n", "us-gov-west-1"),
        ("cn-north-1", "cn-north-1"),
        ("us-iso-east-1", "us-iso-east-1"),
        ("eusc-de-east-1", "eusc-de-east-1"),
        ("mx-central-1", "mx-central-1"),
        ("ap-southeast-7", "ap-southeast-7"),
    ],
)
def test_a_region_is_read_whatever_its_blanks_and_letters(raw: str, region: str) -> None:
    fleet = read({"_id": "w1", "aws_region": raw, "aws_instance_id": "i-1"})
    assert ([worker.region for worker in fleet.workers], fleet.complaints) == ([region], ())


@pytest.mark.parametrize(
    "raw", ["eu-west-1a", "eu_west_1", "eu west 1", "nowhere", "global", "../evil", "evil.example.org/#", "EU (Ireland)"]
)
def test_what_is_no_region_is_refused_by_name_and_costs_the_worker_only_cloudwatch(raw: str) -> None:
    fleet = read({"_id": "w1", "aws_region": raw, "aws_instance_id": "i-1"})
    assert ([worker.region for worker in fleet.workers], fleet.skipped) == ([""], {})
    (complaint,) = fleet.complaints
    assert complaint.startswith(f"worker 'w1': aws_region is {raw!r}, not an AWS region such as eu-west-1; CloudWatch is not")


def test_a_worker_without_an_instance_is_valid() -> None:
    assert one({"status": "pending", "aws_instance_id": None}).instance_id is None
    assert one({"aws_instance_id": ""}).instance_id is None


def test_two_workers_with_one_instance_are_both_kept_and_reported() -> None:
    first, second = ({"_id": name, "aws_region": "eu-west-1", "aws_instance_id": "i-1"} for name in ("w1", "w2"))
    fleet = read(first, second)
    assert [worker.id for worker in fleet.workers] == ["w1", "w2"]
    assert fleet.skipped == {}
    assert fleet.complaints == (
        "workers 'w1' and 'w2' have the same instance 'i-1', so both get its CPU and memory; "
        "the manager must correct one of them",
    )


def test_a_complaint_is_short_for_any_value() -> None:
    for value in ("x" * 10_000, ["x" * 10_000] * 100, {"a": {"b": {"c": ["x"] * 1000}}}):
        _, sentence = complaint({"cpu_utilization": value})
        assert len(sentence) < 600
        assert "\n" not in sentence


def test_a_version_written_as_a_number_is_a_text() -> None:
    assert one({"cml_version": 2.8}).cml_version == "2.8"


def test_lone_surrogates_of_a_text_are_replaced() -> None:
    worker = one({"id": "w\ud800", "name": "\udfff lab"})
    assert (worker.id, worker.name) == ("w?", "? lab")


EXTRA = WorkersSettings(
    extra=[
        ExtraMetric(metric="cml_worker_disk_ratio", field="metrics.disk", help="Disk."),
        ExtraMetric(metric="cml_worker_patched", field="patched", help="Patched."),
    ]
)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (5, 5.0),
        (-2.5, -2.5),
        ("45.2", 45.2),
        (True, 1.0),
        (False, 0.0),
        (datetime(2026, 1, 31, 12), NOON),
        ("2026-01-31T12:00:00Z", NOON),
    ],
    ids=repr,
)
def test_extra_fields_are_numbers_booleans_or_dates(raw: object, value: float) -> None:
    expected = (("cml_worker_disk_ratio", value),)
    assert one({"metrics": {"disk": raw}}, EXTRA).extra == expected
    assert one({"state": {"metrics": {"disk": raw}}}, EXTRA).extra == expected
    assert all(type(number) is float for _, number in one({"patched": raw}, EXTRA).extra)


def test_an_extra_field_of_another_type_is_left_out_and_reported() -> None:
    worker, sentence = complaint({"metrics": {"disk": "full"}, "patched": True}, EXTRA)
    assert worker.extra == (("cml_worker_patched", 1.0),)
    assert sentence == (
        "worker 'w1': metrics.disk is 'full', not a number, a boolean or a date; it is left out until the manager corrects it"
    )


def test_absent_extra_fields_are_absent() -> None:
    assert one({"metrics": None}, EXTRA).extra == ()


def test_the_projection_names_every_field_twice_and_no_path_inside_another() -> None:
    settings = WorkersSettings(fields={"cpu": ["metrics", "metrics.cpu"]}, extra=EXTRA.extra)
    projected = projection(settings)
    assert {
        "_id",
        "id",
        "state.id",
        "cpu_utilization",
        "state.cml_labs_count",
        "metrics",
        "state.metrics",
        "patched",
        "cml_system_info",
        "state.cml_system_info",
    } <= projected.keys()
    assert not {"metrics.cpu", "metrics.disk", "state.metrics.disk"} & projected.keys()
    assert set(projected.values()) == {1}


NAMES = sorted({name for names in FIELDS.values() for name in names} | {"state", "metrics", "patched", "value"})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-(2**63), 2**63 - 1).map(Int64)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(
        ["45.2", "NaN", "running", "2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59", "x" * 2000, "i-1", "eu-west-1"]
    )
    | st.datetimes()
    | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-14)), timezone(timedelta(hours=14))]))
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.sampled_from([Decimal128("NaN"), Decimal128("sNaN"), Decimal128("1E+6000"), Decimal128("-0")])
    | st.builds(Binary, st.binary(max_size=20), st.integers(0, 9))
    | st.uuids()
    | st.binary(min_size=12, max_size=12).map(ObjectId)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
)
DOCUMENTS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=20)


@given(st.lists(DOCUMENTS | VALUES, max_size=5))
def test_no_document_raises_or_hides_another(documents: list[object]) -> None:
    fleet = read(*documents, {"_id": "the healthy one", "aws_region": "eu-west-1"}, settings=EXTRA)
    assert fleet.workers[-1].id == "the healthy one" or fleet.skipped["duplicate_id"]
    assert len(fleet.workers) + sum(fleet.skipped.values()) == len(documents) + 1
    for worker in fleet.workers:
        assert worker.status in STATUSES
        assert all(percent is None or 0 <= percent <= 100 for percent in (worker.cpu, worker.memory))
        times = (worker.collected_at, worker.last_activity_at, worker.created_at, worker.terminated_at)
        assert all(time is None or (type(time) is int and 0 < time < 2**38) for time in times)
        assert worker.region.encode() or worker.cloudwatch_instance is None
        for text in (worker.id, worker.name, worker.instance_id, worker.instance_type, worker.cml_version):
            assert text is None or (text and text.encode())

"""Workers that stop, lack a region, were first read terminated, or change the shape of their document; two collections."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from exporter.core.periods import align, to_datetime, to_seconds
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series

Document = dict[str, Any]


async def get(exporter: InProcessExporter, path: str, **params: Any) -> httpx.Response:  # noqa: ANN401  # query parameters
    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
        return await client.get(path, params=params)


async def write(database: Database, member: Member, collection: str = "workers", **fields: object) -> None:
    document = member.aggregate(**fields)
    await database[collection].replace_one({"_id": document["_id"]}, document, upsert=True)


def of(text: str, worker_id: str) -> set[str]:
    """The names of the families of /metrics that have a series of this worker."""
    return {name.partition("{")[0] for name in series(text, "cml_worker_") if f'worker_id="{worker_id}"' in name}


def once_each(documents: list[Document]) -> dict[int, Document]:
    """Start → sample; fails where one period has two."""
    found = {to_seconds(document["timestamp"]): document for document in documents}
    assert len(found) == len(documents), "a sample is doubled"
    return found


LOAD = {"cml_worker_active_labs", "cml_worker_cpu_utilization_ratio", "cml_worker_memory_utilization_ratio"}


@pytest.mark.parametrize("status", ["stopped", "terminated"])
async def test_a_worker_that_ends_has_no_load_at_once_and_its_last_partial_period_in_the_history(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, status: str
) -> None:
    began = int(clock())
    member, other = (Member(f"w{k}", instance_id(k), "eu-west-1", began - PERIOD) for k in (1, 2))
    for one in (member, other):
        fake.add(one.instance_id, runs=[(began, None)])
        await write(database, one, active_labs_count=7)
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(3)
    assert of(await exporter.scrape(), "w1") >= LOAD
    ended = began + 3 * PERIOD + 200
    fake.change(member.instance_id, runs=((began, ended),))
    await write(database, member, active_labs_count=7, status=status, terminated_at=to_datetime(ended))
    clock.now = began + 4 * PERIOD + 12
    await exporter.observe()

    text = await exporter.scrape()
    assert not LOAD & of(text, "w1")
    assert of(text, "w2") >= LOAD
    assert {"cml_worker_status", "cml_worker_info"} <= of(text, "w1")
    times = [name for name in series(text, "cml_worker_sample_timestamp_seconds{") if 'worker_id="w1"' in name]
    assert len(times) == 1
    assert 'metric="state"' in times[0]
    row = (await get(exporter, "/api/workers")).json()["data"][0]
    assert [row[name] for name in ("status", "active_labs_count", "cpu_utilization", "cpu_time", "memory_utilization")] == [
        status,
        *(None,) * 4,
    ]
    page = (await get(exporter, "/")).text
    assert "<dt>labs</dt><dd>7</dd>" in page, "only those of the other worker"

    await exporter.round(8)
    samples = once_each(await exporter.documents(worker_id="w1"))
    last = samples[began + 3 * PERIOD]
    assert (last["status"], last["active_labs_count"]) == (status, 7)
    assert last["cpu_utilization"] == fake.value(member.instance_id, "cpu", began + 3 * PERIOD)
    assert (status == "terminated") is (max(samples) == began + 3 * PERIOD)
    await exporter.close()


async def test_a_worker_without_a_region_is_shown_and_stored_but_not_polled_until_it_has_one(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    began = int(clock())
    member, other = (Member(f"w{k}", instance_id(k), "eu-west-1", began - PERIOD) for k in (1, 2))
    for one in (member, other):
        fake.add(one.instance_id, runs=[(began - PERIOD, None)])
    await write(database, other)
    own: Document = {"cpu_utilization": 12.5, "memory_utilization": 25.0, "aws_region": None}
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    for number in range(3):
        await write(database, member, **own, cloudwatch_last_collected_at=to_datetime(began + number * PERIOD + 200))
        await exporter.round()
    text = await exporter.scrape()
    assert series(text, "cml_worker_status{")['cml_worker_status{region="",status="running",worker_id="w1"}'] == 1
    assert series(text, 'cml_worker_active_labs{region="",worker_id="w1"}')
    assert (
        series(text, "cml_worker_cpu_utilization_ratio{")['cml_worker_cpu_utilization_ratio{region="",worker_id="w1"}'] == 0.125
    )
    sources = series(text, "cml_exporter_source_up{")
    assert [name for name in sources if "cloudwatch" in name] == [
        'cml_exporter_source_up{region="eu-west-1",source="cloudwatch"}'
    ]
    assert not series(text, "cml_exporter_workers_skipped")
    listed = (await get(exporter, "/api/workers")).json()["data"]
    assert [(row["worker_id"], row["region"]) for row in listed] == [("w1", ""), ("w2", "eu-west-1")]
    answer = await get(exporter, "/api/workers/region/eu-west-1/workers/w1/resources", start_time="15m")
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        "Worker w1 has no region, so CloudWatch cannot be queried; the manager must write it.",
    )
    samples = once_each(await exporter.documents(worker_id="w1"))
    assert sorted(samples) == [began, began + PERIOD, began + 2 * PERIOD]
    assert {(each["region"], each["status"], each["cpu_utilization"]) for each in samples.values()} == {("", "running", 12.5)}

    await write(database, member)
    await exporter.round(8)
    text = await exporter.scrape()
    assert 'cml_worker_status{region="",' not in text
    assert of(text, "w1") >= LOAD
    samples = once_each(await exporter.documents(worker_id="w1"))
    assert sorted(samples)[0] == began - PERIOD, "the gap before the first read is filled once the region is known"
    assert [start for start in samples if samples[start]["region"] == ""] == [began, began + PERIOD, began + 2 * PERIOD]
    for start in range(began + 3 * PERIOD, began + 8 * PERIOD, PERIOD):
        assert samples[start]["cpu_utilization"] == fake.value(member.instance_id, "cpu", start)
        assert (samples[start]["region"], samples[start]["status"]) == ("eu-west-1", "running")

    await write(database, member, aws_region="")  # a region that is missing for a while loses nothing
    await exporter.round(8)
    samples = once_each(await exporter.documents(worker_id="w1"))
    for start in range(began + 8 * PERIOD, began + 15 * PERIOD, PERIOD):
        assert samples[start]["region"] == "eu-west-1"
        assert samples[start]["cpu_utilization"] == fake.value(member.instance_id, "cpu", start)
    assert (await get(exporter, "/api/workers/region/eu-west-1/workers/w1/resources", start_time="15m")).status_code == 200
    assert not exporter.errors
    await exporter.close()


@pytest.mark.parametrize("after", [-100, 5], ids=["before the boundary", "between the boundary and the read"])
async def test_a_worker_first_read_terminated_has_its_last_partial_period_once(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock, after: int
) -> None:
    began = int(clock())
    ended = began + PERIOD + after
    member = Member("w1", instance_id(1), "eu-west-1", began - 2 * PERIOD)
    fake.add(member.instance_id, runs=[(member.created, ended)])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await write(database, member, status="terminated", terminated_at=to_datetime(ended))
    await exporter.round(9)
    samples = once_each(await exporter.documents())
    last = align(ended, PERIOD)
    assert sorted(samples) == list(range(member.created, last + 1, PERIOD))
    assert {start: each["cpu_utilization"] for start, each in samples.items()} == {
        start: fake.value(member.instance_id, "cpu", start) for start in samples
    }
    assert {start: each.get("status") for start, each in samples.items() if "status" in each} == {last: "terminated"}
    await exporter.close()
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(3)
    assert once_each(await exporter.documents()) == samples, "a restart adds nothing"
    await exporter.close()


async def test_a_document_that_changes_its_shape_between_two_reads_keeps_its_series(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    began = int(clock())
    common = {"name": "lab", "aws_region": "eu-west-1", "aws_instance_id": instance_id(1), "created_at": to_datetime(began)}
    shapes: list[Document] = [
        {"id": "w1", **common, "status": "running", "cml_labs_count": 4, "cml_version": "2.7"},
        {"id": "w1", **common, "status": {"value": "RUNNING"}, "metrics": {"labs_count": 4, "version": "2.7"}},
        {"state": {"id": "w1", **common, "status": "running", "active_labs_count": 4, "metrics": {"version": "2.7"}}},
        {"id": "w1", **common, "status": ["running"], "metrics": "gone", "cml_version": {"a": 1}, "cml_labs_count": "NaN"},
        {"id": "w1", **common, "status": "running", "metrics": {"labs_count": -(2**63), "version": "2.7\u2603"}},
    ]
    fake.add(instance_id(1), runs=[(began, None)])
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    shown = []
    for shape in (*shapes, *shapes[:1] * 8):
        await database["workers"].replace_one({"_id": "a"}, {"_id": "a", **shape}, upsert=True)
        await exporter.round()
        text = await exporter.scrape()
        assert len(series(text, "cml_worker_info{")) == 1
        shown.append([*series(text, "cml_worker_active_labs{").values(), *series(text, "cml_worker_cpu_utilization_ratio{")])
    assert [len(each) for each in shown[:5]] == [2, 2, 2, 1, 1], "what does not read is absent, CPU goes on"
    assert all(each[0] == 4 for each in (*shown[:3], *shown[5:]))
    samples = once_each(await exporter.documents())
    statuses = [samples[began + number * PERIOD]["status"] for number in range(6)]
    assert statuses == ["running", "running", "running", "unknown", "running", "running"]
    labs = [samples[began + number * PERIOD].get("active_labs_count") for number in range(6)]
    assert labs == [4, 4, 4, None, None, 4]
    for number in range(6):
        start = began + number * PERIOD
        assert samples[start]["cpu_utilization"] == fake.value(instance_id(1), "cpu", start)
    assert not exporter.errors
    await exporter.close()


async def test_of_two_collections_with_different_workers_only_the_first_is_read(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    began = int(clock())
    members = [Member(f"w{k}", instance_id(k), "eu-west-1", began) for k in (1, 2)]
    for member, collection in zip(members, ("workers", "cml_workers"), strict=True):
        fake.add(member.instance_id, runs=[(began, None)])
        await write(database, member, collection)
    for rounds in (8, 2):
        exporter = InProcessExporter(tmp_path, database, fake, clock)
        await exporter.round(rounds)
        text = await exporter.scrape()
        assert (of(text, "w1") >= LOAD, of(text, "w2")) == (True, set())
        assert f"Worker documents in {database.name}.workers last read" in (await get(exporter, "/")).text
        await database["workers"].delete_many({})  # a fleet without a worker does not become that of the other collection
        await exporter.round()
        assert not of(await exporter.scrape(), "w2")
        assert {each["worker_id"] for each in await exporter.documents()} == {"w1"}
        await write(database, members[0])
        await exporter.close()

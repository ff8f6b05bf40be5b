"""Values that CloudWatch publishes or revises after they were final: counted once each, and the history keeps what it has."""

from pathlib import Path

from exporter.core.model import MetricName
from exporter.core.periods import HOUR, align, to_datetime
from exporter.pipeline.planning import REVISIT_SECONDS
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter

TURNS = REVISIT_SECONDS // PERIOD


async def add_worker(database: Database, fake: FakeCloudWatch, name: str, number: int, began: int, *, agent: bool) -> Member:
    member = Member(name, instance_id(number), "eu-west-1", began)
    fake.add(member.instance_id, runs=[(began, None)], agent=agent)
    await database["workers"].insert_one(member.aggregate())
    return member


def counted(exporter: InProcessExporter, kind: str) -> dict[MetricName, float | None]:
    name = f"cml_exporter_samples_{kind}_total"
    return {"cpu": exporter.value(name, metric="cpu"), "memory": exporter.value(name, metric="memory")}


NOTHING = {"cpu": 0, "memory": 0}


async def test_late_and_revised_values_are_counted_once_and_the_history_keeps_what_it_has(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    first = int(clock())  # of the periods observed below
    began = align(first - 4 * HOUR, PERIOD)
    agent = await add_worker(database, fake, "agent", 1, began, agent=True)
    plain = await add_worker(database, fake, "plain", 2, began, agent=False)
    lengthy = 2 * HOUR  # until this long after its period's end a value is late, or not yet revised
    starts = [first + k * PERIOD for k in range(4)]
    fake.change(
        agent.instance_id,
        late={("cpu", starts[0]): lengthy, ("memory", starts[0]): lengthy, ("memory", starts[1]): lengthy},
        revised={("memory", starts[2]): lengthy, ("memory", starts[3]): 200},  # the last one before it is final
    )
    fake.change(plain.instance_id, revised={("cpu", starts[3]): lengthy}, lost={("cpu", starts[1])})
    exporter = InProcessExporter(tmp_path, database, fake, clock, absence_timeout="1h")

    await exporter.round(HOUR // PERIOD + 6)
    billed = fake.metrics_billed
    await exporter.round()
    assert fake.metrics_billed == billed + 3, "a longer window costs nothing"
    recorded = await exporter.documents()
    assert (counted(exporter, "late"), counted(exporter, "revised")) == (NOTHING, NOTHING)

    await exporter.round(2 * TURNS)
    assert counted(exporter, "late") == {"cpu": 1, "memory": 2}
    assert counted(exporter, "revised") == {"cpu": 1, "memory": 1}
    await exporter.round(2 * TURNS)
    assert counted(exporter, "late") == {"cpu": 1, "memory": 2}, "once"
    assert counted(exporter, "revised") == {"cpu": 1, "memory": 1}, "once"

    documents = {(each["worker_id"], each["timestamp"]): each for each in await exporter.documents()}
    assert all(documents[each["worker_id"], each["timestamp"]] == each for each in recorded), "nothing is changed"
    kept = documents["agent", to_datetime(starts[2])]["memory_utilization"]
    assert kept == fake.value(agent.instance_id, "memory", starts[2]) / 2
    assert "cpu_utilization" not in documents["agent", to_datetime(starts[0])]
    assert exporter.errors == []
    await exporter.close()


async def test_an_agent_that_is_listed_late_had_late_values(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    first = int(clock())
    await add_worker(database, fake, "w", 1, first, agent=True)
    fake.list_lag = HOUR  # AWS says 15 minutes
    exporter = InProcessExporter(tmp_path, database, fake, clock, absence_timeout="1h")
    await exporter.round(HOUR // PERIOD)
    assert counted(exporter, "late") == NOTHING
    assert all("memory_utilization" not in each for each in await exporter.documents())
    await exporter.round(2 * TURNS)
    late = counted(exporter, "late")["memory"]
    missing = [each for each in await exporter.documents() if "memory_utilization" not in each]
    assert late == len(missing) > 0
    await exporter.close()


async def test_a_restart_forgets_what_was_final_and_counts_nothing_wrong(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    first = int(clock())
    member = await add_worker(database, fake, "w", 1, first, agent=True)
    fake.change(member.instance_id, revised={("cpu", first): HOUR})
    exporter = InProcessExporter(tmp_path, database, fake, clock, absence_timeout="1h")
    await exporter.round(6)
    await exporter.close()
    exporter = InProcessExporter(tmp_path, database, fake, clock, absence_timeout="1h")
    await exporter.round(3 * TURNS)
    assert (counted(exporter, "late"), counted(exporter, "revised")) == (NOTHING, NOTHING)
    await exporter.close()

"""Gaps in the history, whatever their cause, are filled from CloudWatch, and nothing else changes."""

from pathlib import Path
from typing import Any

from exporter.core.periods import align, to_seconds
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.helpers.reliability import record


def without_state(documents: list[dict[str, Any]]) -> list[int]:
    """Return the starts of the samples that have neither status nor labs."""
    return [to_seconds(d["timestamp"]) for d in documents if "status" not in d and "active_labs_count" not in d]


async def test_three_periods_without_an_exporter_and_three_cut_out_are_filled_without_status_and_labs(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    began = int(clock())
    members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", began) for k in range(4)]
    for member in members:
        fake.add(member.instance_id, runs=[(began, None)], agent=member is not members[-1])
    await database["workers"].insert_many([member.aggregate() for member in members])

    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(24)
    assert await exporter.assert_history_is_true(fake, members) >= 4 * 18
    assert without_state(await exporter.documents()) == []
    await exporter.close()
    stopped = align(int(clock()), PERIOD)
    clock.now += 3 * PERIOD

    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(8)
    assert await exporter.assert_history_is_true(fake, members) >= 4 * 27
    missed = [stopped, stopped + PERIOD, stopped + 2 * PERIOD]
    for member in members:
        assert without_state(await exporter.documents(worker_id=member.worker_id)) == missed
    await exporter.close()

    history = database["worker_metrics_timeseries"]
    before = await exporter.documents()
    cut = [began + 10 * PERIOD, began + 11 * PERIOD, began + 12 * PERIOD]
    kept = [d for d in before if d["worker_id"] == "worker-1" and to_seconds(d["timestamp"]) not in cut]
    await history.delete_many({"worker_id": "worker-1"})  # a time-series collection deletes by the meta field only
    await history.insert_many([dict(document) for document in kept])

    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.round(2)
    after = await exporter.documents()
    assert await exporter.assert_history_is_true(fake, members) >= 4 * 29
    assert without_state([d for d in after if d["worker_id"] == "worker-1"]) == [*cut, *missed]
    assert exporter.value("cml_exporter_samples_gap_filled_total") == 3
    untouched = [d for d in before if d["worker_id"] != "worker-1" or to_seconds(d["timestamp"]) not in cut]
    assert [d for d in after if d in untouched] == untouched
    await exporter.close()


async def test_the_empty_periods_of_a_stopped_worker_are_dropped_once_and_not_again_after_each_restart(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """The counter of CMLExporterSamplesDropped over two restarts, as the rule test "a restart" has it."""
    began = int(clock())
    stopped = Member("worker-0", instance_id(0), "eu-west-1", began - 30 * PERIOD)
    fake.add(stopped.instance_id, runs=())
    await database["workers"].insert_one(stopped.aggregate(status="stopped"))
    dropped = []
    for _ in range(3):
        exporter = InProcessExporter(tmp_path, database, fake, clock)
        await exporter.round(8)
        dropped.append(exporter.value("cml_exporter_samples_dropped_total"))
        await exporter.lease.release()
        await exporter.close()
    assert dropped == [30, 0, 0]
    assert without_state(await exporter.documents()) == []

    exporter = InProcessExporter(tmp_path / "another", database, fake, clock)  # only the outbox knows what was decided
    await exporter.round(8)
    assert exporter.value("cml_exporter_samples_dropped_total") == 30
    await exporter.close()


async def test_a_standby_that_takes_over_mirrors_what_the_leader_had_not_within_one_interval(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    began = int(clock())
    members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", began) for k in range(3)]
    for member in members:
        fake.add(member.instance_id, runs=[(began, None)])
    await database["workers"].insert_many([member.aggregate() for member in members])
    leader = InProcessExporter(tmp_path / "leader", database, fake, clock, absence_timeout="1h")
    standby = InProcessExporter(tmp_path / "standby", database, fake, clock, absence_timeout="1h")
    for _ in range(6):
        await leader.round(1)
        assert not await standby.lease.acquire_or_renew()
        assert standby.lease.held_elsewhere
        await standby.observe()
        await standby.ask()
    assert standby.outbox.outbox.counts()["observed"] == 0, "the leader opens the periods"
    mirrored = len(await leader.documents())
    await leader.lease.release()  # it is gone, with its outbox
    await leader.close()

    assert await standby.lease.acquire_or_renew()
    standby.collector.lead()
    await standby.round(1)
    final = align(int(clock()), PERIOD) - 2 * PERIOD  # the newest period that ended more than settle_delay ago
    documents = await standby.documents()
    assert len(documents) > mirrored
    assert {to_seconds(document["timestamp"]) for document in documents} == set(range(began, final + PERIOD, PERIOD))
    assert len(documents) == 3 * ((final - began) // PERIOD + 1)
    await standby.close()
    record("standby-takes-over", lost=0, doubled=0, note="CPU and memory, one interval later")

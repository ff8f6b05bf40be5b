"""The lease on a real MongoDB, with its clock and several holders."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from exporter.core.errors import StoreError, StoreUnavailableError
from exporter.demo.mongod import Mongod
from exporter.storage.lease import SAFETY_FRACTION, Lease
from exporter.storage.mongo import STATE, Database
from tests.fixtures.mongo import connect
from tests.helpers.in_process_exporter import Clock
from tests.helpers.ports import free_port


async def expire(database: Database) -> None:
    """Make the lease expire on MongoDB's clock, without waiting."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    await database[STATE].update_one({"_id": "lease:mirror"}, {"$set": {"expires": past}})


@pytest.fixture
async def own_rs_for_outage(rs_database: Database) -> AsyncIterator[Database]:
    """A database on a server that can be made to refuse commands."""
    yield rs_database
    await rs_database.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_the_first_owner_acquires_it_and_the_second_does_not(database: Database) -> None:
    first, second = Lease(database, owner="first"), Lease(database, owner="second")
    assert await first.acquire_or_renew()
    assert not await second.acquire_or_renew()
    assert (first.held, first.fence, second.held, second.remaining) == (True, 1, False, 0)


async def test_of_many_contenders_at_once_exactly_one_acquires_it(database: Database) -> None:
    leases = [Lease(database, owner=f"contender-{n}") for n in range(10)]
    got = await asyncio.gather(*(lease.acquire_or_renew() for lease in leases))
    assert got.count(True) == 1
    assert [lease.held for lease in leases] == got
    assert await database[STATE].count_documents({}) == 1


async def test_it_is_not_held_before_it_is_acquired(database: Database) -> None:
    assert not Lease(database, owner="first").held


async def test_it_lasts_its_ttl_on_the_servers_clock_and_a_renewal_extends_it(database: Database) -> None:
    lease = Lease(database, owner="first", ttl=30)
    for _ in range(2):
        await expire(database)
        assert await lease.acquire_or_renew()
        document = await database[STATE].find_one({"_id": "lease:mirror"})
        assert document is not None
        assert 29 < (document["expires"] - datetime.now(UTC)).total_seconds() <= 30
    assert lease.fence == 1  # no other owner held it in between


async def test_after_expiry_another_owner_takes_over_with_a_higher_fence(database: Database) -> None:
    first, second = Lease(database, owner="first"), Lease(database, owner="second")
    await first.acquire_or_renew()
    await expire(database)
    assert await second.acquire_or_renew()
    assert second.fence == first.fence + 1
    assert not await first.acquire_or_renew()
    assert not first.held
    await expire(database)
    assert await first.acquire_or_renew()
    assert first.fence == 3


async def test_it_expires_by_the_servers_clock_alone(database: Database) -> None:
    first, second = Lease(database, owner="first", ttl=8), Lease(database, owner="second", ttl=8)
    assert await first.acquire_or_renew()
    assert not await second.acquire_or_renew()
    await asyncio.sleep(8.1)  # an operation may take half of it: a slow machine needs seconds
    assert await second.acquire_or_renew()
    assert not first.held


async def test_a_paused_holder_knows_that_it_lost_the_lease_before_another_can_take_it(database: Database) -> None:
    clock = Clock(1000.0)
    lease = Lease(database, owner="first", ttl=30, monotonic=clock)
    await lease.acquire_or_renew()
    assert lease.remaining == pytest.approx(30 * (1 - SAFETY_FRACTION))
    clock.now += 24.9
    assert lease.held
    clock.now += 0.2
    assert (lease.held, lease.remaining) == (False, 0)


async def test_its_ttl_counts_from_the_moment_the_renewal_was_sent(database: Database) -> None:
    times = iter([0.0, 0.0])  # created, sent; the answer takes 7 s
    lease = Lease(database, owner="first", ttl=6, monotonic=lambda: next(times, 7.0))
    assert not await lease.acquire_or_renew()
    assert not lease.held


async def test_a_released_lease_is_free_at_once(database: Database) -> None:
    first, second = Lease(database, owner="first"), Lease(database, owner="second")
    await first.acquire_or_renew()
    await first.release()
    assert not first.held
    assert await second.acquire_or_renew()
    assert second.fence == 2


async def test_releasing_a_lease_of_another_owner_changes_nothing(database: Database) -> None:
    first, second = Lease(database, owner="first"), Lease(database, owner="second")
    await first.acquire_or_renew()
    await second.release()
    assert not await second.acquire_or_renew()
    assert await first.acquire_or_renew()


async def test_leases_of_different_names_are_independent(database: Database) -> None:
    assert await Lease(database, owner="first").acquire_or_renew()
    assert await Lease(database, owner="second", name="backfill").acquire_or_renew()


async def test_an_owner_with_a_dollar_sign_is_not_an_expression(database: Database) -> None:
    assert await Lease(database, owner="$$NOW").acquire_or_renew()
    assert not await Lease(database, owner="$owner").acquire_or_renew()


async def test_without_mongodb_it_stays_held_until_its_ttl_is_over(own_mongod: Mongod) -> None:
    clock = Clock(1000.0)
    async with connect(own_mongod.uri, patience=5) as client:
        lease = Lease(client["cml"], owner="first", ttl=30, monotonic=clock)
        assert await lease.acquire_or_renew()
        own_mongod.kill()
        with pytest.raises(StoreUnavailableError):
            await lease.acquire_or_renew()
        assert lease.held
        clock.now += 30
        assert not lease.held
        assert "no exporter is known to hold the lease: " in str(lease.problem)
        own_mongod.start()
        assert await lease.acquire_or_renew()
        assert lease.problem is None
        assert lease.fence == 1


async def test_after_an_outage_the_holder_goes_first_and_another_one_waits_half_the_ttl(own_rs_for_outage: Database) -> None:
    """The outbox of the holder has the status and labs of the periods that were closed in the outage."""
    database, clock = own_rs_for_outage, Clock(1000.0)
    first = Lease(database, owner="first", ttl=8, monotonic=clock)
    second = Lease(database, owner="second", ttl=8, monotonic=clock)
    assert await first.acquire_or_renew()
    refused = {"failCommands": ["findAndModify"], "errorCode": 10107}  # NotWritablePrimary
    await database.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=refused)
    for lease in (second, first):
        with pytest.raises(StoreError):
            await lease.acquire_or_renew()
    await database.client.admin.command("configureFailPoint", "failCommand", mode="off")
    await expire(database)
    clock.now += 3.9
    assert not await second.acquire_or_renew()
    assert not second.held_elsewhere, "it may open periods: nobody is known to hold it"
    assert await first.acquire_or_renew()
    assert first.fence == 1
    await expire(database)
    clock.now += 0.2
    assert await second.acquire_or_renew(), "the other one may be dead"


async def test_an_absent_server_is_reported_as_unreachable() -> None:
    uri = f"mongodb://127.0.0.1:{free_port()}"
    async with connect(uri, patience=0.1) as client:
        with pytest.raises(StoreUnavailableError) as caught:
            await Lease(client["cml"], owner="first").acquire_or_renew()
    assert caught.value.reason == "unreachable"


async def test_its_change_marker_differs_after_each_holder_and_is_none_while_it_may_be_held(database: Database) -> None:
    reader, first, second = (Lease(database, owner=owner) for owner in ("reader", "first", "second"))
    marks = [await reader.change_marker()]
    for holder in (first, second, first, first):
        assert await holder.acquire_or_renew()
        assert await reader.change_marker() is None
        await holder.release()
        marks.append(await reader.change_marker())
        assert await reader.change_marker() == marks[-1]
    assert len(set(marks)) == 5
    # A holder that died: for ten minutes the clocks may disagree whether its lease has expired.
    assert await first.acquire_or_renew()
    await expire(database)
    assert await reader.change_marker() is None
    long_ago = datetime.now(UTC) - timedelta(minutes=11)
    await database[STATE].update_one({"_id": "lease:mirror"}, {"$set": {"expires": long_ago}})
    assert await reader.change_marker() not in (None, *marks)


async def test_the_holder_knows_that_another_process_stands_by_for_as_long_as_that_one_tries(database: Database) -> None:
    leader, standby = Lease(database, owner="leader"), Lease(database, owner="standby", announces=True)
    await leader.acquire_or_renew()
    assert not leader.awaited
    await standby.acquire_or_renew()
    await leader.acquire_or_renew()
    assert leader.awaited
    assert not standby.awaited

    past = datetime.now(UTC) - timedelta(seconds=1)
    await database[STATE].update_one({"_id": "lease:mirror"}, {"$set": {"standby": past}})
    await leader.acquire_or_renew()
    assert not leader.awaited


async def test_a_process_that_does_not_announce_itself_or_leads_is_not_awaited(database: Database) -> None:
    leader, other = Lease(database, owner="leader", announces=True), Lease(database, owner="other")
    for _ in range(2):
        await leader.acquire_or_renew()
        await other.acquire_or_renew()
    assert not leader.awaited
    document = await database[STATE].find_one({"_id": "lease:mirror"})
    assert document is not None
    assert document["standby"] is None

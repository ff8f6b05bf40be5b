"""A writer that is paused anywhere in a batch, while another stores it: on a replica set no sample is stored twice."""

import pytest

from exporter.demo.mongod import Mongod
from tests.helpers.reliability import record
from tests.tools.paused_writers import POINTS, pause_writers


@pytest.mark.nightly("test_an_insert_of_a_writer_that_was_paused_until_another_took_over_is_refused")
def test_wherever_a_writer_is_paused_nothing_is_lost_or_doubled_even_if_its_lease_ended_early(mongo_rs: Mongod) -> None:
    assert pause_writers(mongo_rs, forced=True) == dict.fromkeys(POINTS, (0, 0))
    record("writer-paused-replica-set", lost=0, doubled=0, note=f"{len(POINTS)} points")


@pytest.mark.nightly("test_on_a_standalone_server_only_the_deadline_stops_it")
@pytest.mark.waits(35)
def test_on_a_standalone_server_only_an_insert_that_the_driver_is_sending_can_be_stored_twice(mongod: Mongod) -> None:
    """Its deadlines stop a writer that was paused anywhere else for longer than its lease."""
    in_the_driver = next(point for point in POINTS if point.startswith("in the driver"))
    elsewhere = "after its last check, before the first insert is sent"
    found = pause_writers(mongod, forced=False, points=(elsewhere, in_the_driver))
    assert found[elsewhere] == (0, 0)
    lost, doubled = found[in_the_driver]
    assert lost == 0
    assert doubled in (0, 1000)  # a busy machine may pause it before the driver has read the time
    record("writer-paused-standalone", lost=lost, doubled=doubled, note="while the driver sends; elsewhere 0")

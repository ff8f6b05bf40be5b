"""The status of /-/ready."""

from exporter.core.condition import Condition
from exporter.web.responses import readiness

WORKS, FAILS = Condition(None, 1), Condition("down", 1)


def test_the_status_is_starting_degraded_or_ok() -> None:
    assert readiness(False, {"mongodb": FAILS}).status == "starting"
    assert readiness(True, {"mongodb": FAILS, "outbox": WORKS}).status == "degraded"
    assert readiness(True, {"mongodb": WORKS, "outbox": WORKS}).status == "ok"


def test_an_exporter_that_stands_by_says_so_and_is_not_degraded() -> None:
    state = readiness(True, {"cloudwatch": Condition(None, 1, "stands by")})
    assert state.status == "ok"
    assert state.sources["cloudwatch"].note == "stands by"

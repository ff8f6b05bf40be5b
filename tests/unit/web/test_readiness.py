"""The status of /-/ready."""

from exporter.web.responses import readiness


def test_the_status_is_starting_degraded_or_ok() -> None:
    assert readiness(False, {"mongodb": "down"}).status == "starting"
    assert readiness(True, {"mongodb": "down", "outbox": None}).status == "degraded"
    assert readiness(True, {"mongodb": None, "outbox": None}).status == "ok"

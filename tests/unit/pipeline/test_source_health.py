"""What is shown and logged of sources and loops that fail."""

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from exporter.core.condition import Condition
from exporter.core.errors import SourceError, StoreError
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.loop import guard
from exporter.pipeline.source_health import SourceHealth, unexpected

DOWN = SourceError("cloudwatch", "Timeout", "CloudWatch does not answer", region="eu-west-1")
OTHER = SourceError("cloudwatch", "Throttling", "CloudWatch throttles", region="eu-west-1")


@pytest.fixture
def health() -> SourceHealth:
    return SourceHealth(Telemetry(CollectorRegistry()), lambda: 100.0)


def test_the_same_error_is_logged_once_and_so_is_the_recovery(health: SourceHealth) -> None:
    with capture_logs() as events:
        for error in (DOWN, DOWN, OTHER, DOWN, OTHER):
            health.failed(error, 99)
        health.succeeded("cloudwatch", "eu-west-1", 99)
        health.succeeded("cloudwatch", "eu-west-1", 99)
        health.failed(DOWN, 99)
    assert [(event["event"], event.get("code")) for event in events] == [
        ("source read failed", "Timeout"),
        ("source read failed", "Throttling"),
        ("source read again", None),
        ("source read failed", "Timeout"),
    ]


def test_two_regions_with_the_same_error_are_both_logged(health: SourceHealth) -> None:
    with capture_logs() as events:
        for region in ("eu-west-1", "us-east-1"):
            health.failed(SourceError("cloudwatch", "Timeout", "CloudWatch does not answer", region=region), 99)
    assert [event["region"] for event in events] == ["eu-west-1", "us-east-1"]


def test_a_loop_is_listed_only_while_it_fails(health: SourceHealth) -> None:
    health.loop_failed("polling", None)
    assert health.errors == {}
    health.loop_failed("polling", "it failed")
    assert health.errors == {"polling": "it failed"}
    health.loop_failed("polling", None)
    assert health.errors == {}


def test_a_bug_is_the_failure_of_its_source() -> None:
    error = unexpected("cloudwatch", TypeError("float expected"), "eu-west-1")
    assert (error.source, error.region, error.code) == ("cloudwatch", "eu-west-1", "TypeError")
    assert "reading CloudWatch in eu-west-1 failed with an unexpected TypeError: float expected; this is a bug" in str(error)


async def test_only_what_is_unexpected_in_a_loop_is_reported() -> None:
    async def works() -> None: ...

    async def fails() -> None:
        raise StoreError("the disk is full")

    async def is_wrong() -> None:
        raise ZeroDivisionError("by zero")

    assert await guard("observing", works) is None
    assert await guard("observing", fails) is None
    assert await guard("observing", is_wrong) == (
        "observing failed with an unexpected ZeroDivisionError: by zero; please report it with the traceback in the log"
    )


def test_a_part_says_since_when_it_fails_or_works() -> None:
    now = [100.0]
    health = SourceHealth(Telemetry(CollectorRegistry()), lambda: now[0])

    def since() -> int | None:
        return health.conditions["cloudwatch eu-west-1"].since

    health.succeeded("cloudwatch", "eu-west-1", 99)
    now[0] = 200
    health.succeeded("cloudwatch", "eu-west-1", 199)
    assert since() == 100
    for now[0], error in ((300, DOWN), (400, OTHER)):
        health.failed(error, 1)
        assert since() == 300, "another error is the same outage"
    assert health.errors == {"cloudwatch eu-west-1": "CloudWatch throttles"}
    now[0] = 500
    health.succeeded("cloudwatch", "eu-west-1", 499)
    assert since() == 500
    health.loop_failed("polling", "it failed")
    now[0] = 600
    health.loop_failed("polling", "it failed again")
    assert health.conditions["polling"] == Condition("it failed again", 500)
    health.forget_regions([])
    assert health.errors == {"polling": "it failed again"}

"""The allowed clock skew."""

from exporter.core.clock import MAX_SKEW_SECONDS


def test_the_allowed_skew_is_five_minutes() -> None:
    assert MAX_SKEW_SECONDS == 300

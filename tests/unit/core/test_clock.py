"""The allowed clock skew."""

import pytest

from exporter.core.clock import MAX_SKEW_SECONDS, check_skew
from exporter.core.errors import SourceError


def test_the_allowed_skew_is_five_minutes() -> None:
    assert MAX_SKEW_SECONDS == 300


@pytest.mark.parametrize(
    ("began", "theirs", "ended"),
    [(0, 0, 1), (0, 301, 1), (300, 0, 302), (0, 900, 900), (0, 0, 900), (0, 1100, 900), (200, 0, 1000), (900, 500, 0)],
    ids=["same", "ahead", "behind", "suspended before", "after", "and ahead", "and behind", "set back meanwhile"],
)
def test_a_host_that_was_suspended_during_a_request_has_no_wrong_clock(began: float, theirs: float, ended: float) -> None:
    check_skew("mongodb", theirs, began, ended)


@pytest.mark.parametrize(("began", "theirs", "ended"), [(0, 302, 1), (301, 0, 302), (0, 1201, 900), (301, 0, 1000)])
def test_what_lies_outside_of_the_request_by_more_is_a_wrong_clock(began: float, theirs: float, ended: float) -> None:
    with pytest.raises(SourceError, match="set both clocks"):
        check_skew("mongodb", theirs, began, ended)

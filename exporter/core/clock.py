"""Clock skew between this host, MongoDB and AWS, and MongoDB's clock continued between two reads."""

import time
from collections.abc import Callable

from exporter.core.errors import SourceError
from exporter.core.periods import format_duration, rfc3339

MAX_SKEW_SECONDS = 300
"""How far the clock of a source may be from this host's (rule 6 of docs/sample-lifecycle.md)."""


def skew_problem(whose: str, theirs: float, ours: float, *, remedy: str = "set both clocks (NTP)") -> str | None:
    """Return the error sentence for two clocks that differ too much, None where they agree.

    Args:
        whose: names the server at the beginning of the sentence.
        theirs: its UTC seconds.
        ours: this host's UTC seconds at the same moment.
        remedy: what the operator must do.
    """
    if abs(theirs - ours) <= MAX_SKEW_SECONDS:
        return None
    return (
        f"{whose} says it is {rfc3339(theirs)}, this machine says {rfc3339(ours)}; {remedy}, "
        f"they may differ by {format_duration(MAX_SKEW_SECONDS)}"
    )


def check_skew(source: str, theirs: float, began: float, ended: float, *, region: str = "") -> None:
    """Reject a source whose clock is too far from this host's: the age of its samples would be unknown.

    It read its clock some time between the two readings of this host's clock; a host that was suspended meanwhile has them
    minutes apart, and only what is outside of them is a difference.

    Args:
        source: "mongodb" or "cloudwatch".
        theirs: its UTC seconds.
        began: this host's UTC seconds before the request.
        ended: this host's UTC seconds after the answer; before `began` where the clock was set back meanwhile.
        region: of CloudWatch.

    Raises:
        SourceError: code ClockSkew.
    """
    ours = sorted((began, theirs, ended))[1]
    if source == "mongodb":
        problem = skew_problem("MongoDB", theirs, ours)
    else:  # AWS keeps its clocks right
        problem = skew_problem(f"CloudWatch in {region}", theirs, ours, remedy="set this machine's clock (NTP)")
    if problem:
        raise SourceError(source, "ClockSkew", problem, region=region)


class ServerClock:
    """MongoDB's clock, continued by this host's monotonic one between two reads: setting the wall clock changes no date.

    Args:
        wall: UTC seconds of this host; used until MongoDB's clock is read.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self.synchronized = False
        """Whether MongoDB's clock has been read."""

    def now(self) -> int:
        """Return MongoDB's UTC second."""
        return int(self._monotonic() + self._offset)

    def synchronize(self, date: float) -> None:
        """Set the time to MongoDB's `date`, in UTC seconds."""
        self._offset = date - self._monotonic()
        self.synchronized = True

"""The last result of each source, and the current problems of the loops, for the exporter metrics, /-/ready and the log."""

from collections.abc import Callable, Collection, Mapping

from exporter.core import logs
from exporter.core.condition import Condition
from exporter.core.errors import SourceError
from exporter.metrics.telemetry import Telemetry

_log = logs.get("collector")


class SourceHealth:
    """The last error of each source, with the metrics that show it.

    Args:
        telemetry: receives success, duration and time of each read.
        wall: UTC seconds of this host.
    """

    def __init__(self, telemetry: Telemetry, wall: Callable[[], float]) -> None:
        self._telemetry = telemetry
        self._wall = wall
        self._regions: set[str] = set()
        self._repeats: dict[str, logs.Repeats] = {}
        self._answered: set[str] = set()
        self.conditions: dict[str, Condition] = {}
        """Source ("mongodb", "cloudwatch eu-west-1") → whether its last read succeeded, and since when. Loops and limits of the
        exporter itself ("polling", "budget") are listed while they have a problem."""

    @property
    def errors(self) -> Mapping[str, str | None]:
        """The last error of each part; None after a success."""
        return {name: condition.error for name, condition in dict(self.conditions).items()}

    def show(self, name: str, error: str | None, at: float | None = None) -> None:
        """Show the error of a part, None: it works; `at` are UTC seconds, by default now."""
        self.conditions[name] = self.conditions.get(name, Condition()).then(error, self._wall() if at is None else at)

    def hide(self, name: str) -> None:
        """Stop showing a part."""
        self.conditions.pop(name, None)

    def succeeded(self, source: str, region: str, began: float, ended: float | None = None) -> None:
        """Record a successful read; `began` and `ended` are UTC seconds, `ended` defaults to now."""
        ended = self._wall() if ended is None else ended
        self._telemetry.source_succeeded(source, region, ended, ended - began)
        name = _name(source, region)
        self.show(name, None, ended)
        self._answered.add(name)
        self._regions.add(region)
        repeats = self._repeats.pop(name, None)
        if repeats is not None and repeats.reset():
            _log.info("source read again", source=source, region=region, **repeats.count)

    def failed(self, error: SourceError, began: float, ended: float | None = None) -> None:
        """Record a failed read, and log it unless the same error was logged a short time ago.

        Args:
            error: names the source.
            began: UTC seconds.
            ended: UTC seconds, by default now.
        """
        ended = self._wall() if ended is None else ended
        self._telemetry.source_failed(error.source, error.region, ended - began)
        name = _name(error.source, error.region)
        self.show(name, str(error), ended)
        self._regions.add(error.region)
        repeats = self._repeats.setdefault(name, logs.Repeats())
        if repeats.is_due(str(error)):
            _log.error(
                "source read failed",
                source=error.source,
                region=error.region,
                code=error.code,
                error=str(error),
                **repeats.count,
            )

    def awaited(self, source: str) -> bool:
        """Return whether a source fails, in a region at least, that has not answered since the start."""
        return any(
            condition.error is not None and name.partition(" ")[0] == source and name not in self._answered
            for name, condition in self.conditions.items()
        )

    def loop_failed(self, name: str, problem: str | None) -> None:
        """Show the unexpected error of the loop `name`, or with None that its last run had none."""
        if problem is None:
            self.hide(name)
        else:
            self.show(name, problem)

    def forget_regions(self, current: Collection[str]) -> None:
        """Remove the CloudWatch regions that are not `current`: without workers they must not be shown as up or down."""
        for region in self._regions.difference(current, {""}):
            self._regions.discard(region)
            self.hide(_name("cloudwatch", region))
            self._repeats.pop(_name("cloudwatch", region), None)
            self._telemetry.source_gone("cloudwatch", region)


def unexpected(source: str, error: Exception, region: str = "") -> SourceError:
    """Return an exception that is a bug as the failure of a source: what is not read is not up, whatever the reason.

    Args:
        source: "mongodb" or "cloudwatch".
        error: what was raised.
        region: of CloudWatch.
    """
    what = f"CloudWatch in {region}" if source == "cloudwatch" else "the worker documents"
    return SourceError(
        source,
        type(error).__name__,
        f"reading {what} failed with an unexpected {type(error).__name__}: {error}; this is a bug, please report it with the "
        "traceback in the log",
        region=region,
    )


def _name(source: str, region: str) -> str:
    return f"{source} {region}".strip()

"""The last result of each source, for the exporter metrics and /-/ready."""

from collections.abc import Callable, Collection

from exporter.core import logs
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
        self.errors: dict[str, str | None] = {}
        """The last error by source name ("mongodb", "cloudwatch eu-west-1"); None after a success."""

    def succeeded(self, source: str, region: str, began: float, ended: float | None = None) -> None:
        """Record a successful read; `began` and `ended` are UTC seconds, `ended` defaults to now."""
        ended = self._wall() if ended is None else ended
        self._telemetry.source_succeeded(source, region, ended, ended - began)
        self.errors[_name(source, region)] = None
        self._regions.add(region)

    def failed(self, error: SourceError, began: float, ended: float | None = None) -> None:
        """Record and log a failed read; `began` and `ended` are UTC seconds, `ended` defaults to now."""
        ended = self._wall() if ended is None else ended
        self._telemetry.source_failed(error.source, error.region, ended - began)
        self.errors[_name(error.source, error.region)] = str(error)
        self._regions.add(error.region)
        _log.error("source read failed", source=error.source, region=error.region, code=error.code, error=str(error))

    def forget_regions(self, current: Collection[str]) -> None:
        """Remove the CloudWatch regions that are not `current`: without workers they must not be shown as up or down."""
        for region in self._regions.difference(current, {""}):
            self._regions.discard(region)
            self.errors.pop(_name("cloudwatch", region), None)
            self._telemetry.source_gone("cloudwatch", region)


def _name(source: str, region: str) -> str:
    return f"{source} {region}".strip()

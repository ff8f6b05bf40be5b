"""What the demo's CloudWatch holds, computed from the demo's folder."""

import time
from pathlib import Path

from exporter.core.errors import ConfigError
from exporter.core.model import MetricName
from exporter.demo.fleet import published
from exporter.demo.folder import read_world


def ledger(directory: Path, start: int, end: int, now: int | None = None) -> dict[tuple[str, MetricName, int], float]:
    """Return what the demo's CloudWatch holds at `now` of the periods that begin in [start, end), across restarts.

    The result maps (instance, metric, period) to percent.

    Raises:
        ConfigError: `directory` is not the folder of a demo.
    """
    world = read_world(directory)
    if world is None:
        raise ConfigError(f"{directory} is no folder of a demo; name the one given to `demo --dir`")
    return published(world, start, end, int(time.time()) if now is None else now)

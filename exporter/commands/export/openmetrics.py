"""A worker's history as OpenMetrics text, for `promtool tsdb create-blocks-from openmetrics`.

Pure: columns of the history in, lines out. The families are those that remote read answers with: every series has the label
store="history", a sample stands at its period's start, utilizations are ratios. Names and helps come from the catalog.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md: a family's lines stand together, within it
those of a series, within that in the order of time; timestamps are seconds; the text ends with `# EOF`.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from exporter.commands.export.spool import Block, SampleSpool
from exporter.core.catalog import INFO, LONGEST_LABEL, STATUS, Metric
from exporter.core.history_metrics import HISTORY_METRICS, STORE, HistoryMetric
from exporter.core.model import InventoryEntry
from exporter.history.series import info_labels

END = "# EOF\n"
_LINES = 10_000
"""Lines joined at once: some 1.5 MB."""


def heading(metric: Metric) -> str:
    """Return the lines that precede a family's series."""
    unit = f"# UNIT {metric.name} {metric.unit}\n" if metric.unit else ""
    return f"# TYPE {metric.name} {metric.kind}\n{unit}# HELP {metric.name} {_escaped(metric.help)}\n"


def text(columns: SampleSpool, entries: Mapping[str, InventoryEntry], written: Callable[[int], None]) -> Iterator[str]:
    """Yield the whole text, thousands of lines at a time.

    Args:
        columns: the samples.
        entries: the inventory, worker_id → what is known of the worker.
        written: called after each worker of each family with the number of its points.
    """
    for family in HISTORY_METRICS:
        yield heading(family.metric)
        for block in columns.blocks:
            times, points = columns.times(block), 0
            for name, values in _series(family, block, columns, entries.get(block.worker_id)):
                for lines in _lines(name, times, values, family.scale):
                    points += lines.count("\n")
                    yield lines
            written(points)
    yield END


def _series(
    family: HistoryMetric, block: Block, columns: SampleSpool, entry: InventoryEntry | None
) -> Iterator[tuple[str, "array[float]"]]:
    """Yield each series of a family in a block: its name with labels, and its values, NaN where it has none."""
    own = {"worker_id": block.worker_id, "region": block.region}
    if family.metric is INFO:
        yield series(INFO, own | info_labels(block.worker_id, entry)), array("d", [1.0]) * block.samples
    elif family.metric is STATUS:
        codes = columns.values(block, "status")
        for status in sorted(block.statuses):
            wanted = block.statuses.index(status)
            yield series(STATUS, own | {"status": status}), array("d", [c if c != c else c == wanted for c in codes])
    elif family.field:
        yield series(family.metric, own), columns.values(block, family.field)


def series(metric: Metric, labels: Mapping[str, str]) -> str:
    """Return `name{labels} ` with store="history", labels sorted; over-long ones are cut as on /metrics."""
    pairs = sorted({**labels, "store": STORE}.items())
    return metric.name + "{" + ",".join(f'{name}="{_escaped(value[:LONGEST_LABEL])}"' for name, value in pairs) + "} "


def _lines(name: str, times: "array[int]", values: "array[float]", scale: float) -> Iterator[str]:
    for at in range(0, len(times), _LINES):
        pairs = zip(values[at : at + _LINES], times[at : at + _LINES], strict=True)
        yield "".join([f"{name}{value / scale!r} {_seconds(time)}\n" for value, time in pairs if value == value])


@lru_cache(maxsize=65_536)  # all workers have their samples at the same times
def _seconds(milliseconds: int) -> str:
    """Return the time in seconds; only a sample that another program wrote lies between two seconds."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds}.{rest:03}" if rest else str(seconds)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

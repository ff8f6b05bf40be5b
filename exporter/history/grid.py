"""Rows at every interval of a range, also where nothing is stored, and the rows of an earlier range beside them. Pure."""

from collections.abc import Sequence
from datetime import timedelta
from zoneinfo import ZoneInfo

from exporter.core.distribution import Distribution, DistributionStatistics, distribution_of
from exporter.core.local_time import interval_start, later_start
from exporter.core.periods import align, align_up
from exporter.storage.rows import EPOCH, FieldStatistics, HistoryRow, milliseconds


def limited(start: int, end: int, resolution: int, interval: int | None, zone: ZoneInfo | None, rows: int) -> int:
    """Return the end of the first `rows` rows of [start, end), UTC seconds; `end` where there are no more."""
    if interval is None:
        return min(end, align_up(start, resolution) + rows * resolution)
    return min(end, later_start(start, interval, zone, rows))


def filled(
    rows: Sequence[HistoryRow],
    start: int,
    end: int,
    resolution: int,
    interval: int | None,
    zone: ZoneInfo | None = None,
    wanted: Distribution | None = None,
) -> list[HistoryRow]:
    """Return the rows of [start, end), UTC seconds, with one of None for each period or interval that has none.

    Args:
        rows: oldest first.
        start, end: the range.
        resolution: seconds of a sample.
        interval: seconds of a row of statistics; None for samples.
        zone: of days and weeks; None: UTC.
        wanted: further statistics of each interval; None: none.
    """
    if interval is None:
        present = {align(second(row), resolution) for row in rows}
        missing = [_no_sample(at) for at in range(align_up(start, resolution), end, resolution) if at not in present]
    else:
        present, missing = {second(row) for row in rows}, []
        at = interval_start(start, interval, zone)
        while at < end:
            if at not in present:
                missing.append(_no_statistics(at, wanted))
            at = later_start(at, interval, zone)
    return sorted([*rows, *missing], key=lambda row: row["timestamp"])


def beside(
    rows: Sequence[HistoryRow],
    earlier: Sequence[HistoryRow],
    shift: int,
    period: int,
    interval: int | None,
    zone: ZoneInfo | None = None,
) -> list[HistoryRow | None]:
    """Return for each row the one `shift` seconds before it, None where there is none.

    Args:
        rows: of a page.
        earlier: of the range before, oldest first. A coarser one is beside the row in which it begins.
        shift: a multiple of `period`, and of `interval`.
        period: seconds of a sample.
        interval: seconds of a row of statistics; None for samples.
        zone: of days and weeks, which differ in length: the row before is that of the local day.
    """
    if interval is None:
        by_period = {align(second(row), period): row for row in earlier}
        return [by_period.get(align(second(row), period) - shift) for row in rows]
    by_start = {second(row): row for row in earlier}
    return [by_start.get(interval_start(second(row) - shift + interval // 2, interval, zone)) for row in rows]


def second(row: HistoryRow) -> int:
    """Return the time of a row, UTC seconds, rounded down."""
    return milliseconds(row["timestamp"]) // 1000


def _no_sample(at: int) -> HistoryRow:
    return {
        "timestamp": EPOCH + timedelta(seconds=at),
        "cpu_utilization": None,
        "memory_utilization": None,
        "active_labs_count": None,
        "status": None,
    }


def _no_statistics(at: int, wanted: Distribution | None) -> HistoryRow:
    further: DistributionStatistics = {} if wanted is None else distribution_of((), wanted, 0)
    nothing: FieldStatistics = {"avg": None, "min": None, "max": None, "samples": 0, **further}
    return {
        "timestamp": EPOCH + timedelta(seconds=at),
        "cpu_utilization": nothing,
        "memory_utilization": nothing,
        "active_labs_count": nothing,
        "status_share": {},
        "known_samples": 0,
        "running_samples": 0,
    }

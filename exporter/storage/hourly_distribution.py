"""Hourly percentiles and time above a threshold of one measured field: the pipeline, and what it returns. Pure.

MongoDB has $percentile from version 7.0 on only, so the pipeline returns the values of each hour. They are read only where
these statistics are wanted: they are as many as the samples, while the other hourly aggregates are few.
"""

import math
from collections.abc import Iterable

from exporter.core.distribution import Distribution, distribution_of
from exporter.core.history_metrics import THRESHOLDS
from exporter.storage.hourly import HOUR_OF_SAMPLE, REGION_AS_TEXT, WorkerDay, by_day
from exporter.storage.rows import Document, documents


def distribution_pipeline(match: Document, field: str) -> list[Document]:
    """Return the pipeline that groups the values of a field by worker, region and hour, then by worker and region.

    Args:
        match: which samples; those without a finite number are left out.
        field: one of METRIC_FIELDS.
    """
    # An array of numbers has these types, too.
    finite = {"$type": ["double", "int", "long"], "$not": {"$type": "array"}, "$gt": -math.inf, "$lt": math.inf}
    group = {"_id": {"w": "$worker_id", "r": REGION_AS_TEXT, "h": HOUR_OF_SAMPLE}, "values": {"$push": f"${field}"}}
    by_worker = {
        "_id": {"w": "$_id.w", "r": "$_id.r"},
        "hours": {"$push": {"$toLong": "$_id.h"}},
        "values": {"$push": "$values"},
    }
    return [{"$match": match | {field: finite}}, {"$group": group}, {"$group": by_worker}]


def distribution_days(batches: Iterable[bytes], field: str, period: int) -> list[WorkerDay]:
    """Decode what `distribution_pipeline` found; the values of a day are those of `distribution_fields`.

    Args:
        batches: raw batches of the cursor.
        field: that of the pipeline.
        period: of the samples, in seconds.
    """
    wanted, found = Distribution(percentiles=True, above=THRESHOLDS[field]), list[WorkerDay]()
    for row in documents(batches):
        of_hours = [distribution_of(values, wanted, period) for values in row["values"]]
        columns = zip(*((each["p50"], each["p95"], each["p99"], each["above_seconds"]) for each in of_hours), strict=True)
        found += by_day(row["_id"]["w"], row["_id"]["r"], row["hours"], *columns)
    return found

"""Samples of the queue as the batches that stores take. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from exporter.core.model import FinalSample
from exporter.stores.store import Batch

Labels = Mapping[str, Mapping[str, str]]
"""Worker id → further labels."""


def batches(samples: Iterable[FinalSample], labels: Labels) -> Iterator[Batch]:
    """Make one batch for each worker and region, its samples in order of time; of several of one time the last counts."""
    newest = {(each.worker_id, each.start): each for each in samples}
    for (worker_id, region), part in groupby(
        sorted(newest.values(), key=_order), key=lambda each: (each.worker_id, each.region or "")
    ):
        found = list(part)
        yield Batch(
            worker_id,
            region,
            labels.get(worker_id, {}),
            [each.start * 1000 for each in found],
            {
                "cpu_utilization": [_finite(each.cpu_utilization) for each in found],
                "memory_utilization": [_finite(each.memory_utilization) for each in found],
                "active_labs_count": [_finite(each.active_labs_count) for each in found],
            },
            [each.status for each in found],
        )


def _order(sample: FinalSample) -> tuple[str, str, int]:
    return sample.worker_id, sample.region or "", sample.start


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

"""Find the memory metric of each instance in ListMetrics answers."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from exporter.core.model import (
    Dimensions,
    Listing,
)
from exporter.core.periods import DAY, HOUR

LISTING_TTL_SECONDS = 600
"""How long a ListMetrics answer is used."""


@dataclass(slots=True)
class _Region:
    """What is remembered of one region's memory series between rounds."""

    recent: Listing = field(default_factory=Listing)
    full: Listing = field(default_factory=Listing)
    silent: set[Dimensions] = field(default_factory=set)
    """Listed series without a datapoint in the last periods; another is taken until the next listing."""

    @property
    def listings(self) -> tuple[Listing, Listing]:
        return self.recent, self.full


LISTED_FOR_SECONDS = 14 * DAY
"""ListMetrics forgets a metric two weeks after its last datapoint."""
RECENTLY_ACTIVE_SECONDS = 3 * HOUR
"""The only RecentlyActive there is, PT3H."""
_KNOWN_DIMENSIONS = frozenset({"InstanceId", "ImageId", "InstanceType", "AutoScalingGroupName"})


def memory_series(
    listing: Listing, worker_instance_id: str, instance_type: str | None, silent: Collection[Dimensions]
) -> tuple[Dimensions, ...]:
    """Choose the dimension sets under which the agent of an instance most likely publishes its memory now.

    Best is the set whose InstanceType is not another than the worker's, then the one with the fewest dimensions that are not
    the agent's usual ones (more of them mean a part of the host), then the one with the fewest. Sets that tie are all returned,
    in lexical order: ask each, keep the newest.

    Args:
        listing: what ListMetrics listed.
        worker_instance_id: the worker's instance.
        instance_type: the worker's, None when unknown.
        silent: sets known to have nothing new; passed over while the instance has others.
    """
    listed = listing.series.get(worker_instance_id, ())
    candidates = [dimensions for dimensions in listed if dimensions not in silent] or list(listed)

    def rank(dimensions: Dimensions) -> tuple[bool, int, int]:
        stated = dict(dimensions).get("InstanceType")
        mismatch = None not in (instance_type, stated) and stated != instance_type
        return mismatch, sum(name not in _KNOWN_DIMENSIONS for name, _ in dimensions), len(dimensions)

    best = min(map(rank, candidates), default=None)
    return tuple(sorted(dimensions for dimensions in candidates if rank(dimensions) == best))


def all_memory_series(
    listings: Iterable[Listing], instance_id: str, instance_type: str | None, silent: Collection[Dimensions] = ()
) -> tuple[Dimensions, ...]:
    """Return every dimension set that is listed for an instance, those that most likely are alive first."""
    sets: dict[Dimensions, None] = {}
    for listing in listings:
        sets |= dict.fromkeys(memory_series(listing, instance_id, instance_type, silent))
        sets |= dict.fromkeys(listing.series.get(instance_id, ()))
    return tuple(sets)

"""List the series of the regions before a collection cycle queries them."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence

from exporter.core import logs
from exporter.core.errors import SourceError
from exporter.core.model import PendingQuery
from exporter.pipeline.cycle import Cycle
from exporter.pipeline.source_health import unexpected
from exporter.sources.cloudwatch.extra_series import ExtraSeries
from exporter.sources.cloudwatch.memory_series import MemorySeriesIndex

_log = logs.get("collector")


async def refresh_listings(
    memory: MemorySeriesIndex, extra: ExtraSeries | None, cycle: Cycle, due: Sequence[PendingQuery], regions: Iterable[str]
) -> None:
    """List the series of every region, all at once; where that fails the old listing stays in use.

    Args:
        memory: the memory series; those of two weeks are listed only where an open sample needs them.
        extra: the series of `cloudwatch.extra`; None without any.
        cycle: records the error of each region.
        due: what the cycle queries.
        regions: to list.
    """

    async def recorded(region: str, listing: Awaitable[object]) -> None:
        try:
            await listing
        except SourceError as error:  # perhaps of one account alone; the others are listed all the same
            cycle.failures[region] = error
        except Exception as bug:  # noqa: BLE001  # a bug in one region must not end the others; the log has its traceback
            _log.exception("listing series failed with an unexpected error; please report it", region=region)
            cycle.failures[region] = unexpected("cloudwatch", bug, region)

    async def refresh(region: str) -> None:
        await recorded(region, memory.listing(region, recent=True))
        since = memory.listings(region)[0].since
        if any(one.oldest < since for one in due if one.region == region):
            await recorded(region, memory.listing(region, recent=False))
        if extra is not None:
            await recorded(region, extra.refresh(region))

    await asyncio.gather(*map(refresh, regions))

"""The demo's past: the two weeks of history that an exporter would have written, with labs and status, until the first start.

The dashboards compare with the week before. From then on the exporter writes it; of a day on which the demo did not run it
fills CPU and memory from the fake CloudWatch.
"""

import time

from pymongo.errors import PyMongoError

from exporter.core.errors import StoreUnavailableError
from exporter.core.periods import DAY, align
from exporter.demo.fleet import PERIOD, World, fleet, samples
from exporter.storage.mongo import Database
from exporter.storage.repository import WorkerMetricsRepository

HISTORY = "worker_metrics_timeseries"
"""The default of the setting `mongodb.history`."""
STATE = "demo_state"
"""Collection that marks a database as a demo's: its world, and whether its past was written."""
SEED = 20251116
DAYS = 15
_RETENTION = 30 * DAY


async def remember(database: Database, world: World) -> int:
    """Write the fleet's past unless it is there, and return the number of samples written.

    Raises:
        StoreError: MongoDB does not answer, or the collection is not a history with the demo's period.
    """
    mark = {"_id": "past", "start": world.start}
    try:
        if await database[STATE].find_one(mark):
            return 0
        written = await _write(database, world)
        await database[STATE].replace_one({"_id": "past"}, mark, upsert=True)
    except PyMongoError as error:
        raise StoreUnavailableError(f"the demo cannot use MongoDB: {error}; check MONGODB_URI") from error
    return written


async def _write(database: Database, world: World) -> int:
    history = WorkerMetricsRepository(database, collection=HISTORY, period=PERIOD, retention=_RETENTION, apply_retention=False)
    await history.ensure_collection()
    end = align(
        world.start, PERIOD
    )  # what the exporter also finds in CloudWatch has the same values there; existing samples stay
    start = max(end - DAYS * DAY, int(time.time()) - _RETENTION + DAY)
    return sum([await history.add_samples(samples(world, worker, start, end)) for worker in fleet(world)])

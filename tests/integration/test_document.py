"""The snippets of the customer's document, word for word, against a real MongoDB and this repository's code."""

import inspect
import textwrap
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, get_overloads

import pytest
from pymongo import MongoClient

from exporter.core.interval_statistics import Statistics
from exporter.core.model import WorkerMetricsSample
from exporter.storage.mongo import Database
from exporter.storage.repository import WorkerMetricsRepository

SAMPLE = '''
# Simple data model (NOT an aggregate root)
@dataclass
class WorkerMetricsSample:
    """Time-series sample for worker metrics"""
    worker_id: str           # metadata
    region: str              # metadata
    timestamp: datetime       # time field
    cpu_utilization: float    # measurement
    memory_utilization: float # measurement
    active_labs_count: int    # measurement
    status: str              # metadata
'''

COLLECTION = """
db.create_collection(
    "worker_metrics_timeseries",
    timeseries={
        "timeField": "timestamp",
        "metaField": "worker_id",
        "granularity": "minutes"
    },
    expireAfterSeconds=2592000  # 30 days retention
)
"""

REPOSITORY = '''
# New repository (NOT an aggregate root repository)
class WorkerMetricsRepository:
    """Repository for time-series metrics storage"""

    async def add_sample(self, sample: WorkerMetricsSample) -> None:
        """Insert a metrics sample"""
        pass

    async def get_samples(
        self,
        worker_id: str,
        start_time: datetime,
        end_time: datetime,
    ) -> List[WorkerMetricsSample]:
        """Query samples for time range"""
        pass

    async def get_aggregated_stats(
        self,
        worker_id: str,
        start_time: datetime,
        end_time: datetime,
        interval: timedelta,
    ) -> List[MetricsAggregation]:
        """Get aggregated metrics (avg, min, max per interval)"""
        pass
'''

JOB = """
# In WorkerMetricsCollectionJob.run_every()
async def run_every(self, *args, **kwargs) -> None:
    # ... existing code ...

    # After updating worker aggregate:
    await worker_repository.update_async(worker)

    # NEW: Also persist to time-series collection
    metrics_sample = WorkerMetricsSample(
        worker_id=self.worker_id,
        region=worker.state.aws_region,
        timestamp=datetime.now(timezone.utc),
        cpu_utilization=worker.state.cpu_utilization,
        memory_utilization=worker.state.memory_utilization,
        active_labs_count=worker.state.active_labs_count,
        status=worker.state.status.value,
    )
    await metrics_repository.add_sample(metrics_sample)
"""


def run(snippet: str, **names: object) -> dict[str, Any]:
    """Execute a snippet with these names, with annotations as texts, and return the names it defines."""
    space = dict(names)
    exec(compile("from __future__ import annotations\n" + textwrap.dedent(snippet), "document", "exec"), space)
    return space


@pytest.fixture
async def repository(database: Database) -> WorkerMetricsRepository:
    """The repository of this project, over the collection that the document's snippet creates."""
    host, port = await database.client.address or ("", 0)
    with MongoClient[dict[str, Any]](host, port) as client:
        run(COLLECTION, db=client[database.name])
    found = WorkerMetricsRepository(database, apply_retention=True, wall=lambda: datetime(2026, 1, 2, tzinfo=UTC).timestamp())
    await found.ensure_collection()
    return found


async def test_the_documents_collection_is_used_as_it_is(repository: WorkerMetricsRepository) -> None:
    assert (repository.collection.notices, repository.collection.retention) == ((), 2592000)


def test_the_documents_sample_has_the_fields_of_ours() -> None:
    theirs = run("from dataclasses import dataclass\n" + SAMPLE)["WorkerMetricsSample"]
    assert [field.name for field in fields(theirs)] == [field.name for field in fields(WorkerMetricsSample)]


def test_the_documents_repository_has_the_signatures_of_ours() -> None:
    theirs = run(REPOSITORY)["WorkerMetricsRepository"]
    for name in ("add_sample", "get_samples", "get_aggregated_stats"):
        wanted, ours = getattr(theirs, name), getattr(WorkerMetricsRepository, name)
        assert inspect.iscoroutinefunction(ours)
        first = (get_overloads(ours) or [ours])[0]  # where there are several, the document's is the first
        assert list(inspect.signature(first).parameters) == list(inspect.signature(wanted).parameters)
        further = list(inspect.signature(ours).parameters.values())[len(inspect.signature(wanted).parameters) :]
        assert all(each.kind is each.KEYWORD_ONLY and each.default is not each.empty for each in further)
        annotations = inspect.get_annotations(first)
        for parameter, annotation in wanted.__annotations__.items():
            given = annotations[parameter]
            plain = getattr(given, "__name__", str(given)) if not getattr(given, "__args__", ()) else given.__args__[0].__name__
            if (name, parameter) != ("add_sample", "return"):  # ours says whether the sample was inserted
                assert plain == annotation.removeprefix("List[").removesuffix("]")


@pytest.mark.parametrize("own", [True, False], ids=["our sample", "the document's sample"])
async def test_the_documents_job_writes_samples_that_are_returned_and_aggregated(
    repository: WorkerMetricsRepository, own: bool
) -> None:
    theirs = run("from dataclasses import dataclass\n" + SAMPLE)["WorkerMetricsSample"]
    state = SimpleNamespace(
        aws_region="us-east-1",
        cpu_utilization=45.2,
        memory_utilization=62.8,
        active_labs_count=3,
        status=SimpleNamespace(value="running"),
    )

    async def update_async(worker: object) -> None:
        assert worker is aggregate

    aggregate = SimpleNamespace(state=state)
    job = run(
        "from datetime import datetime, timezone\n" + JOB,
        worker=aggregate,
        worker_repository=SimpleNamespace(update_async=update_async),
        metrics_repository=repository,
        WorkerMetricsSample=WorkerMetricsSample if own else theirs,
    )
    times = iter([datetime(2026, 1, 1, 12, minute, 30, 5000, tzinfo=UTC) for minute in (1, 4, 6)])
    job["datetime"] = SimpleNamespace(now=lambda zone: next(times))
    for cpu in (45.2, 99.9, 55.2):  # the second is of the same period as the first
        state.cpu_utilization = cpu
        await job["run_every"](SimpleNamespace(worker_id="worker-1"))
    window = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    first, second = await repository.get_samples("worker-1", *window)
    assert (first.cpu_utilization, second.cpu_utilization) == (45.2, 55.2)
    assert (first.region, first.memory_utilization, first.active_labs_count, first.status) == ("us-east-1", 62.8, 3, "running")
    assert (first.timestamp, second.timestamp) == tuple(datetime(2026, 1, 1, 12, minute, tzinfo=UTC) for minute in (0, 5))
    (row,) = await repository.get_aggregated_stats("worker-1", *window, timedelta(days=7))
    assert row.cpu_utilization == Statistics(avg=(45.2 + 55.2) / 2, min=45.2, max=55.2, samples=2)
    assert row.status_share == {"running": 1.0}

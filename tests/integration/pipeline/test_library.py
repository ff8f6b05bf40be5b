"""A job of the manager that writes the same samples as the exporter, at the same time: each sample is stored once."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from exporter import WorkerMetricsRepository, WorkerMetricsSample
from exporter.core.periods import align, to_datetime
from exporter.demo.mongod import Mongod
from tests.fixtures.process import RunExporter
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.integration.pipeline.test_takeover import RUNNER

RESULTS = ("inserted", "already_present")
PERIOD, PERIODS, WORKERS, JOBS = 60, 24, 8, 3
DATABASE = "cml_cloud_manager"
TUNE = (
    "collector.POLL_OFFSET_SECONDS = {offset}; planning.DUE_TOLERANCE_SECONDS = 60; "
    "mirror.Mirror.__init__.__kwdefaults__['batch'] = 20; "
    "read_back = sample_writer.SampleWriter.existing_keys; asyncio = __import__('asyncio'); exec({slow!r})"
)
SLOW = """
async def existing_keys(self, keys):
    found = await read_back(self, keys)
    await asyncio.sleep(0.3)
    return found
sample_writer.SampleWriter.existing_keys = existing_keys
"""
"""Many small batches, with a pause between read-back and insert: there a sample of the job would be stored twice."""

Key = tuple[str, int]


async def job(uri: str, keys: Sequence[Key]) -> int:
    """Write these samples one by one with the library; return how many it inserted."""
    async with WorkerMetricsRepository.connect(uri, period=PERIOD) as library:
        samples = [WorkerMetricsSample(worker, "eu-west-1", to_datetime(start + 30), 77.0) for worker, start in keys]
        return sum([await library.add_sample(sample) for sample in samples])


@pytest.mark.waits(15)
async def test_a_job_beside_the_exporter_neither_doubles_nor_loses_a_sample(
    own_mongod: Mongod, aws_credentials: None, run_exporter: RunExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.exporter_process.COMMAND", (sys.executable, "-c", RUNNER))
    uri = own_mongod.uri.replace("/?", f"/{DATABASE}?")
    began = time.time()
    created = align(int(began), PERIOD) - (PERIODS + 10) * PERIOD
    members = [Member(f"worker-{k}", instance_id(k), "eu-west-1", created) for k in range(WORKERS)]
    keys = [(member.worker_id, created + n * PERIOD) for member in members for n in range(PERIODS)]
    async with AsyncMongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        database = client[DATABASE]
        await database["workers"].insert_many([member.aggregate() for member in members])
        samples = database["worker_metrics_timeseries"]
        with FakeCloudWatch(period=PERIOD) as fake:
            for member in members:
                fake.add(member.instance_id, runs=[(created, None)])
            settings = {
                "mongodb": {"uri": uri},
                "cloudwatch": {"endpoint_url": fake.url, "interval": "1m"},
                "period": "1m",
                "settle_delay": "1m",
                "absence_timeout": "2m",
            }
            tune = TUNE.format(offset=int(began + 8) % PERIOD, slow=SLOW)
            exporter = await asyncio.to_thread(run_exporter, settings, env={"TUNE": tune})
            # Until it mirrors: before, it would see in its search for gaps what the jobs wrote
            async with asyncio.timeout(scaled(60)):
                while not await samples.count_documents({}):  # noqa: ASYNC110  # the event is in another process
                    await asyncio.sleep(0.01)
            by_jobs = await asyncio.gather(
                *(job(uri, keys[len(keys) * n // JOBS :] + keys[: len(keys) * n // JOBS]) for n in range(JOBS))
            )
            await asyncio.to_thread(
                exporter.wait_for,
                lambda: exporter.metrics()['cml_exporter_outbox_samples{state="final"}'] == 0,
                60,
                "done with mirroring",
            )
            metrics = exporter.metrics()
            assert exporter.stop() == 0
        stored = Counter([(each["worker_id"], int(each["timestamp"].timestamp())) async for each in samples.find({})])
        own = await samples.count_documents({"cpu_utilization": 77.0})
    doubled = {key: count for key, count in stored.items() if count > 1}
    mirrored = {result: metrics[f'cml_exporter_mirror_samples_total{{result="{result}"}}'] for result in RESULTS}
    print(f"inserted by the jobs: {by_jobs}; by the exporter: {mirrored}")
    assert doubled == {}
    assert [key for key in keys if key not in stored] == []
    assert sum(by_jobs) == own > 0
    assert mirrored["already_present"] > 0
    assert mirrored["inserted"] + own == sum(stored.values())

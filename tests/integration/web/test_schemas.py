"""Real responses of every route are what the pydantic models, and with them the OpenAPI document, say."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from exporter.core.model import Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.history.reader import HistoryReader
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from exporter.web.routes import ROUTES
from exporter.web.schemas import FleetPage, HistoryPage, IntervalRow, Problem, Readiness, ResourceUsage, SampleRow
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter

NOW = align(1_790_000_000, HOUR) + 1234
REGION, GONE = "eu-west-1", "gone/é"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def in_process(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> AsyncIterator[InProcessExporter]:
    """An exporter with one running worker that has everything, one without anything, and one that has left the fleet."""
    fake.add(instance_id(1))
    exporter = InProcessExporter(tmp_path, database, fake, clock)
    await exporter.history.ensure_collection()
    await database["workers"].insert_many(
        [
            {
                "_id": "full",
                "name": "Prüfstand",
                "aws_region": REGION,
                "aws_instance_id": instance_id(1),
                "status": "running",
                "private_ip": "10.0.0.7",
                "active_labs_count": 3,
                "instance_type": "m5.2xlarge",
                "cml_version": "2.8.1",
                "created_at": to_datetime(NOW - 30 * DAY),
            },
            {"_id": "bare", "aws_region": REGION, "status": "pending"},
        ]
    )
    inventory = Inventory(database)
    await inventory.record(Fleet(NOW - DAY, (Worker(GONE, REGION, instance_id(2), "terminated", name="gone"),)))
    newest = align(NOW, PERIOD)
    samples = [
        sample
        for worker_id in ("full", GONE)
        for sample in (
            WorkerMetricsSample(worker_id, REGION, to_datetime(newest - PERIOD), 45.25, 60.0, 3, "running"),
            WorkerMetricsSample(worker_id, REGION, to_datetime(newest - 2 * PERIOD)),
            WorkerMetricsSample(worker_id, REGION, to_datetime(newest - 3 * PERIOD), 1.0),
        )
    ]
    await exporter.history.add_samples(samples)
    await exporter.round()
    yield exporter
    await exporter.close()


async def get(exporter: InProcessExporter, path: str, status: int = 200) -> bytes:
    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
        response = await client.get(path)
        assert response.status_code == status, response.text
        return response.content


SHAPES = (
    "?interval=1h",
    "?limit=1",
    "?format=columns",
    "?format=columns&interval=1h&percentiles=true&above=50",
    "?fill=null&limit=5",
    "?fill=null&interval=1h",
    "?compare=1d&interval=1h",
    "?compare=1d&format=columns",
    "?compare=5m",
)
NAMED = f"worker=full&worker=bare&worker={quote(GONE, safe='')}"


def history_of(worker_id: str, query: str = "") -> str:
    return f"/api/workers/{quote(worker_id, safe='')}/metrics/history{query}"


async def test_a_response_of_every_route_is_exactly_what_its_model_says(in_process: InProcessExporter) -> None:
    models: dict[str, type[BaseModel]] = {
        endpoint.path: body for endpoint in ROUTES for body in endpoint.response.content.values() if isinstance(body, type)
    }
    history = "/api/workers/{worker_id:worker}/metrics/history"
    resources = "/api/workers/region/{region}/workers/{worker_id:worker}/resources"
    requests = {
        "/-/ready": ["/-/ready"],
        "/openapi.json": ["/openapi.json"],
        "/api/workers": ["/api/workers", "/api/workers?limit=1"],
        "/api/workers/{worker_id:worker}": [f"/api/workers/{each}" for each in ("full", "bare", quote(GONE, safe=""))],
        history: [history_of(each, query) for each in ("full", "bare", GONE) for query in ("", *SHAPES)],
        "/api/metrics/history": [f"/api/metrics/history{each}&{NAMED}" for each in ("?", *SHAPES)],
        resources: [f"/api/workers/region/{REGION}/workers/{each}/resources?start_time=1h" for each in ("full", "bare")],
        "/sd/workers": ["/sd/workers"],
    }
    assert requests.keys() == models.keys()
    for route, paths in requests.items():
        for path in paths:
            models[route].model_validate_json(await get(in_process, path), strict=True)


async def test_rows_are_samples_or_with_an_interval_statistics_from_both_sources(in_process: InProcessExporter) -> None:
    await in_process.history.collection.set_retention(DAY)
    kinds: dict[str, type[BaseModel]] = {"": SampleRow, "&interval=1h": IntervalRow}
    found = set()
    for query, kind in kinds.items():
        for days in ("start=-3d&end=-2d", "start=-1h"):
            page = HistoryPage.model_validate_json(await get(in_process, history_of("full", f"?{days}{query}")), strict=True)
            assert page.data
            assert {type(row) for row in page.data} == {kind}
            found.add((page.source, kind))
    assert len(found) == 4


async def test_a_note_is_in_the_model_and_absent_where_there_is_none(in_process: InProcessExporter) -> None:
    assert b'"note"' not in await get(in_process, history_of("full"))
    in_process.backend.reader = HistoryReader(period=PERIOD, history=None, archive=None, wanted_retention=DAY)
    page = HistoryPage.model_validate_json(await get(in_process, history_of("full")), strict=True)
    assert "keeps no history" in page.note


async def test_the_fleet_has_values_where_they_are_known_and_nulls_where_not(in_process: InProcessExporter) -> None:
    page = FleetPage.model_validate_json(await get(in_process, "/api/workers"), strict=True)
    full = next(worker for worker in page.data if worker.worker_id == "full")
    bare = next(worker for worker in page.data if worker.worker_id == "bare")
    assert (full.name, full.private_ip, full.active_labs_count, len(full.instances)) == ("Prüfstand", "10.0.0.7", 3, 1)
    assert full.cpu_utilization is not None
    assert (bare.name, bare.cpu_utilization, bare.instances) == (None, None, ())


async def test_resources_and_problems_are_their_models_too(in_process: InProcessExporter) -> None:
    path = f"/api/workers/region/{REGION}/workers/full/resources"
    assert await get(in_process, path.replace("full", quote("Prüfstand"))) == await get(in_process, path)
    usage = ResourceUsage.model_validate_json(await get(in_process, path), strict=True)
    assert (usage.id, usage.relative_start_time) == (instance_id(1), "10m")
    for status, wrong in ((400, f"{path}?start_time=soon"), (404, history_of("nothing")), (404, "/nothing")):
        assert Problem.model_validate_json(await get(in_process, wrong, status), strict=True).status == status


def test_a_key_that_is_not_declared_or_missing_is_refused() -> None:
    for wrong in ('{"ready": true, "sources": {}, "more": 1}', '{"ready": true}', '{"ready": "yes", "sources": {}}'):
        with pytest.raises(ValidationError):
            Readiness.model_validate_json(wrong, strict=True)

"""Charts over HTTP: a picture shows what the history API says, for samples, statistics, CloudWatch and comparisons."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from exporter.core.model import Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, WEEK, align, to_datetime
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.helpers.charts import elements, points, texts
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter

NOW = align(1_790_000_000, HOUR)
REGION = "eu-west-1"
ID = "w1/é"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


def sample(at: int) -> WorkerMetricsSample:
    value = float(at // PERIOD * 7919 % 1000) / 10
    status = "stopped" if value < 20 else "running"
    return WorkerMetricsSample(ID, REGION, to_datetime(at), value, 100 - value, int(value) % 5, status)


@pytest.fixture
async def exporter(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[InProcessExporter]:
    """An exporter whose inventory has one terminated worker with two instances, with five weeks of history with gaps."""
    in_process = InProcessExporter(tmp_path, database, fake, clock)
    await in_process.history.ensure_collection()
    await in_process.observe()
    for at, number in ((NOW - 40 * DAY, 1), (NOW - 20 * DAY, 1), (NOW - 3 * DAY, 2), (NOW - HOUR, 2)):
        worker = Worker(ID, REGION, instance_id(number), "terminated", name="Prüfstand <1>")
        await Inventory(database).record(Fleet(at, (worker,)))
    samples = [
        WorkerMetricsSample(
            ID, REGION, to_datetime(at), value, 100 - value, int(value) % 5, "stopped" if value < 20 else "running"
        )
        for at in range(NOW - 35 * DAY, NOW, PERIOD)
        if at // HOUR % 10 and (value := float(at // PERIOD * 7919 % 1000) / 10) is not None
    ]
    await in_process.history.writer.insert(samples)
    yield in_process
    await in_process.close()


@pytest.fixture
async def client(exporter: InProcessExporter) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
        yield client


async def drawn(client: httpx.AsyncClient, **query: object) -> str:
    response = await client.get(f"/workers/{ID}/chart.svg", params={name: str(value) for name, value in query.items()})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/svg+xml"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    ElementTree.fromstring(response.content)
    return response.text


async def rows(client: httpx.AsyncClient, **query: object) -> list[dict[str, Any]]:
    response = await client.get(
        f"/api/workers/{ID}/metrics/history", params={"limit": "10000", **{name: str(value) for name, value in query.items()}}
    )
    assert response.status_code == 200, response.text
    assert response.json()["next"] is None
    data: list[dict[str, Any]] = response.json()["data"]
    return data


@pytest.mark.parametrize(
    ("start", "interval", "metric", "key"),
    [
        ("-24h", None, "cpu", "cpu_utilization"),
        ("-24h", None, "memory", "memory_utilization"),
        ("-24h", None, "labs", "active_labs_count"),
        ("-7d", "15m", "cpu", "cpu_utilization"),
        ("-30d", "1h", "memory", "memory_utilization"),
    ],
)
async def test_the_picture_has_the_values_of_the_history_api(
    client: httpx.AsyncClient, start: str, interval: str | None, metric: str, key: str
) -> None:
    found = [point for run in points(await drawn(client, start=start, metric=metric, width=1400)) for point in run]
    expected = [
        (value["avg"] if interval else value)
        for row in await rows(client, start=start, **({"interval": interval} if interval else {}))
        if (value := row[key]) is not None
    ]
    assert len(expected) > 250
    assert [value for _, value in found] == pytest.approx(expected, abs=0.01)


async def test_gaps_are_gaps_and_the_band_and_the_statuses_are_there(client: httpx.AsyncClient) -> None:
    picture = await drawn(client, start="-30d")
    assert len(points(picture)) == len(elements(picture, "polygon")) == 73  # 720 hours, each tenth of which is a gap
    said = [each.findtext("{http://www.w3.org/2000/svg}title") or "" for each in elements(picture, "rect")]
    assert any(text.startswith("running 2026-") for text in said)
    marks = [each.findtext("{http://www.w3.org/2000/svg}title") or "" for each in elements(picture, "path")]
    assert [mark for mark in marks if mark.endswith(f"instance {instance_id(2)}")]


async def test_a_comparison_has_the_values_of_the_earlier_range_at_the_times_of_this_one(client: httpx.AsyncClient) -> None:
    picture = await drawn(client, start="-24h", compare="1w", width=1400)
    earlier = [point for run in points(picture, "earlier") for point in run]
    expected = await rows(client, start=NOW - DAY - WEEK, end=NOW - WEEK)
    assert [value for _, value in earlier] == pytest.approx([row["cpu_utilization"] for row in expected], abs=0.01)
    assert NOW - DAY <= earlier[0][0] <= NOW
    assert "7d earlier" in texts(picture)


async def test_a_range_that_only_cloudwatch_has_is_drawn_at_its_resolution(
    client: httpx.AsyncClient, exporter: InProcessExporter, fake: FakeCloudWatch
) -> None:
    await exporter.history.collection.set_retention(5 * DAY)
    fake.add(instance_id(1), REGION, runs=[(NOW - 40 * DAY, None)])
    found = [point for run in points(await drawn(client, start="-25d", end="-22d")) for point in run]
    expected = await rows(client, start="-25d", end="-22d")
    assert len(expected) == 3 * DAY // PERIOD
    assert [value for _, value in found] == pytest.approx([row["cpu_utilization"] for row in expected], abs=0.02)


async def test_the_name_is_text_and_the_zone_is_that_of_the_axis(client: httpx.AsyncClient) -> None:
    utc, tokyo = await drawn(client), await drawn(client, tz="Asia/Tokyo")
    assert "CPU of Prüfstand <1>" in texts(utc)
    assert texts(utc) != texts(tokyo)
    assert points(utc) == points(tokyo)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"metric": "disk"}, "metric must be one of cpu, memory, labs."),
        ({"theme": "pink"}, "theme must be one of auto, light, dark."),
        ({"width": "100"}, "width must be a whole number from 240 to 4096."),
        ({"compare": "0s"}, "compare must be a duration up to"),
        ({"compare": "9y"}, "compare must be a duration up to"),
        ({"start": "-1d", "end": "-2d"}, "start must be before end."),
        ({"tz": "Mars"}, "tz must be the name of a time zone"),
        ({"color": "red"}, "color is not a parameter of this route"),
    ],
)
async def test_a_wrong_parameter_is_named(client: httpx.AsyncClient, query: dict[str, str], words: str) -> None:
    response = await client.get(f"/workers/{ID}/chart.svg", params=query)
    assert response.status_code == 400
    assert words in response.text


async def test_an_unknown_worker_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/workers/nobody/chart.svg")).status_code == 404


async def test_a_range_without_samples_says_so(client: httpx.AsyncClient) -> None:
    assert "No values in this range" in texts(await drawn(client, start="-39d", end="-38d"))

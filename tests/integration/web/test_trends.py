"""The page of the fleet's trends over HTTP: its figures are those of the samples; without a history it says what to do."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.model import Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database
from exporter.web import trends
from exporter.web.application import create_app
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.fleets import Hours, fleet
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.integration.web.test_routes import NOW as SERVED
from tests.integration.web.test_routes import Memory, Serve, problem, serve, snapshot  # noqa: F401  # a fixture

NOW = align(1_790_000_000, DAY) + 18 * HOUR


@pytest.fixture
async def client(tmp_path: Path, database: Database, fake: FakeCloudWatch) -> AsyncIterator[httpx.AsyncClient]:
    """An exporter with three days of a worker in the fleet's past: 6 hours a day without a lab, 6 with two, 12 stopped."""
    clock = Clock(NOW)
    exporter = InProcessExporter(tmp_path, database, fake, clock, workers={"hourly_price": {"m5zn.metal": 4}})
    await exporter.history.ensure_collection()
    await exporter.observe()
    await Inventory(database).record(
        Fleet(NOW - HOUR, (Worker("w1", "eu-west-1", None, "running", name="one", instance_type="m5zn.metal"),))
    )
    samples = []
    for at in range(align(NOW, DAY) - 2 * DAY, NOW, PERIOD):
        hour = at // HOUR % 24
        filled = at < align(NOW, DAY) - DAY  # from CloudWatch: CPU without a status
        labs = None if filled or hour >= 12 else 0 if hour < 6 else 2
        status = None if filled else "running" if hour < 12 else "stopped"
        cpu = 10.0 * (hour + 1) if hour < 12 else None
        samples.append(
            WorkerMetricsSample("w1", "eu-west-1", to_datetime(at), cpu, None if cpu is None else 40.0, labs, status)
        )
    await exporter.history.writer.insert([sample for sample in samples if sample.status or sample.cpu_utilization is not None])
    transport = httpx.ASGITransport(app=create_app(exporter.backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as shown:
        yield shown
    await exporter.close()


async def test_the_figures_are_those_of_the_samples(client: httpx.AsyncClient) -> None:
    text = (await client.get("/trends?days=7")).raise_for_status().text
    tiles = dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", text))
    assert tiles["hours running"] == "36 h", "the day without a status ran, because it has CPU"
    assert tiles["of them without a lab"] == "12 h"
    assert tiles["what these cost"] == "$48.00"
    assert tiles["mean CPU while running"] == "65 %"
    assert tiles["mean memory while running"] == "40 %"
    assert "A price is known for 1 of 1 workers" in text
    assert "The number of labs is known for 67 % of the running hours" in text
    assert text.count('<th scope="row">') == 3 + 2, "three days, in two weeks"


async def test_days_are_those_of_the_zone(client: httpx.AsyncClient) -> None:
    text = (await client.get("/trends?days=7&tz=Asia/Tokyo")).raise_for_status().text
    days = text[text.index('id="days"') :]
    found = re.findall(r'<tr><th scope="row">(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ([0-9-]*)</th>.*?</tr>', days)
    # Noon in UTC, at which a worker stops, is 21:00 in Tokyo; midnight is 9:00 there. So each day has the hours from 9 to 21.
    assert len(found) == 4
    hours = re.findall(r"<td>([0-9.]+ h)</td><td>[0-9.]+ h</td>", days)
    assert hours == ["0 h", "12 h", "12 h", "12 h"]
    utc = (await client.get("/trends?days=7")).raise_for_status().text
    assert utc != text
    refused = await client.get("/trends?tz=Mars/Olympus")
    assert refused.status_code == 400
    assert "tz must be the name of a time zone" in refused.json()["detail"]


def served(serve: Serve, **changes: object) -> tuple[Memory, Hours, httpx.Client]:  # noqa: F811
    hours = Hours()
    parts = Memory(snapshot=snapshot(*fleet(20, SERVED)), sources={"mongodb": None}, hourly=hours)
    for name, value in changes.items():
        setattr(parts, name, value)
    return parts, hours, serve(parts)


def test_without_figures_it_says_what_to_do(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    parts, hours, client = served(serve)
    hours.failure = StoreUnavailableError("MongoDB does not answer.", reason="unavailable")
    assert "No figures: MongoDB does not answer. The page works again by itself" in client.get("/trends").text
    parts.sources["mongodb"] = "down"
    hours.queries.clear()
    assert "No figures: MongoDB cannot be read." in client.get("/trends").text
    assert hours.queries == [], "a MongoDB that is known to be down is not waited for"
    assert "mongodb.history is null" in serve(Memory(snapshot=snapshot())).get("/trends").text
    assert "No workers are known" in serve(Memory(snapshot=snapshot(), hourly=Hours())).get("/trends").text
    monkeypatch.setattr(trends, "TRENDS_SECONDS", 0)
    assert "are still being read. Load this page again" in served(serve)[2].get("/trends").text


def test_a_large_fleet_gets_fewer_days_and_a_wrong_number_a_sentence(
    serve: Serve,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trends, "MAX_CACHED_WORKER_DAYS", 100)
    _, _, client = served(serve, hourly_price={"c5.4xlarge": 0.5})
    text = client.get("/trends").text
    assert "20 workers: 5 of 30 days are shown." in text
    assert "A price is known for" in text
    assert problem(client.get("/trends?days=41"), 400) == "days must be a whole number from 1 to 40."

"""The page of a worker over HTTP: its numbers are those of the history API, its texts are only text."""

import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from exporter.core.model import Fleet, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.core.settings import WebSettings
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from exporter.web.pages.worker_page import DASHBOARD
from grafana import conventions
from tests.helpers.charts import points
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter

NOW = align(1_790_000_000, DAY) + 6 * HOUR
REGION = "eu-west-1"
NAME = "</h1><script>alert(1)</script>"
ID = "w/1 é"
HERE = "http://exporter/workers/w%2F1%20%C3%A9"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def exporter(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[InProcessExporter]:
    """An exporter with a day of a terminated worker: 12 hours running, half of them without a lab, 12 stopped."""
    in_process = InProcessExporter(tmp_path, database, fake, clock)
    await in_process.history.ensure_collection()
    await in_process.observe()
    worker = Worker(ID, REGION, instance_id(1), "terminated", name=NAME)
    for at in (NOW - 3 * DAY, NOW - HOUR):
        await Inventory(database).record(Fleet(at, (worker,)))
    start = NOW - DAY
    samples = [
        WorkerMetricsSample(
            ID,
            REGION,
            to_datetime(at),
            (at // PERIOD % 50) * 1.5,
            50.0 + (at // PERIOD % 3),
            0 if at < start + 6 * HOUR else 2,
            "running" if at < start + 12 * HOUR else "stopped",
        )
        for at in range(start, NOW, PERIOD)
    ]
    await in_process.history.writer.insert(samples)
    yield in_process
    await in_process.close()


@pytest.fixture
async def client(exporter: InProcessExporter) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(exporter.backend, WebSettings(grafana_url="https://grafana.example.org/"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://exporter") as client:
        yield client


async def page(client: httpx.AsyncClient, query: str = "") -> str:
    response = await client.get(HERE + query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "unsafe-inline" not in response.headers["content-security-policy"]
    return response.text


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.S)


async def test_the_charts_of_the_page_are_the_images_and_have_the_values_of_the_api(client: httpx.AsyncClient) -> None:
    text = await page(client, "?start=-24h")
    drawn = pictures(text)
    assert len(drawn) == 6  # three metrics, for a screen and for a phone
    images = [unescape(found) for found in re.findall(r'href="([^"]*chart\.svg[^"]*)"', text)]
    assert len(images) == 3
    response = await client.get(f"{HERE}/metrics/history".replace("/workers", "/api/workers"), params={"start": "-24h"})
    rows = response.raise_for_status().json()["data"]
    for number, (key, address) in enumerate(
        zip(("cpu_utilization", "memory_utilization", "active_labs_count"), images, strict=True)
    ):
        expected = [row[key] for row in rows]
        image = (await client.get(urljoin(HERE, address))).raise_for_status().text
        for picture in (drawn[2 * number], drawn[2 * number + 1], image):
            assert [value for run in points(picture) for _, value in run] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("query", "covered"), [("?start=-24h", "100 %"), ("?start=-48h", "50 %"), ("?start=-30d", "3.3 %")])
async def test_the_hours_are_those_of_the_samples(client: httpx.AsyncClient, query: str, covered: str) -> None:
    text = await page(client, query)
    tiles = dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", text))
    assert tiles["running"] == "12 h"
    assert tiles["running without a lab"] == "6 h"
    assert tiles["not running"] == "12 h"
    assert tiles["status known"] == covered
    assert ("The hours are too low" in text) == (covered != "100 %")


@pytest.mark.parametrize(("query", "covered"), [("?start=-48h", "62.5 %"), ("?start=-30d", "4.2 %")])
async def test_a_period_with_cpu_and_without_a_status_was_running(
    client: httpx.AsyncClient, exporter: InProcessExporter, query: str, covered: str
) -> None:
    """AWS has CPU of running instances only; with memory alone, or nothing, it is not known."""
    gap_filled = [
        WorkerMetricsSample(ID, REGION, to_datetime(at), 5.0 if at < NOW - 30 * HOUR else None, 40.0, None, None)
        for at in range(NOW - 36 * HOUR, NOW - 25 * HOUR, PERIOD)
    ]
    await exporter.history.writer.insert(gap_filled)
    tiles = dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", await page(client, query)))
    assert (tiles["running"], tiles["running without a lab"], tiles["not running"]) == ("18 h", "6 h", "12 h")
    assert tiles["status known"] == covered
    row = (await client.get(f"{HERE}/metrics/history".replace("/workers", "/api/workers") + "?interval=1h")).json()["data"][0]
    assert set(row) == {"timestamp", "cpu_utilization", "memory_utilization", "active_labs_count", "status_share"}


async def test_the_days_have_the_statistics_of_the_api(client: httpx.AsyncClient) -> None:
    text = await page(client, "?start=-48h&tz=Asia/Tokyo")
    url = f"{HERE}/metrics/history".replace("/workers", "/api/workers")
    given = {"start": str(NOW - 48 * HOUR), "interval": "1d", "tz": "Asia/Tokyo"}
    rows = (await client.get(url, params=given)).raise_for_status().json()["data"]
    cells = [re.findall(r"<td>([^<]*)</td>", row) for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", text, re.S)]
    assert len(cells) == len(rows) == 2
    for found, row in zip(cells, rows, strict=True):
        assert float(found[0]) == pytest.approx(row["cpu_utilization"]["avg"], abs=0.05)
        assert float(found[2]) == pytest.approx(row["cpu_utilization"]["max"], abs=0.05)
        assert float(found[4]) == pytest.approx(row["memory_utilization"]["min"], abs=0.05)


async def test_a_name_is_only_text(client: httpx.AsyncClient) -> None:
    text = await page(client)
    assert "<script>alert" not in text
    assert "&lt;/h1&gt;&lt;script&gt;" in text


async def test_the_files_and_links_of_the_page_are_there_and_none_leads_elsewhere(client: httpx.AsyncClient) -> None:
    text = await page(client, "?start=-24h&compare=1w&tz=Asia/Tokyo")
    addresses = [unescape(found) for found in re.findall(r'(?:href|src|action)="([^"]*)"', text)]
    elsewhere = [each for each in addresses if "//" in each]
    (dashboard,) = elsewhere
    assert dashboard.startswith(f"https://grafana.example.org/d/{DASHBOARD}?var-worker_id=w%2F1+")
    assert conventions.WORKER == DASHBOARD
    for address in addresses:
        if address in elsewhere or address.startswith(("#", "data:")) or not address:
            continue
        response = await client.get(urljoin(HERE, address))
        assert response.status_code == 200, (address, response.text)
    assert not re.search(r"<style|\son[a-z]+=|\sstyle=", text), "the content security policy forbids these"


async def test_an_empty_field_of_the_form_is_no_parameter_and_a_wrong_one_is_named(client: httpx.AsyncClient) -> None:
    assert len(pictures(await page(client, "?start=2026-09-20T00:00&end=&tz="))) == 6
    response = await client.get(HERE + "?start=yesterday")
    assert response.status_code == 400
    assert "start must be a time" in response.text


async def test_a_range_without_samples_says_what_to_do(client: httpx.AsyncClient) -> None:
    assert "Choose a range in which the worker existed." in await page(client, "?start=-20d&end=-19d")


async def test_an_unknown_worker_or_file_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("/workers/nobody")).status_code == 404
    assert (await client.get("/static/../routes.py")).status_code == 404
    assert (await client.get("/static/secret.css")).status_code == 404

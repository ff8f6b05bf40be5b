"""The page that compares workers over HTTP: its lines have the values of the history API; mistakes are sentences."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape

import httpx
import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.model import WorkerGauges
from exporter.core.periods import DAY
from exporter.history.reader import HistoryReader
from exporter.storage.rows import HistoryRow, SampleRow
from exporter.web.backend import Backend
from tests.helpers.charts import points
from tests.helpers.fleets import fleet
from tests.integration.web.test_routes import NOW, Memory, Serve, problem, serve, snapshot  # noqa: F401  # a fixture

ONE, TWO, THREE = (each.worker.id for each in fleet(3, NOW))


class Distinct(Memory):
    """An exporter whose workers have values of their own."""

    async def read_samples(self, worker_id: str, start: int, end: int, *, limit: int) -> tuple[list[HistoryRow], int | None]:
        if self.failure:
            raise self.failure
        offset = int(worker_id[-2:]) * 7
        rows: list[HistoryRow] = [
            SampleRow(
                timestamp=datetime.fromtimestamp(at, UTC).replace(tzinfo=None),
                cpu_utilization=None if at % 7 == 0 else (at // 300 + offset) % 100,
                memory_utilization=50.0 + offset,
                active_labs_count=offset,
                status="running",
            )
            for at in range(-(-start // 300_000) * 300, end // 1000, 300)
        ]
        return rows[:limit], int(rows[limit]["timestamp"].replace(tzinfo=UTC).timestamp() * 1000) if len(rows) > limit else None


def exporter(*workers: WorkerGauges) -> Distinct:
    return Distinct(snapshot=snapshot(*(workers or fleet(12, NOW))), sources={"mongodb": None})


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg xmlns=.*?</svg>", text, re.S)


def test_every_line_has_the_values_of_the_history_api(serve: Serve) -> None:  # noqa: F811
    client = serve(exporter())
    text = client.get("/compare", params=[("worker", ONE), ("worker", THREE), ("start", "-6h")]).text
    wide = pictures(text)[::2]
    assert len(wide) == 3
    for number, worker_id in ((1, ONE), (2, THREE)):
        rows = client.get(f"/api/workers/{worker_id}/metrics/history", params={"start": "-6h"}).json()["data"]
        for picture, key in zip(wide, ("cpu_utilization", "memory_utilization", "active_labs_count"), strict=True):
            drawn = [pair for part in points(picture, f"n{number}") for pair in part]
            known = [row for row in rows if row[key] is not None]
            assert [value for _, value in drawn] == pytest.approx([row[key] for row in known], abs=0.3)
            times = [datetime.fromisoformat(row["timestamp"]).timestamp() for row in known]
            assert [time for time, _ in drawn] == pytest.approx(times, abs=60)


def test_a_worker_may_be_called_by_its_name_if_no_other_is(serve: Serve) -> None:  # noqa: F811
    client = serve(exporter())
    text = client.get("/compare", params={"worker": "cml-worker-00002"}).text
    assert "1 of at most 8 workers" in text
    assert f'name="worker" value="{THREE}"' in text
    twice = client.get("/compare", params=[("worker", "cml-worker-00002"), ("worker", THREE)]).text
    assert "1 of at most 8 workers" in twice
    twins = [each._replace(worker=replace(each.worker, name="twin")) for each in fleet(2, NOW)]
    detail = problem(serve(exporter(*twins)).get("/compare", params={"worker": "twin"}), 400)
    assert detail == f"2 workers are called twin; use an id, such as {ONE}."


def test_mistakes_are_sentences(serve: Serve) -> None:  # noqa: F811
    parts = exporter()
    client = serve(parts)
    assert "No worker is chosen" in client.get("/compare").text
    nine = client.get("/compare", params={"worker": list("123456789")})
    assert problem(nine, 400) == "9 workers are chosen; choose at most 8."
    assert "Unknown worker shoe" in problem(client.get("/compare?worker=shoe"), 404)
    parts.failure = StoreUnavailableError("MongoDB does not answer.", reason="unavailable")
    assert problem(client.get(f"/compare?worker={ONE}"), 503) == "MongoDB does not answer."


class WithoutHistory(Memory):
    """An exporter whose mongodb.history is null, and which does not query CloudWatch."""

    def backend(self) -> Backend:
        made = super().backend()
        made.reader = HistoryReader(period=300, history=None, archive=None, wanted_retention=DAY, wall=self.now)
        return made


def test_without_a_history_it_says_what_to_do_and_claims_no_hours(serve: Serve) -> None:  # noqa: F811
    client = serve(WithoutHistory(snapshot=snapshot(*fleet(3, NOW)), sources={"mongodb": None}))
    text = client.get("/compare", params=[("worker", ONE), ("worker", TWO)]).text
    assert text.count("Name a collection in mongodb.history to keep one.") == 1, "one sentence for both workers"
    assert "2 of at most 8 workers" in text
    assert text.count("No values in this range.</td>") == 3, "the tables of three charts"
    figures = re.findall(r"<td>([^<]*)</td>", text[text.index('id="figures"') :])
    assert figures == [*["–"] * 11, "0 %"] * 2, "missing data is not zero hours"
    worker = client.get(f"/workers/{ONE}").text
    assert "Name a collection in mongodb.history to keep one." in worker
    assert re.findall(r"<dd>([^<]*)</dd>", worker[worker.index("<dt>running</dt>") :])[:4] == [*["–"] * 3, "0 %"]


def test_fleet_and_worker_lead_to_it(serve: Serve) -> None:  # noqa: F811
    client: httpx.Client = serve(exporter())
    page = client.get("/").text
    assert 'action="./compare"' in page
    assert f'name="worker" value="{TWO}"' in page
    link = unescape(
        re.findall(r'href="([^"]*)">Compare with', client.get(f"/workers/{TWO}?start=-7d&tz=Europe/Berlin").text)[0]
    )
    there = client.get(httpx.URL(f"{client.base_url}/workers/{TWO}").join(link).raw_path.decode())
    assert "1 of at most 8 workers" in there.text

"""A worker's history and resources over HTTP: a real MongoDB, the fake CloudWatch, the real routes, on a simulated clock."""

import csv
import io
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import httpx
import pytest

from exporter.core.model import Fleet, MetricName, Worker, WorkerMetricsSample
from exporter.core.periods import DAY, HOUR, WEEK, align, rfc3339, to_datetime
from exporter.core.settings import WebSettings
from exporter.history.reader import HistoryReader
from exporter.storage.inventory import Inventory
from exporter.storage.mongo import Database
from exporter.web.application import create_app
from tests.fixtures.mongo import connect
from tests.fixtures.process import RunExporter
from tests.helpers.fake_cloudwatch import FakeCloudWatch, Series, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter
from tests.helpers.ports import free_port

NOW = align(1_790_000_000, HOUR) + 1234
"""In the middle of an hour and of a period."""
LATEST = align(NOW, PERIOD)
DURATION = "start_time must be a duration from 30s to 455d, such as 10m, 1h or 7d."
ONE, TWO = instance_id(1), instance_id(2)
REGION = "eu-west-1"

Json = dict[str, Any]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


class Exporter:
    """An in-process exporter with a client for its routes."""

    def __init__(self, in_process: InProcessExporter) -> None:
        self.in_process = in_process
        app = create_app(in_process.backend, WebSettings(cors_origins=["https://ui.example.org"]))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://exporter")

    async def get(self, path: str, **query: object) -> httpx.Response:
        return await self.client.get(path, params={name: str(value) for name, value in query.items()} or None)

    async def history(self, worker_id: str = "w1", status: int = 200, **query: object) -> Json:
        response = await self.get(f"/api/workers/{quote(worker_id, safe='')}/metrics/history", **query)
        assert response.status_code == status, response.text
        answer: Json = response.json()
        return answer

    async def pages(self, worker_id: str = "w1", **query: object) -> list[Json]:
        """All pages of a history."""
        found = [await self.history(worker_id, 200, **query)]
        while found[-1]["next"]:
            found.append(await self.history(worker_id, limit=query.get("limit", 1000), cursor=found[-1]["next"]))
            assert len(found) < 100, "the pages do not end"
        return found

    async def resources(self, worker_id: str = "w1", region: str = REGION, **query: object) -> httpx.Response:
        return await self.get(f"/api/workers/region/{region}/workers/{quote(worker_id, safe='')}/resources", **query)

    def read_with(self, *, history: bool = False, archive: bool = False) -> None:
        """Replace the reader by one without the other sources."""
        in_process = self.in_process
        in_process.backend.reader = HistoryReader(
            period=PERIOD,
            history=in_process.history.reader if history else None,
            archive=in_process.backend.reader._archive if archive else None,
            wanted_retention=DAY,
            wall=in_process.clock,
        )

    async def remember(self, *observations: tuple[int, Worker]) -> None:
        """Record a worker in the inventory at these times."""
        inventory = Inventory(self.in_process.database)
        for at, worker in observations:
            await inventory.record(Fleet(at, (worker,)))

    async def retain(self, seconds: int) -> None:
        await self.in_process.history.collection.set_retention(seconds)


@pytest.fixture
async def exporter(tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock) -> AsyncIterator[Exporter]:
    """An exporter whose inventory has the terminated worker w1, with an empty history."""
    in_process = InProcessExporter(tmp_path, database, fake, clock)
    await in_process.history.ensure_collection()
    exporter = Exporter(in_process)
    await in_process.observe()
    worker = Worker("w1", REGION, ONE, "terminated", name="Prüfstand 1", instance_type="m5.2xlarge")
    await exporter.remember((NOW - 20 * DAY, worker), (NOW - 3 * DAY, worker))
    yield exporter
    await exporter.client.aclose()
    await in_process.close()


def sample(at: int, cpu: float | None = 1.0, worker_id: str = "w1", **fields: Any) -> WorkerMetricsSample:  # noqa: ANN401 -- of the record
    return WorkerMetricsSample(worker_id, REGION, to_datetime(at), cpu, **fields)


def segments(*pages: Json) -> list[tuple[Json, list[Json]]]:
    """The segments of pages, each with its rows."""
    found = []
    for page in pages:
        rows = iter(page["data"])
        found += [(segment, list(islice(rows, segment["rows"]))) for segment in page["segments"]]
        assert not list(rows)
    return found


def times(*answers: Json) -> list[str]:
    return [row["timestamp"] for answer in answers for row in answer["data"]]


def calls(fake: FakeCloudWatch) -> int:
    return fake.calls["GetMetricData"]


class TestSamples:
    async def test_a_terminated_worker_that_left_the_fleet_still_has_its_name(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples(
            [
                sample(LATEST - 600, 45.25, memory_utilization=60.5, active_labs_count=3, status="running"),
                sample(LATEST - 300, None, status="terminated"),
            ]
        )
        assert await exporter.history() == {
            "data": [
                {
                    "timestamp": rfc3339(LATEST - 600),
                    "cpu_utilization": 45.25,
                    "memory_utilization": 60.5,
                    "active_labs_count": 3,
                    "status": "running",
                },
                {
                    "timestamp": rfc3339(LATEST - 300),
                    "cpu_utilization": None,
                    "memory_utilization": None,
                    "active_labs_count": None,
                    "status": "terminated",
                },
            ],
            "next": None,
            "source": "mongodb",
            "resolution_seconds": 300,
            "interval_seconds": None,
            "segments": [
                {
                    "start": rfc3339(NOW - DAY),
                    "source": "mongodb",
                    "resolution_seconds": 300,
                    "interval_seconds": None,
                    "rows": 2,
                }
            ],
            "worker": {
                "worker_id": "w1",
                "name": "Prüfstand 1",
                "region": REGION,
                "status": "terminated",
                "instance_type": "m5.2xlarge",
                "cml_version": None,
                "created_at": None,
                "terminated_at": None,
                "first_seen": rfc3339(NOW - 20 * DAY),
                "last_seen": rfc3339(NOW - 3 * DAY),
                "instances": [
                    {
                        "instance_id": ONE,
                        "region": REGION,
                        "first_seen": rfc3339(NOW - 20 * DAY),
                        "last_seen": rfc3339(NOW - 3 * DAY),
                    }
                ],
            },
        }

    async def test_pages_have_every_sample_once_also_with_fractions_of_a_second_and_equal_times(
        self, exporter: Exporter
    ) -> None:
        at = [LATEST - HOUR + n * PERIOD for n in range(10)]
        await exporter.in_process.history.add_samples([sample(one, float(n)) for n, one in enumerate(at)])
        half = to_datetime(at[4]) + timedelta(milliseconds=499)
        fractions = [replace(sample(0, 20.0 + n), timestamp=half) for n in range(3)]
        await exporter.in_process.history.writer.insert(fractions)
        for limit in (1, 2, 3, 5, 13, 20):
            pages = await exporter.pages(limit=limit, start=f"{at[0]}")
            values = [row["cpu_utilization"] for page in pages for row in page["data"]]
            assert sorted(values) == sorted([*map(float, range(10)), 20.0, 21.0, 22.0])
            assert set(values[5:8]) == {20.0, 21.0, 22.0}
            assert max(len(page["data"]) for page in pages) <= max(limit, 3)
            assert times(*pages)[5] == half.isoformat(timespec="microseconds").replace("+00:00", "Z")

    async def test_samples_written_between_two_pages_do_not_shift_the_next_page(self, exporter: Exporter, clock: Clock) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - n * PERIOD) for n in range(1, 5)])
        first = await exporter.history(limit=2, start="-1h")
        clock.now += HOUR
        await exporter.in_process.history.add_samples([sample(LATEST + n * PERIOD) for n in range(1, 6)])
        second = await exporter.history(limit=9, cursor=first["next"])
        assert len(times(first, second)) == 4
        assert second["next"] is None

    async def test_start_is_inclusive_and_end_exclusive_in_every_format(self, exporter: Exporter) -> None:
        at = [LATEST - DAY + n * PERIOD for n in range(4)]
        await exporter.in_process.history.add_samples([sample(one) for one in at])
        zone = datetime.fromtimestamp(at[1], UTC) + timedelta(hours=2)
        ways: list[dict[str, object]] = [
            {"start": at[1], "end": at[3]},
            {"start": f"{at[1]}.0", "end": rfc3339(at[3])},
            {"start": zone.isoformat().replace("+00:00", "+02:00"), "end": rfc3339(at[3]).lower()},
            {"start": f"now-{NOW - at[1]}s", "end": f"-{NOW - at[3]}s"},
        ]
        for way in ways:
            assert times(await exporter.history("w1", 200, **way)) == [rfc3339(at[1]), rfc3339(at[2])]
        unescaped = f"?start={zone.isoformat().replace('+00:00', '+02:00')}&end={at[3]}"  # the + is decoded as a space
        answer = (await exporter.client.get(f"/workers/w1/metrics/history{unescaped}")).json()
        assert times(answer) == [rfc3339(at[1]), rfc3339(at[2])]
        assert times(await exporter.history(end=at[3])) == [rfc3339(one) for one in at[:3]]  # a day is the default

    @pytest.mark.parametrize("worker_id", ["a/b/c", "50%25", "100%", "Prüfstand ☃", "a b+c?d#e", "x/metrics/history", "a%2Fb"])
    async def test_any_worker_id_works_on_both_paths(self, exporter: Exporter, worker_id: str) -> None:
        await exporter.remember((NOW, Worker(worker_id, REGION, TWO, "running", name="any")))
        await exporter.in_process.history.add_samples([sample(LATEST - 300, worker_id=worker_id)])
        for prefix in ("/api", ""):
            response = await exporter.get(f"{prefix}/workers/{quote(worker_id, safe='')}/metrics/history")
            answer = response.json()
            assert (answer["worker"]["worker_id"], len(answer["data"])) == (worker_id, 1)
        assert (await exporter.resources(worker_id)).json()["id"] == TWO

    async def test_an_unknown_worker_is_a_404(self, exporter: Exporter) -> None:
        answer = await exporter.history("unknown/☃", 404)
        assert answer["detail"] == "Unknown worker unknown/☃; /api/workers lists all workers, present and past."

    async def test_a_running_worker_that_is_not_in_the_inventory_yet_has_a_history(self, exporter: Exporter) -> None:
        await exporter.in_process.database["workers"].insert_one(
            {"_id": "new", "name": "New", "aws_region": REGION, "aws_instance_id": TWO, "status": "running"}
        )
        await exporter.in_process.observe()
        answer = await exporter.history("new")
        assert (answer["worker"]["name"], answer["worker"]["status"], answer["data"]) == ("New", "running", [])


class TestStatistics:
    async def test_statistics_equal_those_computed_in_python(self, exporter: Exporter) -> None:
        written = [
            sample(
                LATEST - 2 * DAY + n * PERIOD,
                n % 7 / 3,
                memory_utilization=float(n) if n % 3 else None,
                active_labs_count=n % 4,
                status="stopped" if n % 5 == 0 else "running",
            )
            for n in range(2 * 288)
            if not 100 < n < 200
        ]
        await exporter.in_process.history.add_samples(written)
        pages = await exporter.pages(start="-47h", interval="90m", limit=3)
        rows = [row for page in pages for row in page["data"]]
        assert {page["interval_seconds"] for page in pages} == {5400}
        inside = [one for one in written if one.timestamp.timestamp() >= NOW - 47 * HOUR]
        begins = sorted({align(int(one.timestamp.timestamp()), 5400) for one in inside})
        assert times(*pages) == [rfc3339(begin) for begin in begins]  # no page and no row for hours without samples
        for begin, row in zip(begins, rows, strict=True):
            members = [one for one in inside if begin <= one.timestamp.timestamp() < begin + 5400]
            for field in ("cpu_utilization", "memory_utilization", "active_labs_count"):
                values = [value for one in members if (value := getattr(one, field)) is not None]
                assert row[field] == {
                    "avg": pytest.approx(fmean(values)),
                    "min": min(values),
                    "max": max(values),
                    "samples": len(values),
                }
            running = fmean(one.status == "running" for one in members)
            assert row["status_share"]["running"] == pytest.approx(running)
            assert sum(row["status_share"].values()) == pytest.approx(1)

    async def test_days_begin_at_midnight_and_weeks_on_monday(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - n * DAY) for n in range(1, 20)])
        weeks = await exporter.history(start="-19d", interval="7d")
        days = await exporter.history(start="-19d", interval="1d")
        assert {datetime.fromisoformat(time).weekday() for time in times(weeks)} == {0}
        assert {time[10:] for time in times(weeks, days)} == {"T00:00:00Z"}
        assert len(times(days)) == 18

    async def test_non_numeric_values_of_other_programs_are_ignored(self, exporter: Exporter) -> None:
        values: list[object] = ["99", float("nan"), float("inf"), None, True, [5], {"a": 1}, 7.0]
        await exporter.in_process.database["worker_metrics_timeseries"].insert_many(
            [
                {"worker_id": "w1", "timestamp": to_datetime(LATEST - HOUR + n), "cpu_utilization": value, "status": 5}
                for n, value in enumerate(values)
            ]
        )
        (row,) = (await exporter.history(interval="7d", start="-2h"))["data"]
        assert row["cpu_utilization"] == {"avg": 7.0, "min": 7.0, "max": 7.0, "samples": 1}
        assert row["status_share"] == {"5": 1.0}
        found = [row["cpu_utilization"] for row in (await exporter.history())["data"]]
        assert found == [None] * 7 + [7.0]


class TestCsv:
    async def test_csv_has_the_rows_and_headers_have_the_rest_of_the_page(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples(
            [sample(LATEST - n * PERIOD, None if n == 3 else 10.0 / n, status='a "b", c') for n in range(1, 6)]
        )
        path = "/api/workers/w1/metrics/history?limit=4"
        response = await exporter.client.get(path, headers={"Accept": "text/csv, */*;q=0.1"})
        page = (await exporter.client.get(path)).json()
        assert response.headers["content-type"] == "text/csv; charset=utf-8; header=present"
        assert response.text.count("\r\n") == 5
        assert list(csv.DictReader(io.StringIO(response.text))) == [
            {name: "" if value is None else str(value) for name, value in row.items()} for row in page["data"]
        ]
        assert (response.headers["x-source"], response.headers["x-resolution-seconds"]) == ("mongodb", "300")
        assert response.headers["x-next-cursor"] == page["next"]
        following = httpx.URL(f"http://exporter{path}").join(response.links["next"]["url"])
        last = await exporter.client.get(following, params={**following.params, "format": "csv"})
        assert last.text.splitlines()[1].startswith(rfc3339(LATEST - PERIOD))
        assert "link" not in last.headers

    async def test_intervals_have_the_same_columns_on_every_page(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - n * HOUR, status="running") for n in range(1, 4)])
        first = await exporter.get("/workers/w1/metrics/history", interval="1h", format="csv", limit=1)
        rows = list(csv.DictReader(io.StringIO(first.text)))
        assert (rows[0]["cpu_utilization_avg"], rows[0]["cpu_utilization_samples"]) == ("1.0", "1")
        assert (rows[0]["memory_utilization_max"], rows[0]["status_share_running"]) == ("", "1.0")
        assert rows[0]["status_share_stopped"] == "0.0"
        assert "interval=1h" in first.links["next"]["url"]

    @pytest.mark.parametrize(
        ("accept", "is_csv"),
        [
            ("text/csv", True),
            ("text/csv;q=0.5, application/json;q=0.4", True),
            ("text/csv, application/json", False),
            ("application/json", False),
            ("*/*", False),
            ("text/html, */*;q=0.8", False),
            ("text/csv;q=0", False),
            ("", False),
        ],
    )
    async def test_csv_is_sent_only_to_clients_that_prefer_it(self, exporter: Exporter, accept: str, is_csv: bool) -> None:
        response = await exporter.client.get("/workers/w1/metrics/history", headers={"Accept": accept})
        assert response.headers["content-type"].startswith("text/csv") == is_csv
        assert response.headers["vary"] == "Accept, Accept-Encoding, Origin"

    async def test_pages_from_other_origins_may_read_the_headers(self, exporter: Exporter) -> None:
        response = await exporter.client.get("/workers/w1/metrics/history", headers={"Origin": "https://ui.example.org"})
        assert "X-Next-Cursor" in response.headers["access-control-expose-headers"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("path", "sentence"),
        [
            ("/api/workers/w1/metrics/history?start=-1h&end=-2h", "start must be before end."),
            ("/workers/w1/metrics/history?limit=5000000", "limit must be a whole number from 1 to 10000."),
            (f"/api/workers/region/{REGION}/workers/w1/resources?start_time=soon", DURATION),
        ],
    )
    async def test_invalid_parameters_are_a_problem_with_a_message(self, exporter: Exporter, path: str, sentence: str) -> None:
        response = await exporter.client.get(path)
        assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
        assert response.json()["detail"] == sentence

    async def test_the_interval_of_a_cursor_cannot_be_changed(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - n * HOUR) for n in range(1, 4)])
        cursor = (await exporter.history(limit=1, interval="1h"))["next"]
        answer = await exporter.history(status=400, cursor=cursor, interval="2h")
        assert answer["detail"] == "interval differs from that of the cursor; leave it out, or start again without the cursor."
        assert (await exporter.history(cursor=cursor, interval="1h"))["interval_seconds"] == 3600

    async def test_millions_of_rows_are_refused_if_the_history_never_expires(self, exporter: Exporter) -> None:
        await exporter.in_process.database.command("collMod", "worker_metrics_timeseries", expireAfterSeconds="off")
        answer = await exporter.history(status=400, start=0)
        assert answer["detail"].endswith("rows, more than 1000000; use a longer interval or a later start.")
        assert (await exporter.history(start=0, interval="1h"))["source"] == "mongodb"


class TestBeyondRetention:
    @pytest.mark.parametrize("limit", [200, 10_000])
    async def test_cloudwatch_answers_first_and_mongodb_after_it_also_on_one_page(
        self, exporter: Exporter, fake: FakeCloudWatch, limit: int
    ) -> None:
        fake.add(ONE, memory=[Series((("InstanceId", ONE),))])
        await exporter.retain(DAY)
        stored = [sample(LATEST - n * PERIOD, 1.0, status="running") for n in range(1, 300)]
        await exporter.in_process.history.add_samples(stored)
        pages = await exporter.pages(start="-3d", limit=limit)
        assert [len(page["data"]) for page in pages] == ([200] * 4 + [63] if limit == 200 else [863])
        sources = [segment["source"] for page in pages for segment in page["segments"] for _ in range(segment["rows"])]
        assert sources == ["cloudwatch"] * 576 + ["mongodb"] * 287
        for page in pages:
            kinds = [segment["source"] for segment in page["segments"]]
            assert page["source"] == ("mixed" if len(kinds) > 1 else kinds[0])
            assert sum(segment["rows"] for segment in page["segments"]) == len(page["data"])
        assert {page["resolution_seconds"] for page in pages} == {300}
        rows = [row for page in pages for row in page["data"]]
        first = LATEST - 3 * DAY + PERIOD
        assert times(*pages) == [rfc3339(at) for at in range(first, LATEST, PERIOD)]
        boundary = first + 2 * DAY
        expected_values = fake.ledger(first, boundary)
        for row, at in zip(rows, range(first, boundary, PERIOD), strict=False):
            assert row["cpu_utilization"] == expected_values[ONE, "cpu", at]
            assert row["memory_utilization"] == expected_values[ONE, "memory", at]
            assert (row["status"], row["active_labs_count"]) == (None, None)
        assert {row["cpu_utilization"] for row in rows[2 * 288 :]} == {1.0}

    async def test_older_samples_have_the_resolution_that_cloudwatch_still_has(
        self, exporter: Exporter, fake: FakeCloudWatch
    ) -> None:
        fake.add(ONE)
        await exporter.retain(DAY)
        pages = await exporter.pages(start="-100d", limit=10_000)
        parts = segments(*pages)
        assert {(each["source"], each["resolution_seconds"]) for each, _ in parts} == {
            ("cloudwatch", 3600),
            ("cloudwatch", 300),
        }
        stamps = times(*pages)
        assert stamps == sorted(set(stamps))
        hourly = parts[0][1]
        expected_values = fake.ledger(NOW - 100 * DAY, NOW - 60 * DAY, HOUR)
        assert len(hourly) == pytest.approx(37 * 24, abs=25)
        for row in hourly[1:-1]:
            at = int(datetime.fromisoformat(row["timestamp"]).timestamp())
            assert row["cpu_utilization"] == pytest.approx(expected_values[ONE, "cpu", at])

    @pytest.mark.parametrize(("interval", "seconds"), [("1d", DAY), ("7d", WEEK), ("5m", 300)])
    async def test_no_interval_combines_two_sources(
        self, exporter: Exporter, fake: FakeCloudWatch, interval: str, seconds: int
    ) -> None:
        fake.add(ONE)
        await exporter.retain(10 * DAY)
        await exporter.in_process.history.add_samples([sample(LATEST - n * PERIOD, 101.0) for n in range(1, 12 * 288)])
        pages = await exporter.pages(start="-70d", interval=interval, limit=10_000)
        stamps = times(*pages)
        assert stamps == sorted(set(stamps))
        assert stamps[0] <= rfc3339(NOW - 70 * DAY + HOUR)
        parts = segments(*pages)
        assert {each["source"] for each, _ in parts} == {"cloudwatch", "mongodb"}
        for segment, rows in parts:
            values = [row["cpu_utilization"] for row in rows]
            assert {value["max"] == 101.0 for value in values} == {segment["source"] == "mongodb"}
            assert all(value["min"] <= value["avg"] <= value["max"] for value in values)
            assert segment["interval_seconds"] == max(seconds, segment["resolution_seconds"])

    @pytest.mark.parametrize(
        ("zone", "clocks", "samples"),
        [("America/New_York", "2026-03-08", 276), ("America/New_York", "2026-11-01", 300), ("Asia/Kolkata", "2026-03-08", 288)],
    )
    async def test_local_days_have_the_samples_of_their_hours(
        self, exporter: Exporter, clock: Clock, zone: str, clocks: str, samples: int
    ) -> None:
        day = datetime.fromisoformat(clocks).replace(tzinfo=ZoneInfo(zone))
        start, end = int((day - timedelta(days=8)).timestamp()), int((day + timedelta(days=3)).timestamp())
        clock.now = end + HOUR
        await exporter.retain(60 * DAY)
        stored = range(align(start, PERIOD), end, PERIOD)
        await exporter.in_process.history.add_samples([sample(at, at % 97) for at in stored])
        query = {"tz": zone, "start": f"{day - timedelta(days=7):%Y-%m-%d}", "end": f"{day + timedelta(days=2):%Y-%m-%dT%H:%M}"}
        for limit in (1000, 2):
            days = [row for page in await exporter.pages(interval="1d", limit=limit, **query) for row in page["data"]]
            assert len(days) == 9
            counts = {row["timestamp"]: row["cpu_utilization"]["samples"] for row in days}
            assert counts.pop(rfc3339(day.timestamp())) == samples
            assert set(counts.values()) == {288}
            for row in days:
                begin = datetime.fromisoformat(row["timestamp"]).astimezone(ZoneInfo(zone))
                assert (begin.hour, begin.minute) == (0, 0)
                until = (begin.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=ZoneInfo(zone)).timestamp()
                values = [at % 97 for at in stored if begin.timestamp() <= at < until]
                assert row["cpu_utilization"]["avg"] == pytest.approx(fmean(values))
        weeks = [row for page in await exporter.pages(interval="7d", **query) for row in page["data"]]
        assert {datetime.fromisoformat(row["timestamp"]).astimezone(ZoneInfo(zone)).weekday() for row in weeks} == {0}
        assert sum(row["cpu_utilization"]["samples"] for row in weeks) == 8 * 288 + samples

    async def test_each_period_comes_from_the_instance_the_worker_ran_on_then(
        self, exporter: Exporter, fake: FakeCloudWatch
    ) -> None:
        await exporter.retain(DAY)
        moved = align(NOW - 5 * DAY, PERIOD)
        fake.add(ONE, runs=[(None, moved)])
        fake.add(TWO, "us-east-1", runs=[(moved, None)])
        worker = Worker("mover", REGION, ONE, "running")
        after = replace(worker, region="us-east-1", instance_id=TWO)
        await exporter.remember((moved - 9 * DAY, worker), (moved, worker), (moved + 100, after), (NOW, after))
        page = await exporter.history("mover", start="-9d", end="-2d", limit=10_000)
        expected_values = fake.ledger(align(NOW - 9 * DAY, PERIOD), NOW - 2 * DAY)
        values = {row["timestamp"]: row["cpu_utilization"] for row in page["data"]}
        assert len(values) == 7 * 288
        for at in range(align(NOW - 9 * DAY, PERIOD) + PERIOD, align(NOW - 2 * DAY, PERIOD), PERIOD):
            assert values[rfc3339(at)] == expected_values[ONE if at < moved else TWO, "cpu", at]

    async def test_old_history_is_billed_once(self, exporter: Exporter, fake: FakeCloudWatch, clock: Clock) -> None:
        fake.add(ONE)
        await exporter.retain(DAY)
        first = await exporter.pages(start="-20d", end="-10d", limit=1000)
        billed_calls = calls(fake)
        assert billed_calls <= 3  # a call a week, each with two metrics
        clock.now += 10 * HOUR
        again = await exporter.pages(start="-20d", end="-10d", limit=300, interval="1h")
        assert calls(fake) == billed_calls
        assert len(first) == 3
        assert again[0]["data"]

    async def test_the_time_before_a_worker_was_created_is_not_queried(self, exporter: Exporter, fake: FakeCloudWatch) -> None:
        fake.add(TWO)
        await exporter.retain(DAY)
        await exporter.remember((NOW, Worker("young", REGION, TWO, "running", created_at=NOW - HOUR)))
        assert [page["data"] for page in await exporter.pages("young", start="-455d")] == [[]]
        assert calls(fake) == 0

    async def test_while_cloudwatch_fails_only_its_part_of_the_history_is_a_503(
        self, exporter: Exporter, fake: FakeCloudWatch
    ) -> None:
        fake.add(ONE)
        await exporter.retain(DAY)
        fake.fault("GetMetricData", "access_denied")
        response = await exporter.get("/workers/w1/metrics/history", start="-3d")
        assert (response.status_code, response.headers["retry-after"]) == (503, "10")
        assert "cloudwatch:GetMetricData is not allowed" in response.json()["detail"]
        assert (await exporter.history(start="-20h"))["source"] == "mongodb"
        assert (await exporter.history(start="-3d"))["data"]  # a failure is not cached

    async def test_without_cloudwatch_a_note_says_where_the_history_begins(self, exporter: Exporter) -> None:
        await exporter.retain(2 * DAY)
        in_process = exporter.in_process
        in_process.backend.reader = HistoryReader(
            period=PERIOD, history=in_process.history.reader, archive=None, wanted_retention=DAY, wall=in_process.clock
        )
        await in_process.history.add_samples([sample(LATEST - n * DAY) for n in (1, 5)])
        in_process.history.collection.retention = None  # the repository of the routes has not read it
        answer = await exporter.history(start="-10d")
        assert times(answer) == [rfc3339(LATEST - DAY)]  # the other is expired but not deleted yet
        assert answer["note"] == (
            f"The history begins at {rfc3339(NOW - 2 * DAY)}, as samples are kept for 2d; "
            "CloudWatch, which may have older ones, is not queried (cloudwatch.enabled is false)."
        )
        assert answer["source"] == "mongodb"
        assert "note" not in await exporter.history(start="-1d")

    async def test_without_a_history_samples_come_from_cloudwatch_and_a_note_says_so(
        self, exporter: Exporter, fake: FakeCloudWatch
    ) -> None:
        fake.add(ONE)
        exporter.read_with(history=False, archive=True)
        answer = await exporter.history()
        assert (answer["source"], len(answer["data"])) == ("cloudwatch", 286)  # the newest is not published yet
        assert "keeps no history" in answer["note"]

    async def test_a_changed_retention_takes_effect_within_a_minute(
        self, exporter: Exporter, fake: FakeCloudWatch, clock: Clock
    ) -> None:
        fake.add(ONE)
        assert (await exporter.history(start="-10d"))["source"] == "mongodb"
        await exporter.retain(DAY)
        clock.now += 61
        assert (await exporter.history(start="-10d"))["source"] == "cloudwatch"


SOME_AGES = (3, 8, 14)
OTHER_AGES = pytest.mark.nightly("test_a_short_window_is_never_null_while_a_datapoint_is_younger_than_max_age")


class TestResources:
    async def test_resources_have_the_documented_keys_and_a_reload_costs_nothing(
        self, exporter: Exporter, fake: FakeCloudWatch, clock: Clock
    ) -> None:
        fake.add(ONE)
        end = align(NOW, PERIOD)
        expected = self.expected(
            fake, end - 3 * PERIOD, end - PERIOD, "10m"
        )  # the last one is published a minute after its end
        clock.now = end + 30
        response = await exporter.resources(start_time="10m")
        assert response.json() == expected
        assert list(response.json()) == list(expected)
        assert calls(fake) == 1
        assert fake.metrics_billed == 2
        for _ in range(5):
            assert (await exporter.resources()).json() == expected
        assert (await exporter.resources(start_time="30s")).json() == self.expected(fake, end - 2 * PERIOD, end - PERIOD, "30s")
        assert calls(fake) == 1, "short windows share one query"
        clock.now += 61
        assert (await exporter.resources()).json() == self.expected(fake, end - 2 * PERIOD, end, "10m")
        assert calls(fake) == 2
        assert fake.metrics_billed == 4

    @staticmethod
    def expected(fake: FakeCloudWatch, start: int, end: int, relative: str) -> Json:
        """The response for the periods of [start, end), each with the final value."""
        values = fake.ledger(start, end, PERIOD)

        def average(metric: MetricName) -> str | None:
            known = [values[ONE, metric, at] for at in range(start, end, PERIOD) if (ONE, metric, at) in values]
            return f"{fmean(known):.1f}" if known else None

        return {
            "id": ONE,
            "region_name": REGION,
            "relative_start_time": relative,
            "avg_cpu_utilization": average("cpu"),
            "avg_memory_utilization": average("memory"),
            "start_time": rfc3339(start),
            "end_time": rfc3339(end),
        }

    @pytest.mark.parametrize("native", [60, 300], ids=["detailed monitoring", "basic monitoring"])
    @pytest.mark.parametrize("age", [pytest.param(age, marks=() if age in SOME_AGES else OTHER_AGES) for age in range(3, 15)])
    async def test_a_short_window_is_never_null_while_a_datapoint_is_younger_than_max_age(
        self, exporter: Exporter, fake: FakeCloudWatch, clock: Clock, age: int, native: int
    ) -> None:
        """The newest datapoint is `age` minutes old; the values are those of the last whole period before that."""
        fake.period = native
        newest = LATEST - PERIOD if native == PERIOD else LATEST
        fake.add(ONE, lag=0, runs=[(None, newest)])
        clock.now = newest + 60 * age
        for relative, length in (("30s", 1), ("1m", 1), ("5m", 1), ("10m", 2), ("15m", 3)):
            answer = (await exporter.resources(start_time=relative)).json()
            assert answer == self.expected(fake, newest - length * PERIOD, newest, relative)
            assert None not in (answer["avg_cpu_utilization"], answer["avg_memory_utilization"])
        assert fake.metrics_billed <= 4, "windows up to 10m share one call"

    async def test_minutes_are_averaged_where_the_period_is_a_minute(
        self, exporter: Exporter, fake: FakeCloudWatch, clock: Clock
    ) -> None:
        fake.period = 60
        fake.add(ONE, lag=200)  # seconds after a minute's end
        in_process = exporter.in_process
        in_process.backend.reader = HistoryReader(
            period=60, history=None, archive=in_process.backend.reader._archive, wanted_retention=DAY, wall=clock
        )
        for second in range(0, 600, 67):  # phases of the minute and of the five minutes; a result is cached for a minute
            clock.now = LATEST + second
            newest = align(int(clock.now) - 200, 60)
            for relative, length in (("30s", 60), ("1m", 60), ("5m", 300)):
                answer = (await exporter.resources(start_time=relative)).json()
                values = fake.ledger(newest - length, newest)
                expected_cpu = fmean(values[ONE, "cpu", at] for at in range(newest - length, newest, 60))
                assert answer["avg_cpu_utilization"] == f"{expected_cpu:.1f}"
                assert (answer["start_time"], answer["end_time"]) == (rfc3339(newest - length), rfc3339(newest))

    @pytest.mark.parametrize("relative", ["30s", "5m", "10m"])
    async def test_without_an_agent_memory_is_null_and_older_data_is_null_in_the_requested_window(
        self, exporter: Exporter, fake: FakeCloudWatch, clock: Clock, relative: str
    ) -> None:
        fake.add(ONE, agent=False, lag=0, runs=[(None, LATEST)])
        length = {"30s": 300, "5m": 300, "10m": 600}[relative]
        clock.now = LATEST + 900
        fresh = (await exporter.resources(start_time=relative)).json()
        assert fresh == self.expected(fake, LATEST - length, LATEST, relative)
        assert fresh["avg_memory_utilization"] is None
        clock.now = LATEST + 900 + 1  # stopped for longer than `max_age`
        old = (await exporter.resources(start_time=relative)).json()
        assert old == self.expected(fake, LATEST + 900 - length, LATEST + 900, relative)
        assert old["avg_cpu_utilization"] is old["avg_memory_utilization"] is None
        hour = (await exporter.resources(start_time="1h")).json()
        assert hour == self.expected(fake, LATEST - 2700, LATEST + 900, "1h"), "an hour also has what is older"

    async def test_a_past_window_is_the_requested_one(self, exporter: Exporter, fake: FakeCloudWatch) -> None:
        fake.add(ONE, runs=[(None, LATEST - DAY - 300), (LATEST - DAY + 300, None)])
        answer = (await exporter.resources(start_time="10m", end_time=LATEST - DAY + 300)).json()
        assert answer == self.expected(fake, LATEST - DAY - 300, LATEST - DAY + 300, "10m")
        assert answer["avg_cpu_utilization"] is None

    async def test_a_week_is_billed_as_one_query_and_a_day_as_before(self, exporter: Exporter, fake: FakeCloudWatch) -> None:
        fake.add(ONE)
        for number, relative in enumerate(("1d", "7d"), 1):
            assert (await exporter.resources(start_time=relative)).status_code == 200
            assert fake.metrics_billed == 2 * number

    async def test_the_instance_id_is_accepted_too_and_the_region_must_match(
        self, exporter: Exporter, fake: FakeCloudWatch
    ) -> None:
        fake.add(ONE, agent=False)
        by_instance = (await exporter.resources(ONE, start_time="1h")).json()
        assert by_instance == (await exporter.resources("w1", start_time="1h")).json()
        assert by_instance["avg_memory_utilization"] is None
        assert float(by_instance["avg_cpu_utilization"]) > 0
        elsewhere = await exporter.resources(region="us-east-1")
        assert (elsewhere.status_code, elsewhere.json()["detail"]) == (
            404,
            "Worker w1 is not in region us-east-1, but in eu-west-1.",
        )
        assert (await exporter.resources(ONE, "us-east-1")).status_code == 404
        assert (await exporter.resources(TWO)).status_code == 404

    async def test_a_worker_without_data_or_without_an_instance_has_nulls(
        self, exporter: Exporter, fake: FakeCloudWatch
    ) -> None:
        await exporter.remember(
            (NOW, Worker("pending", REGION, None, "pending")), (NOW, Worker("foreign", REGION, "vm 7", "running"))
        )
        for worker_id, instance in (("w1", ONE), ("pending", None), ("foreign", "vm 7")):
            answer = (await exporter.resources(worker_id)).json()
            assert (answer["id"], answer["avg_cpu_utilization"], answer["avg_memory_utilization"]) == (instance, None, None)

    async def test_months_are_averaged_at_the_available_resolution(self, exporter: Exporter, fake: FakeCloudWatch) -> None:
        fake.add(ONE)
        answer = (await exporter.resources(start_time="100d")).json()
        hours = align(NOW, HOUR)
        expected_values = fake.ledger(hours - 100 * DAY, hours, HOUR)
        cpu = [value for (_, metric, _), value in expected_values.items() if metric == "cpu"]
        assert answer["avg_cpu_utilization"] == f"{fmean(cpu):.1f}"

    async def test_without_cloudwatch_resources_are_a_503(self, exporter: Exporter) -> None:
        in_process = exporter.in_process
        in_process.backend.reader = HistoryReader(
            period=PERIOD, history=in_process.history.reader, archive=None, wanted_retention=DAY, wall=in_process.clock
        )
        response = await exporter.resources()
        assert response.status_code == 503
        assert "cloudwatch.enabled is false" in response.json()["detail"]


class TestDistribution:
    async def test_percentiles_and_time_above_a_threshold_are_those_of_the_samples(self, exporter: Exporter) -> None:
        begin = align(LATEST, DAY) - DAY
        values = [float(n * 37 % 101) for n in range(40)]
        statuses = ("running", "running", None)
        await exporter.in_process.history.add_samples(
            sample(begin + n * PERIOD, None if n == 3 else value, memory_utilization=value / 2, status=statuses[n % 3])
            for n, value in enumerate(values)
        )
        query: dict[str, Any] = {"start": begin, "end": begin + DAY, "interval": "1h", "percentiles": "true", "above": 49.5}
        answer = await exporter.history(**query)
        per_hour = HOUR // PERIOD
        for number, row in enumerate(answer["data"]):
            of_hour = values[number * per_hour : (number + 1) * per_hour]
            cpu = sorted(value for n, value in enumerate(of_hour) if number or n != 3)
            found = row["cpu_utilization"]
            ranks = [cpu[math.ceil(len(cpu) * percent / 100) - 1] for percent in (50, 95, 99)]
            assert [found[name] for name in ("p50", "p95", "p99")] == ranks
            assert found["above_seconds"] == sum(value > 49.5 for value in cpu) * PERIOD
            assert row["memory_utilization"]["p99"] == max(of_hour) / 2
            assert row["active_labs_count"] == dict.fromkeys(("avg", "min", "max", "p50", "p95", "p99", "above_seconds")) | {
                "samples": 0
            }
        first = await exporter.get("/api/workers/w1/metrics/history", **query, limit=1, format="csv")
        names, line = first.text.splitlines()
        assert names.split(",")[1:9] == [
            f"cpu_utilization_{how}" for how in ("avg", "min", "max", "samples", "p50", "p95", "p99", "above_seconds")
        ]
        assert line.split(",")[5] == str(answer["data"][0]["cpu_utilization"]["p50"])
        assert "percentiles=true&above=49.5" in first.headers["link"]
        plain = await exporter.history(start=begin, end=begin + DAY, interval="1h")
        assert set(plain["data"][0]["cpu_utilization"]) == {"avg", "min", "max", "samples"}

    async def test_they_need_an_interval_and_a_number(self, exporter: Exporter) -> None:
        for query, sentence in (
            ({"percentiles": "true"}, "percentiles and above need an interval"),
            ({"above": "1"}, "percentiles and above need an interval"),
            ({"interval": "1h", "above": "-1"}, "above must be a number"),
            ({"interval": "1h", "above": "nan"}, "above must be a number"),
            ({"interval": "1h", "percentiles": "yes"}, "percentiles must be true or false"),
        ):
            assert sentence in (await exporter.history(status=400, **query))["detail"]


async def test_while_mongodb_is_unavailable_history_and_resources_are_a_503_with_retry_after(
    tmp_path: Path, fake: FakeCloudWatch, clock: Clock
) -> None:
    async with connect(f"mongodb://127.0.0.1:{free_port()}", patience=0.1) as client:
        in_process = InProcessExporter(tmp_path, client["away"], fake, clock, reach=0.1)
        exporter = Exporter(in_process)
        for path in ("/api/workers/w1/metrics/history", f"/api/workers/region/{REGION}/workers/w1/resources"):
            response = await exporter.get(path)
            assert (response.status_code, response.headers["retry-after"]) == (503, "10")
            assert response.json()["detail"].startswith("no MongoDB for")
        await exporter.client.aclose()
        await in_process.close()


async def test_the_real_exporter_queries_cloudwatch_on_the_event_loop_of_the_collector(
    fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter, database: Database
) -> None:
    """As a process: MongoDB with the client of the routes, CloudWatch on the event loop of the collector."""
    fake_cloudwatch.add(ONE)
    now = int(fake_cloudwatch.now())
    await database["workers"].insert_one(
        {"_id": "a/b", "name": "A", "aws_region": REGION, "aws_instance_id": ONE, "status": "running"}
    )
    uri = "mongodb://{}:{}/{}?directConnection=true".format(*(await database.client.address or ("", 0)), database.name)
    exporter = run_exporter(
        {"mongodb": {"uri": uri, "retention": "1d"}, "cloudwatch": {"endpoint_url": fake_cloudwatch.url}},
        env={"CML_EXPORTER_GAP_FILL_WINDOW": "2h"},
    )
    path = "/api/workers/a%2Fb/metrics/history"
    exporter.wait_for(lambda: exporter.get(path).json()["data"], 30, "collecting samples")
    page = exporter.get(path, params={"start": "-3d", "end": "-2d"}).json()
    assert (page["source"], len(page["data"]), page["worker"]["name"]) == ("cloudwatch", 288, "A")
    expected_values = fake_cloudwatch.ledger(now - 4 * DAY, now)
    first = int(datetime.fromisoformat(page["data"][0]["timestamp"]).timestamp())
    assert page["data"][0]["cpu_utilization"] == expected_values[ONE, "cpu", first]
    before = calls(fake_cloudwatch)
    resources = f"/api/workers/region/{REGION}/workers/{ONE}/resources?start_time=1h&end_time={now - 600}"
    answers = [exporter.get(resources).json() for _ in range(5)]
    assert float(answers[0]["avg_cpu_utilization"]) > 0
    assert answers[1:] == answers[:-1]
    assert calls(fake_cloudwatch) <= before + 2  # one of the routes, perhaps one of a collection cycle
    metrics = exporter.metrics()
    billed = metrics[f'cml_exporter_cloudwatch_metrics_requested_total{{region="{REGION}"}}']
    assert billed <= fake_cloudwatch.metrics_billed  # one counter for the poller and the routes
    assert exporter.get("/api/workers").json()["data"][0]["instances"][0]["instance_id"] == ONE
    reads = await inventory_reads(database)
    for _ in range(5):
        exporter.get("/api/workers")
    assert await inventory_reads(database) - reads <= 1  # the whole inventory is cached for ten seconds
    assert exporter.stop() == 0


async def inventory_reads(database: Database) -> int:
    """Return the number of queries of the inventory that mongod has counted."""
    usage = await database.client.admin.command("top")
    count: int = usage["totals"][f"{database.name}.worker_metrics_inventory"]["queries"]["count"]
    return count

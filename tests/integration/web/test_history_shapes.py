"""A history as columns, with every interval, beside an earlier range, and of many workers: real MongoDB and fake CloudWatch."""
# ruff: noqa: F811 -- fixtures of another module

import csv
import io
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest

from exporter.core.model import Worker
from exporter.core.periods import DAY, HOUR, WEEK, align, rfc3339
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.in_process_exporter import PERIOD, Clock
from tests.integration.web.test_history_api import (  # noqa: F401  # fixtures
    LATEST,
    NOW,
    ONE,
    REGION,
    Exporter,
    Json,
    clock,
    exporter,
    sample,
    times,
)

HISTORY = "/api/workers/w1/metrics/history"
SELECT = "Name workers (worker=, repeated for several), or a region (region=), but not both."
TOO_MANY = "101 workers are named, more than 100; name fewer, or use region= with its pages."


def epoch(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


async def test_thirty_days_of_two_sources_are_one_page(exporter: Exporter, fake: FakeCloudWatch) -> None:
    fake.add(ONE)
    await exporter.retain(14 * DAY)
    stored = [sample(LATEST - n * PERIOD, 101.0) for n in range(1, 14 * 288)]
    await exporter.in_process.history.add_samples(stored)
    page = await exporter.history(start="-30d", limit=10_000)
    assert (page["next"], page["source"], len(page["data"])) == (None, "mixed", 30 * 288 - 1)
    assert [(each["source"], each["rows"]) for each in page["segments"]] == [
        ("cloudwatch", 16 * 288),
        ("mongodb", 14 * 288 - 1),
    ]
    stamps = [epoch(text) for text in times(page)]
    assert {later - first for first, later in pairwise(stamps)} == {PERIOD}
    response = await exporter.get(HISTORY, start="-30d", limit=10_000, format="csv")
    assert (response.headers["x-source"], response.headers["x-resolution-seconds"]) == ("mixed", "300")


class TestColumns:
    @pytest.mark.parametrize("query", ["", "&interval=1h&percentiles=true&above=50", "&compare=1h", "&interval=1h&compare=2h"])
    async def test_columns_are_those_of_the_csv_with_the_time_as_a_number(self, exporter: Exporter, query: str) -> None:
        await exporter.in_process.history.add_samples(
            [sample(LATEST - n * PERIOD, 10.0 * n, active_labs_count=n, status="running") for n in range(1, 9)]
        )
        columns = (await exporter.get(f"{HISTORY}?start=-3h&format=columns{query}")).json()["columns"]
        table = list(csv.DictReader(io.StringIO((await exporter.get(f"{HISTORY}?start=-3h&format=csv{query}")).text)))
        assert list(columns) == ["timestamp", "unix_seconds", *list(table[0])[1:]]
        assert columns["unix_seconds"] == [epoch(text) for text in columns["timestamp"]]
        for name in table[0]:
            assert [("" if value is None else str(value)) for value in columns[name]] == [row[name] for row in table], name
        assert any(value is not None for value in columns[next(name for name in columns if name.startswith("cpu"))])

    async def test_no_name_says_count_twice(self, exporter: Exporter) -> None:
        columns = (await exporter.get(f"{HISTORY}?interval=1h&fill=null&format=columns")).json()["columns"]
        assert "active_labs_count_samples" in columns
        assert not [name for name in columns if "count_count" in name]
        assert all(re.fullmatch("[a-z0-9_]+", name) for name in columns), "names that programs can use as they are"


class TestFill:
    async def test_every_period_is_there_once_and_null_where_nothing_is_stored(self, exporter: Exporter) -> None:
        stored = {LATEST - n * PERIOD: float(n) for n in (2, 3, 7, 100, 250)}
        await exporter.in_process.history.add_samples([sample(at, cpu, status="running") for at, cpu in stored.items()])
        for limit in (1000, 50, 1):
            start = LATEST - 260 * PERIOD if limit > 1 else LATEST - 9 * PERIOD
            query: dict[str, object] = {"start": start, "fill": "null", "limit": limit}
            rows = [row for page in await all_pages(exporter, HISTORY, query) for row in page["data"]]
            assert [row["timestamp"] for row in rows] == [rfc3339(at) for at in range(start, LATEST + 1, PERIOD)]
            for row in rows:
                assert row["cpu_utilization"] == stored.get(epoch(row["timestamp"]))
                assert row["status"] == ("running" if epoch(row["timestamp"]) in stored else None)

    @pytest.mark.parametrize(("zone", "hours"), [("UTC", 24), ("America/New_York", 24)])
    async def test_every_day_is_there_with_no_statistics_where_it_has_no_sample(
        self,
        exporter: Exporter,
        zone: str,
        hours: int,
    ) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - 5 * DAY), sample(LATEST - 2 * DAY)])
        query = {"start": "-10d", "interval": "1d", "fill": "null", "tz": zone, "percentiles": "true", "limit": 3}
        pages = await all_pages(exporter, HISTORY, query)
        assert [len(page["data"]) for page in pages] == [3, 3, 3, 2]
        stamps = [epoch(text) for text in times(*pages)]
        assert [later - first for first, later in pairwise(stamps)] == [hours * HOUR] * 10
        rows = [row["cpu_utilization"] for page in pages for row in page["data"]]
        assert [row["samples"] for row in rows].count(1) == 2
        nothing = {"avg": None, "min": None, "max": None, "samples": 0, "p50": None, "p95": None, "p99": None}
        assert [row for row in rows if not row["samples"]] == [nothing] * 9

    async def test_samples_of_other_programs_between_two_periods_stay(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - PERIOD + 7, 3.0)])
        rows = (await exporter.history(start=LATEST - 3 * PERIOD, end=LATEST, fill="null"))["data"]
        assert [row["cpu_utilization"] for row in rows] == [None, None, 3.0]

    async def test_the_part_of_cloudwatch_is_filled_in_its_own_resolution(
        self,
        exporter: Exporter,
        fake: FakeCloudWatch,
    ) -> None:
        fake.add(ONE, runs=[(NOW - 66 * DAY, NOW - 64 * DAY)])
        await exporter.retain(DAY)
        pages = await all_pages(exporter, HISTORY, {"start": "-70d", "end": "-60d", "fill": "null", "limit": 10_000})
        (page,) = pages
        assert page["source"] == "cloudwatch"
        assert {(each["resolution_seconds"]) for each in page["segments"]} == {300, 3600}
        stamps = [epoch(text) for text in times(page)]
        steps = {later - first for first, later in pairwise(stamps)}
        assert steps == {300, 3600}
        assert sum(row["cpu_utilization"] is not None for row in page["data"]) == pytest.approx(48, abs=2)


class TestCompare:
    async def test_the_row_a_week_before_is_beside_each_row(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples(
            [sample(LATEST - n * PERIOD, float(n), status="running") for n in range(1, 13)]
            + [sample(LATEST - WEEK - n * PERIOD, 100.0 + n, status="stopped") for n in range(1, 13) if n != 5]
        )
        for limit in (1000, 5):
            query: dict[str, object] = {"start": LATEST - 14 * PERIOD, "end": LATEST, "compare": "1w", "limit": limit}
            rows = [row for page in await all_pages(exporter, HISTORY, query) for row in page["data"]]
            assert [row["cpu_utilization"] for row in rows] == [None, None, *map(float, range(12, 0, -1))]
            earlier = [row["earlier"] for row in rows]
            assert [each and each["cpu_utilization"] for each in earlier] == [
                None, None, *(None if n == 5 else 100.0 + n for n in range(12, 0, -1))
            ]  # fmt: skip
            assert earlier[2]["timestamp"] == rfc3339(LATEST - WEEK - 12 * PERIOD)
            assert earlier[2]["status"] == "stopped"

    async def test_hours_are_compared_with_hours_also_from_cloudwatch(
        self,
        exporter: Exporter,
        fake: FakeCloudWatch,
    ) -> None:
        fake.add(ONE)
        await exporter.retain(DAY)
        await exporter.in_process.history.add_samples([sample(LATEST - n * PERIOD, 50.0) for n in range(1, 50)])
        begin = align(NOW, HOUR) - 2 * HOUR
        page = await exporter.history(start=begin, end=begin + 2 * HOUR, interval="1h", compare="1w")
        assert page["source"] == "mongodb"
        expected = fake.ledger(begin - WEEK, begin - WEEK + 2 * HOUR)
        for number, row in enumerate(page["data"]):
            hour = begin - WEEK + number * HOUR
            values = [expected[ONE, "cpu", at] for at in range(hour, hour + HOUR, PERIOD)]
            assert row["cpu_utilization"]["avg"] == 50.0
            assert row["earlier"]["cpu_utilization"]["avg"] == pytest.approx(sum(values) / 12)

    @pytest.mark.parametrize("first", ["2026-11-03", "2026-03-10"])  # summer time ended on 1 November, began on 8 March
    async def test_a_local_day_is_compared_with_the_same_weekday_also_where_clocks_changed(
        self,
        exporter: Exporter,
        clock: Clock,
        first: str,
    ) -> None:
        zone, day = ZoneInfo("America/New_York"), timedelta(days=1)
        begin = datetime.fromisoformat(first).replace(tzinfo=zone)
        end = begin + 2 * day
        clock.now = int((end + day / 2).timestamp())
        await exporter.retain(60 * DAY)
        hours = [(begin + days * day + hour * day / 24) for days in (-7, -6, 0, 1) for hour in (0, 23)]
        stored = [sample(int(at.timestamp()), float(n // 2)) for n, at in enumerate(hours)]
        await exporter.in_process.history.add_samples(stored)
        query: Json = {"start": first, "end": f"{end:%Y-%m-%d}", "tz": zone.key, "interval": "1d", "compare": "7d"}
        rows = (await exporter.history(**query))["data"]
        assert [(row["cpu_utilization"]["avg"], row["earlier"]["cpu_utilization"]["avg"]) for row in rows] == [(2, 0), (3, 1)]

    async def test_beyond_the_oldest_data_nothing_is_beside_a_row(self, exporter: Exporter) -> None:
        await exporter.in_process.history.add_samples([sample(LATEST - PERIOD, 1.0)])
        page = await exporter.history(start="-454d", interval="7d", compare="371d", limit=2)
        assert [row["earlier"] for row in page["data"]] == [None, None]


class TestManyWorkers:
    PATH = "/api/metrics/history"

    @pytest.fixture
    async def many(self, exporter: Exporter) -> Exporter:
        """Three workers of two regions beside w1, one of them without a sample and one with a name of a path."""
        for worker_id, region in (("a/b|c", REGION), ("w2", "us-east-1"), ("silent", REGION)):
            worker = Worker(worker_id, region, None, "terminated", name=f"=name of {worker_id}")
            await exporter.remember((NOW - 20 * DAY, worker), (NOW - HOUR, worker))
        await exporter.in_process.history.add_samples(
            [
                sample(LATEST - n * PERIOD, float(n), worker_id, status="running")
                for n in range(1, 8)
                for worker_id in ("a/b|c", "w1", "w2")
            ]
        )
        return exporter

    async def test_each_worker_is_as_on_its_own_route(self, many: Exporter) -> None:
        for query in ("", "&interval=1h", "&format=columns", "&fill=null", "&compare=30m"):
            names = "worker=w2&worker=w1&worker=a%2Fb%7Cc&worker=w1"
            page = (await many.get(f"{self.PATH}?{names}&start=-1h{query}")).json()
            assert page["next"] is None
            assert [each["worker"]["worker_id"] for each in page["data"]] == ["a/b|c", "w1", "w2"]
            for each in page["data"]:
                path = f"/api/workers/{quote(each['worker']['worker_id'], safe='')}/metrics/history"
                alone = (await many.get(f"{path}?start=-1h{query}")).json()
                assert alone == each | {"next": None}

    async def test_a_region_has_the_workers_that_are_gone_too(self, many: Exporter) -> None:
        found = (await many.get(f"{self.PATH}?region={REGION}&start=-4d")).json()
        assert [each["worker"]["worker_id"] for each in found["data"]] == ["a/b|c", "silent", "w1"]
        assert [len(each["data"]) for each in found["data"]] == [7, 0, 7]
        # w1 was last seen three days ago, so it cannot have samples of the last day.
        recent = (await many.get(f"{self.PATH}?region={REGION}&region=us-east-1&start=-1d")).json()
        assert [each["worker"]["worker_id"] for each in recent["data"]] == ["a/b|c", "silent", "w2"]

    @pytest.mark.parametrize("limit", [1, 4, 7, 8, 1000])
    @pytest.mark.parametrize(
        "selection", ["", f"region={REGION}&region=us-east-1", "worker=w2&worker=a/b|c&worker=silent&worker=w1"]
    )
    async def test_pages_have_every_row_of_every_worker_once(self, many: Exporter, selection: str, limit: int) -> None:
        url: str | None = f"{self.PATH}?{selection}&start=-5d&format=csv&limit={limit}"
        rows: list[Mapping[str, str]] = []
        pages = 0
        while url is not None:
            response = await many.client.get(url)
            assert response.status_code == 200, response.text
            page = list(csv.DictReader(io.StringIO(response.text)))
            assert len(page) <= limit
            rows += page
            pages += 1
            following = response.links.get("next")
            url = str(response.url.join(following["url"])) if following else None
            assert pages < 40, "the pages do not end"
        assert [(row["worker_id"], row["timestamp"]) for row in rows] == [
            (worker_id, rfc3339(LATEST - n * PERIOD)) for worker_id in ("a/b|c", "w1", "w2") for n in range(7, 0, -1)
        ]
        assert {row["name"] for row in rows if row["worker_id"] == "w2"} == {"'=name of w2"}, "no formula in a spreadsheet"

    @pytest.mark.parametrize(
        ("query", "status", "sentence"),
        [
            ("worker=w1&region=eu-west-1", 400, "Name workers (worker=) or regions (region=), but not both."),
            (
                "worker=w1&worker=",
                400,
                "worker is empty; give the id or name of a worker, or leave it out for all workers.",
            ),
            ("worker=w1&worker=nobody", 404, "Unknown worker nobody; /api/workers lists all workers, present and past."),
            (
                "&".join(f"worker=w{n}" for n in range(101)),
                400,
                "101 workers are named, more than 100; name fewer, or use region= with its pages.",
            ),
            (
                "worker=w1&start=now",
                400,
                "start is now, after which there are no samples yet; use an earlier one, such as -24h.",
            ),
            ("worker=w1&cursor=x", 400, "cursor must be the value of next on the previous page."),
        ],
    )
    async def test_mistakes_are_named(self, many: Exporter, query: str, status: int, sentence: str) -> None:
        response = await many.client.get(f"{self.PATH}?{query}")
        assert (response.status_code, response.json()["detail"]) == (status, sentence)


async def all_pages(exporter: Exporter, path: str, query: Mapping[str, object]) -> list[Json]:
    """All pages, with the parameters of the first."""
    found = [(await exporter.get(path, **query)).json()]
    while found[-1]["next"]:
        kept = {name: value for name, value in query.items() if name not in ("start", "end")}
        found.append((await exporter.get(path, **kept, cursor=found[-1]["next"])).json())
        assert len(found) < 100, "the pages do not end"
    assert all(len(page["data"]) <= int(str(query.get("limit", 1000))) for page in found)
    return found

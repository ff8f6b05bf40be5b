"""A thousand workers with two weeks of history: every query of every dashboard is answered, truly, readably and in time."""

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from pymongo import MongoClient

from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.demo.mongod import Mongod
from grafana import conventions
from grafana.promql import threshold
from tests.conftest import program
from tests.fixtures.prometheus import INSTALL
from tests.helpers.dashboards import ALL, DASHBOARDS, Variables, by, faster, newest, problems, run_query
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, manager_facts
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.grafana_variables import Json, queries
from tests.helpers.prometheus import Labels, Prometheus

PERIOD = 1800
"""Of half an hour, so that two weeks of a thousand workers are three quarters of a million samples."""
NOW = align(int(time.time()), PERIOD)
SINCE = align(NOW - 15 * DAY, HOUR)
GONE_AT = align(NOW - 2 * DAY, HOUR)
REGIONS = ("eu-west-1", "us-east-1")
MEMBERS = [Member(f"w-{k:04}", instance_id(k), REGIONS[k % 2], SINCE) for k in range(1000)]
GONE = MEMBERS[990:]
"""Terminated two days ago, and without a worker document."""
HERE = MEMBERS[:990]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTING",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "*",
}
SETTINGS = {"period": "30m", "max_age": "2h", "cloudwatch": {"interval": "30m"}}
PRICELESS = {"Idling costs", "Idling cost"}
MAY_BE_EMPTY = {"Idle now", "Alerts of this worker", "Fills up next", "Changed in the last hour", *PRICELESS}
"""Of some seconds of a fleet that is priced nowhere."""
HARDLY = threshold("idle_cpu_ratio")
BROWSER = 6
"""Requests that a browser has under way at once."""


def number(member: Member) -> int:
    return int(member.worker_id[2:])


def labs(member: Member) -> int:
    return number(member) % 5


def status(member: Member, start: int) -> str:
    """One in ten is stopped permanently; the others of each third hour run only its first half."""
    if number(member) % 10 == 9:
        return "stopped"
    return "stopped" if start // HOUR % 3 == 0 and start % HOUR else "running"


def until(member: Member) -> int:
    return GONE_AT if member in GONE else NOW


class Hour(NamedTuple):
    """What the samples of an hour come to."""

    cpu: float
    """Their mean, as a ratio."""
    ran: float
    """The part of them that say running."""
    idle: bool
    """It ran, had no lab, and hardly used its CPU."""


class Truth:
    """The hours of every worker, by the formulas above and the fake's ledger."""

    def __init__(self, fake: FakeCloudWatch) -> None:
        self._hours = {
            member.worker_id: {hour: _hour(fake, member, hour) for hour in range(SINCE, until(member), HOUR)}
            for member in MEMBERS
        }

    def hours(self, member: Member, end: float, days: int) -> list[Hour]:
        """The whole hours within so many days before `end` that have a sample."""
        kept = self._hours[member.worker_id]
        return [kept[hour] for hour in range(align(int(end), HOUR) - days * DAY, align(int(end), HOUR), HOUR) if hour in kept]

    def hour(self, member: Member, start: int) -> Hour:
        """The hour that begins at `start`."""
        return self._hours[member.worker_id][start]


def _hour(fake: FakeCloudWatch, member: Member, start: int) -> Hour:
    starts = range(start, min(start + HOUR, until(member)), PERIOD)
    cpu = mean(fake.value(member.instance_id, "cpu", each) / 100 for each in starts)
    ran = mean(status(member, each) == "running" for each in starts)
    return Hour(cpu, ran, ran == 1 and labs(member) == 0 and cpu < HARDLY)


def mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


@dataclass(frozen=True, slots=True)
class Stack:
    fake: FakeCloudWatch
    exporter: ExporterProcess
    prometheus: Prometheus

    # -- what the dashboards say

    def shown(self, uid: str, title: str, ref: str, now: float, **chosen: list[str]) -> dict[Labels, float]:
        """The newest value of each series of a query of a panel."""
        return newest(self.prometheus, uid, title, ref, now, **chosen)

    def value(self, uid: str, title: str, ref: str, now: float, **chosen: list[str]) -> float:
        (found,) = self.shown(uid, title, ref, now, **chosen).values()
        return found


def aggregate(member: Member) -> Json:
    state = "stopped" if number(member) % 10 == 9 else "running"
    return member.aggregate(
        status=state,
        active_labs_count=labs(member),
        last_activity_at=to_datetime(NOW - 60 * number(member)),
        **manager_facts(labs(member), NOW),
    )


def documents(fake: FakeCloudWatch, member: Member) -> Iterator[Json]:
    for start in range(SINCE, until(member), PERIOD):
        yield {
            "worker_id": member.worker_id,
            "timestamp": to_datetime(start),
            "region": member.region,
            "cpu_utilization": fake.value(member.instance_id, "cpu", start),
            "memory_utilization": fake.value(member.instance_id, "memory", start),
            "active_labs_count": labs(member),
            "status": status(member, start),
        }


def entry(member: Member) -> Json:
    dates = {"first_seen": to_datetime(SINCE), "last_seen": to_datetime(until(member))}
    return {
        "_id": member.worker_id,
        "worker_id": member.worker_id,
        "name": f"cml {member.worker_id}",
        "region": member.region,
        "status": "terminated" if member in GONE else "running",
        "instances": [
            {"id": member.instance_id, "region": member.region, "from": dates["first_seen"], "to": dates["last_seen"]}
        ],
        **dates,
    }


@pytest.fixture
def stack(tmp_path: Path, mongod: Mongod) -> Iterator[Stack]:
    executable = program("prometheus", INSTALL)
    folder = tmp_path / "large"
    name = f"large_{uuid.uuid4().hex}"
    uri = mongod.uri.replace("/?", f"/{name}?")
    with contextlib.ExitStack() as ends:
        client = ends.enter_context(MongoClient[Json](uri, tz_aware=True))
        ends.callback(client.drop_database, name)
        fake = ends.enter_context(FakeCloudWatch(period=PERIOD))
        client[name].create_collection(
            "worker_metrics_timeseries",
            timeseries={"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"},
            expireAfterSeconds=30 * DAY,
        )
        for member in MEMBERS:
            fake.add(member.instance_id, member.region)
            client[name].worker_metrics_timeseries.insert_many(list(documents(fake, member)), ordered=False)
        client[name].worker_metrics_inventory.insert_many(map(entry, MEMBERS))
        client[name].workers.insert_many(map(aggregate, HERE))
        cloudwatch = {**SETTINGS["cloudwatch"], "endpoint_url": fake.url}  # type: ignore[dict-item]
        exporter = ExporterProcess(
            folder / "exporter", {**SETTINGS, "mongodb": {"uri": uri}, "cloudwatch": cloudwatch}, ENVIRONMENT
        )
        ends.callback(lambda: print(exporter.tail(200)))
        ends.callback(exporter.kill)
        exporter.start()
        prometheus = Prometheus(
            executable, folder / "prometheus", faster(folder / "rules", exporter.url.removeprefix("http://"))
        )
        ends.callback(prometheus.stop)
        recorded = (
            "count_over_time(cml_region:workers_idle:sum[1m]) > 2 and on () count(cml_worker_cpu_utilization_ratio) > 850"
        )
        deadline = time.monotonic() + scaled(120)
        while not prometheus.values(recorded):
            assert time.monotonic() < deadline, recorded
            time.sleep(0.2)
        yield Stack(fake, exporter, prometheus)


def chosen(uid: str, mode: str, exporter: ExporterProcess) -> Variables:
    address = exporter.url.removeprefix("http://")
    several = [member.worker_id for member in (*HERE[100:140], *GONE[:5])]
    picked: dict[str, Variables] = {
        "all": ALL,
        "one": ALL | {"region": [REGIONS[0]], "workers": [HERE[2].worker_id], "instance": [address]},
        "several": ALL | {"region": list(REGIONS), "workers": several, "instance": [address, "10.0.0.1:9877"]},
    }
    return picked[mode] | ({"worker_id": HERE[2].worker_id} if uid == conventions.WORKER else {})


@pytest.mark.nightly("test_every_query_has_an_answer_with_all_one_and_several_values_of_its_variables")
@pytest.mark.timeout(900)
@pytest.mark.waits(100)
def test_dashboards_of_a_thousand_workers_are_answered_readable_and_true(stack: Stack) -> None:
    """One test, so that the fleet is built once, whichever process runs it."""
    for uid in DASHBOARDS:
        assert wrong_answers(stack, uid) == []
    fleet_equals_the_worker_documents_and_the_ledger(stack)
    trends_are_those_of_the_ledger(stack)


def wrong_answers(stack: Stack, uid: str) -> list[str]:
    """What is wrong when a browser queries all panels of a dashboard at once, with all, one and several values chosen."""
    now = time.time()
    requests = [
        (name, panel, target, mode) for mode in ("all", "one", "several") for name, panel, target in queries(DASHBOARDS[uid])
    ]

    def wrong(name: str, panel: Json, target: Json, mode: str) -> list[str]:
        found = run_query(stack.prometheus, DASHBOARDS[uid], panel, target, chosen(uid, mode, stack.exporter), now)
        foreign = uid != conventions.EXPORTER and "ALERTS" not in target["expr"]
        complaints = list(problems(panel, target, found, foreign=foreign))
        if (
            not found
            and mode == "all"
            and uid != conventions.EXPORTER
            and panel["title"] not in MAY_BE_EMPTY
            and "node_" not in target["expr"]
        ):
            complaints.append("nothing")
        # A table may have a line for each worker; everything else shows the first few, or few altogether.
        if len(found) > (1000 if panel["type"] == "table" else 30 if uid == conventions.EXPORTER else 9):
            complaints.append(f"{len(found)} series")
        return [f"{name} ({mode}): {each}" for each in complaints]

    with ThreadPoolExecutor(BROWSER) as browser:
        return [each for found in browser.map(lambda each: wrong(*each), requests) for each in found]


def fleet_equals_the_worker_documents_and_the_ledger(stack: Stack) -> None:
    fleet, now = conventions.FLEET, time.time()
    assert stack.value(fleet, "Workers", "A", now) == 990
    running = [member for member in HERE if number(member) % 10 != 9]
    assert stack.value(fleet, "Running", "A", now) == len(running)
    assert stack.value(fleet, "Active labs", "A", now) == sum(map(labs, running))
    metrics = stack.exporter.metrics()
    ends = {
        name.partition('worker_id="')[2].partition('"')[0]: int(end)
        for name, end in metrics.items()
        if name.startswith("cml_worker_sample_timestamp_seconds") and 'metric="cpu"' in name
    }
    ledger = {
        f"cml {member.worker_id}": stack.fake.value(member.instance_id, "cpu", ends[member.worker_id] - PERIOD) / 100
        for member in running
    }
    assert stack.value(fleet, "Mean CPU", "A", now) == pytest.approx(mean(ledger.values()), rel=1e-9)
    busiest = by("worker", stack.shown(fleet, "Busiest now", "A", now))
    assert busiest == pytest.approx(dict(top(ledger, 5)))


def top(values: Mapping[str, float], most: int) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda each: -each[1])[:most]


def trends_are_those_of_the_ledger(stack: Stack) -> None:
    trends, now, truth = conventions.TRENDS, time.time(), Truth(stack.fake)

    def cpu(days: int, ago: int = 0) -> dict[str, float]:
        found = {member.worker_id: truth.hours(member, now - ago * DAY, days) for member in MEMBERS}
        return {worker_id: mean(hour.cpu for hour in hours) for worker_id, hours in found.items() if hours}

    def says(expected: float, title: str, ref: str = "A", **chosen: list[str]) -> None:
        assert stack.value(trends, title, ref, now, **chosen) == pytest.approx(expected, rel=1e-9), f"{title} {ref} {chosen}"

    week = cpu(7)
    says(mean(cpu(1).values()), "Average CPU", "A")
    says(mean(week.values()), "Average CPU", "B")
    says(mean(cpu(30).values()), "Average CPU", "C")
    says(week["w-0002"], "Average CPU", "B", workers=["w-0002"])
    hours = range(align(int(now), HOUR) - 7 * DAY, align(int(now), HOUR), HOUR)
    ran_in = {member: {hour for hour in hours if hour < until(member) and truth.hour(member, hour).ran} for member in MEMBERS}
    says(mean(sum(labs(member) for member in MEMBERS if hour in ran_in[member]) for hour in hours), "Average active labs", "B")
    assert (len(cpu(1)), len(week)) == (990, 1000)
    change = mean(week.values()) - mean(cpu(7, 7).values())
    ((labels, _),) = stack.shown(trends, "CPU against the week before", "A", now).items()
    assert float(dict(labels)["number"]) == pytest.approx(100 * change, abs=0.0501)
    ran = {member.worker_id: sum(hour.ran for hour in truth.hours(member, now, 7)) for member in MEMBERS}
    says(sum(ran.values()), "Running hours by week", "A")
    ranked = by("worker_id", stack.shown(trends, "Running hours", "A", now))
    assert sorted(ranked.values()) == pytest.approx(sorted(each for _, each in top(ran, 5)), rel=1e-9)
    idle = {member.worker_id: sum(hour.idle for hour in truth.hours(member, now, 7)) for member in MEMBERS}
    ranked = by("worker_id", stack.shown(trends, "Idle hours", "A", now))
    assert sorted(ranked.values()) == sorted(each for _, each in top(idle, 5))
    assert max(idle.values()) > 0
    assert by("worker_id", stack.shown(trends, "Workers", "C", now)) == pytest.approx(week, rel=1e-9)
    busy = by("worker_id", stack.shown(trends, "CPU of the busiest workers by day", "A", now))
    # Grafana ends a range query at a multiple of its step, here a day, and so does the ranking: at the last midnight.
    midnight = align(int(now), DAY)
    at_midnight = {member.worker_id: truth.hours(member, midnight, 7) for member in MEMBERS}
    ranks = {worker_id: mean(hour.cpu for hour in hours) for worker_id, hours in at_midnight.items() if hours}
    assert set(busy) == {worker_id for worker_id, _ in top(ranks, 3)}
    gone = by("worker", stack.shown(trends, "Terminated workers", "A", now))
    assert gone == {f"cml {member.worker_id}": 1000 * GONE_AT for member in GONE}

"""Every query of every dashboard, against a real Prometheus that scrapes and reads a real exporter: true values, not any."""

import contextlib
import math
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client import CollectorRegistry
from pymongo import MongoClient

from exporter.core.budget import dollars
from exporter.core.catalog import STATUS_CODE, STATUS_FORMS, StatusForm
from exporter.core.history_metrics import LOOKBACK_SECONDS
from exporter.core.model import Worker, WorkerGauges
from exporter.core.periods import DAY, HOUR, align, to_datetime, to_seconds
from exporter.core.shards import Shard
from exporter.demo.mongod import Mongod
from exporter.metrics.telemetry import Telemetry
from grafana import conventions
from grafana.promql import CODES, signed_change, threshold
from tests.conftest import program
from tests.fixtures.mongo import need_mongod
from tests.fixtures.process import RunExporter
from tests.fixtures.prometheus import INSTALL, RunPrometheus
from tests.helpers.dashboards import ALL, DASHBOARDS, Variables, by, drawn, faster, newest, problems, run_query
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member, manager_facts
from tests.helpers.exporter_process import ExporterProcess
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.grafana_variables import Json, View, panels, queries, seconds
from tests.helpers.mongod import FAIL_POINTS, NO_TTL
from tests.helpers.ports import free_port
from tests.helpers.prometheus import Labels, Prometheus
from tests.helpers.text_server import METRICS, serving_text
from tests.helpers.worker_families import render as render_metrics

PERIOD = 300
EU, US = "eu-west-1", "us-east-1"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTING",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "*",
}

NOW = align(int(time.time()), PERIOD)
SINCE = NOW - 15 * DAY
GONE_AT = align(NOW - 2 * DAY, HOUR)
"""When the worker that only the history knows was seen last."""
ALPHA = Member("w-alpha", instance_id(1), EU, SINCE)
IDLE = Member("w.idle", instance_id(2), US, SINCE)
"""Without a name, with a dot in its id, and its CPU from the worker document."""
STOPPED = Member("w-stopped", instance_id(3), EU, SINCE)
BLIND = Member("w-blind", instance_id(4), US, NOW - HOUR)
"""Running, but CloudWatch knows nothing of it."""
OMEGA = Member("w-omega", instance_id(5), US, SINCE)
"""Terminated."""
ACTIVE_AGO = {ALPHA: 600, IDLE: 7200}

RECORDED_WITHIN = 10
"""Seconds: rules are evaluated every second here, every minute in production, later on a busy machine."""

RULES = Path(__file__).parents[3] / "prometheus" / "rules"

PRICES = {"c5.metal": 4.08, "m5zn.metal": 3.96}
"""Of ALPHA and IDLE; dollars an hour."""
MAY_BE_EMPTY = {
    "OpenTelemetry pushes",  # no collector here
    "Other databases: age",  # none here
    "Other databases: samples",
    "Changed in the last hour",
    "Fills up next",
    "Errors",
    "Failed writes",
    "AWS accounts",
    "Connections of the web server",
    "Age of the leader's snapshot",  # no exporter stands by
}
"""Of a healthy exporter; `test_a_failure_shows` and test_glance.py see the others."""


def cpu(member: Member, start: int) -> float:
    if member is IDLE:
        return 2.0 if start // HOUR % 2 else 20.0
    return (start // PERIOD * 7919 + len(member.worker_id) * 104729) % 9973 / 100


def labs(member: Member, start: int) -> int:
    return 0 if member is IDLE else start // HOUR % 5


def status(member: Member, start: int) -> str:
    if member is STOPPED:
        return "stopped"
    return "stopped" if member is ALPHA and not start // HOUR % 4 else "running"


def document(member: Member, start: int) -> Json:
    return {
        "worker_id": member.worker_id,
        "timestamp": to_datetime(start),
        "region": member.region,
        "cpu_utilization": cpu(member, start),
        "memory_utilization": 100 - cpu(member, start),
        "active_labs_count": labs(member, start),
        "status": status(member, start),
    }


def entry(member: Member, last_seen: int, state: str) -> Json:
    dates = {"first_seen": to_datetime(SINCE), "last_seen": to_datetime(last_seen)}
    sighting = {"id": member.instance_id, "region": member.region, "from": dates["first_seen"], "to": dates["last_seen"]}
    return {
        "_id": member.worker_id,
        "worker_id": member.worker_id,
        "name": f"cml {member.worker_id}",
        "region": member.region,
        "status": state,
        "instances": [sighting],
        **dates,
    }


def aggregates() -> list[Json]:
    measured = {
        "cloudwatch_cpu_utilization": 2.0,
        "cloudwatch_memory_utilization": 30.0,
        "cloudwatch_last_collected_at": to_datetime(int(time.time()) - 60),
    }
    active = {member: to_datetime(NOW - ago) for member, ago in ACTIVE_AGO.items()}
    known = {"instance_type": "m5zn.metal", "last_activity_at": active[IDLE]}
    idle = IDLE.aggregate(active_labs_count=0, **known, **measured, **manager_facts(0, NOW))
    del idle["name"]
    return [
        ALPHA.aggregate(last_activity_at=active[ALPHA], instance_type="c5.metal", cml_version="2.8.1", **manager_facts(3, NOW)),
        idle,
        STOPPED.aggregate(status="stopped", active_labs_count=0),
        BLIND.aggregate(active_labs_count=1),
        {"_id": ""},
    ]


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs, and the history as MongoDB has it."""

    fake: FakeCloudWatch
    exporter: ExporterProcess
    prometheus: Prometheus
    samples: Any
    uri: str

    def documents(self, member: Member, start: float, end: float) -> list[Json]:
        """The samples of a range as Prometheus 2 takes it, with both ends."""
        between = {"$gte": to_datetime(math.ceil(start)), "$lte": to_datetime(int(end))}
        found: list[Json] = list(self.samples.find({"worker_id": member.worker_id, "timestamp": between}))
        return found

    def mean(self, member: Member, field: str, end: float, window: int, kept: Callable[[Json], bool] = lambda _: True) -> float:
        found = self.documents(member, end - window, end)
        values: list[float] = [each[field] for each in found if field in each and kept(each)]
        return sum(values) / len(values)

    def gauge(self, member: Member, metric: str) -> float:
        """By the ledger: the value of the period whose end /metrics tells."""
        metrics = self.exporter.metrics()
        (end,) = [value for name, value in metrics.items() if _is(name, member, f'metric="{metric}"')]
        assert metric in ("cpu", "memory")
        return self.fake.value(member.instance_id, "cpu" if metric == "cpu" else "memory", int(end) - PERIOD) / 100


def _is(series: str, member: Member, more: str) -> bool:
    return series.startswith("cml_worker_sample_timestamp") and f'"{member.worker_id}"' in series and more in series


def node_exporter() -> str:
    gauges = ("node_load1", "node_load15", "node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes")
    lines = [f"{name} {number}" for number, name in enumerate(gauges, 1)]
    lines += [
        f'node_filesystem_{kind}_bytes{{mountpoint="/",fstype="ext4"}} {size}' for kind, size in (("avail", 3), ("size", 4))
    ]
    lines += [f'node_network_{way}_bytes_total{{device="eth0"}} {time.time()}' for way in ("receive", "transmit")]
    lines += [f'node_disk_{way}_bytes_total{{device="sda"}} {time.time()}' for way in ("read", "written")]
    return "\n".join(lines) + "\n"


def machine(address: str) -> Json:
    target = {"targets": [address], "labels": {"worker_id": ALPHA.worker_id, "region": ALPHA.region}}
    return {"job_name": "machine", "static_configs": [target]}


def fill(database: Any) -> None:  # noqa: ANN401  # pymongo's Database
    """Two weeks of history with a hole of 10 minutes, and the worker documents."""
    database.create_collection(
        "worker_metrics_timeseries",
        timeseries={"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"},
        expireAfterSeconds=30 * DAY,
    )
    until = {ALPHA: NOW - 3 * PERIOD, IDLE: NOW - 3 * PERIOD, STOPPED: NOW - 3 * PERIOD, OMEGA: GONE_AT}
    hole = {NOW - 3 * HOUR, NOW - 3 * HOUR + PERIOD}
    for member, end in until.items():
        starts = (start for start in range(SINCE, end, PERIOD) if member is not ALPHA or start not in hole)
        database.worker_metrics_timeseries.insert_many([document(member, start) for start in starts])
    database.worker_metrics_inventory.insert_many(
        [
            entry(member, end, "terminated" if member is OMEGA else "running")
            for member, end in until.items()
            if member is not IDLE
        ]
    )
    database.workers.insert_many(aggregates())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, mongod: Mongod) -> Iterator[Stack]:
    """A healthy stack; a test that breaks something starts its own."""
    with running_stack(tmp_path_factory.mktemp("dashboards"), mongod) as stack:
        yield stack


@contextlib.contextmanager
def running_stack(folder: Path, mongod: Mongod, **further: object) -> Iterator[Stack]:
    """Run an exporter with two weeks of history and a Prometheus, whose configuration has `further` sections."""
    executable = program("prometheus", INSTALL)
    name = f"dashboards_{uuid.uuid4().hex}"
    uri = mongod.uri.replace("/?", f"/{name}?")
    with contextlib.ExitStack() as ends:
        client = ends.enter_context(MongoClient[Json](uri, tz_aware=True))
        ends.callback(client.drop_database, name)
        fill(client[name])
        fake = ends.enter_context(FakeCloudWatch())
        fake.add(ALPHA.instance_id, ALPHA.region)
        fake.fault("GetMetricData", "throttle", 1)
        limited = {"endpoint_url": fake.url, "max_usd_per_day": 5}
        settings = {"mongodb": {"uri": uri}, "cloudwatch": limited, "workers": {"hourly_price": PRICES}}
        exporter = ExporterProcess(folder / "exporter", settings, KEYS)
        ends.callback(lambda: print(exporter.tail(200)))
        ends.callback(exporter.kill)
        exporter.start()
        exporter.wait_for(lambda: exporter.metrics()["cml_exporter_samples_gap_filled_total"] >= 2, 40, "gaps filled")
        exporter.wait_for(lambda: "cml_exporter_history_duplicates" in exporter.metrics(), 60, "duplicates searched")
        node = ends.enter_context(serving_text(node_exporter, METRICS))
        configuration = faster(folder / "rules", exporter.url.removeprefix("http://"), machine(node)) | further
        prometheus = Prometheus(executable, folder / "prometheus", configuration)
        ends.callback(prometheus.stop)
        for query in ("cml_worker:idle:avg1h > 0", "count_over_time(node_load1[1m]) > 4", "cml:alert_severity:firing"):
            until(lambda query=query: prometheus.values(query), query)  # type: ignore[misc]
        yield Stack(fake, exporter, prometheus, client[name].worker_metrics_timeseries, uri)


def until(condition: Callable[[], object], what: str, within: float = 40) -> None:
    deadline = time.monotonic() + scaled(within)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


# -- queries as Grafana sends them -------------------------------------------------------------------------------------------


def variables(uid: str, stack: Stack, mode: str) -> Variables:
    address = stack.exporter.url.removeprefix("http://")
    chosen: dict[str, Variables] = {
        "all": ALL,
        "one": ALL | {"region": [EU], "workers": [ALPHA.worker_id], "instance": [address]},
        "several": ALL
        | {
            "region": [US, EU],
            "workers": [ALPHA.worker_id, IDLE.worker_id, OMEGA.worker_id],
            "instance": [address, "10.0.0.1:9877"],
        },
    }
    if uid == conventions.WORKER:
        workers = {"all": ALPHA, "one": ALPHA, "several": IDLE}
        return chosen[mode] | {"worker_id": workers[mode].worker_id}
    return chosen[mode]


def shown(
    stack: Stack, uid: str, title: str, ref: str = "A", now: float | None = None, **chosen: str | list[str]
) -> dict[Labels, float]:
    """The newest value of each series of a query of a panel."""
    return newest(stack.prometheus, uid, title, ref, time.time() if now is None else now, **chosen)


def counted(stack: Stack, title: str, ref: str = "A") -> dict[Labels, float]:
    """The sum of all columns of each series of a query of *Exporter health*: the newest one may have nothing."""
    found = drawn(stack.prometheus, conventions.EXPORTER, title, ref, time.time())
    return {labels: sum(values) for labels, values in found.items()}


def throttled(stack: Stack) -> dict[str, float]:
    """The largest share of throttled requests of each region."""
    found = drawn(stack.prometheus, conventions.EXPORTER, "Throttled share", "A", time.time())
    return by("region", {labels: max(values) for labels, values in found.items()})


def value(stack: Stack, uid: str, title: str, ref: str = "A", now: float | None = None, **chosen: str | list[str]) -> float:
    """The same where there is one series."""
    (found,) = shown(stack, uid, title, ref, now, **chosen).values()
    return found


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_query_has_an_answer_with_all_one_and_several_values_of_its_variables(stack: Stack, uid: str) -> None:
    now, wrong = time.time(), []
    for mode in ("all", "one", "several"):
        for name, panel, target in queries(DASHBOARDS[uid]):
            found = run_query(stack.prometheus, DASHBOARDS[uid], panel, target, variables(uid, stack, mode), now)
            foreign = uid != conventions.EXPORTER and "ALERTS" not in target["expr"]
            wrong += [f"{name} ({mode}): {each}" for each in problems(panel, target, found, foreign=foreign)]
            machine = "node_" in target["expr"] and mode == "several"
            if not found and mode != "one" and panel["title"] not in MAY_BE_EMPTY and not machine:
                wrong.append(f"{name} ({mode}): nothing for {target['expr']}")
    assert wrong == []


COOKBOOK = (Path(__file__).parents[3] / "docs" / "cookbook.md").read_text()
RECIPES = re.findall(r"^```(promql|console)\n(.*?)^```", COOKBOOK, re.DOTALL | re.MULTILINE)


def test_the_cookbook_has_as_many_recipes_as_it_says() -> None:
    assert f"{len(RECIPES)} recipes" in COOKBOOK


@pytest.mark.parametrize(("language", "recipe"), RECIPES)
def test_every_recipe_of_the_cookbook_has_an_answer(stack: Stack, language: str, recipe: str) -> None:
    if language == "promql":
        found = stack.prometheus.values(recipe)
        assert found, "no series"
        assert not any(math.isnan(number) for number in found.values())
    else:
        environment = {"EXPORTER": stack.exporter.url, "PATH": os.environ["PATH"], "NO_PROXY": "*"}
        command = ["sh", "-c", recipe.removeprefix("$ ")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=scaled(30), check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert ALPHA.worker_id in done.stdout or ALPHA.worker_id in recipe
        assert len(done.stdout) > 200, "nothing to see"


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_each_selector_alone_has_data(stack: Stack, uid: str) -> None:
    """What is joined by `or`, `unless` or a comparison would hide a name that is misspelt."""
    alone = set[str]()
    for _, panel, target in queries(DASHBOARDS[uid]):
        query = View(seconds(DASHBOARDS[uid]["time"]["from"]), 1, variables(uid, stack, "all")).expand(
            target["expr"], panel, target
        )
        found: list[Any] = []
        promql.walk(promql.parse(query), found.append)
        for node in found if panel["title"] not in MAY_BE_EMPTY else ():
            vector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
            if isinstance(vector, promql.VectorSelector):
                matchers = [each for each in vector.matchers.matchers if each.name not in ("status", "severity")]
                text = ",".join(f"{each.name}{_OPERATORS[str(each.op)]}{_quoted(each.value)}" for each in matchers)
                alone.add(f"{vector.name}{{{text}}}")
    assert alone
    alone = {each for each in alone if not each.startswith(STATUS_CODE.name)}  # exposed in place of STATUS
    assert [each for each in sorted(alone) if not stack.prometheus.values(f"last_over_time({each}[3d])")] == []


_OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def compared_again(compare: Callable[[Stack], None], stack: Stack) -> None:
    """Compare once more if the exporter's next cycle came between what is compared."""
    try:
        compare(stack)
    except AssertionError:
        time.sleep(3)
        compare(stack)


def test_the_fleet_is_what_the_worker_documents_and_the_ledger_say(stack: Stack) -> None:
    compared_again(compare_fleet, stack)


def compare_fleet(stack: Stack) -> None:
    fleet = conventions.FLEET
    own = {ALPHA: stack.gauge(ALPHA, "cpu"), IDLE: 0.02}
    assert value(stack, fleet, "Workers") == 4
    assert value(stack, fleet, "Workers", region=[EU]) == 2
    assert value(stack, fleet, "Running") == 3
    assert value(stack, fleet, "Running", region=[EU]) == 1
    assert value(stack, fleet, "Idle now") == 1
    assert value(stack, fleet, "Active labs") == 2 + 1
    assert value(stack, fleet, "Idling costs") == pytest.approx(PRICES["m5zn.metal"])
    assert value(stack, fleet, "Idling costs", "B") == pytest.approx(24 * PRICES["m5zn.metal"])
    assert value(stack, fleet, "Idling costs", region=[EU]) == 0
    assert 0 < value(stack, fleet, "Age of the data") < 600
    assert value(stack, fleet, "Mean CPU") == pytest.approx(sum(own.values()) / 2)
    assert value(stack, fleet, "Mean CPU", region=[EU]) == pytest.approx(own[ALPHA])
    assert value(stack, fleet, "Mean memory") == pytest.approx((stack.gauge(ALPHA, "memory") + 0.3) / 2)
    assert value(stack, fleet, "Alerts firing") >= 1
    names = {"cml w-alpha": own[ALPHA], "w.idle": own[IDLE]}
    assert by("worker", shown(stack, fleet, "Busiest now")) == pytest.approx(names)
    assert by("worker", shown(stack, fleet, "CPU by worker")) == pytest.approx(names)
    assert value(stack, fleet, "CPU by worker", "B") == pytest.approx(sum(own.values()) / 2)
    assert by("worker", shown(stack, fleet, "Busiest now", top="1")) == pytest.approx(
        dict([max(names.items(), key=lambda e: e[1])])
    )
    severe = by("alertname", shown(stack, fleet, "Alerts by severity"))
    assert (severe["CMLTestFires"], severe["CMLTestFiresOfEach"]) == (1, 2)
    assert by("alertname", shown(stack, fleet, "Alerts by severity", "B"))["CMLTestFiresOfEach"] == 4
    since = by("alertname", shown(stack, fleet, "Alerts by severity", "C"))
    assert 0 < time.time() - since["CMLTestFires"] / 1000 < 600
    assert by("worker", shown(stack, fleet, "Memory by worker")) == pytest.approx(
        {"cml w-alpha": stack.gauge(ALPHA, "memory"), "w.idle": 0.3}
    )
    now = time.time()
    idle = {"cml w-alpha": now - NOW + ACTIVE_AGO[ALPHA], "w.idle": now - NOW + ACTIVE_AGO[IDLE]}
    assert by("worker", shown(stack, fleet, "Longest idle", now=now)) == pytest.approx(idle, abs=RECORDED_WITHIN)
    assert by("status", shown(stack, fleet, "Workers by status")) == {"running": 3, "stopped": 1}
    codes = {"cml w-alpha": "running", "w.idle": "running", "cml w-stopped": "stopped", "cml w-blind": "running"}
    assert by("worker", shown(stack, fleet, "Status by worker")) == {name: CODES[each] for name, each in codes.items()}
    facts = next(dict(labels) for labels in shown(stack, fleet, "Inventory") if ("worker", "cml w-alpha") in labels)
    assert facts == {
        "__name__": "cml_worker:facts:info",
        "worker_id": "w-alpha",
        "region": EU,
        "worker": "cml w-alpha",
        "instance_id": ALPHA.instance_id,
        "instance_type": "c5.metal",
        "cml_version": "2.8.1",
    }
    statuses = {dict(labels)["worker_id"]: dict(labels)["status"] for labels in shown(stack, fleet, "Inventory", "G")}
    assert statuses == {"w-alpha": "running", "w.idle": "running", "w-stopped": "stopped", "w-blind": "running"}
    assert set(by("worker_id", shown(stack, fleet, "Inventory", "E"))) == {"w-alpha", "w.idle"}
    regions = [by("region", shown(stack, fleet, "Regions", ref)) for ref in "ABCD"]
    assert regions == [{EU: 2, US: 2}, {EU: 1, US: 2}, {EU: 0, US: 1}, {EU: 2, US: 1}]
    assert by("region", shown(stack, fleet, "Regions", "E")) == pytest.approx({EU: own[ALPHA], US: own[IDLE]})


def test_the_fleet_before_this_prometheus_comes_from_the_history(stack: Stack) -> None:
    """By the hour; two hours ago this Prometheus did not exist."""
    fleet, at = conventions.FLEET, NOW - 2 * HOUR + 60
    end = align(at, HOUR)
    hour = {each: stack.documents(each, end - HOUR, end - 1) for each in (ALPHA, IDLE, STOPPED)}
    running = [each for each in hour if ran(hour[each])]
    assert IDLE in running
    assert STOPPED not in running

    def mean(member: Member, field: str) -> float:
        values: list[float] = [each[field] for each in hour[member] if field in each]
        return sum(values) / len(values)

    names = {ALPHA: "cml w-alpha", IDLE: "w.idle", STOPPED: "cml w-stopped"}
    for title, field in (("CPU by worker", "cpu_utilization"), ("Memory by worker", "memory_utilization")):
        means = {each: mean(each, field) / 100 for each in running}
        assert by("worker", shown(stack, fleet, title, now=at)) == pytest.approx({names[each]: means[each] for each in running})
        assert value(stack, fleet, title, "B", at) == pytest.approx(sum(means.values()) / len(means))
    regions = {US: mean(IDLE, "cpu_utilization") / 100}
    assert by("region", shown(stack, fleet, "CPU by region", now=at))[US] == pytest.approx(regions[US])
    statuses = by("status", shown(stack, fleet, "Workers by status over time", now=at))
    mostly = [each for each in hour if ran(hour[each]) >= 0.5]
    assert statuses == {"running": len(mostly), "not running": 3 - len(mostly)}
    codes = by("worker", shown(stack, fleet, "Status by worker", now=at))
    assert codes == {names[each]: int(each in mostly) for each in hour}
    refs = dict(zip("ABC", shown_all(stack, fleet, "Active labs and idle workers", at), strict=True))
    assert refs["A"] == pytest.approx(sum(mean(each, "active_labs_count") for each in running))
    assert refs["B"] == pytest.approx(sum(ran(hour[each]) for each in hour))
    assert refs["C"] == sum(lay_idle(hour[each]) for each in hour)


def shown_all(stack: Stack, uid: str, title: str, now: float) -> list[float]:
    return [value(stack, uid, title, ref, now) for ref in "ABC"]


def test_on_call_says_what_fires_for_whom_and_since_when(stack: Stack) -> None:
    on_call = conventions.ON_CALL
    own = ("CMLTestFires", "CMLTestFiresOfEach")
    severity = by("severity", shown(stack, on_call, "Firing now"))
    assert (severity["info"] >= 1, severity["warning"] >= 4) == (True, True)
    severe = shown(stack, on_call, "What is wrong")
    assert {alert: code for alert, code in by("alertname", severe).items() if alert in own} == dict(
        zip(own, (1, 2), strict=True)
    )
    for labels in map(dict, severe):
        assert labels["means"] == labels["step"] == labels["anchor"] == labels["alertname"]
        assert labels["url"] == "http://127.0.0.1:9877/runbook"
    since = by("alertname", shown(stack, on_call, "What is wrong", "B"))
    assert all(0 < time.time() - since[alert] / 1000 < 600 for alert in own)
    numbers = by("alertname", shown(stack, on_call, "What is wrong", "C"))
    assert [numbers[alert] for alert in own] == [1, 4]
    concerned = [dict(labels) for labels in shown(stack, on_call, "Whom it concerns")]
    of_each = {each["worker"]: each for each in concerned if each["alertname"] == "CMLTestFiresOfEach"}
    assert set(of_each) == {"cml w-alpha", "w.idle", "cml w-stopped", "cml w-blind"}
    assert of_each["w.idle"] == {
        "alertname": "CMLTestFiresOfEach",
        "severity": "warning",
        "worker_id": "w.idle",
        "region": US,
        "worker": "w.idle",
    }
    assert {"alertname": "CMLTestFires", "severity": "info"} in concerned
    # As the link of an alert's message chooses them.
    chosen = shown(stack, on_call, "Whom it concerns", alertname=["CMLTestFiresOfEach"], region=[US], workers=["w.idle"])
    assert [dict(labels)["worker"] for labels in chosen] == ["w.idle"]
    assert [dict(labels) for labels in shown(stack, on_call, "Whom it concerns", alertname=["CMLTestFires"], region=[US])] == [
        {"alertname": "CMLTestFires", "severity": "info"}
    ]
    assert (value(stack, on_call, "Exporter"), value(stack, on_call, "Sources failing")) == (1, 0)
    assert value(stack, on_call, "Writes the history") == 1
    assert 0 < value(stack, on_call, "Age of the data") < 600


def test_a_worker_is_compared_with_its_own_history(stack: Stack) -> None:
    worker = conventions.WORKER
    alpha: Any = {"worker_id": ALPHA.worker_id}

    def compare() -> None:
        now = time.time()
        assert value(stack, worker, "CPU", "A", **alpha) == pytest.approx(stack.gauge(ALPHA, "cpu"))
        for title, field, scale in (
            ("CPU", "cpu_utilization", 100),
            ("Memory", "memory_utilization", 100),
            ("Active labs", "active_labs_count", 1),
        ):
            kept = running_labs if field == "active_labs_count" else every
            day = stack.mean(ALPHA, field, now, DAY, kept) / scale
            assert value(stack, worker, title, "B", now, **alpha) == pytest.approx(day, rel=1e-9)
            for title_of, window in ((title, LOOKBACK_SECONDS), (f"{title} over time", PERIOD)):
                if any(map(kept, stack.documents(ALPHA, now - 7 * DAY - window, now - 7 * DAY))):
                    week_ago = stack.mean(ALPHA, field, now - 7 * DAY, window, kept) / scale
                    assert value(stack, worker, title_of, "C", now, **alpha) == pytest.approx(week_ago, rel=1e-9)
            # The newest point of the line of the day's average.
            assert value(stack, worker, f"{title} over time", "B", now, **alpha) == pytest.approx(day, rel=1e-9)
        missing = 1 - len(hours(stack, ALPHA, now, DAY)) / 24
        assert value(stack, worker, "Hours without data", "A", now, **alpha) == pytest.approx(missing)
        last_week = stack.documents(ALPHA, now - 7 * DAY - LOOKBACK_SECONDS, now - 7 * DAY)[-1]["status"]
        assert value(stack, worker, "Status", "B", now, **alpha) == CODES[last_week]

    steady(stack, compare)
    assert value(stack, worker, "Status", **alpha) == CODES["running"]
    assert value(stack, worker, "Active labs", **alpha) == 2
    now = time.time()
    idle = now - NOW + ACTIVE_AGO[ALPHA]
    assert value(stack, worker, "Idle for", now=now, **alpha) == pytest.approx(idle, abs=RECORDED_WITHIN)
    assert value(stack, worker, "Idle time", now=now, **alpha) == pytest.approx(idle, abs=RECORDED_WITHIN)
    ages = by("metric", shown(stack, worker, "Age of each value", now=now, **alpha))
    assert set(ages) == {"cpu", "memory", "state"}
    assert all(0 < age < 1200 for age in ages.values())
    (facts,) = shown(stack, worker, "Facts", **alpha)
    assert dict(facts) == {
        "worker": "cml w-alpha",
        "worker_id": "w-alpha",
        "region": EU,
        "instance_id": ALPHA.instance_id,
        "instance_type": "c5.metal",
        "cml_version": "2.8.1",
    }
    assert by("severity", shown(stack, worker, "Alerts of this worker", **alpha)).keys() >= {"warning"}
    since = by("alertname", shown(stack, worker, "Alerts of this worker", **alpha))
    assert 0 < now - since["CMLTestFiresOfEach"] / 1000 < 600
    # One that is gone has its past, and nothing else.
    gone: Any = {"worker_id": OMEGA.worker_id}
    assert [value(stack, worker, title, **gone) for title in ("Status", "CPU", "Memory", "Active labs")] == [
        conventions.NONE
    ] * 4
    assert value(stack, worker, "CPU", "C", **gone) == pytest.approx(
        stack.mean(OMEGA, "cpu_utilization", now - 7 * DAY, LOOKBACK_SECONDS) / 100
    )


def every(_: Json) -> bool:
    return True


def running_labs(sample: Json) -> bool:
    """The history keeps what the document of a stopped worker says of its labs; it counts in no figure."""
    return "active_labs_count" in sample and sample.get("status", "running") == "running"


def steady(stack: Stack, compare: Callable[[], None]) -> None:
    """Compare while nothing is mirrored in between."""
    for _ in range(5):
        before = stack.samples.count_documents({})
        try:
            compare()
            return
        except AssertionError:
            if stack.samples.count_documents({}) == before:
                raise
    raise AssertionError("the history never rests")


Documents = Sequence[Json]


def hours(stack: Stack, member: Member, now: float, window: int) -> list[Documents]:
    """The samples of each whole hour of a window that has any."""
    first, end = align(int(now - window), HOUR), align(int(now), HOUR)
    by_hour: dict[int, list[Json]] = {}
    for document in stack.documents(member, first, end - 1):
        by_hour.setdefault(align(to_seconds(document["timestamp"]), HOUR), []).append(document)
    return list(by_hour.values())


def mean_of_hours(stack: Stack, member: Member, field: str, now: float, window: int) -> float:
    means: list[float] = []
    for found in hours(stack, member, now, window):
        values = [each[field] for each in found if field in each]
        means += [sum(values) / len(values)] if values else []
    return sum(means) / len(means)


def ran(found: Documents) -> float:
    """AWS has CPU of running instances only, so a gap-filled sample with CPU and no status was one of running."""
    known = [each.get("status", "running") for each in found if "status" in each or "cpu_utilization" in each]
    return known.count("running") / len(known) if known else 0


def lay_idle(found: Documents) -> float:
    busy = sum(each.get("cpu_utilization", 0) for each in found) / len(found) >= 100 * threshold("idle_cpu_ratio")
    return float(ran(found) == 1 and not any(each.get("active_labs_count") for each in found) and not busy)


def test_trends_are_those_of_the_history_terminated_workers_included(stack: Stack) -> None:
    trends = conventions.TRENDS
    members = (ALPHA, IDLE, STOPPED, OMEGA)

    def compare() -> None:
        now = time.time()

        def there(window: int, end: float = now) -> list[Member]:
            return [each for each in members if hours(stack, each, end, window)]

        def mean(field: str, window: int, end: float = now) -> float:
            means = [mean_of_hours(stack, each, field, end, window) for each in there(window, end)]
            return sum(means) / len(means)

        def labs_together(days: int) -> float:
            """The mean over the hours of the sum of the workers' means; one that did not run has none."""
            sums: dict[int, float] = {}
            for each in members:
                for found in hours(stack, each, now, days * DAY):
                    counts = [one["active_labs_count"] for one in found if "active_labs_count" in one]
                    if counts:
                        hour = align(to_seconds(found[0]["timestamp"]), HOUR)
                        sums[hour] = sums.get(hour, 0) + (sum(counts) / len(counts) if ran(found) else 0)
            return sum(sums.values()) / len(sums)

        def total(says: Callable[[Documents], float], member: Member, end: float = now) -> float:
            return sum(map(says, hours(stack, member, end, 7 * DAY)))

        def says(expected: float, title: str, ref: str = "A", **chosen: list[str]) -> None:
            assert value(stack, trends, title, ref, now, **chosen) == pytest.approx(expected, rel=1e-9, abs=1e-12), title

        for ref, days in (("A", 1), ("B", 7), ("C", 30)):
            says(mean("cpu_utilization", days * DAY) / 100, "Average CPU", ref)
            says(mean("memory_utilization", days * DAY) / 100, "Average memory", ref)
            says(labs_together(days), "Average active labs", ref)
        for what, field in (("CPU", "cpu_utilization"), ("Memory", "memory_utilization")):
            points = mean(field, 7 * DAY) - mean(field, 7 * DAY, now - 7 * DAY)
            ((labels, _),) = shown(stack, trends, f"{what} against the week before", now=now).items()
            assert float(dict(labels)["number"]) == pytest.approx(points, abs=0.0501), what
            for ref, end in (("A", now), ("B", now - 7 * DAY)):
                # The newest point stands for the last whole hour.
                says(mean(field, HOUR, align(int(end), HOUR)) / 100, f"{what}, week over week", ref)
        for ref, end in (("A", now), ("B", now - 7 * DAY)):
            week = {each.worker_id: total(ran, each, end) for each in members}
            says(sum(week.values()), "Running hours by week", ref)
            says(week["w.idle"], "Running hours by week", ref, workers=["w.idle"])
        midnight = align(int(now), DAY)
        day = {each: hours(stack, each, midnight, DAY) for each in there(DAY, midnight)}
        cpus = [
            one["cpu_utilization"] / 100 for found in day.values() for hour in found for one in hour if "cpu_utilization" in one
        ]
        says(mean("cpu_utilization", DAY, midnight) / 100, "CPU by day", "A")
        says(min(cpus), "CPU by day", "B")
        says(max(cpus), "CPU by day", "C")
        says(len(day), "Workers by day", "A")
        says(sum(sum(map(ran, found)) for found in day.values()) / 24, "Workers by day", "B")
        idle = by("worker_id", shown(stack, trends, "Idle hours", now=now))
        assert idle["w.idle"] == total(lay_idle, IDLE) > 80
        assert idle["w-alpha"] == total(lay_idle, ALPHA) == 0
        running = by("worker_id", shown(stack, trends, "Running hours", now=now))
        assert running == pytest.approx({each.worker_id: total(ran, each) for each in members}, rel=1e-9)
        table = by("worker_id", shown(stack, trends, "Workers", "C", now))
        assert table == pytest.approx(
            {each.worker_id: mean_of_hours(stack, each, "cpu_utilization", now, 7 * DAY) / 100 for each in members}, rel=1e-9
        )

    steady(stack, compare)
    assert by("worker", shown(stack, trends, "Terminated workers")) == {"cml w-omega": GONE_AT * 1000}
    assert shown(stack, trends, "Terminated workers", workers=[ALPHA.worker_id]) == {}
    only = by("worker", shown(stack, trends, "Terminated workers", workers=[OMEGA.worker_id]))
    assert only == {"cml w-omega": GONE_AT * 1000}
    last = stack.documents(OMEGA, SINCE, time.time())[-1]["timestamp"]
    assert to_seconds(last) == GONE_AT - PERIOD


@pytest.mark.parametrize(
    ("number", "text"), [(0.26, "▲ +0.3"), (-0.26, "▼ −0.3"), (0.01, "= 0"), (-0.01, "= 0"), (12, "▲ +12"), (-3, "▼ −3")]
)
def test_a_change_has_a_sign_and_an_arrow(run_prometheus: RunPrometheus, number: float, text: str) -> None:
    prometheus = run_prometheus({"global": {"scrape_interval": "1m"}})
    ((labels, value),) = prometheus.values(signed_change(f"vector({number})")).items()
    assert (dict(labels)["change"], value) == (text, 1)


def test_the_exporters_own_numbers_are_those_of_the_fake_cloudwatch(stack: Stack) -> None:
    compared_again(compare_exporter, stack)


def compare_exporter(stack: Stack) -> None:
    health = conventions.EXPORTER
    calls, billed = stack.fake.calls, stack.fake.metrics_billed
    requests = counted(stack, "CloudWatch requests")
    totals = {
        operation: sum(each for labels, each in requests.items() if ("operation", operation) in labels) for operation in calls
    }
    assert totals == dict(calls)
    assert sum(counted(stack, "Metrics requested").values()) == billed
    assert value(stack, health, "CloudWatch today") == pytest.approx(dollars(billed))
    assert value(stack, health, "CloudWatch today", "B") == 5
    assert value(stack, health, "Cost of the last 24 hours") == pytest.approx(dollars(billed))
    assert by("code", counted(stack, "Failed requests by error")) == {"Throttling": 1}
    share = throttled(stack)
    assert len(share) == 1
    assert set(share.values()) < {1 / number for number in range(2, 40)}
    assert value(stack, health, "Exporter") == 1
    assert value(stack, health, "Writes the history") == 1
    assert value(stack, health, "Sources failing") == 0
    assert sum(shown(stack, health, "Worker documents skipped").values()) == 1
    assert by("region", shown(stack, health, "Workers without CPU")) == {US: 1}
    assert by("state", shown(stack, health, "Budget")) == {"ok": 1}
    mirrored = by("result", counted(stack, "Samples mirrored"))
    (filled,) = counted(stack, "Gaps filled, dropped, lost").values()
    assert mirrored["inserted"] >= filled >= 2
    lines = [line for line in stack.exporter.get("/metrics").text.splitlines() if not line.startswith("#")]
    assert value(stack, health, "Scrape size") == len(lines)


def test_the_variables_offer_what_there_is_by_name(stack: Stack) -> None:
    view = View(7 * DAY, 1, ALL)
    offered: dict[str, Json] = {each["name"]: each for each in DASHBOARDS[conventions.TRENDS]["templating"]["list"]}

    def lines(name: str) -> list[str]:
        """What Grafana makes of query_result(): a line of text for each series."""
        (query,) = re.fullmatch(r"query_result\((.+)\)", offered[name]["query"]["query"]).groups()  # type: ignore[union-attr]
        found = stack.prometheus.values(view.expand(query))
        return ["{" + ",".join(f'{label}="{value}"' for label, value in labels) + "} 1 1" for labels in found]

    def options(name: str) -> set[tuple[str, str]]:
        pattern = re.compile(offered[name]["regex"].strip("/g").replace("?<", "?P<"))
        made = set()
        for line in lines(name):
            groups: dict[str, str] = {}
            for match in pattern.finditer(line):
                groups |= {key: each for key, each in match.groupdict().items() if each}
                value = groups.get("value") or match[1]
            made.add((groups.get("text") or value, groups.get("value") or value))
        return made

    assert options("region") == {(EU, EU), (US, US)}
    members = {("w.idle", "w.idle")} | {(f"cml {each.worker_id}", each.worker_id) for each in (ALPHA, STOPPED, BLIND, OMEGA)}
    assert options("workers") - {(BLIND.worker_id, BLIND.worker_id)} == members
    view = View(60, 1, ALL)  # of less than an hour
    assert options("workers") - {(BLIND.worker_id, BLIND.worker_id)} >= members - {(f"cml {OMEGA.worker_id}", OMEGA.worker_id)}
    found = stack.prometheus.http.get("/api/v1/label/region/values", params={"match[]": "cml_worker_info"}).json()["data"]
    assert found == [EU, US]


def test_a_failure_shows(
    fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter, run_prometheus: RunPrometheus, tmp_path: Path
) -> None:
    """CloudWatch refuses, MongoDB takes no samples and then is gone, values are given up: each on the panel that is for it."""
    need_mongod()
    mongod = Mongod(tmp_path / "mongod", free_port(), parameters=NO_TTL | FAIL_POINTS)
    uri = mongod.uri.replace("/?", "/cml?")
    with mongod, MongoClient[Json](uri, tz_aware=True, serverSelectionTimeoutMS=2000) as client:
        client.cml.workers.insert_many([ALPHA.aggregate(created_at=to_datetime(NOW - 6 * HOUR)), OMEGA.aggregate()])
        failing = {"failCommands": ["insert"], "errorCode": 11602}  # InterruptedDueToReplStateChange
        client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
        fake_cloudwatch.add(ALPHA.instance_id, ALPHA.region)
        fake_cloudwatch.fault("*", "access_denied", 10**6, US)
        fake_cloudwatch.fault("GetMetricData", "throttle", 2, EU)
        exporter = run_exporter({"mongodb": {"uri": uri}, "cloudwatch": {"endpoint_url": fake_cloudwatch.url}})
        telemetry = Telemetry(CollectorRegistry())
        telemetry.samples_were_mirrored(inserted=0, already_present=0, rejected=2, gap_filled=0)
        telemetry.outbox_samples.labels("rejected").set(2)
        telemetry.show_shard(Shard(), collects=True)
        telemetry.accounts_answered(US, ["222222222222"], "labs", "GetMetricData", ok=False)

        scrapes, started = 0, time.time()

        def text() -> str:
            nonlocal scrapes
            scrapes += 1
            if scrapes == 2:  # a counter with known labels was scraped at 0 before
                telemetry.samples_unavailable.labels("cpu").inc(3)
            telemetry.http_connections_closed.labels("unread").inc()
            telemetry.refresh()
            return telemetry.rendered(0).text.decode() + f"process_start_time_seconds {started}\n"

        with serving_text(text, METRICS) as other:
            configuration = faster(tmp_path / "rules", exporter.url.removeprefix("http://"))
            configuration["scrape_configs"][0]["static_configs"][0]["targets"].append(other)
            prometheus = run_prometheus(configuration)
            stack = Stack(fake_cloudwatch, exporter, prometheus, client.cml.worker_metrics_timeseries, uri)
            show_failures(stack, mongod)


def show_failures(stack: Stack, mongod: Mongod) -> None:
    health = conventions.EXPORTER
    until(lambda: by("code", counted(stack, "Failed requests by error")).get("AccessDenied"), "AccessDenied")
    until(lambda: by("code", counted(stack, "Failed requests by error"))["Throttling"] == 2, "Throttling")
    assert 0 < throttled(stack)[EU] < 1
    assert by("counter", counted(stack, "Errors"))["cloudwatch_request_failures"] >= 2
    until(lambda: [*shown(stack, health, "Sources failing").values()] == [1], "one source fails")
    sources = {(dict(each).get("source"), dict(each).get("region")): ok for each, ok in shown(stack, health, "Sources").items()}
    assert sources == {("mongodb", None): 1, ("cloudwatch", EU): 1, ("cloudwatch", US): 0}
    absent = "Values recorded as absent"
    until(lambda: by("metric", counted(stack, absent)) == {"cpu": 3, "memory": 0}, f"3 {absent}")
    assert by("result", counted(stack, "Samples mirrored"))["rejected"] == 2
    assert by("state", shown(stack, health, "Outbox by state"))["rejected"] == 2
    until(lambda: by("region", shown(stack, health, "Workers without CPU")) == {US: 1}, "recorded")
    assert by("account", shown(stack, health, "AWS accounts")) == {"labs": 0}
    closed = "Connections of the web server"
    until(lambda: "unread" in by("reason", counted(stack, closed, "B")), closed)
    until(lambda: sum(by("reason", counted(stack, "Failed writes")).values()), "a failed write")
    assert value(stack, health, "Writes the history") == 1
    assert by("counter", counted(stack, "Errors"))["mirror_failures"] >= 1
    before = by("reason", counted(stack, "Failed writes"))
    mongod.kill()
    until(lambda: set(by("reason", counted(stack, "Failed writes"))) - set(before), "MongoDB is gone")
    stack.exporter.kill()
    address = stack.exporter.url.removeprefix("http://")
    until(lambda: value(stack, health, "Exporter", instance=[address]) == 0, "down")


@pytest.mark.parametrize("form", STATUS_FORMS)
def test_annotations_mark_alerts_restarts_and_changes_of_status(
    run_prometheus: RunPrometheus, tmp_path: Path, form: StatusForm
) -> None:
    """Each has nothing to mark while nothing happens, and marks what does, by the labels its texts name."""
    said = {"status": "running", "started": 1000.0}

    def text() -> str:
        worker = Worker(ALPHA.worker_id, EU, ALPHA.instance_id, str(said["status"]), name="cml alpha")
        gauges = WorkerGauges(worker, observed_at=NOW, show_state=True)
        return render_metrics([gauges], status=form).decode() + f"process_start_time_seconds {said['started']}\n"

    with serving_text(text, METRICS) as address:
        prometheus = run_prometheus(faster(tmp_path / "rules", address))

        def marks(uid: str, name: str) -> list[dict[str, Any]]:
            (mark,) = [each for each in DASHBOARDS[uid]["annotations"]["list"] if each["name"] == name]
            query = View(HOUR, 1, {**ALL, "worker_id": ALPHA.worker_id}).expand(mark["expr"])
            found = prometheus.values(query)
            named = set(re.findall(r"{{(\w+)}}", f"{mark['titleFormat']} {mark['textFormat']}"))
            assert all(named == set(dict(labels)) for labels in found), f"{named} of {found}"
            return [dict(labels) | ({"at": value} if mark["useValueForTime"] else {}) for labels, value in found.items()]

        until(lambda: prometheus.values("count_over_time(process_start_time_seconds[1m]) > 2"), "scraped")
        for uid in DASHBOARDS:
            assert marks(uid, "Exporter restarts") == [{"instance": address, "at": 1000_000}]
            until(lambda uid=uid: "CMLTestFires" in [each["alertname"] for each in marks(uid, "Alerts")], "an alert")  # type: ignore[misc]
        assert marks(conventions.WORKER, "Status changes") == []
        said |= {"status": "stopping", "started": 2000.0}
        until(lambda: 2000 in prometheus.values("process_start_time_seconds").values(), "a restart")
        assert [marks(uid, "Exporter restarts") for uid in DASHBOARDS] == [[{"instance": address, "at": 2000_000}]] * 5
        until(lambda: marks(conventions.WORKER, "Status changes") != [], "the rules")
        assert marks(conventions.WORKER, "Status changes") == [{"worker_id": ALPHA.worker_id, "status": "stopping"}]


def test_a_worker_that_does_not_run_counts_in_no_load(run_prometheus: RunPrometheus, tmp_path: Path) -> None:
    """One that is stopping keeps its last values on /metrics for some minutes."""

    def text() -> str:
        busy = Worker(ALPHA.worker_id, EU, ALPHA.instance_id, "running", name="cml alpha", active_labs=2)
        ending = Worker(OMEGA.worker_id, EU, OMEGA.instance_id, "stopping", name="cml omega", active_labs=5)
        gauges = [WorkerGauges(busy, NOW, True, cpu=10.0, memory=20.0), WorkerGauges(ending, NOW, True, cpu=90.0, memory=80.0)]
        return render_metrics(gauges, ()).decode()

    with serving_text(text, METRICS) as address:
        configuration = faster(tmp_path / "rules", address)
        del configuration["remote_read"]  # what serves here has no history
        prometheus = run_prometheus(configuration)
        until(lambda: prometheus.values("cml_region:cpu_utilization_ratio:avg"), "recorded")

        def shows(expected: list[float], uid: str, title: str, ref: str = "A", **chosen: str) -> None:
            """Ask until it is so: a scrape that a busy machine misses makes its series absent for a second."""
            found: list[float] = []

            def shown() -> bool:
                found[:] = newest(prometheus, uid, title, ref, time.time(), **chosen).values()
                return found == pytest.approx(expected)

            with contextlib.suppress(AssertionError):
                until(shown, title)
            assert found == pytest.approx(expected), f"{title} {ref} {chosen}"

        fleet = conventions.FLEET
        for title, ref, expected in (
            ("Mean CPU", "A", 0.1),
            ("Mean memory", "A", 0.2),
            ("Active labs", "A", 2),
            ("Active labs and idle workers", "A", 2),
            ("Busiest now", "A", 0.1),
            ("CPU by worker", "A", 0.1),
            ("Memory by worker", "A", 0.2),
            ("Inventory", "B", 0.1),
            ("Inventory", "C", 0.2),
            ("Inventory", "D", 2),
            ("Regions", "D", 2),
            ("Regions", "E", 0.1),
            ("Regions", "F", 0.2),
            ("CPU by region", "A", 0.1),
        ):
            shows([expected], fleet, title, ref)
        assert prometheus.value("cml_region:cpu_utilization_ratio:avg") == pytest.approx(0.1)
        assert prometheus.value("cml_region:memory_utilization_ratio:avg") == pytest.approx(0.2)
        for worker_id, values in (
            (ALPHA.worker_id, (1, 0.1, 0.2, 2)),
            (OMEGA.worker_id, (4, -1, -1, -1)),
            ("w-gone", (-1,) * 4),
        ):
            for title, expected in zip(("Status", "CPU", "Memory", "Active labs"), values, strict=True):
                shows([expected], conventions.WORKER, title, worker_id=worker_id)
            for title, expected in zip(("CPU", "Memory", "Active labs"), values[1:], strict=True):
                shows([expected] if expected >= 0 else [], conventions.WORKER, f"{title} over time", worker_id=worker_id)


def test_a_column_is_the_count_of_its_interval(tmp_path: Path) -> None:
    """12 metrics billed every 5 minutes are columns of 12: not of 49, nor of 13.2 for a window one scrape longer.

    The steps fall between scrapes and evaluations, as in practice.
    """
    ((panel, target),) = [
        (panel, target) for panel in panels(DASHBOARDS[conventions.EXPORTER]) if panel["title"] == "Metrics requested"
        for target in panel["targets"]
    ]  # fmt: skip
    view = View(6 * HOUR, 30, ALL)
    scrapes = [12 * (1 + (scrape - 7) // 10) for scrape in range(7, 200)]  # 12 more every tenth scrape
    series = f'cml_exporter_cloudwatch_metrics_requested_total{{job="{ALL["job"]}",instance="a",region="{EU}"}}'
    started = f'process_start_time_seconds{{job="{ALL["job"]}",instance="a"}}'
    twelve = [{"labels": f'{{region="{EU}"}}', "value": 12}]
    expected = [{"eval_time": f"{5 * step}m10s", "exp_samples": twelve} for step in range(1, 16)]
    test = {
        "interval": "30s",
        "input_series": [
            {"series": started, "values": "_x6 200x200"},
            {"series": series, "values": " ".join(["_"] * 7 + [str(each) for each in scrapes])},
        ],
        "promql_expr_test": [{"expr": view.expand(target["expr"], panel, target), **each} for each in expected],
    }
    file = tmp_path / "test.yml"
    rules = str(RULES / "dashboards.yml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]}))
    promtool = program("promtool", INSTALL)
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=scaled(60), check=False)
    assert done.returncode == 0, done.stdout + done.stderr

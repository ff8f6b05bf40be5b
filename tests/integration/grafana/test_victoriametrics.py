"""The dashboards on a real VictoriaMetrics: every query is answered, with Prometheus's numbers or with a stated difference.

It has what users send to it: scraped and recorded series by Prometheus's remote write, the history by `export --to`, and the
hourly aggregates that remote read answers with.
"""

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from exporter.core.history_metrics import HOURLY_METRICS, STORE
from exporter.core.periods import HOUR, align
from exporter.demo.mongod import Mongod
from grafana import conventions
from tests.conftest import program
from tests.helpers.dashboards import DASHBOARDS
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND
from tests.helpers.grafana_variables import Json, View, queries, seconds
from tests.helpers.ports import free_port
from tests.helpers.stores import VictoriaMetricsServer
from tests.integration.grafana.test_queries import Stack, running_stack, until, variables
from tests.tools.mutate_rules import rules

pytestmark = pytest.mark.nightly("test_every_query_has_an_answer_with_all_one_and_several_values_of_its_variables")
INSTALL = "apt-get install victoria-metrics"
TOLERANCE = 1e-6
"""Relative; VictoriaMetrics stores decimal numbers of 12 to 15 digits."""
ALSO_OF_THE_HISTORY = {"Nodes and labs"}
"""Panels whose selectors match series of the history, too, which is in the same database: they begin earlier."""

Series = dict[tuple[tuple[str, str], ...], dict[float, float]]


class Server(VictoriaMetricsServer):
    """Shows a sample at once: by default it does after 30 seconds."""

    def command(self) -> list[str]:
        return [*super().command(), "-search.latencyOffset=1ms"]


class Both(NamedTuple):
    """A Prometheus and a VictoriaMetrics with the same data, and a time of which both have all."""

    stack: Stack
    prometheus: httpx.Client
    victoriametrics: httpx.Client
    now: int
    rules: Path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    program("victoria-metrics", INSTALL)
    made = Server()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def without_rules() -> Iterator[Server]:
    """Another one, which Prometheus sends only what it scrapes."""
    program("victoria-metrics", INSTALL)
    made = Server()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, mongod: Mongod, server: Server, without_rules: Server) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("victoriametrics")
    url = f"http://127.0.0.1:{server.port}"
    at_once = {"queue_config": {"batch_send_deadline": "1s"}}
    written = {"url": f"{url}/api/v1/write", **at_once}
    scraped = {"source_labels": ["__name__"], "regex": ".*:.*|ALERTS.*", "action": "drop"}
    only_scraped = {"url": f"http://127.0.0.1:{without_rules.port}/api/v1/write", "write_relabel_configs": [scraped], **at_once}
    client = httpx.Client(base_url=url, trust_env=False, timeout=scaled(30), params={"nocache": "1"})
    with client, running_stack(folder / "stack", mongod, remote_write=[written, only_scraped]) as stack:
        export = [*COMMAND, "export", "--mongodb.uri", stack.uri, "--data-dir", str(folder / "data"), "--since", "30d"]
        done = subprocess.run(
            [*export, "--to", server.address], capture_output=True, text=True, timeout=scaled(120), check=False
        )
        assert done.returncode == 0, done.stderr
        answer = client.post("/api/v1/import/prometheus", content=hourly_aggregates(stack))
        assert answer.status_code == 204, answer.text
        now = int(time.time())
        # Prometheus before version 3 includes both ends of a range, which matters where both are samples of the history.
        now -= 5 if now % 300 < 5 else 0
        newest = "timestamp(cml_fleet:workers:count)"
        until(lambda: all(each > now for each in values(client, newest, time.time()).values()), "written by Prometheus", 60)
        client.get("/internal/force_flush")
        yield Both(stack, stack.prometheus.http, client, now, folder / "stack" / "rules")


def values(client: httpx.Client, query: str, at: float) -> dict[str, float]:
    answer = client.get("/api/v1/query", params={"query": query, "time": at}).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    return {json.dumps(each["metric"], sort_keys=True): float(each["value"][1]) for each in answer["data"]["result"]}


def hourly_aggregates(stack: Stack) -> str:
    """The hourly aggregates of remote read, as text with times."""
    lines = []
    for name in sorted({each.name for each in HOURLY_METRICS}):
        answer = stack.prometheus.ask(f'{name}{{store="{STORE}"}}[20d]')
        for each in answer["data"]["result"]:
            labels = ",".join(f"{label}={json.dumps(text)}" for label, text in each["metric"].items() if label != "__name__")
            lines += [f"{name}{{{labels}}} {value} {round(1000 * at)}" for at, value in each["values"]]
    return "\n".join(lines)


def answered(client: httpx.Client, dashboard: Json, panel: Json, target: Json, view: View, now: int) -> Series:
    """What a data source answers to a panel's query."""
    query = view.expand(target["expr"], panel, target)
    if target["instant"]:
        answer = client.get("/api/v1/query", params={"query": query, "time": now}).json()
    else:
        step = view.step(panel, target)
        end = align(now, step) if step >= HOUR else now
        between = {"start": end - view.range // step * step, "end": end, "step": step}
        answer = client.get("/api/v1/query_range", params={"query": query, **between}).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    return {
        tuple(sorted(each["metric"].items())): {
            float(at): float(value) for at, value in (each["values"] if "values" in each else [each["value"]])
        }
        for each in answer["data"]["result"]
    }


def is_rated(target: Json) -> bool:
    """VictoriaMetrics's rate and increase count the sample before the window, too, and do not extrapolate."""
    return "rate(" in target["expr"] or "increase(" in target["expr"]


def differences(panel: Json, target: Json, expected: Series, found: Series) -> Iterator[str]:
    """Yield what VictoriaMetrics answers otherwise."""
    if set(expected) != set(found):
        yield f"series only of Prometheus {set(expected) - set(found)}, only of VictoriaMetrics {set(found) - set(expected)}"
        return
    if is_rated(target):
        return
    for labels, points in expected.items():
        theirs = found[labels]
        if points.keys() - theirs.keys() or (theirs.keys() - points.keys() and panel["title"] not in ALSO_OF_THE_HISTORY):
            yield f"{labels}: {len(points)} and {len(theirs)} points"
        for at in points.keys() & theirs.keys():
            if not math.isclose(points[at], theirs[at], rel_tol=TOLERANCE, abs_tol=1e-9):
                yield f"{labels} at {at}: {points[at]} and {theirs[at]}"
                break


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_query_of_a_dashboard_has_prometheus_numbers_on_victoriametrics(both: Both, uid: str) -> None:
    wrong, compared = [], 0
    dashboard = DASHBOARDS[uid]
    for mode in ("all", "several"):
        chosen = variables(uid, both.stack, mode)
        if chosen.get("instance") is None:
            chosen["instance"] = [both.stack.exporter.url.removeprefix("http://")]
        view = View(seconds(dashboard["time"]["from"]), 1, chosen)
        for name, panel, target in queries(dashboard):
            expected = answered(both.prometheus, dashboard, panel, target, view, both.now)
            found = answered(both.victoriametrics, dashboard, panel, target, view, both.now)
            wrong += [f"{name} ({mode}): {each}" for each in differences(panel, target, expected, found)]
            compared += bool(expected) and not is_rated(target)
    assert wrong == []
    assert compared >= {conventions.ON_CALL: 9, conventions.EXPORTER: 25}.get(uid, 35)


def test_the_variables_offer_the_same_workers(both: Both) -> None:
    for dashboard in DASHBOARDS.values():
        view = View(seconds(dashboard["time"]["from"]), 1, variables(dashboard["uid"], both.stack, "all"))
        for each in dashboard["templating"]["list"][1:]:
            if each["type"] == "query" and each["query"]["query"].startswith("query_result("):
                query = view.expand(each["query"]["query"].removeprefix("query_result(").removesuffix(")"))
                assert (
                    set(values(both.victoriametrics, query, both.now)) == set(values(both.prometheus, query, both.now)) != set()
                )


OF_THE_TIME = re.compile("idle_seconds|idle:avg|deriv6h|predict24h|increase1m|counters:last")
"""Recorded values that change with every second: compared by their labels."""
NOT_OF_VMALERT = {"cml:alert_active_timestamp_seconds:firing", "cml:alert_active_timestamp_seconds:named"}
"""vmalert writes ALERTS_FOR_STATE only of alerts with `for`."""


def test_vmalert_records_what_prometheus_records(both: Both, without_rules: Server, tmp_path: Path) -> None:
    """By the same rule files, from what was scraped alone. It adds a label to alerts: the name of their group."""
    url = f"http://127.0.0.1:{without_rules.port}"
    flags = [
        f"-rule={both.rules}/*.yml",
        f"-datasource.url={url}",
        f"-remoteWrite.url={url}",
        "-notifier.url=http://127.0.0.1:9",
    ]
    vmalert = program("vmalert", INSTALL)
    log = (tmp_path / "vmalert.log").open("wb")
    process = subprocess.Popen(
        [vmalert, *flags, f"-httpListenAddr=127.0.0.1:{free_port()}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    recorded = {rule["record"] for file in both.rules.glob("*.yml") for rule in rules(file) if "record" in rule}
    left, counts = [*sorted(recorded - NOT_OF_VMALERT), 'ALERTS{alertstate="firing"}'], dict[str, int]()
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=scaled(30), params={"nocache": "1"}) as client:

            def differs(name: str) -> str:
                at = time.time()
                expected, found = values(both.prometheus, name, at), values(client, name, at)
                found = {re.sub(r'"alertgroup": "\w+", ', "", labels): value for labels, value in found.items()}
                timely = OF_THE_TIME.search(name)
                same = expected.keys() == found.keys() and (timely or found == pytest.approx(expected, rel=TOLERANCE))
                counts[name] = len(found)
                return "" if same else f"{name}: {expected} and {found}"

            # One by one: on a busy machine Prometheus misses a scrape, and for a moment what it records of it.
            deadline = time.monotonic() + min(scaled(120), 200)  # rules that read others take a round each
            while (wrong := {name: what for name in left if (what := differs(name))}) and time.monotonic() < deadline:
                left = list(wrong)
                time.sleep(1)
            assert list(wrong.values()) == [], (tmp_path / "vmalert.log").read_text()[-2000:]
            assert sum(map(bool, counts.values())) >= 40
    finally:
        process.terminate()
        process.wait(scaled(20))
        log.close()

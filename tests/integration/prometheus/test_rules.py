"""prometheus/ as Prometheus itself sees it: promtool and amtool take it, the rules do what their tests say."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from exporter.core.model import Worker, WorkerGauges
from exporter.metrics.telemetry import Telemetry
from tests.conftest import program
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port
from tests.helpers.worker_families import render
from tests.tools.mutate_rules import PROMETHEUS, Mutant, accepts, mutants, outcome, rewritten

PATIENCE = 40
INSTALL = "apt-get install prometheus"


# -- promtool and amtool -----------------------------------------------------------------------------------------------


def test_promtool_takes_the_configuration_and_every_rule() -> None:
    done = subprocess.run(
        [program("promtool", INSTALL), "check", "config", "--lint=all", "--lint-fatal", PROMETHEUS / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for file in (PROMETHEUS / "rules").glob("*.yml"):
        assert file.name in done.stdout


LONG = {"exporter_alerts": pytest.mark.waits(15)}
"""File of tests → so that it begins early: one process takes longer for it than for most other tests."""


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, id=file.stem, marks=LONG.get(file.stem, ())) for file in sorted((PROMETHEUS / "tests").glob("*.yml"))],
)
def test_the_rules_do_what_their_tests_say(file: Path) -> None:
    done = subprocess.run(
        [program("promtool", INSTALL), "test", "rules", file],
        env={**os.environ, "GOGC": "400"},  # a fifth of its time would be the search for garbage, of which there is little
        capture_output=True,
        text=True,
        timeout=scaled(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_amtool_takes_alertmanagers_configuration() -> None:
    done = subprocess.run(
        [program("amtool", "apt-get install prometheus-alertmanager"), "check-config", PROMETHEUS / "alertmanager.yml"],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- removed clauses (python -m tests.tools.mutate_rules tries all of them) ---------------------------------------------


@pytest.mark.nightly("test_the_mutation_check_sees_a_clause_no_test_needs_and_one_that_prometheus_refuses")
@pytest.mark.parametrize(("alert", "clauses"), [("CMLWorkerFailed", 6), ("CMLExporterNoLeader", 16)])
def test_a_promtool_test_notices_each_removed_clause_of_an_alert(alert: str, clauses: int) -> None:
    promtool = program("promtool", INSTALL)
    some = [mutant for mutant in mutants() if mutant.rule == alert]
    assert len(some) >= clauses
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda mutant: outcome(mutant, promtool), some))
    assert [mutant for mutant, result in zip(some, results, strict=True) if result != "killed"] == []


def test_the_mutation_check_sees_a_clause_no_test_needs_and_one_that_prometheus_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    (folder / "rules").mkdir(parents=True)
    (folder / "tests").mkdir()
    rule = {"alert": "Hot", "expr": "max by (a) (x) > 1 and on (a) y"}
    test = {
        "interval": "1m",
        "input_series": [{"series": 'x{a="1",b="1"}', "values": "2x5"}, {"series": 'y{a="1"}', "values": "1x5"}],
        "alert_rule_test": [{"alertname": "Hot", "eval_time": "3m", "exp_alerts": [{"exp_labels": {"a": "1"}}]}],
    }
    (folder / "rules/hot.yml").write_text(yaml.safe_dump({"groups": [{"name": "hot", "rules": [rule]}]}))
    (folder / "tests/hot.yml").write_text(yaml.safe_dump({"rule_files": ["../rules/hot.yml"], "tests": [test]}))
    promtool = program("promtool", INSTALL)
    by_what = {mutant.what: outcome(mutant, promtool, folder) for mutant in mutants(folder)}
    assert by_what["and on (a) y" if "and on (a) y" in by_what else "and y"] == "survived"
    assert by_what["max by (a)(…)"] == "killed"
    assert outcome(Mutant("hot.yml", "Hot", "sense", {"expr": "x >"}), promtool, folder) == "invalid"
    rewritten(folder, None, tmp_path / "anew")
    assert accepts(promtool, "test rules", [tmp_path / "anew/tests/hot.yml"])


# -- the real Prometheus -----------------------------------------------------------------------------------------------


def exposed(leader: int) -> bytes:
    """What an exporter of three workers exposes, one of them failed."""
    now = int(time.time())
    fleet = [
        WorkerGauges(
            Worker(f"w{number}", "eu-west-1", f"i-{number}", status, name=f"lab-{number}", active_labs=0),
            now,
            True,
            cpu=3.5,
            cpu_time=now,
            memory=50.0,
            memory_time=now,
        )
        for number, status in enumerate(("running", "stopped", "failed"))
    ]
    telemetry = Telemetry(CollectorRegistry())
    telemetry.leader.value = leader
    telemetry.source_succeeded("mongodb", "", now, 0.5)
    telemetry.source_succeeded("cloudwatch", "eu-west-1", now, 0.5)
    telemetry.mirror_last_success.value = now
    telemetry.outbox_samples.labels("observed").set(3)
    return render(fleet, []) + generate_latest(telemetry.registry)


class Exporters(BaseHTTPRequestHandler):
    """Two replicas, distinguished by port: /metrics, discovery, and a history that no rule may query."""

    history_queries = 0

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.answer(exposed(leader=1), "text/plain; version=0.0.4")
        else:
            labels = {"worker_id": "w0", "region": "eu-west-1", "__meta_cml_name": "lab-0"}
            self.answer(json.dumps([{"targets": ["127.0.0.1:9100"], "labels": labels}]).encode(), "application/json")

    def do_POST(self) -> None:
        Exporters.history_queries += 1
        self.answer(b"", "text/plain")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def exporters() -> Iterator[list[str]]:
    """The addresses of two exporters."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Exporters) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    yield [f"127.0.0.1:{server.server_port}" for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def fast_copy(folder: Path, exporters: list[str]) -> Path:
    """The repository's configuration for these exporters, evaluating every second; returns the file."""
    text = (PROMETHEUS / "prometheus.yml").read_text().replace("exporter:9877", exporters[0])
    content = yaml.safe_load(text)
    content["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    content["scrape_configs"][0]["static_configs"][0]["targets"] = exporters
    del content["alerting"]
    (folder / "rules").mkdir(parents=True)
    for file in (PROMETHEUS / "rules").glob("*.yml"):
        rules = yaml.safe_load(file.read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
        (folder / "rules" / file.name).write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(content))
    return folder / "prometheus.yml"


@contextmanager
def running(config: Path) -> Iterator[Callable[..., Any]]:
    """A Prometheus, as a function from a path of its API and parameters to the data."""
    port = free_port()
    log = config.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                program("prometheus", INSTALL),
                f"--config.file={config}",
                f"--storage.tsdb.path={config.parent / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=output,
        )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=scaled(10)) as client:

        def get(path: str, **parameters: str) -> Any:  # noqa: ANN401  # JSON
            try:
                answer = client.get(path, params=parameters)
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                return None
            return answer.json()["data"] if answer.status_code == 200 else None

        try:
            yield get
        finally:
            process.terminate()
            process.wait(scaled(PATIENCE))


def until(true: Callable[[], object], otherwise: Callable[[], object]) -> None:
    """Wait for it to be true."""
    deadline = time.monotonic() + scaled(PATIENCE)
    while not true():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)


def firing(get: Callable[..., Any]) -> dict[str, dict[str, str]]:
    """The annotations of what fires, by alert and worker."""
    return {
        " ".join(filter(None, (each["labels"]["alertname"], each["labels"].get("worker_id")))): each["annotations"]
        for each in (get("alerts") or {"alerts": []})["alerts"]
        if each["state"] == "firing"
    }


def test_a_real_prometheus_evaluates_every_rule_over_two_exporters_and_a_restart_changes_nothing(
    tmp_path: Path, exporters: list[str]
) -> None:
    Exporters.history_queries = 0
    config = fast_copy(tmp_path / "prometheus", exporters)

    def rules_of(get: Callable[..., Any]) -> list[dict[str, Any]]:
        return [rule for group in (get("rules") or {"groups": []})["groups"] for rule in group["rules"]]

    with running(config) as get:
        until(lambda: "CMLWorkerFailed w2" in firing(get), lambda: (firing(get), get("targets")))
        assert [(rule["name"], rule["lastError"]) for rule in rules_of(get) if rule["health"] != "ok"] == []
        before = firing(get)
        assert set(before) == {"CMLWorkerFailed w2"}
        assert before["CMLWorkerFailed w2"]["description"] == "Worker w2 (lab-2) in eu-west-1 has the status failed."
        link = "http://127.0.0.1:3000/d/cml-on-call?var-alertname=CMLWorkerFailed&var-region=eu-west-1&var-workers=w2"
        assert before["CMLWorkerFailed w2"]["dashboard_url"] == link
        found = get("query", query="cml_worker:status:current")["result"]
        assert sorted((each["metric"]["worker_id"], each["metric"]["status"]) for each in found) == [
            ("w0", "running"),
            ("w1", "stopped"),
            ("w2", "failed"),
        ]
        (node,) = [target for target in get("targets")["activeTargets"] if target["labels"]["job"] == "node"]
        assert node["labels"] == {"job": "node", "instance": "w0", "worker_id": "w0", "region": "eu-west-1"}
        assert node["scrapeUrl"] == "http://127.0.0.1:9100/metrics"
    with running(config) as get:
        until(lambda: rules_of(get) and all(rule["health"] == "ok" for rule in rules_of(get)), lambda: rules_of(get))
        until(lambda: firing(get), lambda: rules_of(get))
        assert firing(get) == before
    assert Exporters.history_queries == 0

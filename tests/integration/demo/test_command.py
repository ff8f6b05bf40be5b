"""The whole demo: the fake AWS's answers, and no child process that outlives the demo."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import boto3
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pymongo import MongoClient

from exporter.core.errors import ConfigError
from exporter.core.model import METRICS, MetricName
from exporter.core.periods import HOUR, MINUTE, align, to_datetime
from exporter.demo import prometheus
from exporter.demo.aws import SERIES, FakeAws
from exporter.demo.command import run, with_database
from exporter.demo.fleet import PERIOD, World, dimension_sets, fleet, published, status
from exporter.demo.folder import ENDPOINTS, LOCK, OUTBOX, WORLD, open_world
from exporter.demo.mongod import Mongod
from tests.conftest import missing
from tests.fixtures.mongo import need_mongod
from tests.helpers.deadlines import pause, scaled
from tests.helpers.demo_ledger import ledger
from tests.helpers.ports import free_port

Ledger = dict[tuple[str, MetricName, int], float]
PATIENCE = 60
HISTORY_QUERY = list(prometheus.QUERIES)[-1]
AT_NIGHT = pytest.mark.nightly("test_the_demo_runs_restarts_with_the_same_values_and_leaves_nothing_behind")
"""Of orderly ends, which others end with, and of those after the demo's history is written, which takes most of its start."""
SLEEPING_EXPORTER = (sys.executable, "-c", "import time; time.sleep(600)")
"""In place of the exporter; the demo stays in its start-up."""
MONGOD_STARTS = "/bin/sh -c read"
"""Beginning of the command line of mongod's guard, which the demo starts first."""
RUN = """
import asyncio, sys
from pathlib import Path
from exporter.demo import command as demo
directory, port, *command = sys.argv[1:]
sys.exit(asyncio.run(demo.run(Path(directory), fresh=False, port=int(port), command=command)))
"""


class Family:
    """A process and its descendants, found by a mark in their environment even when their parent is gone."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self.mark = f"DEMO_TEST={uuid.uuid4()}"
        name, _, text = self.mark.partition("=")
        environment = {key: value for key, value in os.environ.items() if key != "MONGODB_URI"} | {name: text}
        self.log = directory.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def members(self) -> dict[int, str]:
        """The running processes: process id → command line."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended meanwhile
        return found

    def children(self) -> dict[int, str]:
        assert self.process.poll() is None, self.log.read_text()
        return {pid: line for pid, line in self.members().items() if pid != self.process.pid}

    def wait_for_end(self) -> int:
        """Wait for the end of all processes and return the exit status of the first."""
        returned = self.process.wait(scaled(PATIENCE))
        wait_for(lambda: not self.members(), lambda: f"still alive: {self.members()}")
        return returned

    def kill(self) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def wait_for(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    began, patience = time.monotonic(), scaled(PATIENCE)
    while not condition():
        waited = time.monotonic() - began
        assert waited < patience, otherwise()
        time.sleep(pause(waited))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Family]]:
    families: list[Family] = []

    def begin(command: list[str]) -> Family:
        families.append(Family(command, tmp_path / "demo"))
        return families[-1]

    yield begin
    for family in families:
        family.kill()


def held_by(url: str, world: World, begin: int, end: int) -> Ledger:
    """Everything the fake CloudWatch answers about the fleet, over HTTP; series of one metric must agree."""
    held: Ledger = {}
    for region in {worker.region for worker in fleet(world)}:
        queries: list[Any] = []
        keys: dict[str, tuple[str, MetricName]] = {}
        for worker in (worker for worker in fleet(world) if worker.region == region):
            for metric in METRICS:
                for dimensions in dimension_sets(worker, metric):
                    keys[f"q{len(queries)}"] = (worker.instance_id, metric)
                    queries.append(query(f"q{len(queries)}", metric, dimensions))
        client = client_of(url, region)
        answer = client.get_metric_data(MetricDataQueries=queries, StartTime=to_datetime(begin), EndTime=to_datetime(end))
        client.close()
        for result in answer["MetricDataResults"]:
            assert result["StatusCode"] == "Complete"
            for at, value in zip(result["Timestamps"], result["Values"], strict=True):
                assert held.setdefault((*keys[result["Id"]], int(at.timestamp())), value) == value
    return held


def query(name: str, metric: MetricName, dimensions: Any) -> Any:  # noqa: ANN401  # boto3's shape
    namespace, metric_name = SERIES[metric]
    pairs = [{"Name": key, "Value": value} for key, value in dimensions]
    meant = {"Namespace": namespace, "MetricName": metric_name, "Dimensions": pairs}
    return {"Id": name, "MetricStat": {"Metric": meant, "Period": PERIOD, "Stat": "Average"}}


def client_of(url: str, region: str) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
    return boto3.client(
        "cloudwatch", region_name=region, endpoint_url=url, aws_access_key_id="demo", aws_secret_access_key="demo"
    )


@pytest.fixture
def world() -> World:
    return World(seed=3, start=int(time.time()))


@pytest.fixture
def aws(world: World) -> Iterator[tuple[FakeAws, str]]:
    fake = FakeAws(world)
    fake.publish(world.start)
    yield fake, fake.start()
    fake.stop()


def test_the_fake_cloudwatch_answers_with_exactly_the_ledger(world: World, aws: tuple[FakeAws, str]) -> None:
    begin, end = align(world.start, PERIOD) - 25 * HOUR, align(world.start, PERIOD)
    held = held_by(aws[1], world, begin, end)
    assert held == published(world, begin, end, world.start)
    assert len(held) > 5000


def test_each_period_is_published_once_when_it_is_due(world: World, aws: tuple[FakeAws, str]) -> None:
    later = world.start + 20 * MINUTE
    assert aws[0].publish(world.start) == 0
    new = sum(aws[0].publish(now) for now in range(world.start, later + 1, 5))
    before, after = (published(world, 0, now, now) for now in (world.start, later))
    assert new == len(after) - len(before)
    begin = align(world.start, PERIOD) - HOUR
    assert held_by(aws[1], world, begin, later) == published(world, begin, later, later)


def test_a_restarted_fake_cloudwatch_holds_the_same_and_what_it_missed(world: World, aws: tuple[FakeAws, str]) -> None:
    begin, end = align(world.start, PERIOD) - 6 * HOUR, align(world.start, PERIOD)
    before = held_by(aws[1], world, begin, end)
    aws[0].stop()
    again, later = FakeAws(world), world.start + 3 * HOUR
    again.publish(later)
    url = again.start()
    try:
        after = held_by(url, world, begin, later)
    finally:
        again.stop()
        aws[0].start()
    assert before.items() <= after.items()
    assert after == published(world, begin, later, later)


def test_the_fake_cloudwatch_lists_each_series_once_and_tells_the_time(world: World, aws: tuple[FakeAws, str]) -> None:
    client = client_of(aws[1], "us-east-1")
    answer = client.list_metrics(Namespace="CWAgent", MetricName="mem_used_percent", RecentlyActive="PT3H")
    client.close()
    listed = [tuple((part["Name"], part["Value"]) for part in metric["Dimensions"]) for metric in answer["Metrics"]]
    running = [worker for worker in fleet(world) if worker.region == "us-east-1" and worker.agent and worker.stopped_at is None]
    assert sorted(listed) == sorted(dimensions for worker in running for dimensions in dimension_sets(worker, "memory"))
    date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    assert abs((date - datetime.now(UTC)).total_seconds()) < 5


@pytest.mark.parametrize(
    ("moment", "how"),
    [
        pytest.param(MONGOD_STARTS, signal.SIGTERM, marks=AT_NIGHT),
        (MONGOD_STARTS, signal.SIGKILL),
        pytest.param(" ".join(SLEEPING_EXPORTER), signal.SIGINT, marks=AT_NIGHT),
        pytest.param(" ".join(SLEEPING_EXPORTER), signal.SIGKILL, marks=AT_NIGHT),
    ],
    ids=["mongod-SIGTERM", "mongod-SIGKILL", "exporter-SIGINT", "exporter-SIGKILL"],
)
def test_nothing_outlives_a_demo_ended_while_it_starts(
    start: Callable[[list[str]], Family], tmp_path: Path, how: signal.Signals, moment: str
) -> None:
    need_mongod()
    family = start([sys.executable, "-c", RUN, str(tmp_path / "demo"), str(free_port()), *SLEEPING_EXPORTER])
    wait_for(lambda: any(line.startswith(moment) for line in family.children().values()), family.log.read_text)
    family.process.send_signal(how)
    assert family.wait_for_end() == (0 if how != signal.SIGKILL else -signal.SIGKILL)
    assert not (tmp_path / "demo" / ENDPOINTS).exists()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


async def test_a_taken_port_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}, .* choose another port: make demo PORT=…"):
            await run(tmp_path / "demo", fresh=False, port=port)
    assert not names(tmp_path)


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_folder_with_other_files_is_not_changed(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "exporter").mkdir()
    (tmp_path / "exporter" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ConfigError, match="is not empty and not the folder of a demo; name another folder with --dir"):
        await run(tmp_path, fresh=fresh, port=free_port())
    assert names(tmp_path) == ["exporter", "thesis.txt"]


async def test_a_database_with_other_data_is_not_changed(
    tmp_path: Path, mongod: Mongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test_{uuid.uuid4().hex}"
    monkeypatch.setenv("MONGODB_URI", f"mongodb://127.0.0.1:{mongod.port}/{name}")
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        client[name]["workers"].insert_one({"_id": "real"})
        try:
            for fresh in (False, True):
                with pytest.raises(ConfigError, match=f"database {name} is not empty and not of a demo"):
                    await run(tmp_path / "demo", fresh=fresh, port=free_port())
            assert list(client[name]["workers"].find()) == [{"_id": "real"}]
        finally:
            client.drop_database(name)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("mongodb://db/", "mongodb://db/cml_demo"),
        ("mongodb://a:1,b:2/?replicaSet=rs", "mongodb://a:1,b:2/cml_demo?replicaSet=rs"),
        ("mongodb://db/mine?tls=true", "mongodb://db/mine?tls=true"),
        ("mongodb://u:p%40@db/", "mongodb://u:p%40@db/cml_demo?authSource=admin"),
        ("mongodb://u:p@db/?tls=true", "mongodb://u:p@db/cml_demo?tls=true&authSource=admin"),
        ("mongodb://u:p@db/?authSource=users", "mongodb://u:p@db/cml_demo?authSource=users"),
    ],
)
def test_a_database_of_its_own_is_used_where_the_uri_names_none(given: str, used: str) -> None:
    assert with_database(given) == used


async def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another demo runs in"):
            await run(tmp_path, fresh=True, port=free_port())


def test_fresh_removes_what_the_demo_made_and_nothing_else(tmp_path: Path) -> None:
    first = open_world(tmp_path, fresh=False)
    assert open_world(tmp_path, fresh=False) == first
    (tmp_path / OUTBOX).mkdir()
    (tmp_path / OUTBOX / "outbox.sqlite").write_text("")
    (tmp_path / ENDPOINTS).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / WORLD).write_text('{"seed": 1, "start": 1}')
    assert open_world(tmp_path, fresh=True).start >= first.start
    assert names(tmp_path) == sorted([WORLD, "notes.txt"])


def test_a_damaged_world_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / WORLD).write_text("{")
    with pytest.raises(ConfigError, match=r"cml-demo.json is damaged; start over with --fresh"):
        open_world(tmp_path, fresh=False)


def test_the_ledger_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of a demo"):
        ledger(tmp_path, 0, 1)


@pytest.mark.waits(50)
def test_the_demo_runs_restarts_with_the_same_values_and_leaves_nothing_behind(
    start: Callable[[list[str]], Family], tmp_path: Path
) -> None:
    need_mongod()
    directory = tmp_path / "demo"
    command = [sys.executable, "-m", "exporter.cli", "demo", "--dir", str(directory), "--port", "0"]

    family = start(command)
    endpoints = up(family, directory)
    if shutil.which("prometheus") is None:
        missing("prometheus", prometheus.INSTALL)
    assert set(endpoints) == {"exporter", "mongodb", "aws", "prometheus"}
    world = World(**json.loads((directory / WORLD).read_text()))
    begin, end = align(int(time.time()), PERIOD) - 24 * HOUR, align(int(time.time()), PERIOD) - PERIOD
    before = held_by(endpoints["aws"], world, begin, end)
    assert before == ledger(directory, begin, end)
    wait_for(
        lambda: not missing_gauges(endpoints["exporter"], world),
        lambda: f"{missing_gauges(endpoints['exporter'], world)} {family.log.read_text()}",
    )
    with MongoClient[dict[str, Any]](endpoints["mongodb"]) as client:
        assert client.get_default_database()["workers"].count_documents({}) == 12

    # Prometheus scrapes the exporter, and the last of the queries worth trying reads the history of the day before.
    for query in ("cml_worker_cpu_utilization_ratio", prometheus.QUERIES[HISTORY_QUERY]):
        wait_for(lambda query=query: len(query_prometheus(endpoints["prometheus"], query)) >= 9, family.log.read_text)  # type: ignore[misc]

    # Running workers only, by name: one never has a lab, one is stopped.
    def without_a_lab() -> set[str]:
        found = query_prometheus(endpoints["prometheus"], prometheus.QUERIES["who runs without a lab"])
        return {each["metric"]["worker"] for each in found}

    wait_for(lambda: "cml-iad-04" in without_a_lab(), family.log.read_text)
    assert "cml-iad-06" not in without_a_lab()
    # Of the newest day, which everybody opens first, labs and status are known from the start.
    with MongoClient[dict[str, Any]](endpoints["mongodb"]) as client:
        history = client.get_default_database()["worker_metrics_timeseries"]
        worker = next(each for each in fleet(world) if each.name == "cml-iad-01")
        times = {"$gte": to_datetime(begin), "$lt": to_datetime(end)}
        day = {"timestamp": times, "worker_id": worker.id}
        known = history.count_documents({**day, "status": "running", "active_labs_count": {"$exists": True}})
    assert known >= 286
    compare(endpoints, tmp_path)

    family.process.send_signal(signal.SIGTERM)
    assert family.wait_for_end() == 0, family.log.read_text()
    assert not (directory / ENDPOINTS).exists()

    family = start(command)
    again = up(family, directory)
    assert {again[part] for part in ("mongodb", "aws")} == {endpoints[part] for part in ("mongodb", "aws")}
    assert held_by(again["aws"], world, begin, end) == before
    # An exporter that ends by itself ends the demo.
    (exporter,) = (pid for pid, line in family.children().items() if " serve " in line)
    os.kill(exporter, signal.SIGKILL)
    assert family.wait_for_end() == 1, family.log.read_text()
    assert "the exporter ended by itself with status -9" in family.log.read_text()


def compare(endpoints: dict[str, str], folder: Path) -> None:
    """Have `verify` find the demo equal, and then name exactly the sample that was replaced by hand."""
    with MongoClient[dict[str, Any]](endpoints["mongodb"]) as client:
        history = client.get_default_database()["worker_metrics_timeseries"]
        found: list[dict[str, Any]] = []

        def is_equal() -> bool:
            found[:] = [verify(endpoints, folder)]
            return bool(found[0]["equal"])

        wait_for(is_equal, lambda: json.dumps(found))  # as soon as the exporter has filled the newest day
        (equal,) = found
        assert equal["metrics"]["cpu"]["equal"] > 2000
        assert (equal["examples"], equal["duplicates"]) == ([], 0)
        filled = {"cpu_utilization": {"$exists": True}, "timestamp": {"$gt": to_datetime(int(time.time()) - 6 * HOUR)}}
        chosen = history.find_one(filled, {"_id": 0}, sort=[("timestamp", 1)])
        assert chosen is not None
        worker_id = chosen["worker_id"]
        samples = list(history.find({"worker_id": worker_id}, {"_id": 0}))
        for sample in samples:
            sample["cpu_utilization"] = 99.75 if sample == chosen else sample.get("cpu_utilization")
        history.delete_many({"worker_id": worker_id})
        history.insert_many({name: value for name, value in each.items() if value is not None} for each in samples)
    changed = verify(endpoints, folder)
    assert changed["equal"] is False
    (named,) = changed["examples"]
    assert (named["kind"], named["metric"], named["worker_id"]) == ("different", "cpu", worker_id)
    assert datetime.fromisoformat(named["timestamp"]) == chosen["timestamp"].replace(tzinfo=UTC)
    assert (named["history"], named["cloudwatch"]) == (99.75, chosen["cpu_utilization"])


def verify(endpoints: dict[str, str], folder: Path) -> dict[str, Any]:
    """The result of `verify --since 1d`, as a user would run it beside the demo."""
    flags = {
        "--mongodb.uri": endpoints["mongodb"],
        "--cloudwatch.endpoint-url": endpoints["aws"],
        "--data-dir": str(folder / "verify"),
    }
    command = [sys.executable, "-m", "exporter.cli", "verify", "--since", "1d", "--json"]
    done = subprocess.run(
        [*command, *(f"{flag}={value}" for flag, value in flags.items())],
        env=os.environ | {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"},
        capture_output=True,
        text=True,
        timeout=scaled(PATIENCE),
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == result["equal"]
    return result


def up(family: Family, directory: Path) -> dict[str, str]:
    path = directory / ENDPOINTS
    wait_for(lambda: path.exists() or family.process.poll() is not None, family.log.read_text)
    assert path.exists(), family.log.read_text()
    endpoints: dict[str, str] = json.loads(path.read_text())
    with urlopen(endpoints["exporter"] + "/-/ready", timeout=scaled(5)) as response:
        assert response.status == 200
    return endpoints


def query_prometheus(url: str, query: str) -> list[Any]:
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': query})}", timeout=scaled(20)) as response:
        result: list[Any] = json.loads(response.read())["data"]["result"]
        return result


def missing_gauges(url: str, world: World) -> set[tuple[str, str]]:
    """What /metrics lacks, as (gauge, worker): cpu of every worker that has run for a while, memory where there is an agent."""
    with urlopen(url + "/metrics", timeout=scaled(5)) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    shown = {(sample.name, sample.labels.get("worker_id", "")) for family in families for sample in family.samples}
    now = int(time.time())
    running = [w for w in fleet(world) if all(status(w, now - age) == "running" for age in range(0, 20 * MINUTE, MINUTE))]
    assert len(running) >= 9
    wanted = {("cml_worker_cpu_utilization_ratio", worker.id) for worker in running}
    wanted |= {("cml_worker_memory_utilization_ratio", worker.id) for worker in running if worker.agent}
    return wanted - shown

"""The stack's parts that can run without Docker, run: the compose file, MongoDB's users, the demo's services, the package."""

import asyncio
import fnmatch
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from bson import json_util
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from deploy import check_stack
from deploy.demo_services import WORKERS, shared_world
from exporter.demo import past
from exporter.demo.mongod import Mongod
from exporter.storage.mongo import Document
from exporter.storage.privileges import least_role
from tests.conftest import program
from tests.fixtures.mongo import AuthMongod, connect
from tests.fixtures.process import RunExporter
from tests.fixtures.prometheus import RunPrometheus
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[3]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
NEEDED = ("GRAFANA_ADMIN_PASSWORD", "MONGODB_ROOT_PASSWORD", "MONGODB_EXPORTER_PASSWORD")
DATABASE = "cml_cloud_manager"

Composed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def composed() -> Composed:
    """`docker compose config` with an env file: Compose 2 where Docker has it, else Debian's docker-compose."""
    plugin = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    command = ["docker", "compose"] if plugin and plugin.returncode == 0 else ["docker-compose"]
    program(command[0], "apt-get install docker-compose")

    def config(env: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        command_line = [*command, "--file", str(ROOT / "docker-compose.yml"), "--env-file", str(env), *words, "config"]
        # Nothing of the machine's own environment fills a variable in.
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(command_line, env=kept, capture_output=True, text=True, timeout=scaled(60), check=False)

    return config


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """A new .env, as docs/deploy.md makes it."""
    file = tmp_path / "env"
    subprocess.run([ROOT / "deploy" / "new-env", file], check=True)
    return file


# -- the compose file --------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid_with_a_new_env(composed: Composed, env: Path) -> None:
    done = composed(env, "--profile", "demo")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == set(SERVICES)
    given = check_stack.read_env(env)
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == given["GRAFANA_ADMIN_PASSWORD"]
    exporter = services["exporter"]["environment"]
    assert exporter["CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL"] == given["CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL"]
    assert not exporter.get("CML_EXPORTER_PERIOD")  # left to the exporter where .env has none
    assert "WARN" not in done.stderr.upper(), done.stderr


def test_the_demo_is_no_part_of_the_stack_without_its_profile(composed: Composed, env: Path) -> None:
    text = env.read_text()
    env.write_text(re.sub(r"(?m)^(CML_EXPORTER_|AWS_|MONGODB_DEMO_).*\n", "", text))
    done = composed(env)
    assert done.returncode == 0, done.stderr
    running = {name for name, each in yaml.safe_load(done.stdout)["services"].items() if not each.get("profiles")}
    assert running == set(SERVICES) - {"fake-aws", "simulator"}


@pytest.mark.parametrize("name", NEEDED)
def test_without_a_password_the_service_does_not_start_and_says_the_way_out(name: str) -> None:
    """`docker compose ps`, `logs` and `down` need no password, so the compose file cannot require one."""
    script = ROOT / "deploy" / ("grafana" if name.startswith("GRAFANA") else "replicaset") / "start"
    inside = {"GRAFANA_ADMIN_PASSWORD": "GF_SECURITY_ADMIN_PASSWORD", "MONGODB_ROOT_PASSWORD": "MONGO_INITDB_ROOT_PASSWORD"}
    given = {inside.get(each, each): "secret" for each in NEEDED if each != name}
    done = subprocess.run(
        [script], env={"PATH": os.environ["PATH"], **given}, capture_output=True, text=True, timeout=scaled(60), check=False
    )
    assert done.returncode == 1
    assert inside.get(name, name).removeprefix("GF_SECURITY_") in done.stderr
    assert "make .env by deploy/new-env" in done.stderr


def test_the_compose_file_can_be_read_without_an_env(composed: Composed, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("")
    done = composed(tmp_path / "env", "--profile", "demo")
    assert done.returncode == 0, done.stderr


def test_grafana_starts_with_a_password() -> None:
    done = subprocess.run(
        [ROOT / "deploy" / "grafana" / "start", "word"],
        env={"PATH": os.environ["PATH"], "GF_SECURITY_ADMIN_PASSWORD": "secret", "GRAFANA_RUN": "/bin/echo"},
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=True,
    )
    assert done.stdout == "word\n"


@pytest.mark.parametrize("own", ["", "receivers", "receivers and inhibition"])
def test_alertmanager_starts_with_own_receivers_and_the_inhibition_rules_of_this_version(tmp_path: Path, own: str) -> None:
    amtool = program("amtool", "apt-get install prometheus-alertmanager")
    default = yaml.safe_load((ROOT / "prometheus" / "alertmanager.yml").read_text())
    mine: dict[str, Any] = {"route": {"receiver": "me"}, "receivers": [{"name": "me"}]}
    if "inhibition" in own:
        mine["inhibit_rules"] = default["inhibit_rules"][:1]
    if own:
        (tmp_path / "own.yml").write_text(yaml.safe_dump(mine, sort_keys=False))
    environment = {
        "PATH": os.environ["PATH"],
        "ALERTMANAGER_DEFAULT": str(ROOT / "prometheus" / "alertmanager.yml"),
        "ALERTMANAGER_OWN": str(tmp_path / "own.yml"),
        "ALERTMANAGER_FILE": str(tmp_path / "made.yml"),
        "ALERTMANAGER_PROGRAM": "/bin/echo",
    }
    command = [ROOT / "deploy" / "alertmanager" / "start", *SERVICES["alertmanager"]["command"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=scaled(60), check=True)
    assert done.stdout.split()[:2] == [f"--config.file={tmp_path / 'made.yml'}", SERVICES["alertmanager"]["command"][0]]
    subprocess.run([amtool, "check-config", tmp_path / "made.yml"], capture_output=True, timeout=scaled(60), check=True)
    made = yaml.safe_load((tmp_path / "made.yml").read_text())
    assert made == (default | mine if own else default)


def test_mongodb_is_healthy_once_it_takes_writes(tmp_path: Path) -> None:
    command = [*SERVICES["mongodb"]["healthcheck"]["test"][1:]]
    assert command == ["/opt/replicaset/healthy", "mongodb", "27017"]

    def check(port: int) -> "subprocess.CompletedProcess[str]":
        words = [str(ROOT / "deploy" / "replicaset" / "healthy"), "127.0.0.1", str(port)]
        return subprocess.run(words, capture_output=True, text=True, timeout=scaled(60), check=False)

    with Mongod(tmp_path / "data", free_port(), options=["--replSet", "rs0"]) as server:
        assert (check(server.port).returncode, "does not accept writes yet" in check(server.port).stderr) == (1, True)
        with MongoClient[Document](f"mongodb://127.0.0.1:{server.port}/?directConnection=true") as client:
            address = f"127.0.0.1:{server.port}"
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": address}]})
            wait_until(lambda: client.admin.command("hello").get("isWritablePrimary"))
        assert check(server.port).returncode == 0
        port = server.port
    assert check(port).returncode != 0


@pytest.mark.parametrize("state", ["branch", "packed", "detached", "none"])
def test_the_image_knows_the_commit_of_the_checkout(tmp_path: Path, state: str) -> None:
    git = program("git", "apt-get install git")

    def run(*words: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run([git, *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    commit = ""
    if state != "none":
        run("init", "--quiet", "--initial-branch=main")
        run("commit", "--quiet", "--allow-empty", "--message=one")
        commit = run("rev-parse", "HEAD")
        if state == "packed":
            run("pack-refs", "--all")
        if state == "detached":
            run("checkout", "--quiet", "--detach")
    told = subprocess.run([ROOT / "deploy" / "revision", tmp_path / ".git"], capture_output=True, text=True, check=True)
    assert told.stdout == f"{commit}\n"


def test_every_new_env_has_passwords_of_its_own_and_all_else_of_the_example(env: Path, tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "new-env", "other"], check=True, cwd=tmp_path)
    example = (ROOT / ".env.example").read_text().splitlines()
    passwords = set()
    lines = [file.read_text().splitlines() for file in (env, tmp_path / "other")]
    for mine, others, plain in zip(*lines, example, strict=True):
        if re.fullmatch(r"\w+_PASSWORD=", plain):
            assert re.fullmatch(re.escape(plain) + "[0-9a-f]{48}", mine)
            passwords |= {mine.partition("=")[2], others.partition("=")[2]}
        else:
            assert mine == others == plain
    assert len(passwords) == 2 * 4


def test_a_new_env_is_for_its_owner_only_and_never_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    for name in ("deploy/new-env", ".env.example"):
        shutil.copy(ROOT / name, tmp_path / name)

    def made() -> "subprocess.CompletedProcess[str]":
        command = ["sh", "-c", 'umask 000; exec "$0"', str(tmp_path / "deploy" / "new-env")]
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)

    file = tmp_path / ".env"
    (tmp_path / "prometheus").mkdir(0o700)  # as after a clone with umask 077
    closed = made()
    assert (closed.returncode, file.exists()) == (1, False)
    assert "chmod -R go+rX prometheus grafana/dashboards" in closed.stderr
    (tmp_path / "prometheus").chmod(0o755)
    assert made().returncode == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().endswith("\n")
    before = file.read_text()
    again = made()
    assert again.returncode == 1
    assert ".env exists already" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert file.read_text() == before
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert made().returncode == 1
    assert not (tmp_path / "elsewhere").exists()


def test_prometheus_takes_the_flags_of_the_stack(run_prometheus: RunPrometheus) -> None:
    words = [word.replace("${PROMETHEUS_RETENTION:-30d}", "30d") for word in SERVICES["prometheus"]["command"]]
    flags = [word for word in words if not word.startswith(("--config.file", "--storage.tsdb.path", "--web.external-url"))]
    assert flags == ["--storage.tsdb.retention.time=30d"]
    answer = run_prometheus({}, *flags).http.get("/api/v1/status/flags").json()["data"]
    assert answer["storage.tsdb.retention.time"] == "30d"
    assert all(word.removeprefix("--").partition("=")[0] in answer for word in words)


# -- MongoDB's users ---------------------------------------------------------------------------------------------------

_SHELL = """
// As much of mongosh as the script uses; each command goes to a real MongoDB, by way of the test.
const { execFileSync } = require("child_process");
const [script, url] = process.argv.slice(2);
const post = "fetch(process.argv[1], {method: 'POST', body: process.argv[2]}).then(r => r.text()).then(t => console.log(t))";
const runCommand = (name) => (command) =>
  JSON.parse(execFileSync(process.execPath, ["-e", post, url + name, JSON.stringify(command)]));
globalThis.db = {
  getSiblingDB: (name) => ({ runCommand: runCommand(name), hello: () => runCommand(name)({ hello: 1 }), auth: () => 1 }),
};
require("vm").runInThisContext(require("fs").readFileSync(script, "utf8"));
"""


class Users:
    """The stack's database, under another name that no other test has, and the init script to be run on it."""

    def __init__(self, node: str, folder: Path, mongod: AuthMongod, client: "MongoClient[dict[str, Any]]") -> None:
        self.database = f"test_{uuid.uuid4().hex}"
        self.client = client
        self._node, self._folder, self._mongod = node, folder, mongod
        (folder / "shell.js").write_text(_SHELL)
        script = (ROOT / "deploy" / "mongodb" / "users.js").read_text()
        assert script.count(f'"{DATABASE}"') == 1
        (folder / "users.js").write_text(script.replace(DATABASE, self.database))

    def make(self, **passwords: str) -> str:
        """Run the script, as the image of MongoDB does, and return what it says when it fails."""
        return run_in_shell(self._node, self._folder, "users.js", self.client, passwords)

    def uri(self, user: str, password: str) -> str:
        return self._mongod.uri(user, password, self.database)

    def names(self) -> set[str]:
        return {each["user"] for each in self.client[self.database].command("usersInfo")["users"]}

    def privileges(self, role: str) -> dict[tuple[str, str], set[str]]:
        (found,) = self.client[self.database].command("rolesInfo", role, showPrivileges=True)["roles"]
        assert not found["roles"]
        return as_sets(found["privileges"])

    def can_enter(self, user: str, password: str) -> bool:
        with MongoClient[dict[str, Any]](self.uri(user, password)) as client:
            try:
                return bool(client[self.database].command("ping")["ok"])
            except OperationFailure as error:
                if error.code != 18:  # AuthenticationFailed
                    raise
                return False


def run_in_shell(
    node: str, folder: Path, script: str, client: "MongoClient[dict[str, Any]]", environment: dict[str, str]
) -> str:
    """Run a script of `folder` beside shell.js, its commands on the client's server; return what it says when it fails."""

    class Bridge(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            command = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json_util.dumps(client[self.path[1:]].command(command)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Bridge) as port:
        done = subprocess.run(
            [node, "shell.js", script, f"http://127.0.0.1:{port}/"],
            cwd=folder,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
            timeout=scaled(60),
            check=False,
        )
    assert done.returncode == 0 or done.stderr
    return done.stderr


@pytest.fixture
def users(mongo_auth: AuthMongod, tmp_path: Path) -> Iterator[Users]:
    node = program("node", "apt-get install nodejs")
    with MongoClient[dict[str, Any]](mongo_auth.root_uri) as client:
        made = Users(node, tmp_path, mongo_auth, client)
        yield made
        client[made.database].command("dropAllUsersFromDatabase")
        client[made.database].command("dropAllRolesFromDatabase")
        client.drop_database(made.database)


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def as_sets(listed: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    return {(each["resource"]["db"], each["resource"]["collection"]): set(each["actions"]) for each in listed}


def test_the_init_script_makes_users_with_the_least_roles_and_repeats_itself_with_new_passwords(users: Users) -> None:
    for password in ("first", "second"):
        users.make(MONGODB_EXPORTER_PASSWORD=password, MONGODB_DEMO_PASSWORD="demo")
        assert users.privileges("exporter") == as_sets(least_role(users.database))
        own = {(users.database, name): {"find", "insert", "update"} for name in (WORKERS, past.STATE)}
        assert users.privileges("demo") == users.privileges("exporter") | own
        assert users.can_enter("exporter", password)
    assert not users.can_enter("exporter", "first")


def test_the_start_script_makes_a_private_key_once_and_a_set_of_the_standalone_servers_data(tmp_path: Path) -> None:
    """The script with the image's programs replaced, then the server with the key and the words it was given."""
    node, key, folder = program("node", "apt-get install nodejs"), tmp_path / "set.key", ROOT / "deploy" / "replicaset"
    for name, script in {
        "mongosh": f'echo "$@" >> {tmp_path}/calls; [ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; exit 1; }}',
        "docker-entrypoint.sh": f'sleep 3; echo "$@" > {tmp_path}/words',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MONGODB_KEY_FILE": str(key)}
    environment |= {"MONGO_INITDB_ROOT_PASSWORD": "secret", "MONGODB_EXPORTER_PASSWORD": "secret"}
    keys = set()
    for _ in range(2):
        subprocess.run([folder / "start", "--wiredTigerCacheSizeGB", "0.5"], env=environment, timeout=scaled(60), check=True)
        keys.add(key.read_text())
    assert key.stat().st_mode & 0o777 == 0o400
    (text,) = keys
    assert re.fullmatch(r"[A-Za-z0-9+/=]{512}", text)
    assert (tmp_path / "calls").read_text().splitlines()[0] == f"--quiet mongodb://mongodb:27017/admin {folder}/initiate.js"
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["--wiredTigerCacheSizeGB", "0.5"]

    with Mongod(tmp_path / "data", free_port(), auth=True) as standalone, MongoClient[Document](standalone.uri) as client:
        client.admin.command("createUser", "root", pwd="root", roles=["root"])
    with Mongod(tmp_path / "data", free_port(), auth=True, options=words[2:]) as server:
        root = f"mongodb://root:root@127.0.0.1:{server.port}/admin?directConnection=true"
        (tmp_path / "shell.js").write_text(_SHELL)
        initiate = (folder / "initiate.js").read_text()
        assert initiate.count('"mongodb:27017"') == 1
        (tmp_path / "initiate.js").write_text(initiate.replace("mongodb:27017", f"127.0.0.1:{server.port}"))
        with MongoClient[Document](root) as client:
            for _ in range(2):
                assert run_in_shell(node, tmp_path, "initiate.js", client, {"MONGO_INITDB_ROOT_PASSWORD": "root"}) == ""
            wait_until(lambda: client.admin.command("hello").get("isWritablePrimary"))
            assert client.admin.command("hello")["hosts"] == [f"127.0.0.1:{server.port}"]


def wait_until(condition: Callable[[], object]) -> None:
    """Poll until the condition holds; fail after a minute."""
    deadline = time.monotonic() + scaled(60)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_a_password_the_demo_has_no_user(users: Users) -> None:
    users.make(MONGODB_EXPORTER_PASSWORD="first", MONGODB_DEMO_PASSWORD="")
    assert users.names() == {"exporter"}


@pytest.mark.parametrize(
    ("exporter", "demo", "named"),
    [
        ("p@ss", "demo", "MONGODB_EXPORTER_PASSWORD"),
        ("", "demo", "MONGODB_EXPORTER_PASSWORD"),
        ("first", "a/b", "MONGODB_DEMO_PASSWORD"),
        ("first", "line\n", "MONGODB_DEMO_PASSWORD"),
    ],
)
def test_a_password_that_breaks_the_connection_strings_creates_no_user(
    users: Users, exporter: str, demo: str, named: str
) -> None:
    said = users.make(MONGODB_EXPORTER_PASSWORD=exporter, MONGODB_DEMO_PASSWORD=demo)
    assert f"{named} must be letters and digits only" in said
    assert users.names() == set()
    assert not users.client[users.database].command("rolesInfo")["roles"]


# -- the demo's services -----------------------------------------------------------------------------------------------


class Service:
    """One demo service, started as the stack starts it."""

    def __init__(self, folder: Path, words: list[str], uri: str) -> None:
        self.log = folder / f"{words[0]}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "deploy" / "demo_services.py"), *words],
                env={**os.environ, "MONGODB_URI": uri},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    def said(self) -> str:
        return self.log.read_text()

    def ends(self) -> int:
        return self.process.wait(scaled(30))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str], str], Service]]:
    started: list[Service] = []

    def begin(words: list[str], uri: str) -> Service:
        started.append(Service(tmp_path, words, uri))
        return started[-1]

    yield begin
    for service in started:
        service.process.kill()
        service.process.wait()


def healthy(service: str, replaced: Mapping[str, str]) -> bool:
    """Run a service's own health check, with what differs here replaced."""
    words = SERVICES[service]["healthcheck"]["test"]
    return passes(words[1:], replaced)


def passes(words: list[str], replaced: Mapping[str, str]) -> bool:
    for old, new in {"python": sys.executable, **replaced}.items():
        words = [new if word == old else word.replace(old, new) if old != "python" else word for word in words]
    return subprocess.run(words, capture_output=True, timeout=scaled(30), check=False).returncode == 0


def wait_for(condition: Callable[[], object], within: float, otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + scaled(within)
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.3)


@pytest.mark.nightly("test_both_services_and_their_restarts_share_one_simulated_fleet")
def test_the_demo_fills_the_history_through_the_users_of_the_stack(
    users: Users,
    start: Callable[[list[str], str], Service],
    run_exporter: RunExporter,
    tmp_path: Path,
) -> None:
    users.make(MONGODB_EXPORTER_PASSWORD="secret", MONGODB_DEMO_PASSWORD="demo")
    uri = users.uri("demo", "demo")
    port, alive = free_port(), tmp_path / "alive"
    at_aws, at_alive = {"5000": str(port)}, {"/tmp/alive": str(alive)}
    aws_words = [word.replace("0.0.0.0:5000", f"127.0.0.1:{port}") for word in SERVICES["fake-aws"]["command"]]
    simulator_words = [word.replace("/tmp/alive", str(alive)) for word in SERVICES["simulator"]["command"]]
    given = check_stack.read_env(ROOT / ".env.example")
    assert not healthy("fake-aws", at_aws)
    assert not healthy("simulator", at_alive)

    aws, simulator = start(aws_words, uri), start(simulator_words, uri)
    exporter = run_exporter(
        {"web": {"listen_address": [f"127.0.0.1:{free_port()}"]}},
        env={
            **{name: text for name, text in given.items() if name.startswith(("CML_EXPORTER_", "AWS_"))},
            "CML_EXPORTER_MONGODB__URI": users.uri("exporter", "secret"),
            "CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "CML_EXPORTER_AWS__STS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        },
        start=False,
    )
    wait_for(lambda: healthy("fake-aws", at_aws) and healthy("simulator", at_alive), 40, lambda: aws.said() + simulator.said())
    history = users.client[users.database]["worker_metrics_timeseries"]  # the past that the simulator has written
    history.delete_many({"worker_id": {"$in": history.distinct("worker_id")}})
    exporter.start()

    def inserted() -> float:
        return exporter.metrics().get('cml_exporter_mirror_samples_total{result="inserted"}', 0)

    exporter.wait_for(lambda: inserted() > 2000, 60, "through with the last day")
    series = [name for name in exporter.metrics() if name.startswith("cml_worker_cpu_utilization_ratio{")]
    assert 8 <= len(series) <= 12
    (command,) = re.findall(r"  CMD (\[\"python.*\])", (ROOT / "deploy" / "Dockerfile").read_text())
    assert passes(json.loads(command), {"9877": str(exporter.port)})
    assert not passes(json.loads(command), {"9877": str(free_port())})

    for service in (aws, simulator):
        service.process.send_signal(signal.SIGTERM)
        assert service.ends() == 0, service.said()
    assert exporter.stop() == 0


async def test_both_services_and_their_restarts_share_one_simulated_fleet(users: Users) -> None:
    users.make(MONGODB_EXPORTER_PASSWORD="secret", MONGODB_DEMO_PASSWORD="demo")
    async with connect(users.uri("demo", "demo")) as client:
        database = client[users.database]
        first, second = await asyncio.gather(*(shared_world(database) for _ in range(2)))
        await asyncio.sleep(1.1)  # a world made now would begin a second later
        assert first == second == await shared_world(database)


@pytest.mark.nightly("test_both_services_and_their_restarts_share_one_simulated_fleet")
def test_the_simulator_leaves_a_fleet_alone_that_is_not_the_demos(
    users: Users, start: Callable[[list[str], str], Service]
) -> None:
    users.make(MONGODB_EXPORTER_PASSWORD="secret", MONGODB_DEMO_PASSWORD="demo")
    workers = users.client[users.database]["workers"]
    workers.insert_one({"_id": "real"})
    service = start(["manager"], users.uri("demo", "demo"))
    assert service.ends() == 1
    assert f"{users.database}.workers holds workers that are not the demo's, such as real" in service.said()
    assert list(workers.find()) == [{"_id": "real"}]


@pytest.mark.parametrize(
    ("words", "uri", "message"),
    [
        (["manager"], "", "MONGODB_URI is not set"),
        (["manager"], "postgres://db", "MONGODB_URI is not a connection string of MongoDB"),
        (["manager"], "mongodb://127.0.0.1:1/db?serverSelectionTimeoutMS=100", "the demo cannot use MongoDB"),
        (["fake-aws", "--listen", "5000"], "mongodb://127.0.0.1:1/db", "--listen: '5000' cannot be listened on"),
    ],
)
def test_a_service_that_cannot_work_says_why(
    start: Callable[[list[str], str], Service], words: list[str], uri: str, message: str
) -> None:
    service = start(words, uri)
    assert service.ends() == 1
    assert message in service.said()
    assert "Traceback" not in service.said()


# -- the image ---------------------------------------------------------------------------------------------------------


def copy_context(target: Path) -> None:
    """Copy what .dockerignore leaves of the checkout, read as Docker does: the last pattern that matches decides."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        kept = True
        for pattern in patterns:
            plain = pattern.removeprefix("!")
            globs = [plain, f"{plain}/*", *([plain[3:], f"{plain[3:]}/*"] if plain.startswith("**/") else [])]
            if any(fnmatch.fnmatch(path, each) for each in globs):
                kept = pattern.startswith("!")
        return kept

    files = (".env.example", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "docker-compose.yml")
    for top in (
        "exporter",
        "man",
        "prometheus",
        "grafana",
        "deploy/systemd",
        "deploy/demo_services.py",
        "tests/unit",
        "secrets",
        *files,
    ):
        for file in [ROOT / top, *(ROOT / top).rglob("*")]:
            name = str(file.relative_to(ROOT))
            if (file.is_symlink() or file.is_file()) and sent(name):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name, follow_symlinks=False)


@pytest.mark.nightly("test_all_that_a_module_imports_is_pinned_for_its_image")
def test_the_package_builds_from_the_context_alone_and_runs(tmp_path: Path) -> None:
    context, site = tmp_path / "context", tmp_path / "site"
    copy_context(context)
    assert sorted(path.name for path in context.iterdir()) == [
        *("LICENSE", "README.md", "deploy", "exporter", "grafana", "hatch_build.py", "man", "prometheus", "pyproject.toml")
    ]
    kept = {f"prometheus/{name}" for name in ("prometheus.yml", "alertmanager.yml", "runbook.md", "local", "rules")}
    assert {str(path.relative_to(context)) for path in (context / "prometheus").iterdir()} == kept
    assert [path.name for path in (context / "prometheus" / "local").iterdir()] == ["README.md"]
    assert [path.name for path in (context / "grafana").iterdir()] == ["dashboards"]
    assert {path.suffix for path in (context / "exporter").rglob("*") if path.is_file() and not path.is_symlink()} == {
        ".py",
        ".pyi",
        ".proto",
        ".typed",
        ".binpb",
        ".html",
        ".css",
        ".js",
    }
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    (build,) = re.findall(r"pip wheel (.*) \.", (ROOT / "deploy" / "Dockerfile").read_text())
    subprocess.run([*pip, "wheel", *shlex.split(build), "."], cwd=context, check=True, timeout=scaled(120))
    (wheel,) = (context / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=scaled(120))
    assert (site / "bin" / "cml-worker-exporter").exists()
    assert (site / "exporter" / "py.typed").is_file(), "installed without its types"
    pages = {path.name for path in (context / "exporter" / "web" / "pages").rglob("*.*")}
    assert {"base.html", "pages.css", "chart.js"} < pages
    assert {path.name for path in (site / "exporter" / "web" / "pages").rglob("*.*") if path.suffix != ".pyc"} == pages
    assert len(list(site.glob("cml_worker_exporter-*.dist-info/licenses/LICENSE"))) == 1
    # -I: neither the checkout nor the folder it runs in.
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import exporter.cli, exporter.demo.command as d; print(d.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(site / "exporter" / "demo" / "command.py")


# -- the check of a running stack --------------------------------------------------------------------------------------


def loaded(names: Iterable[str], health: str = "ok") -> dict[str, Any]:
    """Prometheus' answer when it has these rules."""
    rules = [{"name": name, "health": health} for name in sorted(names)]
    return {"data": {"groups": [{"rules": rules[:1]}, {"rules": [*rules[1:], {**rules[0], "health": "unknown"}]}]}}


_GOOD: dict[str, Any] = {
    "/-/ready": {"ready": True, "sources": {"mongodb": {"ok": True, "error": None}}},
    "/api/workers": {"data": [{}] * 12},
    "/api/v1/query": {"data": {"result": [{"metric": {}, "value": [0, "1"]}]}},
    "/api/v1/rules": loaded(check_stack.rule_names()),
    "/api/v1/alertmanagers": {"data": {"activeAlertmanagers": [{"url": "http://alertmanager:9093/api/v2/alerts"}]}},
    "/api/v2/status": {"config": {"original": "route: {}"}},
    "/api/search": [{"uid": uid} for uid in check_stack.DASHBOARDS],
    f"/api/datasources/uid/{check_stack.DATA_SOURCE}/health": {"status": "OK"},
    "/api/dashboards/home": {"dashboard": {"title": "Fleet"}},
    **{
        f"/api/dashboards/uid/{uid}": {"dashboard": {"title": "Fleet"}, "meta": {"provisioned": True}}
        for uid in check_stack.DASHBOARDS
    },
}
"""What every part answers when all is well; one server plays them all."""


@contextmanager
def playing(answers: Mapping[str, Any], *, open_to_all: bool = False) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            for_grafana = path.startswith(("/api/search", "/api/dashboards", "/api/datasources"))
            allowed = open_to_all or not for_grafana or self.headers["Authorization"] == "Basic YWRtaW46c2VjcmV0"
            self.send_response(404 if path not in answers else 200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(path)).encode() if allowed else b"{}")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(Handler) as port:
        yield port


def checked(port: int, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    ports = {f"{name}_PORT": str(port) for name in ("EXPORTER", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")}
    lines = {"GRAFANA_ADMIN_PASSWORD": "secret", **ports, **more}.items()
    (folder / "env").write_text("".join(f"{name}={value}\n" for name, value in lines))
    script = [sys.executable, str(ROOT / "deploy" / "check_stack.py")]
    command = [*script, "--patience", "0", "--env-file", str(folder / "env"), "--workers", "12"]
    return subprocess.run(command, capture_output=True, text=True, timeout=scaled(60), check=False)


def test_the_check_of_a_stack_that_works_is_content(tmp_path: Path) -> None:
    with playing(_GOOD) as port:
        done = checked(port, tmp_path)
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"/api/search": [{"uid": "cml-fleet"}]}, "grafana: five dashboards"),
        ({f"/api/datasources/uid/{check_stack.DATA_SOURCE}/health": {"status": "ERROR"}}, "grafana: the data source answers"),
        ({"/api/dashboards/home": {"dashboard": {"title": "Welcome"}}}, "grafana: the home is cml-fleet"),
        ({"/api/v1/query": {"data": {"result": []}}}, "prometheus: the exporter is scraped"),
        ({"/api/v1/rules": loaded(check_stack.rule_names(), "err")}, "prometheus: every rule evaluates"),
        (
            {"/api/v1/rules": loaded(check_stack.rule_names() - {"CMLWorkerCPUHigh"})},
            "prometheus: has loaded prometheus/rules",
        ),
        ({"/api/v1/rules": loaded(check_stack.rule_names() | {"Removed"})}, "prometheus: has loaded prometheus/rules"),
        ({"/-/ready": {"ready": True, "sources": {"mongodb": {"ok": False}}}}, "exporter: ready, all sources can be read"),
        ({"/api/workers": {"data": []}}, "exporter: at least 12 workers"),
    ],
)
def test_the_check_of_a_stack_names_what_does_not_work(tmp_path: Path, wrong: dict[str, Any], line: str) -> None:
    with playing(_GOOD | wrong) as port:
        done = checked(port, tmp_path)
    assert done.returncode == 1
    assert [said for said in done.stdout.splitlines() if said.startswith("FAIL")] == [f"FAIL  {line}"]


def test_the_check_of_a_stack_names_the_cause_and_the_cure(tmp_path: Path) -> None:
    told = {"ready": True, "sources": {"mongodb": {"ok": False, "error": "the password is wrong"}}}
    with playing(_GOOD | {"/-/ready": told}) as port:
        done = checked(port, tmp_path, GRAFANA_CONTACT_POINT="pager")
    lines = done.stdout.splitlines()
    after = lines.index("FAIL  exporter: ready, all sources can be read")
    assert lines[after + 1].strip() == "mongodb: the password is wrong"
    assert "cml-worker-exporter check" in lines[after + 2]
    assert "one of none, remove, slack, webhook; it is 'pager'" in done.stdout


def test_the_check_of_a_stack_sees_files_that_the_services_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "prometheus", tmp_path / "prometheus")
    monkeypatch.setattr(check_stack, "ROOT", tmp_path)
    assert not check_stack.unreadable()
    (tmp_path / "prometheus" / "prometheus.yml").chmod(0o600)
    assert check_stack.unreadable() == [tmp_path / "prometheus" / "prometheus.yml"]


def test_the_check_of_a_stack_minds_a_prometheus_without_rules(tmp_path: Path) -> None:
    with playing(_GOOD | {"/api/v1/rules": {"data": {"groups": []}}}) as port:
        done = checked(port, tmp_path)
    failed = [line.partition("prometheus: ")[2] for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert failed == ["every rule evaluates", "has loaded prometheus/rules"]


def test_the_check_of_a_stack_knows_every_rule_there_is() -> None:
    files = [yaml.safe_load(file.read_text()) for file in (ROOT / "prometheus" / "rules").glob("*.yml")]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    assert check_stack.rule_names() == {rule.get("alert") or rule["record"] for rule in rules}


def test_the_check_of_a_stack_reports_a_grafana_without_passwords(tmp_path: Path) -> None:
    with playing(_GOOD, open_to_all=True) as port:
        done = checked(port, tmp_path)
    assert "FAIL  grafana: refuses requests without a password" in done.stdout

"""The Helm chart with Helm itself: rendered, linted, refused, run; what is rendered fits Kubernetes and Prometheus operator."""

import asyncio
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
import yaml

from exporter.core.periods import DAY, to_datetime
from exporter.demo.mongod import Mongod
from exporter.storage.repository import WorkerMetricsRepository
from tests.conftest import program
from tests.fixtures.mongo import connect
from tests.helpers.cases import by_day
from tests.helpers.chart import KUBERNETES, kubernetes_schemas, objects, of_kind, operator_schemas, tool
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import COMMAND
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.ports import free_port
from tests.tools.generate_chart import CHART, KUBE_VERSION, ROOT, VALUE_SETS, render, rendered

SETS = sorted(VALUE_SETS.glob("*.yaml"))
RULES = ROOT / "prometheus" / "rules"
HISTORY = "worker_metrics_timeseries"
MAX_SECRET_BYTES = 1024 * 1024
"""What Kubernetes stores in one Secret at most, and thus Helm of one release."""

each_set = pytest.mark.parametrize("values", SETS, ids=lambda file: file.stem)


@pytest.fixture
def helm() -> str:
    return tool("helm")


def refusal(helm: str, *flags: str) -> str:
    """Return why Helm refuses the values."""
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(helm, *flags)
    return str(refused.value.stderr)


def conformity(schemas: Path, text: str) -> dict[str, Any]:
    """Return what kubeconform says of the objects by the schemas in the folder."""
    command = [tool("kubeconform"), "-strict", "-summary", "-output", "json"]
    for suffix in ("{{.KindSuffix}}", "-{{.ResourceAPIVersion}}"):  # of Kubernetes, and as operator_schemas names them
        command += ["-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{suffix}.json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout)
    return result


def test_what_helm_renders_is_what_is_committed(helm: str) -> None:
    for path, text in rendered(helm).items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `make chart`, and read the difference"


@each_set
def test_helm_finds_nothing_wrong(helm: str, values: Path) -> None:
    command = [helm, "lint", "--strict", "--kube-version", KUBE_VERSION, "--values", str(values), str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize(
    "version",
    by_day(
        KUBERNETES[-1:],
        KUBERNETES,
        pytest.mark.nightly("test_everything_rendered_fits_the_schemas_of_kubernetes_and_the_operator"),
    ),
)
def test_everything_rendered_fits_the_schemas_of_kubernetes_and_the_operator(helm: str, tmp_path: Path, version: str) -> None:
    text = "".join(render(helm, "--values", str(values)) for values in SETS)
    kubernetes_schemas(tmp_path, version, {each["kind"] for each in objects(text)})
    operator_schemas(tmp_path, "podmonitors", "prometheusrules", "servicemonitors")
    result = conformity(tmp_path, text)
    assert result["summary"] == {"valid": len(objects(text)), "invalid": 0, "errors": 0, "skipped": 0}, result["resources"]
    wrong = render(helm, "--set", "monitor.enabled=true", "--skip-tests")
    for right in ("honorLabels", "podManagementPolicy", "unhealthyPodEvictionPolicy"):
        assert right in wrong
        wrong = wrong.replace(right, f"{right}s")
    assert conformity(tmp_path, wrong)["summary"]["invalid"] == 3


# -- rules and dashboards ----------------------------------------------------------------------------------------------


def test_the_operators_rules_are_the_repositorys(helm: str) -> None:
    """Helm evaluates no template in them, and changes no number."""
    made = of_kind(objects(render(helm, "--set", "prometheusRule.enabled=true")), "PrometheusRule")
    assert {each["metadata"]["name"].removeprefix("cml-worker-exporter-"): each["spec"] for each in made} == {
        file.stem.replace("_", "-"): yaml.safe_load(file.read_text()) for file in RULES.glob("*.yml")
    }


def test_addresses_and_thresholds_of_the_values_replace_those_of_the_rules(helm: str, tmp_path: Path) -> None:
    promtool = program("promtool", "apt-get install prometheus")
    made = of_kind(objects(render(helm, "--values", str(VALUE_SETS / "eks-irsa.yaml"))), "PrometheusRule")
    (settings,) = [each["spec"] for each in made if each["metadata"]["name"] == "cml-settings"]
    (tmp_path / "settings.yml").write_text(yaml.safe_dump(settings))
    subprocess.run([promtool, "check", "rules", tmp_path / "settings.yml"], check=True, capture_output=True)
    changed = [
        (new["record"], (new.get("labels") or {}).get("source"), new["expr"])
        for old_group, new_group in zip(
            yaml.safe_load((RULES / "settings.yml").read_text())["groups"], settings["groups"], strict=True
        )
        for old, new in zip(old_group["rules"], new_group["rules"], strict=True)
        if old != new
    ]

    def address(url: str) -> str:
        return f'label_replace(vector(1), "url", "{url}", "", "")'

    assert changed == [
        ("cml:runbook:info", None, address("https://git.example.org/cml-worker-metrics/prometheus/runbook.md")),
        ("cml:grafana:info", None, address("https://grafana.example.org")),
        ("cml:threshold:cpu_ratio", None, "vector(0.95)"),
        ("cml:threshold:source_duration_seconds", "cloudwatch", "vector(120)"),
    ]


def test_the_dashboards_are_the_repositorys(helm: str) -> None:
    made = of_kind(objects(render(helm, "--set", "dashboards.enabled=true")), "ConfigMap")
    dashboards = {name: json.loads(text) for each in made for name, text in each["data"].items() if name.endswith(".json")}
    assert dashboards == {file.name: json.loads(file.read_text()) for file in (ROOT / "grafana" / "dashboards").glob("*.json")}
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in made if "exporter.yml" not in each["data"])


def test_a_release_with_everything_fits_into_helms_secret(helm: str) -> None:
    text = render(helm, "--values", str(VALUE_SETS / "eks-irsa.yaml"))
    chart = "".join(file.read_text() for file in sorted(CHART.rglob("*")) if file.is_file())
    # Helm stores chart and manifest as JSON, compressed, in base64; Kubernetes stores that in base64 once more.
    assert len(gzip.compress(json.dumps([chart, text]).encode())) * (4 / 3) ** 2 < MAX_SECRET_BYTES / 2


def test_each_shard_has_a_stateful_set_whose_exporters_know_which_it_is(helm: str) -> None:
    text = render(helm, "--set", "shards=4,replicas=2")
    sets = of_kind(objects(text), "StatefulSet")
    shards = {}
    for each in sets:
        (container,) = each["spec"]["template"]["spec"]["containers"]
        (value,) = [flag.removeprefix("--shard=") for flag in container["args"] if flag.startswith("--shard=")]
        shards[each["metadata"]["name"]] = (value, each["spec"]["replicas"])
    assert shards == {f"cml-worker-exporter-{index}": (f"{index}/4", 2) for index in range(4)}
    assert len(of_kind(objects(text), "PodDisruptionBudget")) == 4
    (alone,) = of_kind(objects(render(helm)), "StatefulSet")
    assert not any(flag.startswith("--shard") for flag in alone["spec"]["template"]["spec"]["containers"][0]["args"])


# -- values that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("shards=2,config.workers.shard=0/2", "config.workers.shard is set by the chart"),
        ("shards=0", "minimum: got 0, want 1"),
        ("shards=257", "maximum: got 257, want 256"),
        ("replica=2", "additional properties 'replica' not allowed"),
        ("config.mongdb.retention=90d", "additional properties 'mongdb' not allowed"),
        ("config.mongodb.retention_days=90", "additional properties 'retention_days' not allowed"),
        ("config.mongodb.uri=mongodb://db", "config.mongodb.uri and config.mongodb.uri_file would stand in a ConfigMap"),
        ("config.history.forward[0].url=http://me:hidden@influxdb/cml", "config.history.forward has a url with a password"),
        ("mongodb.uri=mongodb://db,mongodb.existingSecret=x", "mongodb.uri and mongodb.existingSecret are both set"),
        ("mongodb.uri=mongodb://db,mongodb.existingSecretKey=x", "mongodb.existingSecretKey is for mongodb.existingSecret"),
        ("config.data_dir=/data", "config.data_dir is set by the chart"),
        ("config.web.listen_address=:80", "config.web.listen_address is fixed at port 9877"),
        ("config.web.config_file=web.yml", "config.web.config_file is set by the chart"),
        ("config.web.probes_need_auth=true", "config.web.probes_need_auth would fail every probe"),
        (
            "webConfig.content.rate_limit.burst=2,webConfig.existingSecret=x",
            "webConfig.content and webConfig.existingSecret are both set",
        ),
        (
            "webConfig.content.rate_limit.burst=2,webConfig.existingSecretKey=x",
            "webConfig.existingSecretKey is for webConfig.existingSecret",
        ),
        ("webConfig.content.rate_limit.burst=2,webConfig.tls=true", "webConfig.tls must be true if"),
        ("webConfig.content.tls_server_config.cert_file=tls.crt", "webConfig.tls must be true if"),
        ("webConfig.tls=true", "webConfig.tls needs a web configuration file"),
        (
            "webConfig.tls=true,webConfig.content.tls_server_config.client_auth_type=RequireAndVerifyClientCert",
            "client_auth_type would fail every probe",
        ),
        ("monitor.kind=Probe", "value must be one of 'ServiceMonitor', 'PodMonitor'"),
        (
            "prometheusRule.enabled=true,prometheusRule.thresholds.cpu=1",
            "prometheusRule.thresholds has no cpu; the thresholds are cpu_ratio,",
        ),
        ("prometheusRule.enabled=true,prometheusRule.thresholds.source_duration_seconds=9", "must be a number by source"),
        (
            "prometheusRule.enabled=true,prometheusRule.thresholds.cpu_ratio.cloudwatch=1",
            "prometheusRule.thresholds.cpu_ratio must be a number",
        ),
        ("export.persistence.enabled=true", "additional properties 'enabled' not allowed"),
        ("serviceAccount.roleArn=metrics", "does not match pattern"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(helm: str, flags: str, sentence: str) -> None:
    assert sentence in refusal(helm, "--set", flags)


def test_all_mistakes_are_named_at_once(helm: str) -> None:
    said = refusal(helm, "--set", "shards=3,config.workers.shard=0/3,config.data_dir=x")
    assert "config.workers.shard" in said
    assert "config.data_dir" in said


# -- what the operator of the chart is told ----------------------------------------------------------------------------


def notes(helm: str, folder: Path, *flags: str) -> str:
    """Return NOTES.txt as Helm shows it after an installation, which needs a cluster: here it is rendered into an object."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart, dirs_exist_ok=True)
    text = (chart / "templates" / "NOTES.txt").rename(chart / "files" / "notes")
    template = 'kind: Notes\ntext: {{ tpl (.Files.Get "files/notes") . | toJson }}\n'
    (chart / "templates" / "notes.yaml").write_text(template)
    assert text.exists()
    (made,) = of_kind(objects(render(helm, *flags, chart=chart)), "Notes")
    return str(made["text"])


def test_the_notes_have_the_remote_read_of_the_repository_as_the_operator_wants_it(helm: str, tmp_path: Path) -> None:
    told = notes(helm, tmp_path, "--set", "config.web.external_url=https://cml.example.org/workers/")
    found = re.search(r"^  remoteRead:\n((?:    .*\n)+)", told, re.MULTILINE)
    assert found
    (snippet,) = yaml.safe_load(found[0])["remoteRead"]
    operator_schemas(tmp_path, "prometheuses")
    prometheus = {"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": {"name": "p"}}
    result = conformity(tmp_path, yaml.safe_dump({**prometheus, "spec": {"remoteRead": [snippet]}}))
    assert result["summary"] == {"valid": 1, "invalid": 0, "errors": 0, "skipped": 0}, result["resources"]
    (known,) = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())["remote_read"]
    assert snippet.pop("url") == "http://cml-worker-exporter.cml.svc:9877/workers/api/v1/read"
    known.pop("url")
    assert {re.sub("[A-Z]", lambda upper: f"_{upper[0].lower()}", name): value for name, value in snippet.items()} == known


def test_the_guide_has_values_that_helm_accepts_and_the_remote_read_of_the_notes(helm: str, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "remoteRead" not in block]
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(block)
    flags = [word for number in range(len(blocks)) for word in ("--values", str(tmp_path / f"{number}.yaml"))]
    (stateful,) = of_kind(objects(render(helm, *flags)), "StatefulSet")
    claim = f"data-{stateful['metadata']['name']}-0"
    assert f"`{claim}`" in guide
    assert f"statefulset\n  {stateful['metadata']['name']} " in guide
    (block,) = re.findall(r"    remoteRead:\n((?:      .*\n)+)", guide)
    (told,) = yaml.safe_load(block)
    (noted,) = yaml.safe_load(re.findall(r"  remoteRead:\n((?:    .*\n)+)", notes(helm, tmp_path))[0])
    assert told == noted


def test_the_notes_name_what_is_left_to_do(helm: str, tmp_path: Path) -> None:
    told = notes(helm, tmp_path)
    assert "create secret generic cml-worker-exporter-mongodb --from-file=uri=/dev/stdin" in told
    assert "Nothing scrapes the exporter yet" in told
    assert "AWS bills each" not in told
    more = notes(
        helm, tmp_path / "2", "--set", "mongodb.existingSecret=x,monitor.enabled=true,replicas=2,persistence.enabled=false"
    )
    assert "create secret" not in more
    assert "Nothing scrapes" not in more
    assert "One of the 2 replicas polls CloudWatch, and the others show what it polled: AWS bills them as one." in more
    assert "The outbox has no volume" in more


# -- run as the pods do ------------------------------------------------------------------------------------------------


class Pods:
    """The rendered containers on this machine: every mount is a folder, and the image's command is this Python's."""

    def __init__(self, made: list[dict[str, Any]], root: Path) -> None:
        self.made = made
        self.root = root
        data: dict[tuple[str, str], dict[str, str]] = {
            (each["kind"], each["metadata"]["name"]): each.get("data") or each["stringData"]
            for each in of_kind(made, "ConfigMap", "Secret")
        }
        (stateful,) = of_kind(made, "StatefulSet")
        pod = stateful["spec"]["template"]["spec"]
        (self.container,) = pod["containers"]
        mounts = {mount["name"]: self.here(mount["mountPath"]) for mount in self.container["volumeMounts"]}
        for folder in (*mounts.values(), self.here("/export")):
            Path(folder).mkdir(parents=True, exist_ok=True)
        for volume in pod["volumes"]:
            secrets = (
                [volume["secret"]]
                if "secret" in volume
                else [one["secret"] for one in volume.get("projected", {}).get("sources", ())]
            )
            for secret in secrets:
                names = {item["key"]: item["path"] for item in secret.get("items", ())}
                for key, text in data["Secret", secret.get("secretName") or secret["name"]].items():
                    (Path(mounts[volume["name"]]) / names.get(key, key)).write_text(text)
            if "configMap" in volume:
                for key, text in data["ConfigMap", volume["configMap"]["name"]].items():
                    (Path(mounts[volume["name"]]) / key).write_text(self.here(text))
        (root / "bin").mkdir()
        entry = root / "bin" / "cml-worker-exporter"
        entry.write_text(f'#!/bin/sh\nexec {sys.executable} -m exporter.cli "$@"\n')
        entry.chmod(0o755)

    def here(self, text: str) -> str:
        """Replace the folders of the image by those of the test."""
        return re.sub(r"(?<![\w.])/(?=(etc|var/lib)/cml-worker-exporter|export\b)", f"{self.root}/", text)

    def job(self, name: str) -> "subprocess.CompletedProcess[str]":
        """Run the container of a CronJob to its end."""
        (job,) = [each for each in of_kind(self.made, "CronJob") if each["metadata"]["name"].endswith(f"-{name}")]
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        command = [self.here(word) for word in (*container.get("command", COMMAND), *container.get("args", ()))]
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            command, env={**os.environ, "PATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=scaled(60), check=False
        )

    @contextmanager
    def running(self) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
        """Run the exporter; yield its process and the URL of its port."""
        port = free_port()
        arguments = [self.here(word) for word in self.container["args"]]
        with (self.root / "log").open("wb") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
            )
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


async def seed(uri: str, yesterday: int) -> None:
    """Write a worker document and a sample of the worker at the time."""
    async with connect(uri) as client:
        database = client.get_default_database()
        await database.workers.insert_one({"_id": "w1", "aws_region": "eu-west-1", "status": "stopped"})
        history = WorkerMetricsRepository(database, period=300)
        await history.ensure_collection()
        sample = {"worker_id": "w1", "region": "eu-west-1", "timestamp": to_datetime(yesterday), "cpu_utilization": 42.5}
        await database[HISTORY].insert_one({**sample, "status": "running"})


def test_the_rendered_containers_run(helm: str, own_mongod: Mongod, fake_cloudwatch: FakeCloudWatch, tmp_path: Path) -> None:
    """The exporter answers its probes under a path and behind a password; the CronJobs' commands do what they are for."""
    uri = own_mongod.uri.replace("/?", "/cml_cloud_manager?")
    yesterday = int(time.time()) // DAY * DAY - DAY
    asyncio.run(seed(uri, yesterday))
    values = {
        "config": {
            "cloudwatch": {"endpoint_url": fake_cloudwatch.url},
            "web": {"external_url": "https://cml.example.org/worker-metrics/"},
        },
        "mongodb": {"uri": uri},
        "webConfig": {"content": {"basic_auth_users": {"a": bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}}},
        "verify": {"enabled": True},
        "export": {"enabled": True, "format": "csv"},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    pods = Pods(objects(render(helm, "--values", str(tmp_path / "values.yaml"))), tmp_path / "pod")

    with pods.running() as (process, url):
        deadline = time.monotonic() + scaled(30)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = pods.container[probe]["httpGet"]["path"]
            assert path.startswith("/worker-metrics/-/")
            status = 0
            while status != 200:
                assert time.monotonic() < deadline, (tmp_path / "pod" / "log").read_text()
                assert process.poll() is None, (tmp_path / "pod" / "log").read_text()
                try:
                    status = httpx.get(url + path).status_code
                except httpx.TransportError:
                    time.sleep(0.1)
        assert httpx.get(f"{url}/worker-metrics/metrics").status_code == 401
        assert list(Path(pods.here("/var/lib/cml-worker-exporter")).iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(scaled(20)) == 0

    done = pods.job("export")
    assert done.returncode == 0, done.stderr
    (file,) = Path(pods.here("/export")).iterdir()
    assert file.name == f"history-{to_datetime(yesterday):%Y-%m-%d}.csv"
    assert ",42.5,,,running" in file.read_text()

    done = pods.job("verify")
    assert json.loads(done.stdout)["history"] == f"cml_cloud_manager.{HISTORY}", done.stderr
    assert done.returncode == 3, done.stderr  # the only worker has no instance, so nothing could be compared

"""What is compared: whole processes that poll one fake CloudWatch each, and what they show on /metrics."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from bench.fake_aws import REGIONS, FakeAws
from bench.peers import cloudwatch_exporter, yace
from bench.processes import Process, environment
from exporter.core.model import MetricName
from exporter.demo.ports import free_port
from tests.helpers.certificates import write_certificate
from tests.helpers.fake_cloudwatch import instance_id

HERE = Path(__file__).resolve().parents[1]
READY_SECONDS = 120
VALUE_WINDOW_SECONDS = 900
"""Age up to which a shown value may be: the exporter's `max_age`."""
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_INSTANCE = re.compile(r'"(i-[0-9a-f]+)"')
_WORKER = re.compile(r'worker_id="worker-(\d+)"')
Values = dict[tuple[str, MetricName], float]
"""(instance, metric) → percent."""


@dataclass(frozen=True)
class Build:
    """One exporter to measure: a checkout of this repository and a Python that has its dependencies."""

    label: str = ""
    """Empty: this checkout and this Python."""
    tree: Path = HERE
    python: str = sys.executable

    def named(self, subject: str) -> str:
        return f"{subject} ({self.label})" if self.label else subject


def exporter_process(build: Build, command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> Process:
    """Start a command of a build of the exporter; `settings` are environment variables without their prefix."""
    variables = {f"CML_EXPORTER_{name}": value for name, value in settings.items()}
    environ = environment(PYTHONPATH=str(build.tree), **variables)
    return Process([build.python, "-m", "exporter.cli", *command], folder / "exporter.log", environ)


class Subject(ABC):
    """A process under test and the fake CloudWatch that it alone polls; a context manager.

    Attributes:
        name: in figures.
        ticks: whether `tick` makes it poll, because it has no cycle of its own.
        phase: second of the minute at which it has to start, because its cycles are counted from its start; None: any.
    """

    phase: int | None = None
    ticks = False

    def __init__(self, name: str, aws: FakeAws, folder: Path) -> None:
        self.name, self.aws, self.folder, self.port = name, aws, folder, free_port()

    @abstractmethod
    def start(self) -> Process:
        """Start the process."""

    def tick(self) -> None:
        """Make it poll; without effect where `ticks` is false."""
        return

    def values(self) -> Values | None:
        """Return what it shows of CPU and memory; None: it shows nothing."""
        return None

    def body(self, encoding: str = "identity") -> bytes:
        """Return /metrics as it was sent."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers={"Accept-Encoding": encoding})
        with urllib.request.urlopen(request, timeout=READY_SECONDS) as response:
            answer: bytes = response.read()
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        self._process = self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.__exit__(kind, error, trace)

    def wait_until_ready(self, path: str) -> None:
        """Wait until `path` is answered with 200; raises RuntimeError when the process ends or the time is over."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.pid:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=READY_SECONDS):
                    return
            except (urllib.error.HTTPError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"{self.name} was not ready within {READY_SECONDS} s; see {self._process.log}")


class Exporter(Subject):
    """`cml-worker-exporter serve` of a build; `settings` are environment variables without their prefix."""

    def __init__(self, name: str, aws: FakeAws, folder: Path, build: Build, settings: Mapping[str, str]) -> None:
        super().__init__(name, aws, folder)
        self._build, self._settings = build, settings

    @property
    def database(self) -> str:
        """Name of its database, which that of its folder is, too."""
        return self.folder.name

    @property
    def has_history(self) -> bool:
        return self._settings.get("MONGODB__HISTORY") != "null"

    def start(self) -> Process:
        settings = {"CLOUDWATCH__ENDPOINT_URL": self.aws.url, "DATA_DIR": str(self.folder / "data"), **self._settings}
        command = ["serve", "--web.listen-address", f"127.0.0.1:{self.port}"]
        return exporter_process(self._build, command, self.folder, settings)

    def values(self) -> Values:
        names: Mapping[str, MetricName] = {
            "cml_worker_cpu_utilization_ratio": "cpu",
            "cml_worker_memory_utilization_ratio": "memory",
        }
        found: Values = {}
        for name, labels, value in samples(self.body()):
            worker = _WORKER.search(labels)
            if name in names and worker:
                found[instance_id(int(worker[1])), names[name]] = float(value) * 100
        return found


class Yace(Subject):
    """YACE with two custom namespaces, scraping every minute from its start on."""

    phase = 25

    def start(self) -> Process:
        def job(name: str, namespace: str, metric: str) -> dict[str, object]:
            metrics = [{"name": metric, "statistics": ["Average"], "period": 60, "length": 300}]
            return {"name": name, "namespace": namespace, "regions": list(REGIONS), "metrics": metrics}

        jobs = [job("cpu", "AWS/EC2", "CPUUtilization"), job("memory", "CWAgent", "mem_used_percent")]
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yml"
        config.write_text(yaml.safe_dump({"apiVersion": "v1alpha1", "customNamespace": jobs}))
        command = [
            *(str(yace()), "--config.file", str(config), "--listen-address", f"127.0.0.1:{self.port}"),
            *("--scraping-interval", "60", "--log.level", "warn"),
        ]
        return Process(command, self.folder / "yace.log", environment(AWS_ENDPOINT_URL=self.aws.url))

    def values(self) -> Values:
        return by_instance(self.body())


class CloudWatchExporter(Subject):
    """cloudwatch_exporter, which polls while it is scraped; its only region is the first.

    It asks with GetMetricData, its cheaper way, and lists series once an hour.
    """

    ticks = True

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        write_certificate(self.folder, "proxy", hosts=[f"monitoring.{REGIONS[0]}.amazonaws.com"])
        certificate, key, store = (self.folder / name for name in ("proxy.crt", "proxy.key", "trusted.p12"))
        command = ["keytool", "-importcert", "-noprompt", "-file", str(certificate), "-keystore", str(store)]
        subprocess.run([*command, "-storepass", "changeit"], check=True, capture_output=True)
        proxy = [sys.executable, "-m", "bench.tls_proxy", "--port", str(port), "--to", str(self.aws.port)]
        proxy += ["--certificate", str(certificate), "--key", str(key)]
        self._proxy = Process(proxy, self.folder / "proxy.log", {**os.environ, "PYTHONPATH": str(HERE)}, HERE)
        self._properties = {
            "http.proxyHost": "127.0.0.1",  # by the scheme of the proxy, not by that of the request
            "http.proxyPort": str(port),
            "javax.net.ssl.trustStore": str(store),
            "javax.net.ssl.trustStorePassword": "changeit",
        }
        super().__enter__()
        self.wait_until_ready("/-/healthy")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._proxy.__exit__(kind, error, trace)

    def start(self) -> Process:
        def rule(namespace: str, metric: str, *dimensions: str) -> dict[str, object]:
            return {
                "aws_namespace": namespace,
                "aws_metric_name": metric,
                "aws_dimensions": list(dimensions),
                "aws_statistics": ["Average"],
            }

        memory = "mem_used_percent"
        config = {
            "region": REGIONS[0],
            "period_seconds": 60,
            "delay_seconds": 60,
            "range_seconds": 300,
            "set_timestamp": False,
            "use_get_metric_data": True,
            "list_metrics_cache_ttl": 3600,
            "metrics": [
                rule("AWS/EC2", "CPUUtilization", "InstanceId"),
                rule("CWAgent", memory, "InstanceId"),
                rule("CWAgent", memory, "ImageId", "InstanceId", "InstanceType"),
            ],
        }
        file = self.folder / "config.yml"
        file.write_text(yaml.safe_dump(config))
        java, jar = cloudwatch_exporter()
        properties = [f"-D{name}={value}" for name, value in self._properties.items()]
        return Process(
            [java, *properties, "-jar", str(jar), str(self.port), str(file)],
            self.folder / "cloudwatch_exporter.log",
            environment(AWS_REGION=REGIONS[0]),
        )

    def tick(self) -> None:
        """Scrape it."""
        self._body = self.body()

    def values(self) -> Values:
        return by_instance(self._body)


class BareClient(Subject):
    """`bench.bare_client`, polling every minute from its start on."""

    phase = 30

    def start(self) -> Process:
        command = [sys.executable, "-m", "bench.bare_client", "--url", self.aws.url, "--workers", str(self.aws.workers)]
        return Process(command, self.folder / "bare_client.log", environment(PYTHONPATH=str(HERE)), HERE)


def samples(body: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield name, labels, and value of every sample with labels."""
    for match in _SAMPLE.finditer(body.decode()):
        name, labels, value = match.groups()
        yield name, labels, value


def by_instance(body: bytes) -> Values:
    """Return CPU and memory of a peer, whose series carry the instance id as a label."""
    found: Values = {}
    for name, labels, value in samples(body):
        instance = _INSTANCE.search(labels)
        if instance and name.endswith("_cpuutilization_average"):
            found[instance[1], "cpu"] = float(value)
        elif instance and name.endswith("_mem_used_percent_average"):
            found[instance[1], "memory"] = float(value)
    return found


def wrong_values(found: Values, aws: FakeAws, now: float) -> int:
    """Count the values that are missing, too many, or not those of a recent period."""
    expected = {(instance_id(k), "cpu") for k in range(aws.workers)}
    expected |= {(instance_id(k), "memory") for k in range(aws.workers) if k % 50 != 49}
    starts = range(int(now) // 60 * 60 - VALUE_WINDOW_SECONDS, int(now), 60)
    wrong = len(expected ^ set(found))
    for (instance, metric), value in found.items():
        wrong += not any(abs(aws.value(instance, metric, start) - value) < 1e-6 for start in starts)
    return wrong

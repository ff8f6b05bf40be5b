"""Real VictoriaMetrics, InfluxDB and PostgreSQL on free ports, which can be killed and started again on their data."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from exporter.core.history_metrics import METRIC_FIELDS
from tests.conftest import program
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port

Row = tuple[str, int, Mapping[str, float], str | None]
"""Worker id, UTC milliseconds, field → value, status."""


class StoreServer(ABC):
    """One server, its data in a folder that is removed by `remove`."""

    scheme = ""
    path = ""
    user: str | None = None
    """The system user it runs as."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cml-store-"))  # a server of another user must reach it
        self.port = free_port()
        if self.user is not None and os.getuid() == 0:
            shutil.chown(self.folder, self.user)
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.prepare()
        self.start()

    @property
    def address(self) -> str:
        """What `export --to` takes."""
        return f"{self.scheme}://127.0.0.1:{self.port}{self.path}"

    @abstractmethod
    def prepare(self) -> None:
        """Make its data folder."""

    @abstractmethod
    def command(self) -> list[str]:
        """Its command line."""

    @abstractmethod
    def is_up(self) -> bool:
        """Whether it answers."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Everything it has, sorted; a sample that it has twice is there twice."""

    def start(self) -> None:
        """Start it on its data and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, user=self._as()
            )
        deadline = time.monotonic() + scaled(60)
        while not self.is_up():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once, as when the machine loses power, but with its writes to the kernel."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """End it and remove its data."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(scaled(20))
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder)

    def _as(self) -> str | None:
        return self.user if os.getuid() == 0 else None

    def _get(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", params=parameters, trust_env=False, timeout=scaled(30))

    def _answers(self, path: str) -> bool:
        try:
            return self._get(path).status_code < 300
        except httpx.TransportError:
            return False


class VictoriaMetricsServer(StoreServer):
    """A single-node VictoriaMetrics that keeps one copy of a sample."""

    scheme = "victoriametrics+http"
    deduplicates = True

    def prepare(self) -> None:
        (self.folder / "data").mkdir()

    def command(self) -> list[str]:
        flags = [f"-storageDataPath={self.folder / 'data'}", f"-httpListenAddr=127.0.0.1:{self.port}", "-retentionPeriod=10y"]
        flags += ["-dedup.minScrapeInterval=1ms"] if self.deduplicates else []
        return [program("victoria-metrics", "apt-get install victoria-metrics"), *flags]

    def is_up(self) -> bool:
        return self._answers("/health")

    def rows(self) -> list[Row]:
        """Read back from the series that PromQL sees."""
        self._get("/internal/force_flush")
        time.sleep(1)
        found: dict[tuple[str, int], dict[str, Any]] = {}
        twice: list[Row] = []
        scales = {
            "cml_worker_cpu_utilization_ratio": 100,
            "cml_worker_memory_utilization_ratio": 100,
            "cml_worker_active_labs": 1,
        }
        fields = dict(zip(scales, METRIC_FIELDS, strict=True))
        exported = self._get("/api/v1/export", **{"match[]": '{store="history"}', "reduce_mem_usage": "0"}).text
        for line in map(json.loads, exported.splitlines()):
            metric = line["metric"]
            seen = set()
            for at, value in zip(line["timestamps"], line["values"], strict=True):
                if at in seen:
                    twice.append((metric["worker_id"], at, {}, None))
                seen.add(at)
                sample = found.setdefault((metric["worker_id"], at), {"fields": {}, "status": None})
                if name := fields.get(metric["__name__"]):
                    sample["fields"][name] = round(value * scales[metric["__name__"]], 9)
                elif metric["__name__"] == "cml_worker_status" and value == 1:
                    sample["status"] = metric["status"]
        return sorted([(*key, each["fields"], each["status"]) for key, each in found.items()] + twice, key=lambda row: row[:2])


class InfluxDBServer(StoreServer):
    """InfluxDB 1 without a password."""

    scheme = "influxdb+http"
    path = "/cml"

    def prepare(self) -> None:
        (self.folder / "influxdb.conf").write_text(
            f"""
reporting-disabled = true
bind-address = "127.0.0.1:{free_port()}"
[meta]
dir = "{self.folder}/meta"
[data]
dir = "{self.folder}/data"
wal-dir = "{self.folder}/wal"
[http]
bind-address = "127.0.0.1:{self.port}"
"""
        )

    def command(self) -> list[str]:
        return [program("influxd", "apt-get install influxdb"), "-config", str(self.folder / "influxdb.conf")]

    def is_up(self) -> bool:
        return self._answers("/ping")

    def rows(self) -> list[Row]:
        answer = self._get("/query", db="cml", epoch="ms", q="SELECT * FROM cml_worker_metrics").json()
        (result,) = answer["results"]
        rows: list[Row] = []
        for series in result.get("series", []):
            for values in series["values"]:
                row = dict(zip(series["columns"], values, strict=True))
                fields = {field: row[field] for field in METRIC_FIELDS if row.get(field) is not None}
                rows.append((row["worker_id"], row["time"], fields, row.get("status")))
        return sorted(rows, key=lambda row: row[:2])


class PostgreSQLServer(StoreServer):
    """PostgreSQL, which refuses to run as root."""

    scheme = "postgresql"
    path = "/postgres?user=postgres"
    user = "postgres"

    def prepare(self) -> None:
        pwd.getpwnam("postgres")
        data, initdb = str(self.folder / "data"), _postgres("initdb")
        command = [initdb, "--pgdata", data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]
        subprocess.run(command, check=True, capture_output=True, user=self._as(), cwd=self.folder, timeout=scaled(120))

    def command(self) -> list[str]:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        return [_postgres("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]

    def is_up(self) -> bool:
        ready = [_postgres("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False, timeout=scaled(30)).returncode == 0

    def rows(self) -> list[Row]:
        import psycopg

        with psycopg.connect(self.address) as connection:
            columns = ", ".join(("worker_id", '(extract(epoch FROM "timestamp") * 1000)::bigint', "status", *METRIC_FIELDS))
            found = connection.execute(f"SELECT {columns} FROM cml_worker_metrics ORDER BY 1, 2").fetchall()
        return [
            (
                worker_id,
                at,
                {field: value for field, value in zip(METRIC_FIELDS, values, strict=True) if value is not None},
                status,
            )
            for worker_id, at, status, *values in found
        ]


def _postgres(name: str) -> str:
    """Where a program of the newest PostgreSQL is; Debian has them outside of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return str(folders[-1] / name) if folders else program(name, "apt-get install postgresql")


SERVERS: Mapping[str, type[StoreServer]] = {
    "victoriametrics": VictoriaMetricsServer,
    "influxdb": InfluxDBServer,
    "postgresql": PostgreSQLServer,
}

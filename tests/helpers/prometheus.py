"""A real Prometheus on a free port with any configuration, queried by its API."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.helpers.deadlines import scaled
from tests.helpers.ending import end
from tests.helpers.ports import free_port

_PATIENCE = 30.0

Labels = tuple[tuple[str, str], ...]


class Prometheus:
    """One `prometheus`, its data in a folder of its own."""

    def __init__(self, program: str, folder: Path, configuration: Mapping[str, Any], *flags: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(dict(configuration)))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=scaled(30))
        deadline = time.monotonic() + scaled(_PATIENCE)
        while not self._is_ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, query: str, time: float | None = None) -> dict[str, Any]:
        """The whole answer to an instant query."""
        answer = self.http.get("/api/v1/query", params={"query": query} | ({} if time is None else {"time": str(time)}))
        content: dict[str, Any] = answer.json()
        assert content["status"] == "success", content
        return content

    def value(self, query: str, time: float | None = None) -> float:
        """The value of a query that has one series."""
        (found,) = self.values(query, time).values()
        return found

    def values(self, query: str, time: float | None = None) -> dict[Labels, float]:
        """Sorted labels → value of an instant query, without any warning."""
        content = self.ask(query, time)
        assert not content.get("warnings"), content["warnings"]
        return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in content["data"]["result"]}

    def stop(self) -> None:
        """End it."""
        self.http.close()
        end(self._process, scaled(20))

    def _is_ready(self) -> bool:
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

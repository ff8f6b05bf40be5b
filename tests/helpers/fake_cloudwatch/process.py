"""The fake CloudWatch as a process of its own: it takes no time from a test's event loop, and its CPU counts for no subject."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.helpers.deadlines import scaled
from tests.helpers.ending import end
from tests.helpers.fake_cloudwatch.instances import Instances, fleet
from tests.helpers.ports import free_port

START_SECONDS = 60
STOP_SECONDS = 30
_ROOT = Path(__file__).resolve().parents[3]


def control(url: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Give an order to the fake CloudWatch at a URL, and return its answer."""
    request = urllib.request.Request(f"{url}/ctl", data=json.dumps(order).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=scaled(START_SECONDS)) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


class FakeCloudWatchProcess:
    """`python -m tests.helpers.fake_cloudwatch` on a free port, between entering and leaving the block.

    Args:
        folder: where its log is written.
        workers: instances that always ran, see `fleet`; `add` adds others.
        latency: seconds before each answer.
        period: of its datapoints, in seconds.
        regions: that the instances of `workers` are divided among.
        seed: of the values.

    Attributes:
        instances: the same instances in this process, for the ledger: values are a pure function.
    """

    def __init__(
        self, folder: Path, workers: int, latency: float = 0, period: int = 300, regions: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.port = free_port()
        self.workers = workers
        self.instances = Instances(time.time, seed, period)
        fleet(self.instances, workers, regions)
        options = {"port": self.port, "workers": workers, "latency": latency, "period": period, "seed": seed}
        self._command = [
            *(sys.executable, "-m", "tests.helpers.fake_cloudwatch", "--regions", ",".join(regions)),
            *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        ]
        self._log = folder / f"fake_aws_{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            RuntimeError: it has not been started, or has ended; the message holds the end of its log.
        """
        if self._process is None or self._process.poll() is not None:
            tail = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else "it was not started"
            raise RuntimeError(f"the fake CloudWatch does not run:\n{tail}")
        return self._process.pid

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                cwd=_ROOT,
            )
        deadline = time.monotonic() + scaled(START_SECONDS)
        while self.url not in self._log.read_text():
            if time.monotonic() > deadline or not self.pid:
                self._end()
                raise RuntimeError(f"the fake CloudWatch did not start; see {self._log}")
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            end(self._process, STOP_SECONDS)

    def control(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Give it an order, and return its answer: the counters before a reset."""
        return control(self.url, order)

    def add(self, described: Sequence[Mapping[str, Any]]) -> None:
        """Add instances, described as in the order `add` of /ctl, here and there."""
        self.instances.add_described(described)
        self.control({"add": described, "brief": True})

"""Processes as a benchmark sees them from outside: their CPU time and memory, children included."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.helpers.ending import end

STOP_SECONDS = 30
_CPUCLOCK_SCHED = 2


def cpu_seconds(pid: int) -> float:
    """Return the CPU that a process and its living children have used, in nanosecond resolution, ended threads included.

    The kernel's clock of another process (clock_getcpuclockid(3)); /proc/PID/stat counts in steps of 10 ms, a whole cycle of
    a Go program.
    """
    return sum(time.clock_gettime((~each << 3) | _CPUCLOCK_SCHED) for each in family(pid))


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process and its living children."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(pid: int) -> list[int]:
    """Return a process and its living children, theirs too."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


class Process:
    """A process with its log, ended when the block is left; `cwd` defaults to the folder of the log."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path | None = None) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd or log.parent,
            )

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            RuntimeError: it has ended; the message holds the end of its log.
        """
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{' '.join(map(str, self._process.args))[:80]}… ended with {self._process.returncode}:\n{tail}")  # type: ignore[arg-type]
        return self._process.pid

    def wait(self) -> int:
        """Wait until it ends by itself, and return its exit status."""
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        end(self._process, STOP_SECONDS)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a measured process: that of this one, with fake keys and no settings of AWS or the exporter."""
    dropped = ("AWS_", "CML_EXPORTER_", "PYTHONDONTWRITEBYTECODE")  # without bytecode each process would compile for a second
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_EC2_METADATA_DISABLED": "true"}
    return {**kept, **keys, "AWS_REGION": "eu-west-1", **more}

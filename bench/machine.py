"""What a run depends on: versions, machine, load, and time."""

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.peers import CLOUDWATCH_EXPORTER_VERSION, YACE_VERSION
from exporter import __version__
from exporter.demo.mongod import find_mongod

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("boto3", "httptools", "orjson", "prometheus-client", "pymongo", "uvicorn", "uvloop")


def machine() -> dict[str, Any]:
    """Return CPU, cores, memory, and system."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the version of everything that is measured, by name; "missing" where it is not installed."""
    mongod = find_mongod()
    return {
        "exporter": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        **{name: version(name) for name in PACKAGES},
        "mongod": _first_line([str(mongod), "--version"], r"version v(\S+)") if mongod else "missing",
        "Prometheus": _first_line(["prometheus", "--version"], r"version (\S+)"),
        "YACE": YACE_VERSION,
        "Go": _first_line(["go", "version"], r"go(\S+)"),
        "cloudwatch_exporter": CLOUDWATCH_EXPORTER_VERSION,
        "Java": _first_line(["java", "-version"], r'"([^"]+)"'),
    }


def _first_line(command: list[str], pattern: str) -> str:
    if shutil.which(command[0]) is None:
        return "missing"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


def commit() -> str:
    """Return the commit of this checkout, with "+" when files were changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def load() -> list[float]:
    """Return the load averages of 1, 5, and 15 minutes."""
    return [round(each, 2) for each in os.getloadavg()]


def stolen() -> tuple[int, int]:
    """Return the time that the host gave to other machines, and all time, in ticks (proc(5), /proc/stat)."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def now() -> str:
    """Return the UTC time in RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def command() -> str:
    """Return the command line of this run; files and folders by their last name, for they differ from machine to machine."""
    return " ".join(["python -m bench", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])])

"""The peers as programs: YACE built by Go from the module beside this file, cloudwatch_exporter fetched by Maven.

Both are built once into a cache folder outside the repository, $XDG_CACHE_HOME/cml-worker-exporter (~/.cache by default).
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cml-worker-exporter" / "bench"
HERE = Path(__file__).resolve().parent
YACE_MODULE = "github.com/prometheus-community/yet-another-cloudwatch-exporter"
YACE_VERSION = re.search(rf"{YACE_MODULE} v(\S+)", (HERE / "yace" / "go.mod").read_text())[1]  # type: ignore[index]
CLOUDWATCH_EXPORTER_VERSION = "0.16.0"
CLOUDWATCH_EXPORTER_JAR = f"cloudwatch_exporter-{CLOUDWATCH_EXPORTER_VERSION}-jar-with-dependencies.jar"
MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
BUILD_SECONDS = 900


class UnavailablePeerError(Exception):
    """A peer that cannot be built here; one sentence why."""


def yace() -> Path:
    """Return the program YACE, built on demand.

    Raises:
        UnavailablePeerError: Go is missing, or the build failed.
    """
    program = CACHE / f"yace-{YACE_VERSION}"
    if not program.exists():
        if shutil.which("go") is None:
            raise UnavailablePeerError("go is not on PATH; install Go to measure YACE")
        _run(["go", "build", "-o", str(program), f"{YACE_MODULE}/cmd/yace"], HERE / "yace", "YACE")
    return program


def cloudwatch_exporter() -> tuple[str, Path]:
    """Return the program java and cloudwatch_exporter's jar, fetched on demand.

    Raises:
        UnavailablePeerError: Java or Maven is missing, or the jar could not be fetched.
    """
    java, jar = shutil.which("java"), CACHE / CLOUDWATCH_EXPORTER_JAR
    if java is None:
        raise UnavailablePeerError("java is not on PATH; install a JRE to measure cloudwatch_exporter")
    if not jar.exists():
        if shutil.which("mvn") is None:
            raise UnavailablePeerError(f"mvn is not on PATH; install Maven, or put {CLOUDWATCH_EXPORTER_JAR} into {CACHE}")
        artifact = f"io.prometheus.cloudwatch:cloudwatch_exporter:{CLOUDWATCH_EXPORTER_VERSION}:jar:jar-with-dependencies"
        command = ["mvn", "-q", "-B", MAVEN_COPY, f"-Dartifact={artifact}", f"-DoutputDirectory={CACHE}"]
        _run(command, CACHE, "cloudwatch_exporter")
    return java, jar


def _run(command: list[str], folder: Path, peer: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
        raise UnavailablePeerError(f"{command[0]} could not make {peer}: {last}")

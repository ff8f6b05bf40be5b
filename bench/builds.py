"""Exporters beside this one: another checkout of the repository, or another Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers import CACHE, UnavailablePeerError
from bench.subjects import HERE, Build

INSTALL_SECONDS = 900


def build_of(tree: Path) -> Build:
    """Return the exporter of another checkout, with the Python of its .venv if it has one, else with this one."""
    tree = tree.resolve()
    own = tree / ".venv" / "bin" / "python"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True, check=False)
    return Build(commit.stdout.strip() or tree.name, tree, str(own) if own.exists() else sys.executable)


def python_build(program: str) -> Build:
    """Return this checkout with another Python, whose dependencies are installed into a virtual environment in the cache.

    Raises:
        UnavailablePeerError: there is no such Python, or a dependency cannot be installed for it.
    """
    found = shutil.which(program)
    if found is None:
        raise UnavailablePeerError(f"{program} is not on PATH")
    label = _output([found, "-c", "import sys; print(sys.version.split()[0] + ('t' if 't' in sys.abiflags else ''))"])
    folder = CACHE / f"python-{label}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _output([found, "-m", "venv", str(folder)])
        _output([str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(HERE / "requirements.txt")])
        (folder / "installed").touch()
    return Build(f"Python {label}", HERE, str(python))


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS, env=_environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if re.search("error", line, re.IGNORECASE)] or lines
        raise UnavailablePeerError(f"{Path(command[0]).name} {' '.join(command[1:3])[:40]} failed: {errors[0].strip()}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

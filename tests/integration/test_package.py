"""The package as a user gets it: what is in wheel and sdist, and what works once the wheel is installed alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from exporter.core import assets
from tests.fixtures.mongo import need_mongod
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def build(source: Path, folder: Path, kind: str) -> Path:
    """Build a wheel or an sdist with the installed hatchling: nothing is fetched."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=scaled(60))
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it alone, as for a release."""
    folder = tmp_path_factory.mktemp("package")
    sdist = build(ROOT, folder / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return sdist, build(source, folder / "wheel", "wheel")


@pytest.fixture(scope="module")
def installed(dist: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment that has the wheel, and its dependencies from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=scaled(60))
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(dist[1])], check=True, timeout=scaled(120))
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # Only a path: .pth files there, such as that of the editable checkout, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(installed: Path, *words: str, cwd: Path) -> str:
    command = [str(installed / "cml-worker-exporter"), *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=scaled(60), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_code_types_licence_and_every_asset_as_a_file(dist: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(dist[1]) as wheel:
        names = set(wheel.namelist())
        for path, file in assets.files().items():
            assert wheel.read(f"exporter/assets/{path}") == file.read_bytes(), path
    info, data = (f"cml_worker_exporter-{VERSION}.{kind}" for kind in ("dist-info", "data"))
    assert {"exporter/py.typed", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "exporter").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code
    assert {name.partition("/")[0] for name in names} == {"exporter", info, data}
    assert [name for name in names if name.startswith(data)] == [f"{data}/data/share/man/man1/cml-worker-exporter.1"]
    assert not [name for name in names if "Dockerfile" in name or "/tests/" in name or "__pycache__" in name]
    own = [name for name in names if name.startswith("exporter/assets/prometheus/local/")]
    assert own == ["exporter/assets/prometheus/local/README.md"], "files of the one who built it are in the package"


def test_the_sdist_has_what_the_wheel_is_built_from(dist: tuple[Path, Path]) -> None:
    with tarfile.open(dist[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "hatch_build.py",
        "man/cml-worker-exporter.1",
        "PKG-INFO",
    } <= names
    assert {f"exporter/assets/{path}" for path in assets.files()} <= names
    assert not [name for name in names if name.startswith(("tests", "deploy", "docs", ".demo"))]


@pytest.mark.parametrize("address", ["", "https://example.org/owner/repository"])
def test_an_index_accepts_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("PROJECT_URL", address)
    wheel = build(ROOT, tmp_path, "wheel")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=scaled(60), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"cml_worker_exporter-{VERSION}.dist-info/METADATA").decode()
    assert (f"Project-URL: Source, {address}\n" in metadata) == bool(address)
    assert "License-Expression: Apache-2.0\n" in metadata


def test_the_installed_command_names_its_version_and_writes_its_assets(installed: Path, tmp_path: Path) -> None:
    git = ["sh", str(ROOT / "deploy" / "revision"), str(ROOT / ".git")]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    assert f"{VERSION} (revision {commit or 'unknown'}," in run(installed, "--version", cwd=tmp_path)
    written = json.loads(run(installed, "assets", "--output", "out", "--json", cwd=tmp_path))
    assert written == [f"out/{path}" for path in assets.files()]
    content = yaml.safe_load((tmp_path / "out" / "prometheus" / "prometheus.yml").read_text())
    assert content["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9877"]}]
    if promtool := shutil.which("promtool"):
        check = [promtool, "check", "config", str(tmp_path / "out" / "prometheus" / "prometheus.yml")]
        done = subprocess.run(check, capture_output=True, text=True, timeout=scaled(60), check=False)
        assert done.returncode == 0, done.stderr
        assert "SUCCESS: 6 rule files found" in done.stdout


def test_man_shows_the_manual_page_that_the_wheel_brings(installed: Path, tmp_path: Path) -> None:
    folder = installed.parent / "share" / "man"
    page = run(installed, "manual", cwd=tmp_path)
    assert (folder / "man1" / "cml-worker-exporter.1").read_text() == page
    man = shutil.which("man")
    if man is None:
        pytest.skip("man is not on this machine")
    command = [man, "-M", str(folder), "cml-worker-exporter"]
    environment = os.environ | {"MANWIDTH": "100", "MANPAGER": "cat", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=scaled(60), check=False)
    assert done.returncode == 0, done.stderr
    assert "CML-WORKER-EXPORTER(1)" in done.stdout
    shown = {line.strip() for line in done.stdout.splitlines()}
    assert {"backfill", "completion", "--config.file FILE", "--data-dir VALUE"} <= shown


@contextmanager
def demo(installed: Path, folder: Path, path: str) -> Iterator[dict[str, str]]:
    """Run the installed demo until it has printed its addresses, and yield them."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MONGODB_URI", "PYTHONPATH")}
    command = [str(installed / "cml-worker-exporter"), "demo", "--port", str(free_port()), "--dir", str(folder / "demo")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment | {"PATH": path}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + scaled(60)
        while not (folder / "demo" / "endpoints.json").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield json.loads((folder / "demo" / "endpoints.json").read_text())
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(scaled(60)) == 0


AT_NIGHT = pytest.mark.nightly("test_the_demo_runs_restarts_with_the_same_values_and_leaves_nothing_behind")


@pytest.mark.parametrize(
    "with_prometheus",
    [
        pytest.param(False, id="without Prometheus", marks=AT_NIGHT),
        pytest.param(True, id="with Prometheus", marks=AT_NIGHT),
    ],
)
def test_the_installed_demo_runs(installed: Path, tmp_path: Path, with_prometheus: bool) -> None:
    need_mongod()
    program = shutil.which("prometheus")
    if with_prometheus and program is None:
        pytest.skip("prometheus is not on this machine")
    (tmp_path / "programs").mkdir()
    for name in ("sh", *(["prometheus"] if with_prometheus else [])):
        (tmp_path / "programs" / name).symlink_to(str(shutil.which(name)))
    with demo(installed, tmp_path, str(tmp_path / "programs")) as endpoints:
        with urlopen(f"{endpoints['exporter']}/metrics", timeout=scaled(20)) as answer:
            assert b"cml_worker_cpu_utilization_ratio{" in answer.read()
        assert ("prometheus" in endpoints) == with_prometheus
        if with_prometheus:
            with urlopen(f"{endpoints['prometheus']}/api/v1/rules", timeout=scaled(20)) as answer:
                groups = json.load(answer)["data"]["groups"]
            folders = {str(Path(group["file"]).parent) for group in groups}
            assert folders == {str(next(installed.parent.glob("lib/*/site-packages/exporter/assets/prometheus/rules")))}

"""The generated remote read messages are those of the .proto file, and the dependency is as new as they need."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDER = Path("exporter/history")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules that protoc writes now, with the options of the Makefile."""
    out = tmp_path_factory.mktemp("proto")
    (recipe,) = re.findall(r"^\t\$\(BIN\)/python (-m grpc_tools\.protoc .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    arguments = [re.sub(r"^(--\w+_out)=\.$", rf"\1={out}", each) for each in recipe.split()]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, timeout=60)
    return out / FOLDER


@pytest.mark.parametrize("name", ["remote_read_pb2.py", "remote_read_pb2.pyi"])
def test_the_committed_messages_are_those_of_the_proto_file(generated: Path, name: str) -> None:
    assert (ROOT / FOLDER / name).read_bytes() == (generated / name).read_bytes(), "run: make proto"


def test_the_dependency_is_at_least_the_version_that_the_messages_demand() -> None:
    code = (ROOT / FOLDER / "remote_read_pb2.py").read_text()
    (version,) = re.findall(r"^# Protobuf Python Version: (\S+)$", code, re.MULTILINE)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"protobuf>={version}" in dependencies

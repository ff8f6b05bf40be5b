"""The remote read messages are those of the .proto file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.history import remote_read_pb2 as pb
from tests.helpers.deadlines import scaled

ROOT = Path(__file__).parents[3]
FOLDER = Path("exporter/history")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that protoc writes now, with the options of the Makefile."""
    out = tmp_path_factory.mktemp("proto")
    (out / FOLDER).mkdir(parents=True)
    (recipe,) = re.findall(r"^\t\$\(BIN\)/python (-m grpc_tools\.protoc .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    arguments = [re.sub(r"^(--\w+_out)=", rf"\1={out}/", each) for each in recipe.split()]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, timeout=scaled(60))
    return out / FOLDER


@pytest.mark.parametrize("name", ["remote_read.binpb", "remote_read_pb2.pyi"])
def test_the_committed_messages_are_those_of_the_proto_file(generated: Path, name: str) -> None:
    assert (ROOT / FOLDER / name).read_bytes() == (generated / name).read_bytes(), "run: make proto"


def test_a_message_of_each_kind_survives_encoding() -> None:
    matcher = pb.LabelMatcher(type=pb.LabelMatcher.NRE, name="wörker", value=".*")
    query = pb.Query(start_timestamp_ms=-1, end_timestamp_ms=2**62, matchers=[matcher], hints=pb.ReadHints(func="rate"))
    request = pb.ReadRequest(queries=[query], accepted_response_types=[pb.ReadRequest.STREAMED_XOR_CHUNKS])
    assert pb.ReadRequest.FromString(request.SerializeToString()) == request
    series = pb.TimeSeries(labels=[pb.Label(name="a", value="b")], samples=[pb.Sample(value=0.5, timestamp=7)])
    response = pb.ReadResponse(results=[pb.QueryResult(timeseries=[series])])
    assert pb.ReadResponse.FromString(response.SerializeToString()) == response

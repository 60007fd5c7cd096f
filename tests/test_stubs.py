"""The committed stubs: fresh, and importable beside protobuf 6 and 7."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOBUF_7 = ROOT / ".venv" / "protobuf7"
STUBS = {"holdfast_pb2.py", "holdfast_pb2.pyi", "holdfast_pb2_grpc.py", "oip_pb2.py", "oip_pb2.pyi"}
CHECK = """
import google.protobuf, sys
assert google.protobuf.__version__.startswith(sys.argv[1]), google.protobuf.__version__
from holdfast.v1 import holdfast_pb2 as pb
chunk = pb.Chunk(session_id="s", position=0)
from holdfast.oip.v2 import oip_pb2 as oip
assert oip.ModelInferRequest.FromString(b"\\x0a\\x01m").model_name == "m"
assert pb.Chunk.FromString(chunk.SerializeToString()).HasField("position")
"""


@pytest.mark.process
def test_stubs_are_what_the_contract_generates(tmp_path):
    subprocess.run([sys.executable, ROOT / "proto" / "generate.py", tmp_path], check=True)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*")}
    assert {path.name for path in written} == STUBS
    for path in written:
        fresh = (tmp_path / path).read_text()
        assert fresh == (ROOT / path).read_text(), f"{path} is stale: make proto"


@pytest.mark.process
@pytest.mark.parametrize(("version", "path"), [("6.", None), ("7.", PROTOBUF_7)])
def test_stubs_import_beside_protobuf(version, path):
    environment = dict(os.environ)
    if path is not None:
        assert path.is_dir(), "make test installs it"
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-W", "error::UserWarning", "-c", CHECK, version]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)

"""The committed stubs: fresh, and importable beside protobuf 6 and 7."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOBUF_7 = ROOT / ".venv" / "protobuf7"
CHECK = """
import google.protobuf, sys
assert google.protobuf.__version__.startswith(sys.argv[1]), google.protobuf.__version__
from holdfast.v1 import holdfast_pb2 as pb
chunk = pb.Chunk(session_id="s", position=0)
assert pb.Chunk.FromString(chunk.SerializeToString()).HasField("position")
"""


@pytest.mark.process
def test_stubs_are_what_the_contract_generates(tmp_path):
    subprocess.run([sys.executable, ROOT / "proto" / "generate.py", tmp_path], check=True)
    for name in ("holdfast_pb2.py", "holdfast_pb2.pyi", "holdfast_pb2_grpc.py"):
        fresh = (tmp_path / "holdfast" / "v1" / name).read_text()
        assert fresh == (ROOT / "holdfast" / "v1" / name).read_text(), f"{name} is stale: make proto"


@pytest.mark.process
@pytest.mark.parametrize(("version", "path"), [("6.", None), ("7.", PROTOBUF_7)])
def test_stubs_import_beside_protobuf(version, path):
    environment = dict(os.environ)
    if path is not None:
        assert path.is_dir(), "make test installs it"
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-W", "error::UserWarning", "-c", CHECK, version]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)

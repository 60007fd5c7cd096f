"""Generates the committed stubs in `holdfast/v1` and `holdfast/oip/v2` from the contracts.

`python proto/generate.py [FOLDER]` writes below FOLDER (default: the repository root). The generator
belongs to protobuf's 6 line on purpose: its stubs import beside protobuf 6 and 7.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from grpc_tools import protoc

PROTO_DIR = Path(__file__).parent
CONTRACT = "holdfast/v1/holdfast.proto"
OPEN_INFERENCE = "holdfast/oip/v2/oip.proto"
"""Its service is registered by another name, so it needs no stub."""


def generate(target_dir: Path) -> None:
    """Writes `holdfast_pb2.py`, `.pyi`, `holdfast_pb2_grpc.py`, `oip_pb2.py` and `.pyi` below `target_dir`.

    Raises:
        SystemExit: A contract does not compile; protoc has printed why.
    """
    target_dir.mkdir(parents=True, exist_ok=True)
    includes = [PROTO_DIR, _package_dir("grpc_tools") / "_proto", _package_dir("google.rpc").parents[1]]
    arguments = [f"-I{include}" for include in includes]
    kinds = ("python_out", "pyi_out", "grpc_python_out")
    for contract, written in ((CONTRACT, kinds), (OPEN_INFERENCE, kinds[:2])):
        outputs = [f"--{kind}={target_dir}" for kind in written]
        status = protoc.main(["protoc", *arguments, *outputs, contract])
        if status:
            raise SystemExit(status)


def _package_dir(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, f"bug: {package} is a dependency"
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_DIR.parent)

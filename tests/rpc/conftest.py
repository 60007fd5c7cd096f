import grpc
import pytest

from holdfast.client.status import from_rpc
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.support.models import write_features_model
from tests.support.opening import open_sessions
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess

MODEL = "python-source"


class Rpc:
    """Calls rpcs over a real socket; a refusal comes back as (code, reason, expected position)."""

    def __init__(self, server):
        self.server = server
        self.channel = grpc.insecure_channel(server.address)
        self.stub = StreamingInferenceServiceStub(self.channel)

    def call(self, name, request):
        try:
            return getattr(self.stub, name)(request, timeout=10)
        except grpc.RpcError as error:
            return from_rpc(error)

    def open(self, *ids, model=MODEL):
        """Opens sessions, each new or where it stands."""
        open_sessions(self.stub, ids, model)

    def step(self, session_id, *, model=MODEL, text=b"", **fields):
        if text:
            fields["tokens"] = pb.Tokens(text=text)
        chunk = pb.Chunk(session_id=session_id, model=pb.ModelRef(name=model), **fields)
        return self.call("Step", pb.StepRequest(chunk=chunk))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    models = folder / "models"
    models.mkdir()
    for shipped in MODELS.glob("*/"):
        (models / shipped.name).symlink_to(shipped)
    write_features_model(models / "features" / "1" / "model.onnx")
    flags = ["--models", str(models), "--max-message-bytes", "65536", "--max-chunk-tokens", "256"]
    with ServerProcess(folder / "data", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def rpc(server):
    rpc = Rpc(server)
    yield rpc
    rpc.channel.close()

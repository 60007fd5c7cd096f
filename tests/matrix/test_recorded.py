"""Networks exported from PyTorch, against what PyTorch gave for the same tokens: `recorded` has both.

`python -m tests.matrix --record` writes it; `make matrix` compares all sizes with PyTorch itself.
"""

import functools

import numpy as np
import pytest

from tests.docs.pages import ROOT
from tests.matrix.streams import TOLERANCE, Kill, difference, outputs_of
from tests.support.server import ServerProcess

RECORDED = ROOT / "tests" / "matrix" / "recorded"
MODELS = RECORDED / "models"

with np.load(RECORDED / "outputs.npz") as _files:
    OUTPUTS = dict(_files)
TOKENS = OUTPUTS.pop("tokens")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("matrix") / "data", "--models", str(MODELS)) as server:
        yield server


@pytest.fixture
def kill(tmp_path):
    """Of a server of one model, since it is checked again by the next one."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "rwkv-2").symlink_to(MODELS / "rwkv-2")
    start = functools.partial(ServerProcess, tmp_path / "data", "--models", str(tmp_path / "models"))
    server = start()
    kill = Kill(server, functools.partial(start, grpc_address=server.address))
    yield kill
    kill.server.stop()


def test_every_model_has_its_outputs():
    assert {path.name for path in MODELS.iterdir()} == set(OUTPUTS)
    assert len(OUTPUTS) == 12


@pytest.mark.parametrize("model", OUTPUTS)
@pytest.mark.parametrize("chunk", [1, 7, 15])
async def test_a_server_gives_what_pytorch_gives(model, chunk, server):
    given = await outputs_of(server.address, model, TOKENS, chunk, name=f"{model}-{chunk}")
    assert difference(given, OUTPUTS[model]) <= TOLERANCE


@pytest.mark.faults
async def test_a_server_that_is_killed_in_the_middle_gives_it_too(kill):
    given = await outputs_of(kill.server.address, "rwkv-2", TOKENS, 1, half_way=kill)
    assert kill.count == 1
    assert difference(given, OUTPUTS["rwkv-2"]) <= TOLERANCE

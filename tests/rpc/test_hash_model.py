"""A model with an integer state, over sockets: what comes back is what the oracle says, to the last bit."""

import numpy as np
import pytest

import holdfast
from tests.support.hash_oracle import MODULUS, hash_of, hashes_of
from tests.support.models import write_hash_model
from tests.support.server import ServerProcess

TOKENS = bytes(np.random.default_rng(7).integers(0, 256, 200, np.uint8))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hash")
    for name, has_time_axis in (("hash", False), ("hash-runs", True)):
        write_hash_model(folder / "models" / name / "1" / "model.onnx", has_time_axis=has_time_axis)
    with (
        ServerProcess(folder / "data", "--models", str(folder / "models")) as server,
        holdfast.Client(server.address, history=folder / "hash.history") as client,
    ):
        yield client


@pytest.mark.parametrize("model", ["hash", "hash-runs"])
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_stream_equals_the_oracle(client, model, chunk):
    session = client.open_session(model=model)
    replies = list(session.stream(TOKENS, chunk=chunk, outputs="hash"))
    found = np.concatenate([reply.outputs["hash"] for reply in replies])
    assert found.dtype == np.int64
    assert found.tolist() == hashes_of(TOKENS)
    state = session.state()["s"]
    assert (state.dtype, state.shape, int(state)) == (np.int64, (), hash_of(TOKENS))


@pytest.mark.parametrize("start", [0, 1, MODULUS - 1])
def test_it_may_start_from_an_integer_state(client, start):
    session = client.open_session(model="hash", initial_state={"s": start})
    reply = session.step(TOKENS[:20], outputs=True, state=True)
    assert reply.outputs["hash"].tolist() == hashes_of(TOKENS[:20], start)
    assert int(reply.state["s"]) == hash_of(TOKENS[:20], start)


def test_a_state_of_another_dtype_or_shape_is_refused(client):
    for wrong in (np.int32(5), 5.0, np.array([5])):
        with pytest.raises(holdfast.errors.InvalidRequest, match="the model has int64"):
            client.open_session(model="hash", initial_state={"s": wrong})


def test_the_contract_says_integers(client):
    [state] = client.get_model("hash").states
    assert (state.name, state.dtype, list(state.shape)) == ("s", 4, [])

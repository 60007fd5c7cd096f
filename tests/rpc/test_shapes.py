"""Networks that are not many-to-many over text, over gRPC: what uninterrupted onnxruntime gives offline."""

import asyncio

import numpy as np
import onnxruntime as ort
import pytest

import holdfast
from holdfast.v1 import holdfast_pb2 as pb
from model_export.data.machine import KINDS, make_readings
from model_export.data.sound import make_scene, windows
from model_export.data.sources import LANGUAGES, held_out_files
from tests.rpc.conftest import Rpc
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess

NAMES = ("sensor-anomaly", "code-language", "sound-events")
COUNT = 200
TOLERANCE = 1e-5
CHUNKS = (1, 7, 64, 3, 125)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    models = folder / "models"
    models.mkdir()
    for name in NAMES:
        (models / name).symlink_to(MODELS / name)
    with ServerProcess(folder / "data", "--models", str(models)) as server:
        yield server


def tokens_of(name, seed):
    """Returns what a client sends and what the graph is fed, (COUNT, 1, ...)."""
    if name == "code-language":
        data = held_out_files("rst")[seed].data[:COUNT]
        return data, np.frombuffer(data, np.uint8).astype(np.int64)[:, np.newaxis]
    if name == "sensor-anomaly":
        values = make_readings(600, 1, seed).values[-COUNT:, 0]
        return values, values[:, np.newaxis]
    samples = make_scene(4, seed).samples
    return samples.reshape(-1, 256)[:COUNT], windows(samples)[:COUNT, np.newaxis]


def offline(name, fed):
    """Returns every output after every token, (COUNT, ...) by name; one token a run, one row."""
    path = MODELS / name / "1" / "model.onnx"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    token, state = session.get_inputs()
    names = [node.name for node in session.get_outputs()]
    h = np.zeros([size if isinstance(size, int) else 1 for size in state.shape], np.float32)
    collected = {}
    for row in fed:
        values = session.run(None, {token.name: row[np.newaxis], state.name: h})
        given = dict(zip(names, values, strict=True))
        h = given.pop("h_next")
        for output, value in given.items():
            collected.setdefault(output, []).append(value[0] if name == "code-language" else value[0, 0])
    return {output: np.stack(values) for output, values in collected.items()}


def assert_same(reply, expected):
    """Compares a reply with the run; an output of the last token has one row, of that token."""
    assert reply.outputs.keys() == expected.keys()
    for name, values in expected.items():
        given = reply.outputs[name]
        part = values[reply.position - len(given) : reply.position]
        np.testing.assert_allclose(given, part, atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_a_run_offline_whatever_the_chunks(served, name):
    tokens, fed = tokens_of(name, seed=1)
    expected = offline(name, fed)
    with holdfast.Client(served.address) as client, client.open_session(model=name) as session:
        for size in CHUNKS:
            start = session.position
            reply = session.step(tokens[start : start + size], outputs=list(expected))
            rows = {1} if name == "code-language" else {size}
            assert {len(values) for values in reply.outputs.values()} == rows
            assert_same(reply, expected)
        assert session.position == COUNT


@pytest.mark.parametrize("name", NAMES)
async def test_sessions_side_by_side_do_not_see_each_other(served, name):
    given = [tokens_of(name, seed) for seed in range(6)]

    async def stream(client, number):
        tokens, fed = given[number]
        expected = offline(name, fed)
        session = await client.open_session(model=name)
        async for reply in session.stream(tokens, chunk=5 + number, outputs=list(expected)):
            assert_same(reply, expected)
        assert session.position == COUNT
        await session.delete()

    async with holdfast.AsyncClient(served.address) as client:
        await asyncio.gather(*(stream(client, number) for number in range(len(given))))


@pytest.mark.faults
def test_memory_and_context_outlive_a_killed_server(tmp_path):
    tokens, fed = tokens_of("sound-events", seed=3)
    expected = offline("sound-events", fed)
    server = ServerProcess(tmp_path)
    try:
        with holdfast.Client(server.address, timeout_s=60) as client:
            session = client.open_session(model="sound-events")
            for reply in session.stream(tokens, chunk=7, outputs=["speech"]):
                assert_same(reply, expected)
                if reply.position == 105:
                    server.kill()
                    server = ServerProcess(tmp_path, grpc_address=server.address)
            assert session.position == COUNT
    finally:
        server.stop()


def test_the_likeliest_class_comes_once_a_chunk(served):
    data, fed = tokens_of("code-language", seed=1)
    logits = offline("code-language", fed)["language"][-1].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum())
    with holdfast.Client(served.address) as client, client.open_session(model="code-language") as session:
        (top,) = session.step(data, top_k=3).top
    assert [label for label, _ in top] == np.argsort(-logits)[:3].tolist()
    np.testing.assert_allclose([value for _, value in top], np.sort(log_probs)[::-1][:3], atol=1e-4)


def test_probabilities_are_ranked_as_they_are(served):
    tokens, fed = tokens_of("sound-events", seed=1)
    speech = offline("sound-events", fed)["speech"]
    with holdfast.Client(served.address) as client, client.open_session(model="sound-events") as session:
        tops = session.step(tokens, top_k=1).top
    assert [top[0][0] for top in tops] == speech.argmax(axis=1).tolist()
    np.testing.assert_allclose([np.exp(top[0][1]) for top in tops], speech.max(axis=1), atol=1e-5)


def test_a_client_is_told_what_the_outputs_mean(served):
    rpc = Rpc(served)
    models = {
        name: rpc.call("GetModel", pb.GetModelRequest(model=pb.ModelRef(name=name))).model for name in NAMES
    }
    rpc.channel.close()
    outputs = {name: {output.name: output for output in model.outputs} for name, model in models.items()}
    assert tuple(outputs["sensor-anomaly"]["kind"].labels) == KINDS
    assert tuple(outputs["code-language"]["language"].labels) == LANGUAGES
    assert tuple(outputs["sound-events"]["speech"].labels) == ("noise", "speech")
    assert outputs["code-language"]["language"].is_last
    assert not outputs["sensor-anomaly"]["score"].is_last
    assert 0 < float(models["sensor-anomaly"].facts["threshold"]) < 1
    assert all(model.description for model in models.values())

"""`holdfast verify` as a user runs it: on what clients recorded, and on a deployment."""

import asyncio
import json
import struct

import numpy as np
import pytest

import holdfast
from holdfast.client.history import read_frames
from holdfast.v1 import holdfast_pb2 as pb
from tests.support.command_line import starts
from tests.support.foreign_graphs import NETWORKS
from tests.support.mixing_graphs import RARE, beside, less_mean, when_rare
from tests.support.models import write_features_model
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess
from tests.support.step_graphs import recurrent

MODEL = "python-source"
TEXT = b"class Point:\n    x: int\n    y: int\n"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("verify") / "models"
    models.mkdir()
    (models / MODEL).symlink_to(MODELS / MODEL)
    write_features_model(models / "features" / "1" / "model.onnx")
    made = {
        "rare": when_rare(),
        "mean": beside(less_mean),
        "backward": recurrent(direction="bidirectional", apart=["tokens"]),
    }
    for name, data in made.items():
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.onnx").write_bytes(data)
    NETWORKS["input of the session in other types"].write(models / "inputs" / "1")
    return models


@pytest.fixture(scope="module")
def server(models):
    with ServerProcess(models.parent / "data", "--models", str(models), "--apart", "mean=rows") as server:
        yield server


def verify(*options):
    return starts().call("verify", *options)


@pytest.mark.parametrize("model", [MODEL, "features"])
def test_a_deployment_is_loaded_recorded_and_judged(server, models, model, tmp_path):
    load = ["--target", server.address, "--history", tmp_path / "history", "--model", model]
    result = verify(*load, "--models", models, "--seconds", "1", "--sessions", "20", "--json")
    assert result.code == 0, result.out + result.err
    found = json.loads(result.out)
    assert (found["is_good"], found["sessions"], found["bad"]) == (True, 20, {})
    assert found["total"]["tokens"] > 100
    assert (found["total"]["unchecked"], found["total"]["unopened"]) == (0, 0)
    assert found["total"]["digests"] > found["total"]["replies"] / 2
    assert "seed" in result.err
    again = verify(tmp_path / "history", "--models", models)
    assert again.code == 0
    assert again.out.splitlines()[-1].startswith(
        "lost 0  twice 0  reordered 0  wrong 0  unexplained 0  unopened 0"
    )


def record(server, path):
    """Uses everything that a client has."""
    with holdfast.Client(server.address, history=path) as client:
        state = {"h": np.linspace(-1, 1, 256, dtype=np.float32)}
        session = client.open_session(model=MODEL, initial_state=state)
        session.step(TEXT[:9], top_k=4, token_log_prob=True, outputs=["logits"], state=True)
        list(session.stream(TEXT[9:], chunk=4, top_k=2))
        session.state()
        session.delete()
        ids = [f"row-{path.parent.name}-{row}" for row in range(3)]
        client.open_batch(MODEL, ids)
        client.step_batch(MODEL, ids, TEXT[:6], [0, 0, 0], token_log_prob=True, top_k=3)
        client.step_batch(MODEL, ids, [1, 2, 3], outputs=True)
    asyncio.run(record_batches(server, path))


async def record_batches(server, path):
    client = holdfast.AsyncClient(server.address, history=path)
    ids = [f"{name}-{path.parent.name}" for name in "ab"]
    async with client, client.batches("features", outputs=True) as batches:
        await client.open_batch("features", ids)
        for start in range(0, 6, 2):
            features = np.random.default_rng(start).standard_normal((2, 2, 2)).astype(np.float32)
            await batches.submit(ids, features, [start, start])


def test_every_call_of_a_client_is_recorded_and_recomputed(server, models, tmp_path):
    record(server, tmp_path / "history")
    found = json.loads(verify(tmp_path / "history", "--models", models, "--json").out)
    assert found["is_good"], found
    assert found["total"]["tokens"] == len(TEXT) + 3 * 3 + 2 * 6
    assert found["total"]["unchecked"] == 0


def test_copies_begin_where_their_source_stood(server, models, tmp_path):
    """Also where that had consumed nothing, and began with a state of its own."""
    state = {"h": np.linspace(-1, 1, 256, dtype=np.float32)}
    with holdfast.Client(server.address, history=tmp_path / "history") as client:
        session = client.open_session("source", model=MODEL, initial_state=state)
        session.fork("begins").step(TEXT[:5], token_log_prob=True)
        session.step(TEXT[:9], token_log_prob=True)
        copies = session.fork_batch(["copy-0", "copy-1"])
        client.step_batch(MODEL, copies.session_ids, TEXT[:6], copies, token_log_prob=True)
        client.fork_batch("source", ["copy-0", "copy-2"])
    found = json.loads(verify(tmp_path / "history", "--models", models, "--json").out)
    assert found["is_good"], found
    assert (found["total"]["unopened"], found["total"]["tokens"]) == (0, 9 + 5 + 6)
    assert found["total"]["unchecked"] == 0, "what was there before is in the record of the source"


def test_sessions_that_were_deleted_together_and_opened_again_have_lost_nothing(server, models, tmp_path):
    ids = [f"again-{row}" for row in range(3)]
    with holdfast.Client(server.address, history=tmp_path / "history") as client:
        for tokens in (TEXT[:6], TEXT[6:12]):
            opened = client.open_batch(MODEL, ids)
            client.step_batch(MODEL, ids, tokens, opened, token_log_prob=True)
            deleted = client.delete_batch([*ids, "again-none"])
            assert list(deleted.errors) == [3]
    found = json.loads(verify(tmp_path / "history", "--models", models, "--json").out)
    assert found["is_good"], found
    assert found["total"]["tokens"] == 2 * 6


def test_a_session_that_was_opened_with_inputs_of_other_types_is_recomputed(server, models, tmp_path):
    with holdfast.Client(server.address, history=tmp_path / "history") as client:
        given = {"speaker": [0.1, 1.0, 2.0, 3.0], "room": [7]}
        session = client.open_session(model="inputs", initial_state=given)
        session.step(np.random.default_rng(1).standard_normal((5, 4)), outputs=True)
        rows = {"speaker": [[0.1, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0]], "room": [[7], [8]]}
        opened = client.open_batch("inputs", ["inputs-0", "inputs-1"], initial_state=rows)
        client.step_batch("inputs", ["inputs-0", "inputs-1"], np.ones((2, 3, 4)), opened, outputs=True)
    found = json.loads(verify(tmp_path / "history", "--models", models, "--json").out)
    assert found["is_good"], found
    assert (found["total"]["tokens"], found["total"]["unchecked"]) == (5 + 2 * 3, 0)


def test_a_changed_float_is_found_and_ends_with_1(server, models, tmp_path):
    record(server, tmp_path / "history")
    frame = next(frame for frame in read_frames(tmp_path / "history") if frame.rpc == "StreamBatches")
    data = bytearray((tmp_path / "history").read_bytes())
    answer = next(each for each in read_frames(tmp_path / "history")
                  if each.number == frame.number and not each.rpc)  # fmt: skip
    outputs = pb.StreamBatchesResponse.FromString(answer.body).result.outputs
    place = data.index(answer.body) + answer.body.rindex(struct.pack("<f", outputs.top_log_probs[-1]))
    data[place + 1] ^= 0xFF
    (tmp_path / "changed").write_bytes(data)
    result = verify(tmp_path / "changed", "--models", models)
    assert result.code == 1
    assert "wrong" in result.out
    assert "is off by" in result.out


def test_outputs_that_depend_on_neighbours_are_called_so_and_not_lost_or_wrong(server, models, tmp_path):
    """One token in a thousand makes the model mix rows, which no trial at start can find."""
    ids = [f"rare-{row}" for row in range(4)]
    with holdfast.Client(server.address, history=tmp_path / "history") as client:
        client.open_batch("rare", ids)
        for position in range(3):
            client.step_batch("rare", ids, [5, RARE, 6, RARE], [position] * 4, outputs=True)
    result = verify(tmp_path / "history", "--models", models)
    assert result.code == 1
    assert "not row-independent: rare version 1: what a session gets depends on the others" in (
        " ".join(result.out.split())
    )
    last = result.out.splitlines()[-1]
    assert "lost 0  twice 0  reordered 0  wrong 0  unexplained 0  unopened 0  not row-independent 6" in last
    found = json.loads(verify(tmp_path / "history", "--models", models, "--json").out)
    assert (found["is_good"], list(found["dependent"])) == (False, ["rare version 1"])


@pytest.mark.parametrize("model", ["mean", "backward"])
def test_a_model_that_mixes_is_served_apart_as_if_it_did_not(server, models, model, tmp_path):
    """By a setting the one, by its file the other."""
    load = ["--target", server.address, "--history", tmp_path / "history", "--model", model]
    result = verify(*load, "--models", models, "--seconds", "1", "--sessions", "20", "--json")
    assert result.code == 0, result.out + result.err
    assert json.loads(result.out)["total"]["tokens"] > 100


def test_what_runs_apart_is_shown(server):
    with holdfast.Client(server.address) as client:
        shown = {model.name: list(model.apart) for model in client.list_models()}
    assert shown == {
        MODEL: [],
        "features": [],
        "inputs": [],
        "rare": [],
        "mean": ["rows"],
        "backward": ["tokens"],
    }


def test_without_the_model_nothing_is_proven(server, models, tmp_path):
    record(server, tmp_path / "history")
    (tmp_path / "empty").mkdir()
    result = verify(tmp_path / "history", "--models", tmp_path / "empty")
    assert result.code == 1
    assert "not recomputed: python-source version 1" in result.out
    assert result.out.splitlines()[-1] == "nothing could be recomputed, so nothing is proven"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "expected histories to check, or --target to load"),
        (("--target", "127.0.0.1:1"), "--target needs --history"),
        (("no-such-file",), "verify: no-such-file: no such file"),
        (("pyproject.toml",), "is not a history"),
    ],
)
def test_what_cannot_be_read_ends_with_2(options, said):
    result = verify(*options)
    assert result.code == 2
    assert said in result.err

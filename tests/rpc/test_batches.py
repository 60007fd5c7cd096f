"""StepBatch and StreamBatches over a real socket: rows as single calls, errors by row and by message."""

import asyncio
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast import AsyncClient, BatchReply, Client
from holdfast.client.batching import batch_message
from holdfast.errors import InvalidRequest, PositionConflict, ServerUnavailable
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import MODEL
from tests.support.oracle import run

TEXT = b"import asyncio\n\nclass Reader:\n    def read(self, size):\n        return self._data[:size]\n"


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as client:
        yield client


def batch(ids=("r0", "r1"), text=b"ab", **fields):
    fields = {"model": pb.ModelRef(name=MODEL), "session_ids": ids, **fields}
    if text and not fields.keys() & {"ids", "features"}:
        fields["text"] = text
    return pb.Batch(**fields)


def test_rows_are_what_single_sessions_give(client, rpc):
    ids = [f"row-{row}" for row in range(7)]
    rpc.open(*ids)
    texts = [TEXT[row : row + 24] for row in range(7)]
    expected = [run(MODEL, text) for text in texts]
    for start, count in ((0, 1), (1, 7), (8, 16)):
        block = b"".join(text[start : start + count] for text in texts)
        reply = client.step_batch(
            MODEL, ids, block, [start] * 7, top_k=3, token_log_prob=True, outputs=["logits"]
        )
        assert reply.errors == {}
        assert reply.positions.tolist() == [start + count] * 7
        assert len(set(reply.incarnations.tolist())) == 7
        assert reply.model_version == 1
        for row, (logits, log_probs) in enumerate(expected):
            part = slice(start, start + count)
            np.testing.assert_allclose(reply.token_log_probs[row], log_probs[part], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(reply.outputs["logits"][row], logits[part], atol=1e-5, rtol=1e-5)
            best = np.argsort(-logits[part], axis=1)[:, :3]
            np.testing.assert_array_equal(reply.top_ids[row], best)
            ranked = logits[part] - np.log(np.exp(logits[part].astype(float)).sum(axis=1, keepdims=True))
            np.testing.assert_allclose(
                reply.top_log_probs[row], np.take_along_axis(ranked, best, 1), atol=1e-4
            )
    assert client.open_session(ids[3]).position == 24


def test_features_and_ids_are_taken_as_well(client, rpc):
    rpc.open("fa", "fb", model="features")
    rpc.open("ta", "tb", "ia", "ib")
    first = client.step_batch("features", ["fa", "fb"], np.array([[1, 2], [3, 4]], np.float32))
    np.testing.assert_array_equal(first.outputs["y"], [[[1, 2]], [[3, 4]]])
    more = np.array([[[1, 1], [1, 1]], [[0, 1], [0, 1]]], np.float32)
    second = client.step_batch("features", ["fa", "fb"], more, [1, 1])
    np.testing.assert_array_equal(second.outputs["y"], [[[2, 3], [3, 4]], [[3, 5], [3, 6]]])
    by_text = client.step_batch(MODEL, ["ta", "tb"], b"xy", token_log_prob=True)
    by_ids = client.step_batch(MODEL, ["ia", "ib"], [ord("x"), ord("y")], token_log_prob=True)
    np.testing.assert_array_equal(by_text.token_log_probs, by_ids.token_log_probs)


def test_a_row_fails_alone(client, rpc):
    rpc.open("ok", "ahead", "deleted")
    client.step_batch(MODEL, ["ok", "ahead", "deleted"], b"aaa", [0, 0, 0])
    client.open_session("deleted").delete()
    ids = ["ok", "ahead", "deleted", "bad\nid", "x" * 129]
    reply = client.step_batch(MODEL, ids, b"bbbbb", [1, 5, 1, 0, 0], top_k=2)
    assert {row: error.reason for row, error in reply.errors.items()} == {
        1: "POSITION_GAP", 2: "SESSION_DELETED", 3: "INVALID_REQUEST", 4: "INVALID_REQUEST",
    }  # fmt: skip
    assert reply.errors[1].expected_position == 1
    assert reply.positions.tolist() == [2, 0, 0, 0, 0]
    assert reply.top_ids[0].any()
    assert not reply.top_log_probs[1:].any()


def test_every_row_may_fail(client, rpc):
    rpc.open("e0")
    reply = client.step_batch("nobody", ["e0", "e1"], b"ab", [0, 0])
    assert [error.reason for error in reply.errors.values()] == ["MODEL_MISMATCH", "SESSION_NOT_FOUND"]


def test_the_same_batch_again_is_answered_as_before(client, rpc):
    ids = ["again-0", "again-1", "again-2"]
    rpc.open(*ids)
    first = client.step_batch(MODEL, ids, b"abcdef", [0, 0, 0], token_log_prob=True)
    client.step_batch(MODEL, ids[1:2], b"x", [2])
    again = client.step_batch(MODEL, ids, b"abcdef", [0, 0, 0], token_log_prob=True)
    assert again.replayed_rows == [0, 2]
    assert isinstance(again.errors[1], PositionConflict)
    assert again.errors[1].expected_position == 3
    for row in (0, 2):
        np.testing.assert_array_equal(again.token_log_probs[row], first.token_log_probs[row])


def test_a_chunk_and_a_row_are_the_same_thing(client, rpc):
    rpc.open("either")
    rpc.step("either", position=0, text=b"abc")
    reply = client.step_batch(MODEL, ["either"], b"abc", [0])
    assert reply.replayed_rows == [0]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (batch(model=None), "batch.model.name"),
        (batch(model=pb.ModelRef(name=MODEL, version=-1)), "batch.model.version"),
        (batch(ids=(), text=b""), "batch.session_ids"),
        (batch(ids=("same", "same")), "batch.session_ids"),
        (batch(text=b""), "batch.tokens"),
        (batch(text=b"abc"), "batch.text"),
        (batch(tokens_per_row=2), "batch.text"),
        (batch(tokens_per_row=-1), "batch.tokens_per_row"),
        (batch(tokens_per_row=257, text=b"a" * 514), "batch.tokens_per_row"),
        (batch(ids=("a", "b"), text=b"", positions=[0]), "batch.positions"),
        (batch(positions=[0]), "batch.positions"),
        (batch(acknowledged_positions=[0, 0, 0]), "batch.acknowledged_positions"),
        (batch(incarnations=[1]), "batch.incarnations"),
        (batch(features=b"1234567"), "batch.features"),
        (batch(outputs=pb.OutputSelection(state=True)), "batch.outputs.state"),
    ],
)
def test_a_wrong_message_is_refused_as_a_whole(rpc, message, field):
    error = rpc.call("StepBatch", pb.StepBatchRequest(batch=message))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert error.metadata["field"] == field
    reply = next(rpc.stub.StreamBatches(iter([pb.StreamBatchesRequest(batch=message)]), timeout=10))
    assert reply.error.status.message in str(error)


def test_rows_against_the_contract_of_the_model(client, rpc):
    rpc.open("wrong-0", "wrong-1")
    rpc.open("narrow", model="features")
    reply = client.step_batch(MODEL, ["wrong-0", "wrong-1"], [3, 256], [0, 0])
    assert list(reply.errors) == [1]
    assert isinstance(reply.errors[1], InvalidRequest)
    narrow = client.step_batch("features", ["narrow"], np.zeros((1, 3), np.float32))
    assert "width 3" in str(narrow.errors[0])


def test_the_client_checks_the_shape_of_rows(client):
    with pytest.raises(ValueError, match="3 bytes for 2 sessions"):
        client.step_batch(MODEL, ["a", "b"], b"abc")
    with pytest.raises(ValueError, match=r"\(3, 2\), expected \(2,\) or \(2, T\)"):
        client.step_batch(MODEL, ["a", "b"], np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"\(2, width\)"):
        client.step_batch("features", ["a", "b"], np.zeros((1, 2), np.float32))


def test_a_pipeline_keeps_order_and_survives_a_refusal(server, rpc):
    ids = [f"pipe-{row}" for row in range(5)]
    rpc.open(*ids)

    async def scenario():
        async with (
            AsyncClient(server.address) as client,
            client.batches(MODEL, max_in_flight=3, token_log_prob=True) as pipeline,
        ):
            replies = []
            for at in range(40):
                row_tokens = b"".join(TEXT[at + row : at + row + 1] for row in range(5))
                replies.append(await pipeline.submit(ids, row_tokens, [at] * 5))
                if at == 20:
                    refused = await pipeline.submit(["same", "same"], b"ab", [0, 0])
            with pytest.raises(InvalidRequest, match="twice"):
                await refused
            return np.concatenate([(await reply).token_log_probs for reply in replies], axis=1)

    given = asyncio.run(scenario())
    for row in range(5):
        np.testing.assert_allclose(given[row], run(MODEL, TEXT[row : row + 40])[1], atol=1e-5, rtol=1e-5)


def test_a_pipeline_without_a_server_fails_and_does_not_hang():
    async def scenario():
        async with AsyncClient("127.0.0.1:1") as client, client.batches(MODEL) as pipeline:
            for _ in range(6):
                with pytest.raises(ServerUnavailable):
                    await asyncio.wait_for(await pipeline.submit(["a"], b"a", [0]), 10)

    asyncio.run(scenario())


PARTS = st.lists(
    st.tuples(st.sampled_from(["unary", "stream", "rows", "batches"]), st.integers(1, 40)),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS)
def test_any_mixture_of_calls_gives_the_outputs_of_the_plain_sequence(client, rpc, parts):
    """Unary, streamed and columnar calls, one token or many, on the same three sessions."""
    texts = [(TEXT * 5)[row : row + 400] for row in range(3)]
    ids = [f"mixed-{uuid.uuid4()}" for _ in range(3)]
    rpc.open(*ids)
    given: list[list[float]] = [[], [], []]
    at = 0
    for kind, count in parts:
        count = min(count, 400 - at)
        if kind in ("unary", "stream"):
            for row, text in enumerate(texts):
                session = client.open_session(ids[row], model=MODEL)
                assert session.position == at
                tokens = text[at : at + count]
                if kind == "unary":
                    given[row] += session.step(tokens, token_log_prob=True).token_log_probs.tolist()
                else:
                    for reply in session.stream(tokens, chunk=3, token_log_prob=True):
                        given[row] += reply.token_log_probs.tolist()
        else:
            block = b"".join(text[at : at + count] for text in texts)
            reply = _batch(client, rpc, kind, ids, block, at)
            for row in range(3):
                given[row] += reply.token_log_probs[row].tolist()
        at += count
    for row in range(3):
        expected = run(MODEL, texts[row][:at])[1]
        np.testing.assert_allclose(given[row], expected, atol=1e-5, rtol=1e-5)


def _batch(client, rpc, kind, ids, block, at):
    if kind == "rows":
        return client.step_batch(MODEL, ids, block, [at] * 3, token_log_prob=True)
    message = batch_message(ids, block, [at] * 3, model=MODEL, token_log_prob=True)
    replies = rpc.stub.StreamBatches(iter([pb.StreamBatchesRequest(batch=message)]), timeout=10)
    return BatchReply(next(replies).result)

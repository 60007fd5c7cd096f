"""Rows of a batch whose outputs do not fit into its columns are applied, and say so beside them."""

import uuid

import grpc
import numpy as np
import pytest

from holdfast.client.status import from_status
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.rpc.stack import Piece, stack_outputs
from service.store.keys import session_key
from service.store.record import decode, encode
from tests.rpc.conftest import MODEL, Rpc
from tests.support.models import put_shipped
from tests.support.oracle import run
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess


def open_session(rpc, session_id, model=MODEL, version=0):
    opened = rpc.call(
        "OpenSession",
        pb.OpenSessionRequest(session_id=session_id, model=pb.ModelRef(name=model, version=version)),
    )
    return opened.session


def piece(row, outputs, *, is_replayed):
    matrix = np.frombuffer(outputs, np.uint8)[np.newaxis]
    return Piece(np.array([row]), np.ones((1, 3), np.int64), 1, matrix, is_replayed=is_replayed)


def send(rpc, ids, text, positions, model=MODEL, **outputs):
    batch = pb.Batch(
        model=pb.ModelRef(name=model),
        session_ids=ids,
        positions=positions,
        text=text,
        tokens_per_row=len(text) // len(ids),
        outputs=pb.OutputSelection(**outputs),
    )
    return rpc.call("StepBatch", pb.StepBatchRequest(batch=batch)).result


@pytest.mark.parametrize(
    "first",
    [
        {"top_k": 2},
        {"top_k": 5},
        {"tensors": ["logits"]},
        {"token_log_prob": True, "top_k": 3},
        {"top_k": 3, "state": True},
    ],
    ids=str,
)
def test_a_replay_of_a_request_for_other_outputs(rpc, first):
    """One row was applied before, when other outputs were asked for; the other one runs now."""
    ids = [str(uuid.uuid4()), str(uuid.uuid4())]
    incarnations = [open_session(rpc, session_id).incarnation for session_id in ids]
    alone = rpc.step(ids[0], text=b"ab", position=0, outputs=pb.OutputSelection(**first)).result
    result = send(rpc, ids, b"abab", [0, 0], top_k=3)
    assert list(result.errors) == []
    assert list(result.positions) == [2, 2]
    assert list(result.incarnations) == incarnations
    assert result.history_digests[0] == result.history_digests[1] == alone.history_digest
    assert list(result.replayed_rows) == [0]
    [separate] = result.separate_rows
    assert (separate.row, separate.model_version) == (0, 1)
    alone.outputs.ClearField("state")  # a batch gives none
    assert separate.outputs == alone.outputs
    ids_of_rows = np.array(result.outputs.top_ids).reshape(2, 2, 3)
    assert not ids_of_rows[0].any()
    np.testing.assert_array_equal(ids_of_rows[1], np.argsort(-run(MODEL, b"ab")[0], axis=1)[:, :3])


def test_kept_outputs_beyond_what_a_client_receives_are_left_out():
    """Each of 600 rows keeps 60 KiB from a request for other outputs; together they would take 35 MiB."""
    tensor = pb.NamedTensor(name="y", tensor=pb.Tensor(shape=[1, 15360], data=bytes(61440)))
    kept = pb.Outputs(token_count=1, tensors=[tensor]).SerializeToString()
    small = pb.Outputs(token_count=1, top_k=1, top_ids=[7], top_log_probs=[0]).SerializeToString()
    pieces = [piece(row, kept, is_replayed=True) for row in range(600)]
    stack = stack_outputs(601, 601, [*pieces, piece(600, small, is_replayed=False)])
    assert [separate.row for separate in stack.separate] == list(range(600))
    assert 15 << 20 < sum(separate.ByteSize() for separate in stack.separate) < 16 << 20
    assert pb.Outputs.FromString(stack.outputs).top_ids == [0] * 600 + [7]


def test_a_replay_of_the_same_request_is_in_the_columns(rpc):
    ids = [str(uuid.uuid4()) for _ in range(2)]
    for session_id in ids:
        open_session(rpc, session_id)
    first = send(rpc, ids, b"ab", [0, 0], top_k=3)
    again = send(rpc, ids, b"ab", [0, 0], top_k=3)
    assert list(again.replayed_rows) == [0, 1]
    assert list(again.separate_rows) == []
    assert again.outputs == first.outputs


def test_two_versions_in_one_message_are_told_apart(tmp_path):
    models = tmp_path / "models"
    put_shipped(models, MODEL, "m", 1)
    put_shipped(models, "python-source-elman", "m", 2)
    with ServerProcess(tmp_path / "data", "--models", str(models)) as server:
        rpc = Rpc(server)
        ids = ["one-a", "two-a", "one-b", "two-b", "gone"]
        for session_id in ids[:4]:
            open_session(rpc, session_id, "m", 1 if session_id.startswith("one") else 2)
        for position in (0, 0, 1):  # once more as a replay, where each row is answered alone
            result = send(rpc, ids, b"xxxxx", [position] * 5, "m", tensors=["logits"])
            assert [error.row for error in result.errors] == [4]
            assert list(result.positions) == [position + 1] * 4 + [0]
            versions = dict.fromkeys(range(5), result.model_version)
            versions |= {separate.row: separate.model_version for separate in result.separate_rows}
            assert [versions[row] for row in range(4)] == [1, 2, 1, 2]
            for row, shipped in enumerate([MODEL, "python-source-elman"] * 2):
                expected = run(shipped, b"xx")[0][position]
                np.testing.assert_allclose(logits_of(result, row), expected, atol=1e-5, rtol=1e-5)
        rpc.channel.close()


def logits_of(result, row):
    for separate in result.separate_rows:
        if separate.row == row:
            [named] = separate.outputs.tensors
            return np.frombuffer(named.tensor.data, np.float32)
    [named] = result.outputs.tensors
    return np.frombuffer(named.tensor.data, np.float32).reshape(5, -1)[row]


def test_replays_of_requests_for_more_do_not_grow_the_columns():
    """Kept replies of 60 KiB would make columns of 35 MiB of zeros beside one row, or of all rows."""
    tensor = pb.NamedTensor(name="y", tensor=pb.Tensor(shape=[1, 15360], data=bytes(61440)))
    kept = pb.Outputs(token_count=1, tensors=[tensor]).SerializeToString()
    one = stack_outputs(600, 600, [piece(7, kept, is_replayed=True)])
    assert len(one.outputs) < 100
    assert [(separate.row, separate.outputs.SerializeToString()) for separate in one.separate] == [
        (7, kept)
    ]
    every = stack_outputs(600, 600, [piece(row, kept, is_replayed=True) for row in range(600)])
    assert [separate.row for separate in every.separate] == list(range(600))
    assert sum(separate.ByteSize() for separate in every.separate) <= 16 << 20


def test_refusals_do_not_grow_a_reply_beyond_what_a_client_receives(rpc):
    """One row runs; the columns of 1,024 rows would fit, but not beside the refusals of the others."""
    ids = [str(uuid.uuid4()) for _ in range(1024)]
    open_session(rpc, ids[0])
    batch = pb.Batch(
        model=pb.ModelRef(name=MODEL),
        session_ids=ids,
        positions=[0] * 1024,
        text=b"0123456789abcdef" * 1024,
        tokens_per_row=16,
        outputs=pb.OutputSelection(top_k=127),
    )
    with grpc.insecure_channel(
        rpc.server.address, [("grpc.max_receive_message_length", 16 << 20)]
    ) as channel:
        stub = StreamingInferenceServiceStub(channel)
        result = stub.StepBatch(pb.StepBatchRequest(batch=batch), timeout=10).result
    assert (result.positions[0], len(result.errors)) == (16, 1023)
    [separate] = result.separate_rows
    assert (separate.row, len(separate.outputs.top_ids)) == (0, 16 * 127)


def test_a_reply_that_cannot_be_written_holds_none_behind_it(tmp_path):
    """A record with the right checksum keeps a reply that is no Outputs, as others may write it."""
    ids = [str(uuid.uuid4()), str(uuid.uuid4())]
    with StoreProcess(tmp_path / "store") as store, ServerProcess(tmp_path, "--store", store.url) as server:
        rpc = Rpc(server)
        rpc.open(*ids)
        rpc.step(ids[0], text=b"a", position=0)
        key = session_key("default", ids[0])
        record = decode(store.client.get(key))
        odd = record.replies[0]._replace(outputs=b"\xff" * 4)
        store.client.set(key, encode(record._replace(replies=(odd,))))
        model = pb.ModelRef(name=MODEL)
        requests = [
            pb.StreamBatchesRequest(
                batch=pb.Batch(model=model, session_ids=[session_id], positions=[0], text=b"a", tag=tag)
            )
            for tag, session_id in enumerate(ids, start=1)
        ]
        first, second = rpc.stub.StreamBatches(iter(requests), timeout=10)
        rpc.channel.close()
    assert (first.error.tag, from_status(first.error.status).reason) == (1, "INTERNAL")
    assert (second.result.tag, list(second.result.positions)) == (2, [1])

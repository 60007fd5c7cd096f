"""What is encoded by hand is what protobuf would have encoded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.v1 import holdfast_pb2 as pb
from service.engine.asked import Selection
from service.engine.checks import reply_bytes
from service.engine.ranking import top_candidates
from service.engine.rows import Reply
from service.rpc.codec import encode_reply
from service.rpc.credentials import ANYBODY
from service.store.outputs import Outputs, encode_outputs
from tests.support.fakes import SUM_CONTRACT


@given(st.integers(1, 5), st.integers(1, 300), st.integers(0, 40), st.booleans(), st.booleans())
def test_outputs_read_back_as_they_were(rows, count, top_k, with_log_probs, with_tensors):
    rng = np.random.default_rng(count)
    every = rows * count
    ids = rng.integers(0, 2**31, (every, top_k), np.int32) if top_k else None
    log_probs = rng.standard_normal((every, top_k)).astype(np.float32) if top_k else None
    surprise = rng.standard_normal(every).astype(np.float32) if with_log_probs else None
    tensors = {"total": rng.standard_normal(every).astype(np.float32)} if with_tensors else {}
    state = {"sum": rng.standard_normal((rows, 2)).astype(np.float32)} if with_tensors else {}
    encoded = encode_outputs(Outputs(rows, count, ids, log_probs, surprise, tensors, state))
    assert len(encoded) == rows
    selection = Selection(top_k, with_log_probs, tuple(tensors), bool(state))
    for row, data in enumerate(map(bytes, encoded)):
        part = slice(row * count, (row + 1) * count)
        message = pb.Outputs.FromString(data)
        assert (message.token_count, message.top_k) == (count, top_k)
        assert list(message.top_ids) == ([] if ids is None else ids[part].ravel().tolist())
        assert list(message.top_log_probs) == ([] if ids is None else log_probs[part].ravel().tolist())
        assert list(message.token_log_probs) == ([] if surprise is None else surprise[part].tolist())
        for named, values in zip(message.tensors, tensors.values(), strict=True):
            assert named.tensor.data == values[part].tobytes()
        for named, values in zip(message.state, state.values(), strict=True):
            assert named.tensor.data == values[row].tobytes()
        assert len(data) <= reply_bytes(selection, SUM_CONTRACT, count)


@given(st.binary(max_size=40_000), st.integers(0, 2**53 - 1), st.integers(-(2**62), 2**62))
def test_a_reply_reads_back_as_it_was(junk, position, tag):
    outputs = pb.Outputs(token_count=1, tensors=[pb.NamedTensor(tensor=pb.Tensor(data=junk))])
    chunk = pb.Chunk(session_id="s", tag=tag)
    reply = Reply(7, position, 9, 3, True, outputs.SerializeToString())
    for kind, field in ((pb.StepResponse, "result"), (pb.StreamStepsResponse, "result")):
        result = getattr(kind.FromString(encode_reply(chunk, reply, ANYBODY)), field)
        assert (result.tag, result.session_id, result.replayed) == (tag, "s", True)
        assert (result.incarnation, result.position, result.history_digest) == (7, position, 9)
        assert result.outputs == outputs


@pytest.mark.parametrize("top_k", [1, 5, 256])
def test_top_candidates_are_the_sorted_log_softmax(top_k):
    logits = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32) * 9
    ids, log_probs = top_candidates(logits, top_k)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1)[:, :top_k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(log_probs, np.take_along_axis(expected, order, 1), atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 3, 8, 16])
def test_of_equal_logits_the_smaller_id_comes_first(top_k):
    logits = np.zeros((2, 16), np.float32)
    logits[1, 5] = 1
    ids, _ = top_candidates(logits, top_k)
    np.testing.assert_array_equal(ids[0], range(top_k))
    np.testing.assert_array_equal(ids[1], [5, *(other for other in range(16) if other != 5)][:top_k])


def test_candidates_that_are_impossible_are_still_distinct():
    logits = np.full((1, 16), -np.inf, np.float32)
    logits[0, 3] = 0
    ids, log_probs = top_candidates(logits, 5)
    assert ids[0].tolist()[0] == 3
    assert len(set(ids[0].tolist())) == 5
    np.testing.assert_array_equal(log_probs[0], [0] + [-np.inf] * 4)


@pytest.mark.parametrize("top_k", [1, 5, 16])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_spoil_no_other_row(odd, top_k):
    logits = np.round(np.random.default_rng(0).standard_normal((9, 16)), 1).astype(np.float32)
    ids, log_probs = top_candidates(logits, top_k)
    spoiled = logits.copy()
    spoiled[2], spoiled[5, 3] = odd, odd
    spoiled_ids, spoiled_log_probs = top_candidates(spoiled, top_k)
    others = [0, 1, 3, 4, 6, 7, 8]
    np.testing.assert_array_equal(spoiled_ids[others], ids[others])
    np.testing.assert_allclose(spoiled_log_probs[others], log_probs[others], atol=1e-6)
    assert [len(set(row)) for row in spoiled_ids.tolist()] == [top_k] * 9

"""Replies to the chunks of a session come in the order of the chunks, refusals among them."""

import uuid

import pytest

from holdfast.client.status import from_status
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import MODEL

WRONG = {
    "no tokens": {"tokens": pb.Tokens()},
    "too many tokens": {"tokens": pb.Tokens(text=b"x" * 257)},
    "other kind of tokens": {"tokens": pb.Tokens(ids=pb.TokenIds(values=[999]))},
    "no such level": {"ack_level": 99},
    "level the store cannot give": {"ack_level": pb.ACK_LEVEL_REPLICATED},
    "bad incarnation": {"incarnation": -1},
    "another incarnation": {"incarnation": 5},
    "bad digest": {"history_digest": 2**53},
    "gap": {"position": 10**6},
    "conflict": {"position": 0, "tokens": pb.Tokens(text=b"?")},
    "no such output": {"outputs": pb.OutputSelection(tensors=["nothing"])},
    "no such model": {"model": pb.ModelRef(name="nothing")},
}
"""What makes a chunk wrong: some is seen at once, some once the session is looked at, some by the model."""


def chunk(session_id, tag, **fields):
    fields = {"model": pb.ModelRef(name=MODEL), "tokens": pb.Tokens(text=b"x" * 32), **fields}
    return pb.StreamStepsRequest(chunk=pb.Chunk(session_id=session_id, tag=tag, **fields))


def outcome_of(reply):
    kind = reply.WhichOneof("outcome")
    return getattr(reply, kind)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_refusal_waits_for_the_replies_before_it(rpc, wrong):
    session_id = str(uuid.uuid4())
    rpc.call("OpenSession", pb.OpenSessionRequest(session_id=session_id, model=pb.ModelRef(name=MODEL)))
    kinds = ["right", "right", "wrong", "right", "wrong", "wrong", "right"]
    requests = [
        chunk(session_id, tag, **(wrong if kind == "wrong" else {})) for tag, kind in enumerate(kinds)
    ]
    replies = [outcome_of(reply) for reply in rpc.stub.StreamSteps(iter(requests), timeout=20)]
    assert [reply.tag for reply in replies] == list(range(len(kinds)))
    got = ["wrong" if isinstance(reply, pb.ChunkError) else "right" for reply in replies]
    assert got == kinds


def test_sessions_do_not_wait_for_each_other(rpc):
    """Of many sessions on one stream each has its replies in order, whatever the others are refused."""
    ids = [f"{uuid.uuid4()}" for _ in range(6)]
    for session_id in ids[:4]:
        rpc.call("OpenSession", pb.OpenSessionRequest(session_id=session_id, model=pb.ModelRef(name=MODEL)))
    wrongs = list(WRONG.values())
    requests, expected = [], {session_id: [] for session_id in [*ids, "bad\nid"]}
    for tag in range(140):
        session_id = [*ids, "bad\nid"][tag % 7]
        wrong = wrongs[tag % len(wrongs)] if tag % 3 == 0 else {}
        requests.append(chunk(session_id, tag, **wrong))
        expected[session_id].append(tag)
    got = {session_id: [] for session_id in expected}
    for reply in rpc.stub.StreamSteps(iter(requests), timeout=30):
        outcome = outcome_of(reply)
        got[outcome.session_id].append(outcome.tag)
        if outcome.session_id == "bad\nid":
            assert from_status(outcome.status).reason == "INVALID_REQUEST"
    assert got == expected

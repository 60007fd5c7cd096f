"""Copies of sessions: as their source was, on their own from there, and cheap."""

import asyncio
import threading

import numpy as np
import pytest

import holdfast
from holdfast.errors import (
    InvalidRequest,
    ModelMismatch,
    PositionConflict,
    PositionGap,
    ServerUnavailable,
    SessionDeleted,
    SessionExists,
    SessionNotFound,
    SessionQuarantined,
)
from holdfast.v1 import holdfast_pb2 as pb
from service.store.keys import session_key
from service.store.record import decode, encode
from tests.rpc.conftest import MODEL, Rpc
from tests.support.oracle import run
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess
from tests.support.waiting import wait_for

QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02)
TEXT = "import numpy as np\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "data", "--store", store.url) as server:
        yield server


@pytest.fixture(scope="module")
def rpc(server):
    rpc = Rpc(server)
    yield rpc
    rpc.channel.close()


@pytest.fixture
def client(server):
    with holdfast.Client(server.address, retry=QUICK, timeout_s=20) as client:
        yield client


@pytest.fixture
def name(request):
    """Ids of sessions of this test."""
    return lambda text: f"{request.node.name}-{text}"


def record_of(store, session_id):
    return decode(store.client.get(session_key("default", session_id)))


def surprise(session, text):
    """Streams a text into a session; returns the log-probability of each byte."""
    return np.concatenate([reply.token_log_probs for reply in session.stream(text, token_log_prob=True)])


# -- what a copy is -------------------------------------------------------------------------------


def test_a_copy_goes_on_where_its_source_stands_and_both_as_if_they_were_alone(client, store, name):
    with client.open_session(name("a"), model=MODEL) as session:
        surprise(session, TEXT)
        copy = session.fork(name("b"))
        source, copied = record_of(store, name("a")), record_of(store, name("b"))
        assert copied.state == source.state
        for field in ("position", "digest", "fingerprint"):
            assert getattr(copied, field) == getattr(source, field)
        assert copied.incarnation not in (0, source.incarnation)
        assert copied.replies == ()
        assert (copy.position, copy.history_digest) == (session.position, session.history_digest)
        assert (copy.session_id, copy.model, copy.model_version) == (name("b"), MODEL, 1)
        ours, theirs = surprise(session, "x = np.zeros(3)\n"), surprise(copy, "def main():\n")
        assert record_of(store, name("a")).incarnation == source.incarnation
    for more, given in (("x = np.zeros(3)\n", ours), ("def main():\n", theirs)):
        expected = run(MODEL, (TEXT + more).encode())[1][len(TEXT) :]
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=0)


def test_a_copy_of_a_copy_and_of_a_session_that_has_only_begun(client, store, name):
    session = client.open_session(name("a"), model=MODEL)
    first = session.fork(name("b"))
    second = first.fork(name("c"))
    assert second.position == 0
    assert record_of(store, name("c")).state == record_of(store, name("a")).state
    np.testing.assert_allclose(surprise(second, TEXT), run(MODEL, TEXT.encode())[1], atol=1e-5, rtol=0)


def test_a_copy_without_an_id_gets_one_that_nobody_can_guess(client, rpc, name):
    client.open_session(name("a"), model=MODEL).step("ab")
    copy = client.fork_session(name("a"))
    assert len(copy.session_id) == 32
    made = rpc.call("ForkSession", pb.ForkSessionRequest(session_id=name("a")))
    assert len(made.new_session_ids[0]) == 32
    assert client.get_session(made.new_session_ids[0]).position == 2


def test_a_retry_of_the_sources_last_chunk_is_none_of_its_copy(client, name):
    session = client.open_session(name("a"), model=MODEL)
    session.step("ab")
    copy = session.fork(name("b"))
    assert session.step("ab", position=0).replayed
    with pytest.raises(PositionConflict):
        copy.step("ab", position=0)


async def test_what_is_copied_under_a_writer_is_a_point_of_its_history(server, store, name):
    """Each copy has the state that its source had at its position, to the bit."""
    states, is_over = {}, asyncio.Event()
    async with holdfast.AsyncClient(server.address, timeout_s=30) as client:

        async def write():
            async with await client.open_session(name("a"), model=MODEL) as session:
                while not is_over.is_set():
                    reply = await session.step("abc"[len(states) % 3], state=True)
                    states[reply.position] = (reply.state["h"], reply.history_digest)

        writing = asyncio.create_task(write())
        await asyncio.to_thread(wait_for, lambda: len(states) > 3)
        copies = []
        for number in range(20):
            forked = await client.fork_batch(name("a"), [name(f"{number}-{row}") for row in range(3)])
            assert not forked.errors
            assert len(set(forked.positions)) == 1
            copies.append(forked)
        is_over.set()
        await writing
        assert len({int(forked.positions[0]) for forked in copies}) > 5, "the writer wrote meanwhile"
        for forked in copies:
            state, digest = states[int(forked.positions[0])]
            for row, session_id in enumerate(forked.session_ids):
                np.testing.assert_array_equal((await client.get_state(session_id))["h"], state)
                assert forked.history_digests[row] == digest


# -- many copies ----------------------------------------------------------------------------------


def commands(store):
    """Returns how often the store executed what a service asks it for."""
    return {name: store.calls(name) for name in ("mget", "evalsha", "eval", "get", "scan")}


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_copies_cost_one_load_and_one_commit_however_many_they_are(client, store, name, count):
    session = client.open_session(name("a"), model=MODEL)
    session.step(TEXT)
    before = commands(store)
    forked = session.fork_batch([name(f"w{number}") for number in range(count)])
    after = commands(store)
    assert forked.errors == {}
    calls = {command: after[command] - before[command] for command in after}
    assert calls == {"mget": 1, "evalsha": 1, "eval": 0, "get": count, "scan": 0}, "get is in the script"


def test_what_ifs_are_one_batch(client, name):
    """The 64 likeliest next bytes, each followed by every other: as 64 runs from the start would give."""
    session = client.open_session(name("a"), model=MODEL)
    top = session.step(TEXT + "def ", top_k=64).top[-1]
    forked = session.fork_batch([name(f"w{token}") for token, _ in top])
    tokens = np.array([token for token, _ in top])
    reply = client.step_batch(MODEL, forked.session_ids, tokens, forked, token_log_prob=True)
    np.testing.assert_allclose(
        reply.token_log_probs.ravel(), [log_prob for _, log_prob in top], atol=1e-5, rtol=0
    )
    after = client.step_batch(MODEL, forked.session_ids, b"e" * 64, reply, token_log_prob=True)
    for row in (0, 31, 63):
        expected = run(MODEL, TEXT.encode() + b"def " + bytes([tokens[row]]) + b"e")[1][-1]
        assert after.token_log_probs.ravel()[row] == pytest.approx(expected, abs=1e-5)


def test_rows_fail_one_by_one(client, rpc, name):
    client.open_session(name("a"), model=MODEL).step("ab")
    client.open_session(name("taken"), model=MODEL)
    forked = client.fork_batch(name("a"), [name("b"), name("taken"), name("a"), "line\nfeed", name("c")])
    assert {row: type(error) for row, error in forked.errors.items()} == {
        1: SessionExists, 2: SessionExists, 3: InvalidRequest,
    }  # fmt: skip
    assert forked.errors[3].field == "new_session_ids[3]"
    assert forked.positions.tolist() == [2, 0, 0, 0, 2]
    assert forked.incarnations[[1, 2, 3]].tolist() == [0, 0, 0]
    assert client.get_session(name("a")).position == 2, "a copy onto itself changes nothing"


# -- what cannot be copied ------------------------------------------------------------------------


def test_a_session_that_is_not_there_is_not_copied(client, name):
    with pytest.raises(SessionNotFound):
        client.fork_session(name("none"))
    client.open_session(name("a"), model=MODEL).delete()
    with pytest.raises(SessionDeleted, match="deleted at position 0"):
        client.fork_session(name("a"), name("b"))
    with pytest.raises(SessionNotFound):
        client.get_session(name("b"))


def test_a_session_in_quarantine_is_not_copied(client, store, name):
    client.open_session(name("a"), model=MODEL)
    key, record = session_key("default", name("a")), record_of(store, name("a"))
    store.client.set(key, encode(record._replace(quarantine_reason="it fails")))
    for copy in (client.fork_session, client.export_session):
        with pytest.raises(SessionQuarantined, match="it fails"):
            copy(name("a"))


def test_a_session_on_another_model_is_not_copied(client, store, name):
    client.open_session(name("a"), model=MODEL)
    key, record = session_key("default", name("a")), record_of(store, name("a"))
    store.client.set(key, encode(record._replace(fingerprint=bytes(32))))
    for copy in (client.fork_session, client.export_session):
        with pytest.raises(ModelMismatch):
            copy(name("a"))


def test_what_is_meant_is_what_is_copied(client, name):
    session = client.open_session(name("a"), model=MODEL)
    session.step("abc")
    for copy in (client.fork_session, client.export_session):
        with pytest.raises(PositionConflict, match="position is 2, the session stands at 3") as conflict:
            copy(name("a"), position=2)
        assert conflict.value.expected_position == 3
        with pytest.raises(PositionGap, match="position is 4, the session stands at 3"):
            copy(name("a"), position=4)
        with pytest.raises(SessionDeleted, match="incarnation 1 is not that"):
            copy(name("a"), incarnation=1)
    assert client.fork_session(name("a"), position=3, incarnation=session.incarnation).position == 3


def test_a_session_object_copies_what_it_has_seen(client, name):
    """Another writer went on: the copy would not be of the session as it stands here."""
    session = client.open_session(name("a"), model=MODEL)
    session.step("abc")
    client.open_session(name("a")).step("d")
    with pytest.raises(PositionConflict):
        session.fork()
    with pytest.raises(PositionConflict):
        session.export()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"new_session_ids": ["x", "x"]}, "new_session_ids"),
        ({"new_session_ids": [str(number) for number in range(1025)]}, "new_session_ids"),
        ({"session_id": ""}, "session_id"),
        ({"position": -1}, "position"),
        ({"incarnation": 2**53}, "incarnation"),
        ({"nonce": -1}, "nonce"),
    ],
)
def test_a_request_that_is_wrong_is_refused_whole(rpc, fields, field):
    refused = rpc.call("ForkSession", pb.ForkSessionRequest(**{"session_id": "a", **fields}))
    assert (type(refused), refused.field) == (InvalidRequest, field)


# -- again ----------------------------------------------------------------------------------------


def fork(rpc, session_id, *new_ids, nonce=77):
    return rpc.call(
        "ForkSession", pb.ForkSessionRequest(session_id=session_id, new_session_ids=new_ids, nonce=nonce)
    )


def test_an_attempt_that_comes_again_finds_the_copies_of_the_first(client, rpc, store, name):
    """Its source has moved on and is deleted meanwhile; a copy that was not made is like the others."""
    session = client.open_session(name("a"), model=MODEL)
    session.step("abc")
    first = fork(rpc, name("a"), name("b"), name("c"))
    store.client.delete(session_key("default", name("c")))  # as if only one node had made its copies
    session.step("d")
    second = fork(rpc, name("a"), name("b"), name("c"))
    assert (
        (second.position, second.history_digest)
        == (first.position, first.history_digest)
        == (3, second.history_digest)
    )
    assert second.incarnations[0] == first.incarnations[0]
    assert record_of(store, name("c")).state == record_of(store, name("b")).state
    session.delete()
    assert fork(rpc, name("a"), name("b"), name("c")) == second
    assert [error.row for error in fork(rpc, name("b"), name("c"), nonce=78).errors] == [0]
    assert [error.row for error in fork(rpc, name("b"), name("c"), nonce=0).errors] == [0]


def test_a_copy_onto_itself_is_refused_whatever_the_nonce(rpc, name):
    """The session's own nonce would make it look like a copy that an earlier attempt has made."""
    model = pb.ModelRef(name=MODEL)
    rpc.call("OpenSession", pb.OpenSessionRequest(session_id=name("a"), model=model, nonce=77))
    refused = fork(rpc, name("a"), name("a"), name("b"))
    assert [error.row for error in refused.errors] == [0]
    assert "its own id" in refused.errors[0].status.message


def test_a_late_attempt_does_not_bring_back_a_copy_that_was_deleted(client, rpc, name):
    client.open_session(name("a"), model=MODEL)
    fork(rpc, name("a"), name("b"), name("c"))
    client.delete_session(name("b"))
    again = fork(rpc, name("a"), name("b"), name("c"))
    assert [error.row for error in again.errors] == [0]
    assert "was deleted at position 0" in again.errors[0].status.message
    assert not fork(rpc, name("a"), name("b"), nonce=78).errors, "another request takes the id"


def test_a_fork_survives_a_server_that_dies(store, tmp_path, name):
    """The client sends it again: each id has one copy, and all are alike."""
    server = ServerProcess(tmp_path / "data", "--store", store.url)
    address = server.address
    with holdfast.Client(address, timeout_s=30, retry=QUICK) as client:
        session = client.open_session(name("a"), model=MODEL)
        session.step("abc")
        server.kill()
        servers = []
        starting = threading.Timer(
            0.2,
            lambda: servers.append(
                ServerProcess(tmp_path / "data", "--store", store.url, grpc_address=address)
            ),
        )
        starting.start()
        try:
            forked = session.fork_batch([name(f"w{number}") for number in range(20)])
        finally:
            starting.join()
            servers[0].stop()
    assert forked.errors == {}
    assert forked.positions.tolist() == [3] * 20
    with pytest.raises(ServerUnavailable), holdfast.Client(address, timeout_s=0.2) as client:
        client.fork_session(name("a"))

"""Checkpoints over sockets: a session that was put back gives what an uninterrupted run gives."""

import threading
import uuid

import numpy as np
import pytest

import holdfast
from holdfast.errors import (
    CheckpointNotFound,
    ChunkPending,
    DeadlinePassed,
    HoldfastError,
    InvalidRequest,
    PositionConflict,
    PositionGap,
    SessionDeleted,
    SessionNotFound,
    SessionQuarantined,
    TooManyCheckpoints,
)
from holdfast.v1 import holdfast_pb2 as pb
from service.store.keys import session_key
from service.store.record import decode, encode
from tests.rpc.conftest import MODEL, Rpc
from tests.support.oracle import run
from tests.support.server import ServerProcess, get
from tests.support.store_process import StoreProcess

TEXT = b"import numpy as np\n\n\ndef f(x):\n    return np.tanh(x) + 1\n"
MOST = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("store") / "store") as store:
        yield store


@pytest.fixture(scope="module")
def servers(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    flags = ("--store", store.url, "--max-checkpoints", str(MOST))
    with ServerProcess(folder / "one", *flags) as one, ServerProcess(folder / "two", *flags) as two:
        yield one, two


@pytest.fixture(scope="module")
def clients(servers):
    with holdfast.Client(servers[0].address) as one, holdfast.Client(servers[1].address) as two:
        yield one, two


@pytest.fixture(scope="module")
def rpc(servers):
    rpc = Rpc(servers[0])
    yield rpc
    rpc.channel.close()


@pytest.fixture
def session(clients):
    return clients[0].open_session(uuid.uuid4().hex, model=MODEL)


def log_probs(reply):
    return reply.token_log_probs


def test_a_session_that_was_put_back_gives_what_an_uninterrupted_run_gives(clients, session):
    session.step(TEXT[:20], cursor=b"20")
    saved = session.save_checkpoint("here")
    assert (saved.name, saved.position, saved.history_digest) == ("here", 20, session.history_digest)
    assert saved.size_bytes > session.state()["h"].nbytes
    session.step(TEXT[20:35], cursor=b"35")
    before = session.incarnation
    session.restore_checkpoint("here")
    assert (session.position, session.cursor, session.history_digest) == (20, b"20", saved.history_digest)
    assert session.incarnation != before
    others = b"x = " + TEXT[:11]
    _, expected = run(MODEL, TEXT[:20] + others)
    np.testing.assert_allclose(
        log_probs(session.step(others, token_log_prob=True)), expected[20:], atol=1e-5
    )
    session.restore_checkpoint("here")
    _, expected = run(MODEL, TEXT)
    replies = [log_probs(reply) for reply in session.stream(TEXT[20:], chunk=7, token_log_prob=True)]
    np.testing.assert_allclose(np.concatenate(replies), expected[20:], atol=1e-5)
    found = clients[1].get_session(session.session_id)
    assert (found.position, found.cursor, found.incarnation) == (len(TEXT), b"20", session.incarnation)


def test_a_session_that_another_replica_has_in_memory_goes_on_after_a_save(clients, session):
    elsewhere = clients[1]
    session.step("ab")
    saved = elsewhere.save_checkpoint(session.session_id, "by another", position=2)
    assert saved.position == 2
    assert session.step("c").position == 3
    assert [one.name for one in session.checkpoints()] == ["by another"]
    assert elsewhere.checkpoints(session.session_id) == session.checkpoints()
    session.delete_checkpoint("by another")
    assert session.checkpoints() == []
    assert session.step("d").position == 4
    with pytest.raises(CheckpointNotFound):
        session.delete_checkpoint("by another")


def test_other_writers_of_a_session_that_was_put_back_are_told(clients, session):
    other = clients[1].open_session(session.session_id)
    session.step("ab")
    session.save_checkpoint("here")
    session.step("c")
    other = clients[1].open_session(session.session_id)
    session.restore_checkpoint("here")
    with pytest.raises(SessionDeleted):
        other.step("d")
    with pytest.raises(SessionDeleted):
        other.save_checkpoint("late")
    with pytest.raises(SessionDeleted):
        other.restore_checkpoint("here")
    assert session.step("e").position == 3


def test_the_last_chunk_before_a_checkpoint_can_still_be_asked_for(session):
    session.step("ab")
    first = session.step("cd", token_log_prob=True)
    session.save_checkpoint("here")
    session.step("ef")
    session.restore_checkpoint("here")
    again = session.step("cd", position=2)
    assert again.replayed
    np.testing.assert_array_equal(log_probs(again), log_probs(first))
    assert session.position == 4


def test_checkpoints_are_listed_from_the_oldest_and_replaced_by_name(clients, session):
    for position, name in enumerate(["b", "a", "b"]):
        session.step("x")
        session.save_checkpoint(name)
        assert session.position == position + 1
    listed = clients[1].checkpoints(session.session_id)
    assert [(one.name, one.position) for one in listed] == [("a", 2), ("b", 3)]
    assert listed[0].saved_unix_s <= listed[1].saved_unix_s


def test_a_session_has_so_many_checkpoints_and_no_more(clients, session):
    for number in range(MOST):
        session.save_checkpoint(f"n{number}")
    with pytest.raises(TooManyCheckpoints, match=f"has {MOST} checkpoints") as refused:
        session.save_checkpoint("one too many")
    assert refused.value.field == "name"
    session.save_checkpoint("n0")
    session.delete_checkpoint("n1")
    session.save_checkpoint("one too many")
    assert session.step("a").position == 1


def test_what_cannot_be_saved_or_put_back(clients, session):
    client = clients[0]
    session.step("ab")
    for position, kind in ((1, PositionConflict), (3, PositionGap)):
        with pytest.raises(kind) as refused:
            client.save_checkpoint(session.session_id, "x", position=position)
        assert refused.value.expected_position == 2
    with pytest.raises(SessionDeleted):
        client.save_checkpoint(session.session_id, "x", incarnation=session.incarnation % 2**52 + 1)
    with pytest.raises(CheckpointNotFound, match="'x'"):
        session.restore_checkpoint("x")
    for call in (
        lambda: client.save_checkpoint("nobody", "x"),
        lambda: client.checkpoints("nobody"),
        lambda: client.delete_checkpoint("nobody", "x"),
        lambda: client.restore_checkpoint("nobody", "x"),
    ):
        with pytest.raises(SessionNotFound):
            call()
    assert session.checkpoints() == []
    assert session.step("c").position == 3
    session.save_checkpoint("x")
    session.delete()
    for call in (
        lambda: client.save_checkpoint(session.session_id, "x"),
        lambda: client.checkpoints(session.session_id),
        lambda: client.delete_checkpoint(session.session_id, "x"),
        lambda: client.restore_checkpoint(session.session_id, "x"),
    ):
        with pytest.raises(SessionDeleted):
            call()
    assert client.open_session(session.session_id, model=MODEL).checkpoints() == []


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\u2028"])
def test_a_name_that_is_none(rpc, session, name):
    for rpc_name in ("SaveCheckpoint", "DeleteCheckpoint", "RestoreCheckpoint"):
        request = getattr(pb, f"{rpc_name}Request")(session_id=session.session_id, name=name)
        error = rpc.call(rpc_name, request)
        assert isinstance(error, InvalidRequest)
        assert error.field == "name"
    assert session.checkpoints() == []


@pytest.mark.parametrize(
    ("rpc_name", "fields"),
    [
        ("SaveCheckpoint", {"position": -1}),
        ("SaveCheckpoint", {"incarnation": -1}),
        ("RestoreCheckpoint", {"incarnation": 2**53}),
        ("RestoreCheckpoint", {"nonce": -1}),
    ],
)
def test_numbers_out_of_their_range(rpc, session, rpc_name, fields):
    request = getattr(pb, f"{rpc_name}Request")(session_id=session.session_id, name="x", **fields)
    error = rpc.call(rpc_name, request)
    assert isinstance(error, InvalidRequest)
    assert [error.field] == list(fields)


@pytest.mark.parametrize("wrong", [b"x", 7, None])
def test_what_is_no_name_is_refused_before_anything_is_sent(session, wrong):
    for call in (session.save_checkpoint, session.restore_checkpoint, session.delete_checkpoint):
        with pytest.raises(TypeError, match="the name of a checkpoint"):
            call(wrong)


def test_a_retry_puts_a_session_back_once(rpc, session):
    session.step("ab", cursor=b"2")
    session.save_checkpoint("here")
    session.step("c")
    request = pb.RestoreCheckpointRequest(
        session_id=session.session_id, name="here", incarnation=session.incarnation, nonce=77
    )
    first = rpc.call("RestoreCheckpoint", request).session
    assert (first.position, first.cursor) == (2, b"2")
    chunk = {"text": b"xyz", "position": 2, "incarnation": first.incarnation}
    assert rpc.step(session.session_id, **chunk).result.position == 5
    again = rpc.call("RestoreCheckpoint", request).session
    assert (again.position, again.incarnation) == (5, first.incarnation)
    request.nonce = 78
    assert isinstance(rpc.call("RestoreCheckpoint", request), SessionDeleted)


def test_a_session_in_quarantine_is_neither_saved_nor_put_back(clients, session, store):
    session.step("ab")
    session.save_checkpoint("here")
    key = session_key("default", session.session_id)
    held = decode(store.client.get(key))._replace(quarantine_reason="it fails")
    store.client.set(key, encode(held))
    for call in (
        lambda: clients[1].save_checkpoint(session.session_id, "x"),
        lambda: clients[1].restore_checkpoint(session.session_id, "here"),
    ):
        with pytest.raises(SessionQuarantined):
            call()
    assert [one.name for one in clients[1].checkpoints(session.session_id)] == ["here"]


def test_nothing_is_put_back_while_chunks_are_pending(session, store):
    session.step("a")
    session.save_checkpoint("here")
    store.pause()
    try:
        with pytest.raises(DeadlinePassed):
            session.step("b", timeout_s=0.3)
    finally:
        store.resume()
    assert session.pending
    for call in (session.save_checkpoint, session.restore_checkpoint):
        with pytest.raises(ChunkPending):
            call("here")
    session.settle()
    session.restore_checkpoint("here")
    assert session.position == 1


def test_a_restore_without_an_answer_is_repeated_and_done_once(session, store, clients):
    session.step("a")
    session.save_checkpoint("here")
    session.step("b")
    for _ in range(3):
        store.pause()
        try:
            with pytest.raises(HoldfastError, match="restore it again"):
                session.restore_checkpoint("here", timeout_s=0.3)
        finally:
            store.resume()
    session.restore_checkpoint("here")
    assert session.position == 1
    assert session.step("c").position == 2
    assert clients[1].get_session(session.session_id).incarnation == session.incarnation


def test_a_session_is_put_back_under_the_load_of_another_writer(clients, session):
    """That writer gets SessionDeleted at some chunk; none of its tokens is in what follows."""
    other = clients[1].open_session(session.session_id)
    session.step(TEXT[:9])
    session.save_checkpoint("here")
    other = clients[1].open_session(session.session_id)
    began, refusals = threading.Event(), []

    def write():
        while True:
            try:
                other.step("z")
            except SessionDeleted as error:
                refusals.append(error)
                return
            began.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert began.wait(10)
    session.restore_checkpoint("here")
    thread.join(10)
    assert len(refusals) == 1
    _, expected = run(MODEL, TEXT[:20])
    np.testing.assert_allclose(
        log_probs(session.step(TEXT[9:20], token_log_prob=True)), expected[9:], atol=1e-5
    )


def test_what_the_store_lost_after_a_restore_is_sent_again(clients, session, store):
    """What was applied before the restore, and is no part of the session any more, is not."""
    key = session_key("default", session.session_id)
    session.step("ab", cursor=b"2")
    early = store.client.get(key), store.client.hgetall(key + b":beside")
    session.save_checkpoint("here")
    session.step("zz", cursor=b"z")
    session.restore_checkpoint("here")
    restored = store.client.get(key), store.client.hgetall(key + b":beside")
    session.step("cd", cursor=b"4")
    session.step("e")
    put_back(store, key, *restored)
    assert session.save_checkpoint("healed").position == 5
    put_back(store, key, *restored)
    reply = session.step("f", token_log_prob=True)
    _, expected = run(MODEL, b"abcdef")
    np.testing.assert_allclose(log_probs(reply), expected[5:], atol=1e-5)
    assert clients[1].get_session(session.session_id).cursor == b"4"
    put_back(store, key, *early)
    with pytest.raises(SessionDeleted):
        session.step("g")


def put_back(store, key, record, sibling):
    store.client.set(key, record)
    store.client.delete(key + b":beside")
    if sibling:
        store.client.hset(key + b":beside", mapping=sibling)


def test_a_session_that_was_lost_after_a_restore_is_made_again_from_its_tokens(session, store):
    session.step("ab")
    session.save_checkpoint("here")
    session.step("zz")
    session.restore_checkpoint("here")
    session.step("c")
    key = session_key("default", session.session_id)
    assert store.client.delete(key, key + b":beside") == 2
    reply = session.step("d", token_log_prob=True)
    _, expected = run(MODEL, b"abcd")
    np.testing.assert_allclose(log_probs(reply), expected[3:], atol=1e-5)


def test_restores_are_counted(clients, session, servers):
    session.step("a")
    session.save_checkpoint("here")
    line = 'holdfast_session_events_total{event="restored"} '
    before = counted(servers[0], line)
    session.restore_checkpoint("here")
    assert counted(servers[0], line) == before + 1


def counted(server, line):
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(one.removeprefix(line)) for one in lines if one.startswith(line))


async def test_the_same_with_asyncio(servers):
    async with holdfast.AsyncClient(servers[0].address) as client:
        session = await client.open_session("with-asyncio", model=MODEL)
        await session.step("ab", cursor=b"2")
        await session.save_checkpoint("here")
        await client.save_checkpoint("with-asyncio", "there")
        await session.step("c")
        await session.restore_checkpoint("here")
        assert (session.position, session.cursor) == (2, b"2")
        assert [one.name for one in await session.checkpoints()] == ["here", "there"]
        assert await client.checkpoints("with-asyncio") == await session.checkpoints()
        await session.delete_checkpoint("here")
        await client.delete_checkpoint("with-asyncio", "there")
        assert await session.checkpoints() == []
        with pytest.raises(CheckpointNotFound):
            await client.restore_checkpoint("with-asyncio", "here")

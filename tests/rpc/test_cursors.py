"""A cursor is stored by the commit of its chunk: who opens the session finds that of its last tokens."""

import asyncio

import pytest

import holdfast
from holdfast.errors import InvalidRequest, PositionConflict, SessionDeleted
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import MODEL, Rpc
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("store") / "store") as store:
        yield store


@pytest.fixture(scope="module")
def servers(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    flags = ("--store", store.url)
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


def test_whoever_opens_a_session_finds_the_cursor_of_its_last_tokens(clients):
    here, elsewhere = clients
    session = here.open_session("found", model=MODEL)
    assert session.cursor == b""
    for cursor in (b"one", None, b"two", bytes(range(256))):
        session.step("ab", cursor=cursor)
        expected = cursor or b"one"
        assert session.cursor == expected
        assert here.get_session("found").cursor == expected
        other = elsewhere.open_session("found")
        assert (other.position, other.cursor) == (session.position, expected)
    taken = elsewhere.open_session("found", take_over=True)
    assert taken.cursor == bytes(range(256))
    with pytest.raises(SessionDeleted):
        session.step("c", cursor=b"late")
    taken.step("c")
    assert elsewhere.get_session("found").cursor == bytes(range(256))


def test_a_chunk_that_goes_alone_has_its_cursor_too(clients):
    session = clients[0].open_session("alone", model=MODEL)
    session.step("ab", state=True, cursor=b"with the state")
    assert clients[1].get_session("alone").cursor == b"with the state"


def test_a_stream_leaves_the_cursor(clients):
    session = clients[0].open_session("streamed", model=MODEL)
    session.step("a", cursor=b"one")
    assert [reply.position for reply in session.stream("bcd")] == [2, 3, 4]
    assert session.cursor == clients[1].get_session("streamed").cursor == b"one"


def test_many_sessions_step_at_the_same_time_with_cursors_and_without(servers):
    async def work():
        async with holdfast.AsyncClient(servers[0].address) as client:
            sessions = [await client.open_session(f"many-{row}", model=MODEL) for row in range(40)]
            for turn in range(5):
                await asyncio.gather(
                    *(
                        session.step("ab", cursor=b"%d %d" % (row, turn) if (row + turn) % 3 else None)
                        for row, session in enumerate(sessions)
                    )
                )
            opened = await client.open_batch(MODEL, [session.session_id for session in sessions])
            last = [max(turn for turn in range(5) if (row + turn) % 3) for row in range(40)]
            assert opened.cursors == [b"%d %d" % (row, turn) for row, turn in enumerate(last)]
            assert opened.positions.tolist() == [10] * 40

    asyncio.run(work())


def test_rows_of_a_batch_have_cursors_of_their_own(clients):
    client, ids = clients[0], ["row-a", "row-b", "row-c"]
    opened = client.open_batch(MODEL, ids)
    assert opened.cursors == [b""] * 3
    reply = client.step_batch(MODEL, ids, b"abc", opened, cursors=[b"a", None, b"c"])
    assert not reply.errors
    assert clients[1].open_batch(MODEL, ids).cursors == [b"a", b"", b"c"]
    client.step_batch(MODEL, ids, b"abc", reply)
    assert clients[1].open_batch(MODEL, ids).cursors == [b"a", b"", b"c"]


def test_a_replay_and_a_refusal_store_no_cursor(rpc):
    rpc.open("again")
    first = rpc.step("again", text=b"ab", position=0, cursor=b"first").result
    again = rpc.step("again", text=b"ab", position=0, cursor=b"second").result
    assert (first.replayed, again.replayed) == (False, True)
    assert isinstance(rpc.step("again", text=b"xy", position=0, cursor=b"third"), PositionConflict)
    found = rpc.call("GetSession", pb.GetSessionRequest(session_id="again"))
    assert found.session.cursor == b"first"


def test_a_cursor_is_at_most_256_bytes(rpc):
    rpc.open("long", "fine")
    error = rpc.step("long", text=b"a", cursor=bytes(257))
    assert isinstance(error, InvalidRequest)
    assert error.field == "chunk.cursor"
    assert "257 bytes, expected at most 256" in str(error)
    batch = pb.Batch(
        model=pb.ModelRef(name=MODEL),
        session_ids=["long", "fine"],
        text=b"ab",
        cursors=[bytes(257), bytes(256)],
    )
    result = rpc.call("StepBatch", pb.StepBatchRequest(batch=batch)).result
    [refused] = result.errors
    assert refused.row == 0
    assert "batch.cursors[0]" in str(refused.status)
    assert list(result.positions) == [0, 1]
    del batch.cursors[1]
    error = rpc.call("StepBatch", pb.StepBatchRequest(batch=batch))
    assert isinstance(error, InvalidRequest)
    assert error.field == "batch.cursors"


@pytest.mark.parametrize("wrong", ["text", 7, b"", bytes(257)])
def test_what_is_no_cursor_is_refused_before_anything_is_sent(clients, wrong):
    session = clients[0].open_session(model=MODEL)
    with pytest.raises((TypeError, ValueError), match="a cursor"):
        session.step("a", cursor=wrong)
    assert session.position == clients[0].get_session(session.session_id).position == 0
    with pytest.raises(ValueError, match="2 cursors, expected 1"):
        clients[0].step_batch(MODEL, [session.session_id], b"a", [0], cursors=[b"a", b"b"])


def test_a_deleted_session_takes_its_cursor_with_it(clients):
    session = clients[0].open_session("deleted", model=MODEL)
    session.step("a", cursor=b"old")
    session.delete()
    assert clients[1].open_session("deleted", model=MODEL).cursor == b""


def test_every_stream_of_the_contract_carries_cursors(rpc):
    rpc.open("on-steps", "on-batches")
    chunk = pb.Chunk(session_id="on-steps", tokens=pb.Tokens(text=b"a"), cursor=b"steps")
    batch = pb.Batch(
        model=pb.ModelRef(name=MODEL), session_ids=["on-batches"], text=b"a", cursors=[b"batches"]
    )
    list(rpc.stub.StreamSteps(iter([pb.StreamStepsRequest(chunk=chunk)]), timeout=10))
    list(rpc.stub.StreamBatches(iter([pb.StreamBatchesRequest(batch=batch)]), timeout=10))
    for session_id, cursor in (("on-steps", b"steps"), ("on-batches", b"batches")):
        found = rpc.call("GetSession", pb.GetSessionRequest(session_id=session_id))
        assert found.session.cursor == cursor


def test_a_store_that_went_back_gets_the_cursors_again(servers, store):
    """The client heals: after that the cursor is that of the last tokens, as if nothing had been lost."""
    with holdfast.Client(servers[0].address, timeout_s=30) as client:
        session = client.open_session("healed", model=MODEL)
        session.step("ab", cursor=b"2")
        before = (
            store.client.get("holdfast:v1:{default:healed}"),
            store.client.hgetall("holdfast:v1:{default:healed}:beside"),
        )
        session.step("c" * 100, cursor=b"102")
        session.step("d")
        session.step("e", cursor=b"104")
        session.step("f")
        store.client.set("holdfast:v1:{default:healed}", before[0])
        store.client.delete("holdfast:v1:{default:healed}:beside")
        store.client.hset("holdfast:v1:{default:healed}:beside", mapping=before[1])
        assert client.get_session("healed").cursor == b"2"
        reply = session.step("g")
        found = client.get_session("healed")
        assert (reply.position, found.position, found.cursor) == (106, 106, b"104")
        assert session.cursor == b"104"


def test_a_session_that_the_store_lost_is_opened_again_with_its_cursors(clients, store):
    session = clients[0].open_session("lost", model=MODEL)
    session.step("ab", cursor=b"2")
    session.step("c")
    assert store.client.delete("holdfast:v1:{default:lost}", "holdfast:v1:{default:lost}:beside") == 2
    assert session.step("d").position == 4
    assert clients[1].get_session("lost").cursor == b"2"


def test_cursors_live_in_the_embedded_store_too(tmp_path):
    with ServerProcess(tmp_path / "data") as server, holdfast.Client(server.address) as client:
        client.open_session("embedded", model=MODEL).step("a", cursor=b"here")
        assert client.get_session("embedded").cursor == b"here"
    with ServerProcess(tmp_path / "data") as server, holdfast.Client(server.address) as client:
        assert client.open_session("embedded").cursor == b"here"

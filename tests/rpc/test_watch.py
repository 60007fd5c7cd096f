"""WatchSession over real sockets: what others do with a session, through any replica and any worker."""

import contextlib

import grpc.aio
import numpy as np
import pytest

import holdfast
from holdfast.client.status import from_rpc
from holdfast.errors import (
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    SessionDeleted,
    SessionNotFound,
    Unauthenticated,
)
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.support.models import put_shipped, write_features_model
from tests.support.oracle import held_out_text
from tests.support.server import ServerProcess, get, value
from tests.support.stores import StoreProcess
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for
from tests.support.watcher import Watcher

MODEL = "python-source"
EVERY = {"max_rate_hz": 1000}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess("valkey", tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def replicas(store, tmp_path_factory):
    """Two servers on one store, the second one with two workers."""
    folder = tmp_path_factory.mktemp("watch")
    put_shipped(folder / "models", MODEL, MODEL)
    write_features_model(folder / "models" / "features" / "1" / "model.onnx")
    flags = ("--store", store.url, "--models", str(folder / "models"), "--allow-old-store")
    with (
        ServerProcess(folder / "a", *flags, "--max-stall-s", "1") as one,
        ServerProcess(folder / "b", *flags, "--workers", "2") as other,
    ):
        yield one, other


@pytest.fixture
async def clients(replicas):
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(holdfast.AsyncClient(one.address)) for one in replicas]


async def by_step(client, name, parts, wait):
    session = await client.open_session(name, model=MODEL)
    for part in parts:
        await wait((await session.step(part)).position)


async def by_stream(client, name, parts, wait):
    session = await client.open_session(name, model=MODEL)

    async def source():
        for part in parts:
            yield part
            await wait(session.position)

    async for _ in session.stream(source(), chunk=len(parts[0])):
        pass


async def by_batch(client, name, parts, wait):
    ids = [name, f"{name} beside"]
    standing = await client.open_batch(MODEL, ids)
    for part in parts:
        standing = await client.step_batch(MODEL, ids, [part, part], standing)
        await wait(standing.positions[0])


async def by_batches(client, name, parts, wait):
    ids = [name, f"{name} beside"]
    standing = await client.open_batch(MODEL, ids)
    async with client.batches(MODEL) as pipeline:
        for part in parts:
            standing = await (await pipeline.submit(ids, [part, part], standing))
            await wait(standing.positions[0])


@pytest.mark.parametrize("send", [by_step, by_stream, by_batch, by_batches])
async def test_every_chunk_is_seen_on_another_replica_whichever_way_it_came(clients, send):
    here, there = clients
    name, text = f"seen {send.__name__}", held_out_text()[:36]
    parts = [text[start : start + 3] for start in range(0, len(text), 3)]
    await here.open_session(name, model=MODEL)
    asked = {"top_k": 3, "token_log_prob": True, "state": True}
    reference = await here.open_session(f"{name} again", model=MODEL)
    replies = [await reference.step(part, **asked) for part in parts]
    async with Watcher(here, name, **EVERY, **asked) as watcher:
        await send(there, name, parts, watcher.at)
        session = await here.get_session(name)
    assert [chunk.tokens for chunk in watcher.shown] == [None, *parts]
    assert not any(chunk.skipped_tokens or chunk.replayed for chunk in watcher.shown)
    for chunk, reply in zip(watcher.shown[1:], replies, strict=True):
        assert (chunk.position, chunk.history_digest) == (reply.position, reply.history_digest)
        assert chunk.top == reply.top
        assert np.array_equal(chunk.token_log_probs, reply.token_log_probs)
        assert chunk.state.keys() == reply.state.keys()
        assert all(np.array_equal(chunk.state[name], reply.state[name]) for name in reply.state)
        assert chunk.incarnation == session.incarnation
        assert chunk.committed_unix_s > 1.7e9


async def test_what_is_generated_is_seen(clients):
    here, there = clients
    session = await there.open_session("generated", model=MODEL)
    async with Watcher(here, "generated", **EVERY, token_log_prob=True) as watcher:
        tokens = [token async for token in session.generate(40, prompt="import ", seed=7)]
        await watcher.at(session.position)
    watcher.check_sums()
    assert session.position == len("import ") + len(tokens)
    generated = {token.position: token for token in tokens}
    for chunk in watcher.shown[1:]:
        if chunk.position > len("import "):
            assert list(chunk.tokens) == [generated[chunk.position].id]
        else:
            assert chunk.tokens == b"import "


async def test_what_the_reply_of_the_step_has_not_got_is_computed(clients):
    here, there = clients
    session = await there.open_session("asks for nothing", model=MODEL)
    reference = await here.open_session("asks for all", model=MODEL)
    async with Watcher(here, "asks for nothing", **EVERY, top_k=2, token_log_prob=True) as watcher:
        for part in ("import ", "n", "umpy"):
            reply = await session.step(part, top_k=0)
            assert not reply.top[-1]
            expected = await reference.step(part, top_k=2, token_log_prob=True)
            chunk = await watcher.at(reply.position)
            assert chunk.top == expected.top
            assert np.array_equal(chunk.token_log_probs, expected.token_log_probs)


async def test_features_are_seen_as_they_were_sent(clients):
    here, there = clients
    session = await there.open_session("features", model="features")
    rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    async with Watcher(here, "features", **EVERY, state=True) as watcher:
        for row in rows:
            reply = await session.step(row, state=True)
            chunk = await watcher.at(reply.position)
            assert np.array_equal(chunk.tokens, row)
            assert np.array_equal(chunk.state["h"], reply.state["h"])


async def test_ids_are_seen_as_ids(clients):
    here, there = clients
    session = await there.open_session("ids", model=MODEL)
    async with Watcher(here, "ids", **EVERY) as watcher:
        await session.step([105, 109])
        assert (await watcher.at(2)).tokens == [105, 109]


async def test_every_worker_tells(clients, replicas):
    here, _ = clients
    session = await here.open_session("workers", model=MODEL)
    async with Watcher(here, "workers", **EVERY) as watcher:
        position = 0
        for _ in range(64):
            async with holdfast.AsyncClient(replicas[1].address) as client:
                session = await client.open_session("workers")
                position = (await session.step("x")).position
            await watcher.at(position)
            if len({chunk.replica for chunk in watcher.shown[1:]}) == 2:
                break
    assert len({chunk.replica for chunk in watcher.shown[1:]}) == 2
    watcher.check_sums()


async def test_a_replay_is_shown_as_one(clients, replicas):
    here, there = clients
    await there.open_session("replays", model=MODEL)
    chunk = pb.Chunk(session_id="replays", tokens=pb.Tokens(text=b"ab"), position=0)
    async with (
        Watcher(here, "replays", **EVERY, top_k=2) as watcher,
        grpc.aio.insecure_channel(replicas[1].address) as channel,
    ):
        stub = StreamingInferenceServiceStub(channel)
        first = await stub.Step(pb.StepRequest(chunk=chunk), timeout=10)
        await watcher.at(2)
        second = await stub.Step(pb.StepRequest(chunk=chunk), timeout=10)
        await watcher.until(lambda: len(watcher.shown) == 3)
        await stub.Step(
            pb.StepRequest(chunk=pb.Chunk(session_id="replays", tokens=pb.Tokens(text=b"c"), position=2)),
            timeout=10,
        )
        await watcher.at(3)
    assert (first.result.replayed, second.result.replayed) == (False, True)
    assert [(one.position, one.replayed, one.tokens) for one in watcher.shown] == [
        (0, False, None), (2, False, b"ab"), (2, True, b"ab"), (3, False, b"c"),
    ]  # fmt: skip
    assert watcher.shown[2].top == watcher.shown[1].top
    watcher.check_sums()


async def test_at_a_low_rate_the_newest_is_shown_and_the_rest_is_counted(clients):
    here, there = clients
    text = (held_out_text() * 2)[:1500]
    session = await there.open_session("rate", model=MODEL)
    async with Watcher(here, "rate", max_rate_hz=10) as watcher:
        async for _ in session.stream(text, token_log_prob=True):
            pass
        await watcher.at(len(text))
    assert 2 < len(watcher.shown) < len(text) / 2
    for chunk in watcher.shown[1:]:
        assert chunk.tokens == text[chunk.position - 1 : chunk.position]
    watcher.check_sums()
    assert sum(one.token_count + one.skipped_tokens for one in watcher.shown) == len(text)


async def read_to_the_end(call):
    while await call.read() is not grpc.aio.EOF:
        pass


def sent_count(server):
    """Returns how many messages a server has sent to watchers."""
    sent = 'grpc_server_msg_sent_total{grpc_method="WatchSession",'
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(sent))


async def test_a_watcher_that_does_not_read_holds_up_nobody_and_is_ended(clients, replicas):
    here, server = clients[0], replicas[0]
    session = await here.open_session("not read", model=MODEL)
    window = [("grpc.http2.bdp_probe", 0)]  # else it grows to megabytes
    async with grpc.aio.insecure_channel(server.address, options=window) as channel:
        request = pb.WatchSessionRequest(session_id="not read", max_rate_hz=1000, include_state=True)
        call = StreamingInferenceServiceStub(channel).WatchSession(request)
        assert (await call.read()).position == 0
        sent, now = -1, 0
        while now != sent:  # until it cannot be told any more
            for _ in range(100):
                await session.step("x")
            sent, now = now, sent_count(server)
        position = session.position
        wait_for(lambda: value(server, "holdfast_waiting_chunks") == 0)
        assert (await session.step("x")).position == position + 1
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read_to_the_end(call)
    assert isinstance(from_rpc(ended.value), Overloaded), ended.value
    assert "nothing was read" in str(from_rpc(ended.value))


async def test_a_session_that_is_deleted_has_ended(clients):
    here, there = clients
    session = await there.open_session("deleted", model=MODEL)
    async with Watcher(here, "deleted", **EVERY) as watcher:
        await session.step("ab")
        await session.delete()
        await watcher.end()
    assert watcher.shown[-1].ended
    assert watcher.positions[-1] == 2
    watcher.check_sums()
    with pytest.raises(SessionDeleted):
        await anext(here.watch_session("deleted"))


async def test_a_session_that_expires_has_ended(store, tmp_path):
    flags = ("--store", store.url, "--session-ttl-s", "1", "--allow-old-store", "--key-prefix", "brief")
    with ServerProcess(tmp_path / "data", *flags) as server:
        async with holdfast.AsyncClient(server.address) as client:
            session = await client.open_session("expires", model=MODEL)
            async with Watcher(client, "expires", **EVERY) as watcher:
                await session.step("ab")
                await watcher.end()
    assert [(one.position, one.ended) for one in watcher.shown] == [(0, False), (2, False), (2, True)]


async def test_a_takeover_is_shown_and_the_watch_goes_on(clients):
    here, there = clients
    first = await here.open_session("taken over", model=MODEL)
    async with Watcher(here, "taken over", **EVERY) as watcher:
        await first.step("ab")
        await watcher.at(2)
        second = await there.open_session("taken over", take_over=True)
        await watcher.until(lambda: watcher.shown[-1].incarnation == second.incarnation)
        await second.step("c")
        await watcher.at(3)
    assert [(one.position, one.tokens) for one in watcher.shown] == [
        (0, None),
        (2, b"ab"),
        (2, None),
        (3, b"c"),
    ]
    assert first.incarnation != second.incarnation
    watcher.check_sums()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_rate_hz": -1}, "max_rate_hz"),
        ({"max_rate_hz": 1001}, "max_rate_hz"),
        ({"max_rate_hz": float("nan")}, "max_rate_hz"),
        ({"top_k": 257}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "bad features", "token_log_prob": True}, "token_log_prob"),
    ],
)
async def test_a_wrong_request_says_what_is_wrong(clients, replicas, fields, field):
    here, _ = clients
    await here.open_session("bad", model=MODEL)
    await here.open_session("bad features", model="features")
    async with grpc.aio.insecure_channel(replicas[0].address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        request = pb.WatchSessionRequest(**{"session_id": "bad", **fields})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.WatchSession(request, timeout=10).read()
    error = from_rpc(refused.value)
    assert isinstance(error, InvalidRequest)
    assert error.field == field


@pytest.mark.parametrize(
    ("rate", "error", "text"),
    [
        (-1, InvalidRequest, "max_rate_hz is -1, expected more than 0"),
        (float("nan"), InvalidRequest, "max_rate_hz is nan, expected more than 0"),
        ("fast", TypeError, "max_rate_hz is 'fast', expected a number"),
    ],
)
async def test_a_rate_that_is_none_is_no_time(clients, rate, error, text):
    await clients[0].open_session("rated", model=MODEL)
    with pytest.raises(error, match=text):
        await anext(clients[0].watch_session("rated", max_rate_hz=rate))


async def test_an_option_that_there_is_not_is_not_ignored(clients):
    with pytest.raises(TypeError, match="max_rate"):
        await anext(clients[0].watch_session("rated", max_rate=5))


async def test_only_an_existing_session_can_be_watched(clients):
    with pytest.raises(SessionNotFound):
        await anext(clients[0].watch_session("nobody's"))


def test_without_asyncio_it_is_the_same(replicas):
    with holdfast.Client(replicas[0].address) as client:
        session = client.open_session("sync", model=MODEL)
        chunks = client.watch_session("sync", **EVERY)
        assert next(chunks).position == 0
        session.step("ab")
        assert next(chunks).tokens == b"ab"
        chunks.close()
        again = client.watch_session("sync")
        assert next(again).position == 2
        session.delete()
        assert [chunk.ended for chunk in again] == [True]


async def test_who_may_watch(store, tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    acme, blind, beta = (
        tokens.add("acme", "step", "read-state"),
        tokens.add("acme", "step"),
        tokens.add("beta", "step", "read-state"),
    )
    flags = ("--store", store.url, "--allow-old-store", "--key-prefix", "tenants", *tokens.write())
    with ServerProcess(tmp_path / "data", *flags) as server:
        async with contextlib.AsyncExitStack() as stack:
            one, no_state, other = [
                await stack.enter_async_context(holdfast.AsyncClient(server.address, token=token))
                for token in (acme, blind, beta)
            ]
            mine = await one.open_session("secret", model=MODEL)
            with pytest.raises(PermissionDenied, match="read-state"):
                await anext(no_state.watch_session("secret"))
            with pytest.raises(SessionNotFound):
                await anext(other.watch_session("secret"))
            theirs = await other.open_session("secret", model=MODEL)
            async with Watcher(one, "secret", **EVERY) as watcher:
                await theirs.step("xyz")
                await mine.step("a")
                await watcher.at(1)
                tokens.remove(acme)
                tokens.write()
                with pytest.raises(Unauthenticated):
                    await watcher.end()
    assert [chunk.tokens for chunk in watcher.shown] == [None, b"a"]

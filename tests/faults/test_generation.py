"""Generations while servers die, leave, lose connections or go back: the tokens are those of a calm run."""

import asyncio
import contextlib
import itertools
import random
import secrets

import grpc
import pytest

import holdfast
from holdfast.client.status import from_rpc
from holdfast.errors import StoreRegressed
from holdfast.history_digest import INITIAL, digest_after
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.faults.verdict import assert_held
from tests.nemesis.proxy import FaultProxy
from tests.support.generation_oracle import Loop
from tests.support.opening import open_at
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess

MODEL = "python-source"
PROMPT = b"class Reader("
OPTIONS = {"temperature": 0.9, "top_p": 0.95}
SESSIONS = 6
TOKENS = 150

pytestmark = pytest.mark.faults


@pytest.fixture
def store(tmp_path):
    with StoreProcess(tmp_path / "store") as store:
        yield store


def texts(number, count):
    """Returns the texts that a session generates when nothing happens."""
    return [text for _, text, _ in Loop(MODEL).generate(count, PROMPT, seed=number, **OPTIONS)]


class Pace:
    """Lets readers go on to the next gate together, with an event while all of them are between tokens.

    Args:
        events: One for each gate, in threads.
        every: Tokens between two gates.
    """

    def __init__(self, *events, every=23):
        self._events = iter(events)
        self._every = every
        self._barrier = asyncio.Barrier(SESSIONS)
        self._is_over = False

    async def passed(self, count):
        if self._is_over or count % self._every:
            return
        async with self._barrier as place:
            if place == 0:
                event = next(self._events, None)
                self._is_over = event is None
                if event is not None:
                    await asyncio.to_thread(event)
        await self._barrier.wait()  # those who wait see that it has happened


async def generate_through(address, history, *events, every=23):
    """Generates in all sessions, with an event at each gate, and judges tokens, positions and histories."""
    pace = Pace(*events, every=every)
    async with holdfast.AsyncClient(address, timeout_s=60, history=history) as client:

        async def one(number):
            session = await client.open_session(f"g{number}", model=MODEL)
            found = []
            async for token in session.generate(TOKENS, PROMPT, seed=number, **OPTIONS):
                found.append(token.text)
                await pace.passed(len(found))
            assert found == texts(number, TOKENS)
            said = PROMPT + b"".join(found)
            stored = await client.get_session(session.session_id)
            assert session.position == stored.position == len(said)
            assert session.history_digest == stored.history_digest == digest_after(INITIAL, said)
            assert (await session.step("x")).position == len(said) + 1

        await asyncio.gather(*(one(number) for number in range(SESSIONS)))
    return assert_held(history)


class Restarted:
    """A server that is killed and comes back at the same address."""

    def __init__(self, folder, *flags):
        self._make = lambda **where: ServerProcess(folder, *flags, **where)
        self.server = self._make()
        self.address = self.server.address

    def kill(self):
        self.server.kill()
        self.server = self._make(grpc_address=self.address)

    def leave(self):
        assert self.server.stop() == 0
        self.server = self._make(grpc_address=self.address)


@pytest.fixture
def restarted(tmp_path):
    server = Restarted(tmp_path / "data")
    yield server
    server.server.stop()


async def test_a_killed_server_changes_no_token(tmp_path, restarted):
    await generate_through(restarted.address, tmp_path / "history", *[restarted.kill] * 3)


async def test_a_server_that_leaves_changes_no_token(tmp_path, restarted):
    await generate_through(restarted.address, tmp_path / "history", *[restarted.leave] * 2)


async def test_kills_at_any_moment_change_no_token(tmp_path, restarted):
    """Not between tokens, but whenever it happens; the seed of the moments is printed."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    history = tmp_path / "history"
    async with holdfast.AsyncClient(restarted.address, timeout_s=60, history=history) as client:
        is_over = asyncio.Event()

        async def nemesis():
            for _ in range(4):
                await asyncio.sleep(rng.uniform(0.05, 0.4))
                await asyncio.to_thread(restarted.kill)
            is_over.set()

        async def one(number):
            session = await client.open_session(f"g{number}", model=MODEL)
            found, loop = [], Loop(MODEL)
            tokens = session.generate(20_000, PROMPT, seed=number, **OPTIONS)
            async with contextlib.aclosing(tokens):
                async for token in tokens:
                    found.append(token.text)
                    if is_over.is_set() and len(found) > TOKENS:
                        break
            position = (await session.step("x")).position
            said = [
                text
                for _, text, _ in loop.generate(position - 1 - len(PROMPT), PROMPT, seed=number, **OPTIONS)
            ]
            assert found == said[: len(found)]
            assert session.history_digest == digest_after(INITIAL, PROMPT + b"".join(said) + b"x")

        await asyncio.gather(nemesis(), *(one(number) for number in range(SESSIONS)))
    assert_held(history)


async def test_another_replica_goes_on(tmp_path, store):
    servers = [ServerProcess(tmp_path / f"data{number}", "--store", store.url) for number in range(3)]
    try:
        addresses = [server.address for server in servers]
        await generate_through(addresses, tmp_path / "history", servers[0].kill, servers[1].stop, every=37)
    finally:
        for server in servers:
            server.stop()


async def test_left_early_among_replicas_it_stands_behind_what_was_committed(tmp_path, store):
    servers = [ServerProcess(tmp_path / f"data{number}", "--store", store.url) for number in range(2)]
    history = tmp_path / "history"
    try:
        addresses = [server.address for server in servers]
        async with holdfast.AsyncClient(addresses, timeout_s=30, history=history) as client:
            for number in range(12):
                session = await client.open_session(f"left{number}", model=MODEL)
                tokens = session.generate(10_000, PROMPT, seed=number, **OPTIONS)
                for _ in range(1 + number):
                    await anext(tokens)
                await tokens.aclose()
                position = (await session.step("x")).position
                said = PROMPT + b"".join(texts(number, position - 1 - len(PROMPT)))
                assert session.history_digest == digest_after(INITIAL, said + b"x")
    finally:
        for server in servers:
            server.stop()
    assert_held(history)


def read(stub, count, **fields):
    """Reads so many tokens of a call, then cancels it; returns their texts, and how many were replayed."""
    call = stub.Generate(
        pb.GenerateRequest(
            session_id="raw",
            prompt=pb.Tokens(text=PROMPT),
            position=0,
            max_tokens=60,
            sampling=pb.Sampling(seed=3, temperature=0.9, top_p=0.95),
            **fields,
        ),
        timeout=30,
    )
    tokens = [event.token for event in itertools.islice(call, 1, count + 1)]
    call.cancel()
    return [token.text for token in tokens], sum(token.replayed for token in tokens)


def test_the_same_call_to_another_replica_emits_the_same(tmp_path, store):
    expected = texts(3, 60)
    servers = [ServerProcess(tmp_path / f"data{number}", "--store", store.url) for number in range(2)]
    try:
        open_at(servers[0].address, "raw")
        with grpc.insecure_channel(servers[0].address) as channel:
            found, replayed = read(StreamingInferenceServiceStub(channel), 20)
            assert (found, replayed) == (expected[:20], 0)
            servers[0].kill()
        with grpc.insecure_channel(servers[1].address) as channel:
            found, replayed = read(StreamingInferenceServiceStub(channel), 60)
        assert found == expected
        assert 20 <= replayed < 60
    finally:
        for server in servers:
            server.stop()


async def test_connections_that_break_change_no_token(tmp_path):
    with ServerProcess(tmp_path / "data") as server, FaultProxy(server.address) as proxy:

        def cut():
            proxy.cut()
            proxy.heal()

        await generate_through(proxy.address, tmp_path / "history", cut, cut, cut, every=9)


async def test_a_store_that_goes_back_is_healed(tmp_path, store):
    copy = tmp_path / "copy"
    with ServerProcess(tmp_path / "data", "--store", store.url) as server:
        await generate_through(
            server.address,
            tmp_path / "history",
            lambda: store.save(copy),
            lambda: store.put_back(copy),
            lambda: store.put_back(copy),
        )


async def test_a_store_that_forgets_everything_is_healed(tmp_path, store):
    empty = tmp_path / "empty"
    store.save(empty)
    with ServerProcess(tmp_path / "data", "--store", store.url) as server:
        await generate_through(server.address, tmp_path / "history", lambda: store.put_back(empty))


def test_a_caller_of_the_rpc_is_told_that_the_store_went_back(tmp_path, store):
    """In the middle of a call, where only the server knows what it has emitted."""
    with ServerProcess(tmp_path / "data", "--store", store.url) as server:
        open_at(server.address, "raw")
        with grpc.insecure_channel(server.address) as channel:
            stub = StreamingInferenceServiceStub(channel)
            asked = {"sampling": pb.Sampling(seed=3), "session_id": "raw"}
            first = pb.GenerateRequest(prompt=pb.Tokens(text=PROMPT), position=0, max_tokens=10, **asked)
            position = list(stub.Generate(first, timeout=30))[-2].token.position
            [key] = store.client.keys("*")
            older = store.client.get(key)
            long = pb.GenerateRequest(
                prompt=pb.Tokens(text=b"x"), position=position, max_tokens=60_000, **asked
            )
            call = stub.Generate(long, timeout=30)
            assert [next(call).token.text for _ in range(5)]
            store.client.set(key, older)
            with pytest.raises(grpc.RpcError) as caught:
                for _ in call:
                    pass
    error = from_rpc(caught.value)
    assert isinstance(error, StoreRegressed)
    assert error.expected_position == position


@pytest.mark.parametrize("level", ["memory", "fsynced"])
async def test_every_token_has_the_level_that_was_asked_for(tmp_path, level):
    with (
        StoreProcess(tmp_path / "synced", appendfsync="always") as synced,
        ServerProcess(tmp_path / "data", "--store", synced.url) as server,
    ):
        async with holdfast.AsyncClient(server.address, timeout_s=30, ack_level=level) as client:
            session = await client.open_session(model=MODEL)
            found = [token async for token in session.generate(40, PROMPT, seed=1, **OPTIONS)]
    assert [token.text for token in found] == texts(1, 40)
    assert {token.ack_level for token in found} == {level}

"""Stores that lost what they had acknowledged, and writers that were replaced by others.

A fail-over is made by hand: the store is killed and comes back, at the same address, with an older copy of
its files or with those of a replica that was cut off.
"""

import asyncio

import numpy as np
import pytest

import holdfast
from holdfast.errors import ServerUnavailable, SessionDeleted, SessionLost, StoreRegressed
from tests.support.opening import open_at
from tests.support.oracle import run
from tests.support.server import ServerProcess, get
from tests.support.store_process import StoreProcess
from tests.support.waiting import wait_for

MODEL = "python-source"
TEXT = b"import numpy as np\n\n\ndef f(x):\n    return np.tanh(x) + 1\n\n\nclass C:\n    pass\n" * 3
SESSIONS = 8
PART = 60

pytestmark = pytest.mark.faults


@pytest.fixture
def store(tmp_path):
    with StoreProcess(tmp_path / "store") as store:
        yield store


@pytest.fixture
def server(tmp_path, store):
    with ServerProcess(tmp_path / "data", "--store", store.url) as server:
        yield server


@pytest.fixture
def client(server):
    with holdfast.Client(server.address, timeout_s=30) as client:
        yield client


def refused(server, reason):
    """Returns how many chunks were refused for a reason."""
    name = f'holdfast_errors_total{{reason="{reason}"}} '
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


class Gates:
    """Lets writers go on part by part, and waits until all of them are through."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.arrived = 0
        self.all_arrived = asyncio.Event()

    async def wait(self):
        self.arrived += 1
        if self.arrived == SESSIONS:
            self.all_arrived.set()
        await self.gate.wait()


async def write(client, name, gates, **options):
    """Streams a session in chunks of its own size, stopping at each gate; returns the log-probabilities."""
    number = int(name[1:])
    session = await client.open_session(name, model=MODEL)

    async def pieces():
        for part, gate in enumerate((*gates, None)):
            yield TEXT[part * PART : (part + 1) * PART]
            if gate is not None:
                await gate.wait()

    chunks = session.stream(pieces(), chunk=1 + 3 * number, token_log_prob=True, **options)
    return np.concatenate([reply.token_log_probs async for reply in chunks])


async def stream_through(server, *events, **options):
    """Streams all sessions, with an event at each gate while all of them stand there."""
    gates = [Gates() for _ in events]
    async with holdfast.AsyncClient(server.address, timeout_s=60) as client:
        writers = [
            asyncio.create_task(write(client, f"s{number}", gates, **options)) for number in range(SESSIONS)
        ]
        for gate, event in zip(gates, events, strict=True):
            waiting = asyncio.create_task(gate.all_arrived.wait())
            await asyncio.wait((waiting, *writers), return_when=asyncio.FIRST_COMPLETED, timeout=60)
            waiting.cancel()
            await asyncio.to_thread(event)
            gate.gate.set()
        given = await asyncio.gather(*writers)
    expected = run(MODEL, TEXT[: (len(events) + 1) * PART])[1]
    for log_probs in given:
        np.testing.assert_allclose(log_probs, expected, atol=1e-5, rtol=0)


async def test_a_fail_over_to_an_older_copy_gives_the_outputs_of_none(tmp_path, store, server):
    copy = tmp_path / "copy"
    await stream_through(server, lambda: store.save(copy), lambda: store.put_back(copy))
    assert refused(server, "STORE_REGRESSED") >= SESSIONS


async def test_two_fail_overs_one_of_them_to_nothing_give_the_outputs_of_none(tmp_path, store, server):
    copy, empty = tmp_path / "copy", tmp_path / "empty"
    store.save(empty)
    await stream_through(
        server, lambda: store.save(copy), lambda: store.put_back(copy), lambda: store.put_back(empty)
    )
    assert refused(server, "STORE_REGRESSED") >= SESSIONS
    assert refused(server, "SESSION_LOST") >= SESSIONS


async def test_a_fail_over_to_a_replica_that_was_cut_off_gives_the_outputs_of_none(tmp_path, store, server):
    with StoreProcess(tmp_path / "replica") as replica:
        replica.follow(store)

        def fail_over():
            replica.save(tmp_path / "copy")
            store.put_back(tmp_path / "copy")

        await stream_through(server, lambda: replica.client.replicaof("no", "one"), fail_over)
    assert refused(server, "STORE_REGRESSED") >= SESSIONS


async def test_a_fail_over_loses_nothing_that_was_acknowledged_as_replicated(tmp_path, store):
    with StoreProcess(tmp_path / "replica") as replica:
        replica.follow(store)
        flags = ["--store", store.url, "--ack-level", "replicated", "--replicas-required", "1"]
        with ServerProcess(tmp_path / "data", *flags) as server:

            def fail_over():
                store.kill()
                replica.client.replicaof("no", "one")
                replica.save(tmp_path / "copy")
                store.put_back(tmp_path / "copy")
                replica.follow(store)

            await stream_through(server, fail_over)
            assert refused(server, "STORE_REGRESSED") == refused(server, "SESSION_LOST") == 0


def test_a_session_lost_whole_is_opened_and_fed_again(store, client):
    session = client.open_session("s", model=MODEL)
    incarnation = session.incarnation
    for position in range(0, 30, 10):
        session.step(TEXT[position : position + 10])
    store.client.flushall()
    reply = session.step(TEXT[30:], token_log_prob=True)
    np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1][30:], atol=1e-5)
    assert (session.position, reply.position) == (len(TEXT), len(TEXT))
    assert session.incarnation != incarnation
    assert client.open_session("s").position == len(TEXT)


def test_a_session_lost_before_its_first_token_is_opened_again(store, client):
    session = client.open_session("s", model=MODEL)
    store.client.flushall()
    reply = session.step(TEXT, token_log_prob=True)
    np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1], atol=1e-5)


def test_a_session_with_a_state_of_its_own_gets_that_state_again(store, client):
    first = client.open_session("first", model=MODEL)
    first.step(TEXT[:20])
    second = client.open_session("second", model=MODEL, initial_state=first.state())
    second.step(TEXT[20:40])
    store.client.flushall()
    reply = second.step(TEXT[40:60], token_log_prob=True)
    np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT[:60])[1][40:], atol=1e-5)


def test_a_session_that_was_resumed_cannot_be_made_again(store, client, server):
    client.open_session("s", model=MODEL).step(TEXT[:20])
    with holdfast.Client(server.address) as other:
        session = other.open_session("s")
        session.step(TEXT[20:30])
        store.client.flushall()
        with pytest.raises(SessionLost):
            session.step(TEXT[30:])
    assert store.client.keys("holdfast:*") == []


def test_a_session_resumed_before_its_first_token_is_not_made_again(store, client, server):
    client.open_session("s", model=MODEL, initial_state={"h": np.ones(256, np.float32)})
    with holdfast.Client(server.address) as other:
        session = other.open_session("s")
        store.client.flushall()
        with pytest.raises(SessionLost):  # it does not know from which state
            session.step(TEXT)
    assert store.client.keys("holdfast:*") == []


def test_a_session_older_than_the_buffer_cannot_be_made_again(store, server):
    with holdfast.Client(server.address, replay_tokens=10) as client:
        session = client.open_session("s", model=MODEL)
        session.step(TEXT[:10])
        session.step(TEXT[10:20])
        store.client.flushall()
        with pytest.raises(SessionLost):
            session.step(TEXT[20:])
    assert store.client.keys("holdfast:*") == []


def test_a_session_that_may_have_expired_is_not_made_again(tmp_path, store):
    flags = ["--store", store.url, "--session-ttl-s", "1"]
    server = ServerProcess(tmp_path / "data", *flags)
    with holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        session.step(TEXT[:10])
        server.stop()
        [key] = store.client.keys("holdfast:*")
        wait_for(lambda: not store.client.exists(key), 20)
        with ServerProcess(tmp_path / "data", *flags, grpc_address=server.address):
            with pytest.raises(SessionLost):
                session.step(TEXT[10:])
            assert store.client.keys("holdfast:*") == []


def test_what_others_have_opened_meanwhile_is_theirs(store, client, server):
    session = client.open_session("s", model=MODEL)
    session.step(TEXT[:10])
    store.client.flushall()
    with holdfast.Client(server.address) as other:
        theirs = other.open_session("s", model=MODEL)
        theirs.step("x")
        with pytest.raises(SessionDeleted):
            session.step(TEXT[10:])
        assert theirs.step("y").position == 2


async def test_what_is_opened_between_loss_and_reopening_is_theirs(store, server, monkeypatch):
    async with holdfast.AsyncClient(server.address) as client:
        session = await client.open_session("s", model=MODEL)
        await session.step(TEXT[:10])
        store.client.flushall()
        call = client._calls.call

        async def come_second(rpc, request, **options):
            if rpc == "OpenSession":
                monkeypatch.undo()
                await client.open_session("s", model=MODEL)
            return await call(rpc, request, **options)

        monkeypatch.setattr(client._calls, "call", come_second)
        with pytest.raises(SessionLost) as caught:
            await session.step(TEXT[10:])
        assert caught.value.not_applied == ((10, TEXT[10:]),)
        assert (await client.open_session("s")).position == 0


def test_a_writer_that_takes_over_goes_on_and_fences_the_one_before(store, client, server):
    old = client.open_session("s", model=MODEL)
    old.step(TEXT[:10])
    with ServerProcess(server.log_path.parent / "two", "--store", store.url) as second:
        old.step(TEXT[10:20])  # hot in the first server
        with holdfast.Client(second.address) as other:
            new = other.open_session("s", take_over=True)
            assert (new.position, new.resumed) == (20, True)
            assert new.incarnation != old.incarnation
            with pytest.raises(SessionDeleted, match="not that of the stored session"):
                old.step("never")
            with pytest.raises(SessionDeleted):
                list(old.stream("never"))
            reply = new.step(TEXT[20:], token_log_prob=True)
            np.testing.assert_allclose(reply.token_log_probs, run(MODEL, TEXT)[1][20:], atol=1e-5)
            with pytest.raises(SessionDeleted):
                old.delete()
            assert other.open_session("s").position == len(TEXT)


def test_a_chunk_of_the_fenced_writer_that_is_on_its_way_is_not_applied(client, server):
    old = client.open_session("s", model=MODEL)
    stream = old.stream(TEXT, chunk=1)
    next(stream)
    new = client.open_session("s", take_over=True)
    position = new.position
    with pytest.raises(SessionDeleted) as caught:
        list(stream)
    assert old.pending or caught.value.not_applied, "the error says what became of what was sent"
    state = new.state()["h"]
    np.testing.assert_array_equal(state, client.open_session("s").state()["h"])
    assert new.step("x").position == position + 1


def test_of_a_takeover_that_the_store_has_lost_nothing_is_made_up(store, client):
    old = client.open_session("s", model=MODEL)
    old.step(TEXT[:10])
    [key] = store.client.keys("holdfast:*")
    before = store.client.get(key)
    new = client.open_session("s", take_over=True)
    new.step(TEXT[10:20])
    store.client.set(key, before)
    for _ in range(2):
        with pytest.raises(
            SessionDeleted, match="not that of the stored session, which stands at position 10"
        ):
            new.step(TEXT[20:30])
    assert store.client.get(key) == before
    again = client.open_session("s", take_over=True)
    assert again.position == 10


def test_must_be_new_is_stronger_than_taking_over(store, client):
    client.open_session("s", model=MODEL)
    [key] = store.client.keys("holdfast:*")
    before = store.client.get(key)
    with pytest.raises(holdfast.errors.SessionExists):
        client.open_session("s", model=MODEL, must_be_new=True, take_over=True)
    assert store.client.get(key) == before


class Proxy:
    """A connection through which replies come only while `open` is set."""

    def __init__(self, address):
        self.address = address
        self.open = asyncio.Event()
        self.open.set()
        self.writers = []
        self.tasks = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.cut()
        self._server.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def cut(self):
        """Breaks every connection, with the replies that were held back."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()
        self.open.set()

    async def _serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        host, _, port = self.address.rpartition(":")
        up, down = await asyncio.open_connection(host, int(port))
        self.writers += [writer, down]
        await asyncio.gather(self._pass(reader, down, None), self._pass(up, writer, self.open))

    async def _pass(self, reader, writer, gate):
        try:
            while data := await reader.read(1 << 16):
                if gate is not None:
                    await gate.wait()
                writer.write(data)
        except ConnectionError:
            pass


async def test_batches_whose_replies_are_lost_together_are_answered_when_sent_again(server):
    names = [f"b{number}" for number in range(5)]
    open_at(server.address, *names)
    texts = [TEXT[3 * number : 3 * number + 20] for number in range(5)]
    async with (
        Proxy(server.address) as proxy,
        holdfast.AsyncClient(f"127.0.0.1:{proxy.port}", timeout_s=20) as client,
        client.batches(MODEL, token_log_prob=True) as batches,
    ):

        async def submit(position):
            tokens = b"".join(text[position : position + 2] for text in texts)
            return await batches.submit(names, tokens, [position] * len(names))

        first = await (await submit(0))
        proxy.open.clear()
        lost = [await submit(position) for position in (2, 4, 6)]
        await asyncio.to_thread(wait_for, lambda: position_of(server, names[-1]) == 8, 20)
        proxy.cut()
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert {outcome.reason for outcome in outcomes} == {"SERVER_UNAVAILABLE"}
        replies = [first]
        while len(replies) < 5:  # the connection may need some time to come back
            futures = [await submit(position) for position in (2, 4, 6, 8)]
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
            if any(isinstance(outcome, ServerUnavailable) for outcome in outcomes):
                await asyncio.sleep(0.05)
            else:
                replies += outcomes
    assert [reply.errors for reply in replies] == [{}] * 5
    assert [len(reply.replayed_rows) for reply in replies[:4]] == [0, 5, 5, 5]
    given = np.concatenate([reply.token_log_probs for reply in replies], axis=1)
    for row, text in zip(given, texts, strict=True):
        np.testing.assert_allclose(row, run(MODEL, text[:10])[1], atol=1e-5)


def position_of(server, session_id):
    with holdfast.Client(server.address) as client:
        return client.open_session(session_id, model=MODEL).position


async def test_rows_of_a_pipeline_say_what_the_store_has_lost(store, server):
    open_at(server.address, "s", "t")
    async with (
        holdfast.AsyncClient(server.address, timeout_s=20) as client,
        client.batches(MODEL, token_log_prob=True) as batches,
    ):
        await (await batches.submit(["s", "t"], b"abAB", [0, 0]))
        [key] = store.client.keys("holdfast:*:s}")
        before = store.client.get(key)
        await (await batches.submit(["s", "t"], b"cdCD", [2, 2]))
        store.client.set(key, before)
        reply = await (await batches.submit(["s", "t"], b"efEF", [4, 4]))
        assert isinstance(reply.errors[0], StoreRegressed)
        assert (list(reply.errors), reply.errors[0].expected_position) == ([0], 2)
        await (await batches.submit(["s"], b"cd", [2]))
        reply = await (await batches.submit(["s"], b"ef", [4]))
        np.testing.assert_allclose(reply.token_log_probs[0], run(MODEL, b"abcdef")[1][4:], atol=1e-5)
        reply = await (await batches.submit(["s"], b"gh", [8]))
        assert reply.errors[0].reason == "STORE_REGRESSED"  # by the caller's word it had replies up to 8

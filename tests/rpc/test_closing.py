"""Nothing hangs: sessions that are busy, clients closed during calls, calls from a wrong place."""

import asyncio
import itertools
import threading
import time

import pytest

import holdfast
from holdfast.errors import ClientClosed, HoldfastError, ServerUnavailable, SessionBusy, WrongEventLoop
from tests.support.scripted_server import DOWN, SILENT, STUCK, ScriptedServer
from tests.support.waiting import wait_for

QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02, attempt_s=60)
PROMPT_S = 5


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(server):
    client = holdfast.Client(server.address, retry=QUICK, timeout_s=60)
    yield client
    client.close()


@pytest.fixture
def session(client):
    return client.open_session("s", model="m")


@pytest.fixture
async def async_client(server):
    async with holdfast.AsyncClient(server.address, retry=QUICK, timeout_s=60) as client:
        yield client


class InThread:
    """Runs something in a thread; `error` is what it raised."""

    def __init__(self, call):
        self.error = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the test looks at it
            self.error = error

    def end(self):
        """Waits until it is over; returns the error."""
        self._thread.join(PROMPT_S)
        assert not self._thread.is_alive(), "it hangs"
        return self.error


# -- busy ----------------------------------------------------------------------------------------------


def test_a_step_beside_a_half_read_stream_says_what_holds_the_session(session, server):
    stream = session.stream(b"abcdef")
    next(stream)
    for call in (
        lambda: session.step(b"x", timeout_s=0.2),
        lambda: session.settle(timeout_s=0.2),
        lambda: next(session.stream(b"x", timeout_s=0.2)),
    ):
        with pytest.raises(SessionBusy, match="a stream that has not ended held the session") as caught:
            call()
        assert (caught.value.reason, caught.value.retryable) == ("SESSION_BUSY", False)
        assert "nothing was sent" in str(caught.value)
    assert [reply.position for reply in stream] == [2, 3, 4, 5, 6]
    session.step(b"x")
    assert server.applied() == b"abcdefx"


async def test_the_same_with_asyncio(async_client, server):
    session = await async_client.open_session("s", model="m")
    stream = session.stream(b"abcdef")
    await anext(stream)
    with pytest.raises(SessionBusy):
        await session.step(b"x", timeout_s=0.2)
    await stream.aclose()
    await session.settle()
    await session.step(b"x")


async def test_calls_of_one_session_wait_for_each_other(async_client, server):
    session = await async_client.open_session("s", model="m")
    replies = await asyncio.gather(*(session.step(bytes([97 + number])) for number in range(8)))
    assert [reply.position for reply in replies] == list(range(1, 9))
    assert server.applied() == b"abcdefgh"


async def test_who_gave_up_waiting_is_not_given_the_turn(async_client, server):
    session = await async_client.open_session("s", model="m")
    server.hold()
    first = asyncio.create_task(session.step(b"a"))
    await asyncio.sleep(0.05)
    with pytest.raises(SessionBusy, match="a step held the session"):
        await session.step(b"b", timeout_s=0.1)
    server.let_go()
    await first
    await session.step(b"c")
    assert server.applied() == b"ac"


# -- closed --------------------------------------------------------------------------------------------


def test_a_closed_client_refuses_everything_at_once_and_may_be_closed_again(client, session, server):
    session.step(b"a")
    stream = session.stream(b"bcd")
    next(stream)
    client.close()
    client.close()
    for call in (
        lambda: session.step(b"x"),
        lambda: session.settle(),
        lambda: next(stream),
        lambda: next(session.stream(b"x")),
        lambda: session.state(),
        lambda: session.delete(),
        lambda: client.list_models(),
        lambda: client.open_session("t", model="m"),
        lambda: client.step_batch("m", ["s"], b"x", [1]),
    ):
        with pytest.raises(ClientClosed) as caught:
            call()
        assert (caught.value.reason, caught.value.retryable) == ("CLIENT_CLOSED", False)
    assert session.position == 2


async def test_a_closed_async_client_refuses_everything_at_once(async_client):
    session = await async_client.open_session("s", model="m")
    batches = async_client.batches("m")
    await async_client.close()
    await async_client.close()
    for call in (
        lambda: session.step(b"x"),
        lambda: session.settle(),
        lambda: anext(session.stream(b"x")),
        lambda: async_client.list_models(),
        lambda: async_client.step_batch("m", ["s"], b"x"),
        lambda: batches.submit(["s"], b"x"),
    ):
        with pytest.raises(ClientClosed, match="the client is closed"):
            await call()


def calls_under_way(server, session):
    """Yields calls that do not end by themselves: a name, the script for the server, the call."""

    def step():
        session.step(b"x")

    def stream():
        list(session.stream(b"xyz"))

    def wait_for_source():
        list(session.stream(endless()))

    async def endless():
        await asyncio.Event().wait()
        yield b"x"

    yield "a step", [SILENT], step
    yield "a step that waits", [STUCK], step
    yield "a stream", [None, STUCK], stream
    yield "retries", [DOWN] * 100_000, step
    yield "retries of a stream", [DOWN] * 100_000, stream
    yield "a source", [], wait_for_source


@pytest.mark.parametrize("number", range(6))
def test_closing_ends_what_other_threads_do(client, session, server, number):
    name, script, call = next(itertools.islice(calls_under_way(server, session), number, None))
    server.script.extend(script)
    busy = InThread(call)
    waiting = InThread(lambda: session.step(b"later"))
    if script:
        wait_for(lambda: len(server.chunks) >= min(2, len(script)))
    time.sleep(0.1)
    started_s = time.monotonic()
    client.close()
    errors = [busy.end(), waiting.end()]
    assert time.monotonic() - started_s < PROMPT_S, name
    assert [type(error) for error in errors] == [ClientClosed] * 2, errors
    assert any("nothing was sent" in str(error) for error in errors)
    if script:
        assert any("may have been applied" in str(error) for error in errors), errors
        assert session.pending
    server.script.clear()


async def test_closing_ends_what_other_tasks_do(async_client, server):
    sessions = [await async_client.open_session(f"s{number}", model="m") for number in range(3)]
    server.script.extend([STUCK] * 3)
    stream = sessions[1].stream(b"xyz")
    tasks = [
        asyncio.create_task(sessions[0].step(b"x")),
        asyncio.create_task(anext(stream)),
        asyncio.create_task(sessions[2].step(b"x")),
        asyncio.create_task(sessions[2].step(b"y")),
    ]
    await asyncio.sleep(0.2)
    await asyncio.gather(async_client.close(), async_client.close())
    async with asyncio.timeout(PROMPT_S):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ClientClosed] * 4
    assert [outcome.pending for outcome in outcomes] == [((0, b"x"),)] * 4
    assert "nothing was sent by this call" in str(outcomes[3])


async def test_a_cancellation_stays_one_while_the_client_is_closed(async_client, server):
    session = await async_client.open_session("s", model="m")
    server.script.append(STUCK)
    step = asyncio.create_task(session.step(b"x"))
    await asyncio.sleep(0.1)
    step.cancel()
    await async_client.close()
    with pytest.raises(asyncio.CancelledError):
        await step


async def test_closing_ends_batches(async_client, server):
    await async_client.open_session("s", model="m")
    server.script.append(STUCK)
    async with async_client.batches("m") as batches:
        reply = await batches.submit(["s"], b"x", [0])
        await asyncio.sleep(0.1)
        await async_client.close()
        with pytest.raises(ClientClosed, match="send the same rows at the same positions again"):
            await asyncio.wait_for(reply, PROMPT_S)


def test_two_threads_may_close_at_the_same_time(client, session):
    closing = [InThread(client.close) for _ in range(4)]
    assert [one.end() for one in closing] == [None] * 4


def test_a_stream_that_is_closed_after_its_client_is_quiet(client, session):
    stream = session.stream(b"abcdef")
    next(stream)
    client.close()
    stream.close()


def test_a_stream_whose_client_is_closed_says_what_was_under_way(client, session):
    stream = session.stream(b"abcdef", max_in_flight=4)
    assert [next(stream).position for _ in range(2)] == [1, 2]
    client.close()
    with pytest.raises(ClientClosed, match="4 chunks of 4 tokens from position 2 on may have") as caught:
        next(stream)
    assert caught.value.pending == session.pending == ((2, b"c"), (3, b"d"), (4, b"e"), (5, b"f"))


def test_what_an_iterator_gave_to_a_stream_whose_client_is_closed_is_pending(client, session):
    given = []

    def source():
        for token in (b"a", b"b", b"c", b"d"):
            if token == b"c":
                client.close()
            given.append(token)
            yield token

    with pytest.raises(ClientClosed) as caught:
        list(session.stream(source(), max_in_flight=3))
    assert caught.value.pending == session.pending == ((1, b"b"), (2, b"c"), (3, b"d"))
    assert given == [b"a", b"b", b"c", b"d"]


async def test_a_closed_client_says_what_was_pending_before(async_client, server):
    session = await async_client.open_session("s", model="m")
    server.script.append(SILENT)
    with pytest.raises(HoldfastError):
        await session.step(b"ab", timeout_s=0.2)
    await async_client.close()
    for call in (session.step(b"cd"), session.settle(), anext(session.stream(b"cd"))):
        with pytest.raises(ClientClosed, match="repeat the first chunk there with position=0") as caught:
            await call
        assert caught.value.pending == session.pending == ((0, b"ab"),)
        assert "nothing was sent" in str(caught.value)


# -- the wrong place -----------------------------------------------------------------------------------


def test_the_clients_own_event_loop_is_told_that_it_would_wait_for_itself(client, session):
    async def source():
        yield b"a"
        session.step(b"b")

    with pytest.raises(WrongEventLoop, match="the client's own event loop, and would wait for itself"):
        list(session.stream(source()))
    session.settle()
    session.step(b"c")


def test_an_async_client_belongs_to_its_event_loop(server):
    async def open_session():
        client = holdfast.AsyncClient(server.address)
        return client, await client.open_session("s", model="m")

    first = asyncio.new_event_loop()
    client, session = first.run_until_complete(open_session())

    async def use(call):
        with pytest.raises(WrongEventLoop, match="was first used on another event loop"):
            await call()

    for call in (client.list_models, lambda: session.step(b"x"), lambda: anext(session.stream(b"x"))):
        asyncio.run(use(call))
    assert session.pending == ()
    first.run_until_complete(client.close())
    first.close()


def test_a_retry_with_another_client_after_closing_applies_it_once(client, session, server):
    server.script.append(SILENT)
    busy = InThread(lambda: session.step(b"ab"))
    wait_for(lambda: server.chunks)
    client.close()
    error = busy.end()
    assert isinstance(error, ClientClosed)
    position, tokens = error.pending[0]
    with holdfast.Client(server.address, retry=QUICK) as other:
        reply = other.open_session("s", model="m").step(tokens, position=position)
    assert (reply.replayed, server.applied()) == (True, b"ab")


def test_no_server_is_an_error_in_time():
    with holdfast.Client("127.0.0.1:1", timeout_s=0.2) as client, pytest.raises(HoldfastError) as caught:
        client.open_session("s", model="m")
    assert isinstance(caught.value, ServerUnavailable)

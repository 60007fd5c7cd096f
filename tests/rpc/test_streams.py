"""Streams: left in every phase, fed by what waits, by their own replies, by threads; nothing is lost."""

import asyncio
import gc
import itertools
import queue
import sqlite3
import threading
import time

import pytest

import holdfast
from holdfast import errors as refusals
from holdfast.errors import ChunkPending, DeadlinePassed, HoldfastError, InvalidRequest
from tests.support.scripted_server import DOWN, LOST, SILENT, STUCK, ScriptedServer
from tests.support.waiting import wait_for

QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02, attempt_s=5)
TEXT = bytes(range(32, 96))


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(server):
    with holdfast.Client(server.address, retry=QUICK, timeout_s=10) as client:
        yield client


@pytest.fixture
def session(client):
    return client.open_session("s", model="m")


@pytest.fixture
async def async_client(server):
    async with holdfast.AsyncClient(server.address, retry=QUICK, timeout_s=10) as client:
        yield client


@pytest.fixture
async def async_session(async_client):
    return await async_client.open_session("s", model="m")


def tokens_of(replies):
    return b"".join(bytes(map(int, reply.token_log_probs)) for reply in replies)


def pieces(size=1):
    """Yields the text in pieces."""
    for start in range(0, len(TEXT), size):
        yield TEXT[start : start + size]


async def later(parts):
    """Yields parts as an asynchronous source does."""
    while True:
        await asyncio.sleep(0)
        try:
            part = next(parts)
        except StopIteration:
            return
        yield part


def collect_all(stream, given):
    for reply in stream:
        given.append(reply)


async def collect(stream, given):
    async for reply in stream:
        given.append(reply)


async def eventually(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- it happens in another thread
            await asyncio.sleep(0.01)


# -- left in every phase -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("in_flight", [None, 5])
@pytest.mark.parametrize("read_count", [1, 2, 5])
def test_a_stream_that_is_left_has_lost_nothing_of_its_iterator(
    session, server, chunk, size, in_flight, read_count
):
    source = pieces(size)
    given = []
    for reply in session.stream(source, chunk=chunk, max_in_flight=in_flight):
        given.append(reply)
        if len(given) == read_count:
            break
    assert session.position == len(tokens_of(given))
    given += session.settle()
    assert tokens_of(given) == server.applied()
    assert server.applied() + b"".join(source) == TEXT


@pytest.mark.parametrize("kind", [iter, later])
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("in_flight", [None, 5])
@pytest.mark.parametrize("read_count", [1, 2, 5])
async def test_the_same_with_asyncio(async_session, server, kind, size, in_flight, read_count):
    session = async_session
    rest = pieces(size)
    given = []
    stream = session.stream(kind(rest), chunk=3, max_in_flight=in_flight)
    async for reply in stream:
        given.append(reply)
        if len(given) == read_count:
            break
    await stream.aclose()
    assert session.position == len(tokens_of(given))
    await eventually(lambda: not [one for one in threading.enumerate() if one.name == "holdfast-source"])
    given += await session.settle()
    assert tokens_of(given) == server.applied()
    assert server.applied() + b"".join(rest) == TEXT


@pytest.mark.parametrize("read_count", [1, 2, 9, len(TEXT)])
def test_of_a_sequence_the_rest_is_still_the_callers(session, server, read_count):
    given = list(itertools.islice(session.stream(TEXT), read_count))
    assert session.position == read_count
    given += session.settle()
    assert TEXT[: session.position] == server.applied() == tokens_of(given)


@pytest.mark.parametrize("moment", range(12))
async def test_a_consumer_cancelled_at_any_moment_loses_nothing(async_session, server, moment):
    session, rest, given = async_session, pieces(3), []

    async def consume():
        async for reply in session.stream(later(rest), chunk=2, max_in_flight=4):
            given.append(reply)

    for _ in range(3):
        consumer = asyncio.create_task(consume())
        for _ in range(moment * 3):
            await asyncio.sleep(0)
        await asyncio.sleep(moment * 0.0005)
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
        given += await session.settle()
        assert tokens_of(given) == server.applied()
    assert server.applied() + b"".join(rest) == TEXT


async def test_a_break_without_a_close_frees_the_session_when_the_stream_is_gone(async_session, server):
    async for _ in async_session.stream(TEXT):
        break
    replies = await async_session.settle()
    assert async_session.position == 1 + len(replies)


def test_after_a_break_new_tokens_wait_for_a_settlement(session, server):
    for reply in session.stream(TEXT):
        if reply.position == 2:
            break
    with pytest.raises(ChunkPending, match="position 2"):
        session.step(b"x")
    with pytest.raises(ChunkPending):
        next(session.stream(b"x"))
    session.settle()
    session.step(b"x")


def test_a_stream_that_was_never_begun_holds_nothing(session):
    stream = session.stream(TEXT)
    session.step(b"a")
    stream.close()
    session.step(b"b")


# -- sources that raise, wait, or look back ------------------------------------------------------------


class OutOfOrder(Exception):
    pass


def broken(parts):
    yield from parts
    raise OutOfOrder


@pytest.mark.parametrize("in_flight", [1, 8])
def test_what_a_source_raises_reaches_the_caller_and_leaves_what_is_under_way(session, server, in_flight):
    given = []
    stream = session.stream(broken([b"ab", b"cd", b"ef"]), chunk=2, max_in_flight=in_flight)
    with pytest.raises(OutOfOrder):
        collect_all(stream, given)
    given += session.settle()
    assert tokens_of(given) == server.applied() == b"abcdef"


@pytest.mark.parametrize("kind", [iter, later])
async def test_the_same_with_asyncio_of_both_kinds(async_session, server, kind):
    given = []
    stream = async_session.stream(kind(broken([b"ab", b"cd"])), chunk=2, max_in_flight=8)
    with pytest.raises(OutOfOrder):
        await collect(stream, given)
    given += await async_session.settle()
    assert tokens_of(given) == server.applied() == b"abcd"


def test_a_part_that_is_no_tokens_is_the_callers_error(session, server):
    with pytest.raises(TypeError):
        list(session.stream(iter([b"ab", object()])))
    session.settle()
    assert server.applied() == b"ab"


def test_a_source_may_look_at_what_the_loop_body_made_of_the_last_reply(session, server):
    last = 97

    def source():
        for _ in range(8):
            yield bytes([last])

    for reply in session.stream(source()):
        last = int(reply.token_log_probs[0]) + 1
    assert server.applied() == b"abcdefgh"


def test_a_source_may_wait_for_what_the_loop_body_puts_into_a_queue(session, server):
    fed = queue.Queue()
    fed.put(b"a")
    for reply in session.stream(iter(lambda: fed.get(timeout=5), b"")):
        last = int(reply.token_log_probs[0])
        fed.put(bytes([last + 1]) if last < 104 else b"")
    assert server.applied() == b"abcdefgh"


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_same_two_with_asyncio(async_session, server, is_async):
    last = 97

    def source():
        for _ in range(8):
            yield bytes([last])

    async for reply in async_session.stream(later(source()) if is_async else source()):
        last = int(reply.token_log_probs[0]) + 1
    fed = asyncio.Queue() if is_async else queue.Queue()
    fed.put_nowait(b"i")

    async def waiting():
        while part := await fed.get():
            yield part

    async for reply in async_session.stream(waiting() if is_async else iter(fed.get, b"")):
        last = int(reply.token_log_probs[0])
        fed.put_nowait(bytes([last + 1]) if last < 112 else b"")
    assert server.applied() == b"abcdefghijklmnop"


async def test_a_source_that_waits_delays_no_reply(async_client, async_session):
    """Neither that of the part before, nor those of other sessions."""
    never = threading.Event()

    def source():
        yield b"a"
        never.wait(60)
        yield b"b"

    other = await async_client.open_session("other", model="m")
    stream = async_session.stream(source())
    assert (await asyncio.wait_for(anext(stream), 5)).position == 1
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.1)
    for number in range(5):
        assert (await asyncio.wait_for(other.step(b"x"), 5)).position == number + 1
    assert not waiting.done()
    never.set()
    assert (await asyncio.wait_for(waiting, 5)).position == 2
    await stream.aclose()


async def test_replies_come_while_a_source_with_several_under_way_waits(async_session):
    fed = asyncio.Queue()
    fed.put_nowait(b"a")
    fed.put_nowait(b"b")

    async def source():
        while True:
            yield await fed.get()

    stream = async_session.stream(source(), max_in_flight=8)
    assert [(await asyncio.wait_for(anext(stream), 5)).position for _ in range(2)] == [1, 2]
    await stream.aclose()


def test_a_source_without_asyncio_runs_in_the_callers_thread_and_only_while_that_waits(session, server):
    database = sqlite3.connect(":memory:")  # refuses every other thread
    rows = database.execute("select x'61' union all select x'62' union all select x'63'")
    fetched = []

    def source():
        for (row,) in rows:
            fetched.append(threading.current_thread())
            yield row

    for number, _ in enumerate(session.stream(source())):
        assert len(fetched) == number + 1
        time.sleep(0.05)
        assert len(fetched) == number + 1, "it was asked while the loop body ran"
    assert set(fetched) == {threading.current_thread()}
    assert server.applied() == b"abc"
    database.close()


async def test_a_source_beside_asyncio_is_asked_only_when_a_reply_is_wanted(async_session):
    count = 0

    def source():
        nonlocal count
        while True:
            count += 1
            yield b"x"

    stream = async_session.stream(source())
    for number in range(1, 5):
        await anext(stream)
        await asyncio.sleep(0.05)
        assert count == number
    await stream.aclose()


async def test_the_thread_of_a_source_ends_with_its_stream(async_session):
    def threads():
        return [one for one in threading.enumerate() if one.name == "holdfast-source"]

    async for _ in async_session.stream(pieces()):
        assert len(threads()) == 1
        assert threads()[0].daemon
    await eventually(lambda: not threads())


# -- what is fetched when a stream is left --------------------------------------------------------------


@pytest.mark.parametrize("moment", range(25))
async def test_a_queue_whose_reader_is_cancelled_loses_nothing(async_session, server, moment):
    """The item is put at the very moment at which the consumer is cancelled."""
    session, fed = async_session, asyncio.Queue()

    async def source():
        while True:
            yield await fed.get()

    async def consume():
        async for _ in session.stream(source()):
            pass

    for number in range(4):
        consumer = asyncio.create_task(consume())
        await asyncio.sleep(0.01)
        fed.put_nowait(bytes([97 + number]))
        for _ in range(moment):
            await asyncio.sleep(0)
        consumer.cancel()
        await asyncio.gather(consumer, return_exceptions=True)
        await session.settle()
    rest = b"".join(fed.get_nowait() for _ in range(fed.qsize()))
    assert server.applied() + rest == b"abcd"


async def test_an_item_that_a_cancelled_fetch_yields_all_the_same_is_pending(async_session, server):
    class Stubborn:
        def __aiter__(self):
            return self

        async def __anext__(self):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return b"late"

    stream = async_session.stream(Stubborn(), chunk=4)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert async_session.pending == ((0, b"late"),)
    await async_session.settle()
    assert server.applied() == b"late"


async def test_an_item_that_a_thread_brings_after_the_stream_was_left_is_pending(async_session, server):
    session, go = async_session, threading.Event()

    def source():
        yield b"a"
        go.wait(20)
        yield b"bc"

    stream = session.stream(source())
    await anext(stream)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert session.pending == ()
    await session.step(b"x")
    go.set()
    await eventually(lambda: session.pending)
    assert session.pending == ((2, b"b"), (3, b"c"))
    with pytest.raises(ChunkPending):
        await session.step(b"y")
    await session.settle()
    assert server.applied() == b"axbc"


async def test_a_source_that_fails_after_its_stream_was_left_is_reported(async_session):
    go, reported = threading.Event(), []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(context["exception"])
    )

    def source():
        go.wait(20)
        raise OutOfOrder
        yield

    waiting = asyncio.create_task(anext(async_session.stream(source())))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    go.set()
    await eventually(lambda: reported)
    assert isinstance(reported[0], OutOfOrder)


# -- how many are under way -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "count"),
    [
        (TEXT, {}, 32),
        (list(TEXT), {}, 32),
        (tuple(TEXT), {}, 32),
        (range(32, 96), {}, 32),
        ([b"ab", b"cd"] * 30, {}, 32),
        (TEXT, {"max_in_flight": 3}, 3),
        (iter(pieces()), {}, 1),
        (iter(pieces()), {"max_in_flight": 4}, 4),
    ],
)
def test_so_many_chunks_are_under_way(session, server, source, options, count):
    server.script.extend([None, STUCK])  # until the size of a reply is known there is one
    with pytest.raises(DeadlinePassed):
        list(session.stream(source, timeout_s=0.5, **options))
    assert (session.position, len(session.pending)) == (1, count)


@pytest.mark.parametrize(
    "options", [{"chunk": 0}, {"chunk": -1}, {"max_in_flight": 0}, {"max_in_flight": 33}]
)
def test_options_out_of_range_are_refused_at_once(session, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        session.stream(b"abc", **options)


async def test_the_same_of_options_with_asyncio(async_session):
    with pytest.raises(ValueError, match="chunk is 0, expected at least 1"):
        async_session.stream(b"abc", chunk=0)


# -- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOST, DOWN])
@pytest.mark.parametrize("source", [TEXT, pieces])
def test_a_connection_that_is_cut_again_and_again_costs_nothing(session, server, fault, source):
    server.script.extend([None, None, fault, None, fault, fault, *[None] * 9, fault])
    given = list(session.stream(source() if callable(source) else source))
    assert tokens_of(given) == server.applied() == TEXT


def test_a_refusal_for_good_says_from_where_on_nothing_was_applied(session, server):
    server.script.extend([None, None, None, refusals.InvalidRequest("no")])
    stream = session.stream(iter(pieces(2)), chunk=2, max_in_flight=4)
    given = [next(stream) for _ in range(3)]
    with pytest.raises(InvalidRequest) as caught:
        next(stream)
    assert session.position == len(tokens_of(given)) == 6
    assert [chunk.position for chunk in caught.value.not_applied] == [6, 8, 10, 12][
        : len(caught.value.not_applied)
    ]
    assert caught.value.not_applied[0].tokens == TEXT[6:8]
    assert "from position 6 on: not applied" in str(caught.value)
    assert session.pending == ()
    session.step(b"x")
    assert server.applied() == TEXT[:6] + b"x"


def test_a_refusal_after_a_cut_does_not_pretend_to_know(session, server):
    server.script.extend([None, LOST, refusals.SessionDeleted("taken over")])
    with pytest.raises(HoldfastError, match="may or may not have been applied"):
        list(session.stream(TEXT, max_in_flight=1))
    assert session.pending[0].position == 1


def test_time_runs_while_a_reply_is_waited_for_and_not_while_the_loop_body_runs(session, server):
    for number, _ in enumerate(session.stream(iter([b"a", b"b", b"c"]), timeout_s=1.0)):
        if number == 1:
            time.sleep(1.3)
    server.script.append(SILENT)
    with pytest.raises(DeadlinePassed) as caught:
        list(session.stream(b"d", timeout_s=0.3))
    assert caught.value.pending == ((3, b"d"),)
    [reply] = session.settle()
    assert (reply.replayed, server.applied()) == (True, b"abcd")


def test_an_asynchronous_source_may_feed_a_session_without_asyncio(session, server):
    given = list(session.stream(later(pieces(5)), chunk=2, max_in_flight=3))
    assert tokens_of(given) == server.applied() == TEXT


def test_a_stream_that_nobody_refers_to_any_more_gives_the_session_free(session):
    next(session.stream(TEXT, max_in_flight=1))
    gc.collect()
    session.step(b"x")


async def test_a_stuck_server_lets_a_stream_go_when_it_is_closed(async_session, server):
    server.script.extend([None, STUCK])
    stream = async_session.stream(TEXT)
    await anext(stream)
    waiting = asyncio.create_task(anext(stream))
    await eventually(lambda: len(server.chunks) >= 2)
    waiting.cancel()
    await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), 5)
    assert async_session.pending[0].position == 1
    await async_session.settle()
    assert async_session.position == len(server.applied())


def test_streams_in_threads_keep_apart(client, server):
    def write(number):
        session = client.open_session(f"t{number}", model="m")
        list(session.stream(iter(pieces()), chunk=1))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    wait_for(lambda: all(server.applied(f"t{number}") == TEXT for number in range(4)))

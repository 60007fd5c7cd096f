"""A chunk whose fate is unknown: repeated, settled, gone on after, cancelled; never lost, never doubled."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest

import holdfast
from holdfast import errors as refusals
from holdfast.client.thread_source import ThreadSource
from holdfast.errors import (
    ChunkPending,
    ClientClosed,
    DeadlinePassed,
    HistoryConflict,
    HoldfastError,
    InternalFailure,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    PermissionDenied,
    PositionConflict,
    PositionGap,
    ServerUnavailable,
    SessionDeleted,
    SessionLost,
    StoreRegressed,
)
from tests.support.scripted_server import DOWN, LOST, SILENT, STUCK, ScriptedServer
from tests.support.waiting import wait_for

QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02, attempt_s=5)
UNKNOWN = (ServerUnavailable, DeadlinePassed)


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


def step_into_the_dark(server, session, tokens=b"cd"):
    """Steps to position 2, and then so that nobody knows; returns the error."""
    session.step(b"ab")
    server.script.append(SILENT)
    with pytest.raises(UNKNOWN) as caught:
        session.step(tokens, timeout_s=0.3)
    return caught.value


def test_the_error_says_what_is_pending_and_what_to_do(server, session):
    error = step_into_the_dark(server, session)
    assert error.retryable
    assert error.pending == session.pending == ((2, b"cd"),)
    assert "1 chunk of 2 tokens from position 2 on may have been applied" in str(error)
    assert "settle()" in str(error)
    assert "position=2" in str(error)


@pytest.mark.parametrize("as_stream", [False, True], ids=["a step", "a stream"])
def test_what_was_applied_and_is_then_refused_when_it_is_asked_for_alone_is_pending(
    server, client, as_stream
):
    """Its outputs did not fit into a reply to several, which says that it was applied."""
    session = client.open_session("too wide", model="m")
    server.script += [None, PermissionDenied("not any more")]
    with pytest.raises(PermissionDenied) as caught:
        list(session.stream(b"ab", chunk=2)) if as_stream else session.step(b"ab")
    assert server.applied("too wide") == b"ab"
    assert (caught.value.not_applied, session.pending) == ((), ((0, b"ab"),))
    [reply] = session.settle()
    assert (reply.position, reply.replayed, server.applied("too wide")) == (2, True, b"ab")


def test_the_same_step_again_without_its_position_is_refused_and_sends_nothing(server, session):
    step_into_the_dark(server, session)
    count = len(server.chunks)
    with pytest.raises(ChunkPending) as caught:
        session.step(b"cd")
    assert (caught.value.reason, caught.value.retryable) == ("CHUNK_PENDING", False)
    assert caught.value.pending == ((2, b"cd"),)
    assert (len(server.chunks), server.applied()) == (count, b"abcd")


@pytest.mark.parametrize("what", [SILENT, LOST, DOWN, STUCK])
def test_the_same_step_at_its_position_is_a_retry(server, session, what):
    session.step(b"ab")
    server.script.append(what)
    with pytest.raises(UNKNOWN):
        session.step(b"cd", position=2, timeout_s=0.001 if what in (LOST, DOWN) else 0.3)
    reply = session.step(b"cd", position=2)
    assert (reply.position, list(reply.token_log_probs)) == (4, [99, 100])
    assert (server.applied(), session.position, session.pending) == (b"abcd", 4, ())


def test_a_chunk_that_was_sent_ahead_has_a_time_limit_when_it_is_the_first(server, session):
    """Also where the stream has nothing more to send then, being at its end."""
    server.script += [None, None, SILENT]
    positions, ends = [], []

    def read():
        try:
            for reply in session.stream(b"abcdef", max_in_flight=8, timeout_s=0.5):
                positions.append(reply.position)  # noqa: PERF401 -- also those before an error
        except UNKNOWN as error:
            ends.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert (positions, len(ends)) == ([1, 2], 1)
    assert session.pending[0] == (2, b"c")
    assert [reply.position for reply in session.settle()] == [3, 4, 5, 6]
    assert server.applied() == b"abcdef"


def test_going_on_is_refused_until_the_chunk_is_settled(server, session):
    step_into_the_dark(server, session)
    for go_on in (
        lambda: session.step(b"ef"),
        lambda: session.step(b"ef", position=4),
        lambda: next(session.stream(b"ef")),
    ):
        with pytest.raises(ChunkPending):
            go_on()
    [reply] = session.settle()
    assert (reply.position, reply.replayed, list(reply.token_log_probs)) == (4, True, [99, 100])
    assert session.settle() == []
    session.step(b"ef")
    assert server.applied() == b"abcdef"


def test_other_tokens_at_the_pending_position_are_refused(server, session):
    step_into_the_dark(server, session)
    with pytest.raises(ChunkPending, match="was sent with other tokens"):
        session.step(b"xy", position=2)
    with pytest.raises(ChunkPending):
        session.step(b"cde", position=2)
    assert server.applied() == b"abcd"


@pytest.mark.parametrize("same", ["cd", [99, 100], np.array([99, 100]), bytearray(b"cd")])
def test_a_retry_may_write_its_tokens_in_another_form(server, session, same):
    step_into_the_dark(server, session)
    assert session.step(same, position=2).position == 4


def retry(call, attempts=20):
    """What a library for retries does: calls again while the error says that this may help."""
    for _ in range(attempts):
        try:
            return call()
        except HoldfastError as error:
            last = error
            if not error.retryable:
                raise
    raise last


@pytest.mark.parametrize("fault", [SILENT, STUCK])
def test_a_loop_that_repeats_with_the_position_applies_every_token_once(server, session, fault):
    for number in range(6):
        server.script.extend([None] * (number == 0) + [fault, fault])
        position = session.position
        tokens = bytes([97 + number])
        reply = retry(lambda t=tokens, p=position: session.step(t, position=p, timeout_s=0.2))
        assert reply.position == number + 1
        server.script.clear()
    assert server.applied() == b"abcdef"


def test_a_loop_that_repeats_without_the_position_ends_with_an_error_that_says_so(server, session):
    server.script.append(SILENT)
    with pytest.raises(ChunkPending):
        retry(lambda: session.step(b"ab", timeout_s=0.3))
    assert server.applied() == b"ab"


def test_a_loop_that_goes_on_after_errors_ends_with_an_error_that_says_so(server, session):
    server.script.extend([None, SILENT])
    refused = []
    for byte in b"abcd":
        try:
            session.step(bytes([byte]), timeout_s=0.3)
        except ChunkPending as error:
            refused.append(error.pending[0].position)
        except HoldfastError as error:
            assert error.pending  # noqa: PT017
    assert refused == [1, 1]
    assert server.applied() == b"ab"


# -- nothing taken, nothing applied --------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [[2**40], object(), np.zeros((2, 2), np.int64), b""])
def test_what_cannot_be_sent_is_not_pending(server, session, wrong):
    with pytest.raises((TypeError, ValueError)) as caught:
        session.step(wrong)
    assert caught.value.__notes__ == ["Nothing was sent."]
    assert session.pending == ()
    session.step(b"a")
    assert server.applied() == b"a"


def test_a_refusal_that_changed_nothing_leaves_nothing_pending(server, session):
    server.script.append(refusals.InvalidRequest("no"))
    with pytest.raises(InvalidRequest) as caught:
        session.step(b"ab")
    assert (caught.value.pending, caught.value.not_applied) == ((), ((0, b"ab"),))
    assert "not applied" in str(caught.value)
    session.step(b"ab")
    assert server.applied() == b"ab"


def too_much(retry_after_s):
    return refusals.Overloaded("full", retry_after_s=retry_after_s)


def test_a_server_with_too_much_to_do_has_applied_nothing(server, session):
    server.script.extend([too_much(0.05), too_much(0.05), too_much(60)])  # which is beyond the time limit
    with pytest.raises(Overloaded) as caught:
        session.step(b"ab", timeout_s=20)
    assert (session.pending, caught.value.not_applied) == ((), ((0, b"ab"),))
    server.script.clear()
    session.step(b"ab")
    assert server.applied() == b"ab"


def test_an_overload_after_an_attempt_of_unknown_fate_leaves_it_pending(server, session):
    server.script.extend([LOST, too_much(0.05), too_much(60)])
    with pytest.raises(Overloaded) as caught:
        session.step(b"ab", timeout_s=20)
    assert caught.value.pending == session.pending == ((0, b"ab"),)
    server.script.clear()
    session.settle()
    assert server.applied() == b"ab"


def test_a_fault_of_the_server_leaves_the_chunk_pending(server, session):
    server.script.append(refusals.InternalFailure("fault"))
    with pytest.raises(InternalFailure) as caught:
        session.step(b"ab")
    assert caught.value.pending == session.pending == ((0, b"ab"),)
    session.settle()
    assert server.applied() == b"ab"


@pytest.mark.parametrize(
    "final", [refusals.SessionDeleted, refusals.InvalidRequest, refusals.PermissionDenied]
)
def test_a_final_refusal_after_an_attempt_of_unknown_fate_does_not_pretend_to_know(server, session, final):
    server.script.extend([LOST, final("no")])
    with pytest.raises(HoldfastError) as caught:
        session.step(b"ab")
    assert caught.value.reason == final.reason
    assert caught.value.pending == session.pending == ((0, b"ab"),)
    assert "may or may not have been applied" in str(caught.value)
    with pytest.raises(ChunkPending):
        session.step(b"cd")


def test_a_refusal_that_comes_from_the_stored_session_settles_what_was_unknown(server, session):
    server.script.extend([DOWN, refusals.ModelFailed("it raised")])
    with pytest.raises(ModelFailed) as caught:
        session.step(b"ab")
    assert (caught.value.pending, caught.value.not_applied) == ((), ((0, b"ab"),))


# -- positions -----------------------------------------------------------------------------------------


def test_a_step_behind_is_answered_by_the_reply_that_is_kept(server, session):
    session.step(b"ab")
    session.step(b"cd")
    reply = session.step(b"cd", position=2)
    assert (reply.replayed, reply.position, list(reply.token_log_probs)) == (True, 4, [99, 100])
    sent = server.chunks[-1]
    assert (sent.acknowledged_position, sent.history_digest) == (2, server.sessions["s"].digest_at(2))
    with pytest.raises(PositionConflict, match="still stands at position 4"):
        session.step(b"ab", position=0)
    assert (session.position, session.pending, server.applied()) == (4, (), b"abcd")
    session.step(b"e")


def test_other_tokens_behind_are_refused_before_they_are_sent(server, session):
    """A store that has gone back to that position would apply them."""
    session.step(b"ab")
    session.step(b"cd")
    count = len(server.chunks)
    with pytest.raises(PositionConflict, match="other tokens were applied at position 2"):
        session.step(b"xy", position=2)
    assert len(server.chunks) == count


def test_a_writer_that_was_restarted_may_repeat_its_last_step(server, client, session):
    session.step(b"ab")
    again = client.open_session("s", model="m")
    assert again.resumed
    reply = again.step(b"ab", position=0)
    assert (reply.replayed, again.position, server.applied()) == (True, 2, b"ab")


def test_a_step_ahead_is_refused_and_says_where_the_session_stands(server, session):
    with pytest.raises(PositionGap) as caught:
        session.step(b"ab", position=2)
    assert caught.value.expected_position == 0
    assert "nothing was sent" in str(caught.value)
    assert server.chunks == []


def test_a_step_at_the_position_of_the_session_is_new(server, session):
    session.step(b"ab", position=0)
    session.step(b"cd", position=session.position)
    assert server.applied() == b"abcd"


# -- settling ------------------------------------------------------------------------------------------


def leave_four_pending(server, session):
    """Streams until time is up, so that one chunk has no reply and three are not sent."""
    session.step(b"a")
    server.script.append(STUCK)
    with pytest.raises(UNKNOWN):
        next(session.stream(iter([b"bcde"]), max_in_flight=4, timeout_s=0.3))
    assert session.pending == ((1, b"b"), (2, b"c"), (3, b"d"), (4, b"e"))


def test_what_a_stream_left_is_settled_in_order(server, session):
    leave_four_pending(server, session)
    assert [reply.position for reply in session.settle()] == [2, 3, 4, 5]
    assert (server.applied(), session.position) == (b"abcde", 5)


def test_a_settlement_that_breaks_down_half_way_loses_no_reply(server, session):
    leave_four_pending(server, session)
    server.script.extend([None, None, STUCK])
    with pytest.raises(UNKNOWN) as caught:
        session.settle(timeout_s=0.3)
    assert len(caught.value.pending) == 4
    assert session.position == 1
    replies = session.settle()
    assert [list(reply.token_log_probs) for reply in replies] == [[98], [99], [100], [101]]
    assert (server.applied(), session.position) == (b"abcde", 5)


def test_a_retry_of_the_first_leaves_the_later_ones_pending(server, session):
    leave_four_pending(server, session)
    assert session.step(b"b", position=1).position == 2
    assert session.pending == ((2, b"c"), (3, b"d"), (4, b"e"))
    with pytest.raises(ChunkPending, match="a chunk at position 3 has to wait"):
        session.step(b"d", position=3)


def test_a_final_refusal_in_a_settlement_says_what_was_not_applied(server, session):
    leave_four_pending(server, session)
    server.script.extend([None, refusals.ModelFailed("it raised")])
    with pytest.raises(ModelFailed) as caught:
        session.settle()
    assert caught.value.pending == ((1, b"b"),)
    assert caught.value.not_applied == ((2, b"c"), (3, b"d"), (4, b"e"))
    assert "3 chunks of 3 tokens from position 2 on: not applied; settle()" in str(caught.value)
    assert [reply.position for reply in session.settle()] == [2]
    session.step(b"x")
    assert server.applied() == b"abx"


def test_what_a_stream_left_under_way_is_in_doubt_when_it_is_refused(server, session):
    server.script.extend([None, None, SILENT])
    for reply in session.stream(b"abc"):  # none after it, which would come while the script goes on
        if reply.position == 2:
            break
    wait_for(lambda: len(server.chunks) >= 3)
    server.script.append(refusals.PermissionDenied("revoked"))
    with pytest.raises(PermissionDenied, match="may or may not have been applied") as caught:
        session.settle()
    assert caught.value.pending[0] == (2, b"c")
    session.settle()
    assert session.position == len(server.applied())


# -- history -------------------------------------------------------------------------------------------


def test_every_chunk_names_its_history_and_acknowledges_what_was_had(server, session):
    session.step(b"ab")
    list(session.stream(b"cdef"))
    for chunk in server.chunks:
        assert chunk.history_digest == server.sessions["s"].digest_at(chunk.position)
        assert chunk.HasField("acknowledged_position")
    assert session.history_digest == server.sessions["s"].digest_at(6)


def test_a_chunk_is_not_applied_to_the_history_of_others(server, session):
    session.step(b"ab")
    server.stand_at(b"xy")
    with pytest.raises(HistoryConflict) as caught:
        session.step(b"cd")
    assert caught.value.not_applied == ((2, b"cd"),)
    assert server.applied() == b"xy"


def test_a_reply_that_tells_of_another_history_is_an_error(server, session, monkeypatch):
    session.step(b"ab")
    apply = server.apply

    def elsewhere(chunk):
        result = apply(chunk)
        result.history_digest += 1
        return result

    monkeypatch.setattr(server, "apply", elsewhere)
    with pytest.raises(HistoryConflict, match="tells of another history") as caught:
        session.step(b"cd")
    assert caught.value.pending == ((2, b"cd"),)
    with pytest.raises(HistoryConflict):
        session.settle()


def test_what_is_sent_again_after_a_loss_goes_into_its_own_history_only(server, session):
    for start in range(0, 6, 2):
        session.step(b"abcdef"[start : start + 2])
    server.stand_at(b"ab")
    session.step(b"gh")
    assert server.applied() == b"abcdefgh"
    server.stand_at(b"xyz")
    with pytest.raises(HistoryConflict):
        session.step(b"ij")
    assert server.applied() == b"xyz"


def test_a_loss_older_than_what_is_kept_is_final_and_says_what_was_not_applied(server):
    with holdfast.Client(server.address, retry=QUICK, replay_tokens=2) as client:
        session = client.open_session("s", model="m")
        for byte in b"abcdef":
            session.step(bytes([byte]))
        server.stand_at(b"a")
        with pytest.raises(StoreRegressed) as caught:
            session.step(b"g")
    assert caught.value.not_applied == ((6, b"g"),)


def test_an_older_server_that_tells_no_digests_is_served(client):
    with ScriptedServer(is_old=True) as old, holdfast.Client(old.address, retry=QUICK) as client:
        session = client.open_session("s", model="m")
        session.step(b"ab")
        old.script.append(LOST)
        session.step(b"cd")
        list(session.stream(b"ef"))
        assert (old.applied(), session.history_digest) == (b"abcdef", 0)
        assert {chunk.history_digest for chunk in old.chunks} == {0}


# -- openings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("must_be_new", [False, True])
def test_an_opening_whose_reply_is_lost_is_not_a_resumption(server, client, must_be_new):
    server.openings.append(LOST)
    assert not client.open_session("s", model="m", must_be_new=must_be_new).resumed
    assert client.open_session("s", model="m").resumed
    nonce = server.sessions["s"].nonce
    assert 1 <= nonce < 2**53


def test_a_session_that_is_gone_is_opened_again_though_the_reply_is_lost(server, session):
    session.step(b"ab")
    del server.sessions["s"]
    server.openings.append(LOST)
    session.step(b"cd")
    assert server.applied() == b"abcd"


def test_a_reopening_that_ran_out_of_time_is_found_by_the_next_call(server, session):
    """The store loses the session, and every reply to its reopening is lost until the step's time is up."""
    session.step(b"ab")
    del server.sessions["s"]
    server.openings.extend([LOST] * 100)
    with pytest.raises(HoldfastError) as caught:
        session.step(b"cd", timeout_s=0.3)
    assert caught.value.not_applied == ((2, b"cd"),)
    server.openings.clear()
    assert session.step(b"cd").position == 4
    assert server.applied() == b"abcd"


def test_a_session_that_others_have_opened_meanwhile_is_theirs(server, client, session):
    session.step(b"ab")
    client.open_session("t", model="m")
    server.sessions["s"] = server.sessions.pop("t")
    with pytest.raises(SessionDeleted):
        session.step(b"cd")
    del server.sessions["s"]
    server.script.append(refusals.SessionLost("gone"))
    client.open_session("s", model="m")
    with pytest.raises(SessionLost) as caught:
        session.step(b"cd")
    assert caught.value.not_applied == ((2, b"cd"),)
    assert server.applied() == b""


# -- cancelled -----------------------------------------------------------------------------------------


@pytest.fixture
async def async_session(server):
    async with holdfast.AsyncClient(server.address, retry=QUICK, timeout_s=10) as client:
        yield await client.open_session("s", model="m")


async def test_a_step_cancelled_in_flight_is_pending(server, async_session):
    session = async_session
    server.hold()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.step(b"ab"), 0.2)
    assert session.pending == ((0, b"ab"),)
    with pytest.raises(ChunkPending):
        await session.step(b"ab")
    server.let_go()
    assert [reply.position for reply in await session.settle()] == [2]
    assert server.applied() == b"ab"


async def test_a_step_cancelled_before_it_was_sent_is_not_pending(server, async_session):
    session = async_session
    server.hold()
    first = asyncio.create_task(session.step(b"ab"))
    second = asyncio.create_task(session.step(b"cd"))
    third = asyncio.create_task(session.step(b"ef"))
    await asyncio.sleep(0.1)
    second.cancel()
    server.let_go()
    await first
    await third
    assert (session.pending, server.applied()) == ((), b"abef")


async def test_a_step_cancelled_while_its_reply_comes_is_given_or_pending(server, async_session):
    """Every moment: whatever is not given is settled, and nothing is lost or doubled."""
    session, given = async_session, b""
    for number in range(150):
        token = bytes([number % 64 + 32])
        step = asyncio.create_task(session.step(token))
        for _ in range(number % 40):
            await asyncio.sleep(0)
        if number % 3 == 0:
            await asyncio.sleep(number * 2e-5)
        step.cancel()
        [outcome] = await asyncio.gather(step, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            replies = await session.settle()
        else:
            replies = [outcome]
            assert session.pending == ()
        given += b"".join(bytes(map(int, reply.token_log_probs)) for reply in replies)
        assert server.sessions["s"].text == given
        assert session.position == len(given)


async def test_leaving_a_session_with_a_chunk_pending_is_an_error_that_says_so(server, async_session):
    async def leave(error=None):
        async with async_session:
            if error is not None:
                raise error

    server.script.append(SILENT)
    with pytest.raises(UNKNOWN):
        await async_session.step(b"ab", timeout_s=0.3)
    with pytest.raises(ChunkPending):
        await leave()
    with pytest.raises(KeyError):  # what went wrong is not hidden
        await leave(KeyError())


def test_leaving_a_session_without_asyncio_says_so_too(server, session):
    with pytest.raises(ChunkPending), session:
        step_into_the_dark(server, session)
    session.settle()
    with session:
        wait_for(lambda: server.applied() == b"abcd")


# -- what a source gives -------------------------------------------------------------------------------


class Pieces:
    """An iterator that knows how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.asked += 1
        return b"ab"


async def test_an_iterator_is_not_asked_after_its_stream_was_left(async_session):
    """A caller may take it up again itself: nobody else takes from it, and its order stays."""
    left_alone = []
    for _ in range(300):
        pieces = Pieces()
        source = ThreadSource(iter(pieces))
        source.fetch()
        await source.leave()
        if source.uncollected is None:
            left_alone.append(pieces)
        else:
            await source.uncollected
            assert pieces.asked == 1
    await asyncio.sleep(0.1)
    assert [pieces.asked for pieces in left_alone] == [0] * len(left_alone)


async def test_what_an_asynchronous_source_gives_after_two_cancellations_is_pending(server, async_session):
    session, asked = async_session, asyncio.Event()

    async def stubborn():
        asked.set()
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)
        yield b"ab"

    reading = asyncio.create_task(anext(session.stream(stubborn())))
    await asked.wait()
    for _ in range(2):
        reading.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.to_thread(wait_for, lambda: session.pending)
    await session.settle()
    assert server.applied() == b"ab"


async def test_what_a_source_gives_after_its_client_was_closed_is_pending(server):
    given, go = threading.Event(), threading.Event()

    def source():
        given.set()
        go.wait(10)
        yield b"ab"

    client = holdfast.AsyncClient(server.address, retry=QUICK, timeout_s=10)
    session = await client.open_session("s", model="m")
    reading = asyncio.create_task(anext(session.stream(source())))
    await asyncio.to_thread(given.wait, 10)
    await client.close()
    with pytest.raises(ClientClosed):
        await reading
    go.set()
    await asyncio.to_thread(wait_for, lambda: session.pending)
    assert session.pending == ((0, b"a"), (1, b"b"))


def test_what_was_fetched_behind_two_parts_that_are_no_tokens_is_pending(server, session):
    stream = session.stream(iter([b"a", b"b", object(), object(), b"c"]), max_in_flight=8)
    next(stream)
    with pytest.raises(TypeError):
        next(stream)
    assert session.pending == ((1, b"b"), (2, b"c"))
    session.settle()
    assert server.applied() == b"abc"

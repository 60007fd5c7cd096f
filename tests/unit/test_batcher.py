"""Steps of concurrent callers go together, and each gets what it would have had alone: the batcher over a
stub that answers as it is told to."""

import asyncio
import gc
import itertools
import math
import time
from collections import deque
from types import SimpleNamespace

import grpc
import grpc.aio
import numpy as np
import pytest

from holdfast.client import batcher as batcher_module
from holdfast.client.batcher import Batcher
from holdfast.client.fate import leaves_unsure
from holdfast.client.history import Recorder
from holdfast.client.ledger import Asked, Kind, Ledger
from holdfast.client.lifetime import Lifetime
from holdfast.client.message import Sent
from holdfast.client.steps import Steps
from holdfast.errors import (
    ClientClosed,
    DeadlinePassed,
    Draining,
    InternalFailure,
    InvalidRequest,
    Overloaded,
    PositionConflict,
    ServerUnavailable,
    Unauthenticated,
)
from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.status import code_of, to_status, to_trailers

ASKED = Asked(None, pb.ACK_LEVEL_UNSPECIFIED)
LIMIT_S = 10.0
"""Of rows whose time limit is not what a test is about, and of tests."""


class Stream:
    """A stream as `holdfast.client.connection.Stream`; the test is its server.

    Attributes:
        batches: What was written and is not answered.
        seen: All that was written.
        can_write: Writes wait for it.
    """

    def __init__(self):
        self.batches = deque()
        self.seen = []
        self.since_s = time.monotonic()
        self.is_over = self.is_cancelled = False
        self.ended = asyncio.Event()
        self.can_write = asyncio.Event()
        self.can_write.set()
        self._replies = asyncio.Queue()
        self._written = asyncio.Event()

    # -- the client's side

    async def write(self, request):
        if self.is_over:
            raise asyncio.InvalidStateError("the call has ended")
        await self.can_write.wait()
        if self.is_over:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, (), (), "it ended")
        self.batches.append(request.batch)
        self.seen.append(request.batch)
        self._written.set()

    async def read(self):
        reply = await self._replies.get()
        if isinstance(reply, BaseException):
            self._replies.put_nowait(reply)
            raise reply
        if reply is not grpc.aio.EOF:
            self.since_s = time.monotonic()
        return reply

    async def done_writing(self):
        self.ended.set()

    async def code(self):
        self.is_over = True
        return grpc.StatusCode.OK

    def cancel(self):
        self.is_over = self.is_cancelled = True
        self._replies.put_nowait(asyncio.CancelledError())
        self.can_write.set()

    # -- the server's side

    async def next(self):
        """Waits for the next message."""
        while not self.batches:
            self._written.clear()
            await self._written.wait()
        return self.batches.popleft()

    def answer(self, batch, rows=(), errors=None, **fields):
        """Answers rows of a message, all if none are named; what each gives is its own position."""
        numbers = list(rows) or range(len(batch.session_ids))
        count = batch.tokens_per_row
        result = pb.BatchResult(
            tag=batch.tag,
            rows=rows,
            positions=[batch.positions[row] + count for row in numbers],
            history_digests=[number_of(batch.session_ids[row]) for row in numbers],
            incarnations=[1 for _ in numbers],
            errors=[
                pb.RowError(row=numbers.index(row), status=to_status(error))
                for row, error in (errors or {}).items()
            ],
            outputs=pb.Outputs(
                token_count=count * len(numbers),
                token_log_probs=[
                    number_of(batch.session_ids[row]) for row in numbers for _ in range(count)
                ],
            ),
            **fields,
        )
        self._replies.put_nowait(pb.StreamBatchesResponse(result=result))

    def refuse(self, batch, error):
        """Refuses a message as a whole."""
        refusal = pb.ChunkError(tag=batch.tag, status=to_status(error))
        self._replies.put_nowait(pb.StreamBatchesResponse(error=refusal))

    def give(self, reply):
        self._replies.put_nowait(reply)

    def end(self, error=None, code=grpc.StatusCode.UNAVAILABLE):
        """Ends the call: with an error of the service or a bare status; OK is its end in good form."""
        self.is_over = True
        if code is grpc.StatusCode.OK:
            self._replies.put_nowait(grpc.aio.EOF)
        elif error is None:
            self._replies.put_nowait(grpc.aio.AioRpcError(code, (), (), "it ended"))
        else:
            self._replies.put_nowait(
                grpc.aio.AioRpcError(code_of(error), (), to_trailers(error), error.message)
            )
        self.can_write.set()


class Stub:
    """What opens streams; `streams` are all of them."""

    def __init__(self):
        self.streams = []
        self.broken = None
        self._opened = asyncio.Event()

    def current(self):
        return self

    def StreamBatches(self, metadata):  # noqa: N802 -- gRPC's name
        if self.broken is not None:
            raise self.broken
        self.streams.append(Stream())
        self._opened.set()
        return self.streams[-1]

    async def stream(self, number=0):
        """Waits for the stream with this number."""
        while len(self.streams) <= number:
            self._opened.clear()
            await self._opened.wait()
        return self.streams[number]


class Calls:
    """As far as a batcher knows them."""

    metadata = ()
    history = None

    def __init__(self):
        self.lifetime = Lifetime()
        self.suspected = []

    def suspect(self, used, waited_s=None):
        self.suspected.append((used, waited_s))


def number_of(session_id):
    """Returns what is answered to a session: its number; the server's."""
    return int(session_id.partition(".")[0])


def kind(count=1, *, model="m", outputs=None, level=pb.ACK_LEVEL_UNSPECIFIED, tokens="text", width=0):
    return Kind(model, 1, Asked(outputs, level), tokens, count, width)


def row(of, session, position=0, tokens=b"x", *, until_s=math.inf):
    return Sent(of, str(session), position, position, 7, 9, tokens, until_s)


@pytest.fixture(autouse=True)
async def nobody_waits_for_ever():
    """A test that hangs fails."""
    loop = asyncio.get_running_loop()
    watch = loop.call_later(LIMIT_S, lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    yield
    watch.cancel()


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
async def calls():
    calls = Calls()
    calls.lifetime.check()
    return calls


@pytest.fixture
async def batcher(stub, calls):
    """Afterwards nothing is left behind."""
    batcher = Batcher(calls, stub)
    yield batcher
    await nothing_left(batcher, stub)


async def nothing_left(batcher, stub):
    """Closes it, and looks whether rows, tasks or timers stay."""
    for stream in stub.streams:
        stream.can_write.set()
    await batcher.close()
    for stream in stub.streams:
        stream.end()
    await settled()
    assert not list(batcher._waiting())
    assert not batcher._queues
    assert not batcher._behind
    assert not batcher._left
    assert batcher._sender is None
    assert own_tasks() == []


def own_tasks():
    """Returns the tasks of batchers and of their streams."""
    coroutines = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    return [name for name in coroutines if name.startswith(("Batcher.", "Line."))]


async def settled():
    """Lets everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def submit(batcher, session, position=0, *, of=None, text=b"x", limit_s=LIMIT_S):
    """Has the batcher take a row, and returns the future of its reply."""
    until_s = time.monotonic() + limit_s
    return batcher.submit(row(of or kind(len(text)), session, position, text, until_s=until_s)).reply


def sessions(batch):
    return [int(session_id) for session_id in batch.session_ids]


def shows(reply, session, position):
    """Whether a reply is the one to a row of this session."""
    return (reply.session_id, reply.position, reply.token_log_probs.tolist()) == (
        str(session),
        position,
        [number_of(str(session))] * reply.token_count,
    )


# -- together ------------------------------------------------------------------------------------------


async def test_a_lone_call_leaves_at_once(batcher, stub):
    reply = submit(batcher, 5, 3, text=b"ab")
    stream = await stub.stream()
    batch = await stream.next()
    assert (sessions(batch), batch.text, batch.tokens_per_row, list(batch.positions)) == (
        [5],
        b"ab",
        2,
        [3],
    )
    assert (batch.in_parts, list(batch.incarnations), list(batch.history_digests)) == (True, [7], [9])
    stream.answer(batch)
    assert shows(await reply, 5, 5)


async def test_calls_made_in_one_turn_of_the_loop_go_together(batcher, stub):
    replies = [submit(batcher, number) for number in range(5)]
    stream = await stub.stream()
    batch = await stream.next()
    assert sessions(batch) == [0, 1, 2, 3, 4]
    stream.answer(batch)
    for number, reply in enumerate(replies):
        assert shows(await reply, number, 1)
    assert len(stream.seen) == 1


async def test_calls_that_come_while_messages_are_under_way_go_in_the_next(batcher, stub):
    first = [submit(batcher, 0)]
    stream = await stub.stream()
    await stream.next()
    first.append(submit(batcher, 1))
    batches = [stream.seen[0], await stream.next()]
    later = [submit(batcher, number) for number in (2, 3, 4)]
    await settled()
    assert [sessions(batch) for batch in stream.seen] == [[0], [1]]
    stream.answer(batches[1])
    batch = await stream.next()
    assert sessions(batch) == [2, 3, 4]
    stream.answer(batch)
    stream.answer(batches[0])
    for number, reply in enumerate([*first, *later]):
        assert shows(await reply, number, 1)


async def test_nobody_waits_for_long_for_messages_that_have_no_reply(batcher, stub):
    replies = [submit(batcher, 0)]
    stream = await stub.stream()
    await stream.next()
    replies.append(submit(batcher, 1))
    await stream.next()
    replies.append(submit(batcher, 2))
    assert sessions(await stream.next()) == [2]  # though nothing has come back
    for batch in stream.seen:
        stream.answer(batch)
    await asyncio.gather(*replies)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (kind(1), kind(2)),
        (kind(1), kind(1, model="n")),
        (kind(1), kind(1, outputs=b"")),
        (kind(1), kind(1, level=pb.ACK_LEVEL_MEMORY)),
        (kind(1), kind(1, tokens="ids")),
        (kind(1, tokens="features", width=2), kind(1, tokens="features", width=3)),
    ],
    ids=["lengths", "models", "selections", "levels", "tokens", "widths"],
)
async def test_kinds_are_kept_apart(batcher, stub, one, other):
    def submitted(session, of):
        tokens = {
            "text": b"x" * of.token_count,
            "ids": np.ones(of.token_count, np.int64),
            "features": np.ones((of.token_count, of.width), np.float32),
        }[of.tokens]
        return batcher.submit(row(of, session, 0, tokens)).reply

    replies = [submitted(number, (one, other)[number % 2]) for number in range(6)]
    stream = await stub.stream()
    batches = [await stream.next(), await stream.next()]
    assert [sessions(batch) for batch in batches] == [[0, 2, 4], [1, 3, 5]]
    for batch, of in zip(batches, (one, other), strict=True):
        assert batch.tokens_per_row == of.token_count
        assert (batch.model.name, batch.ack_level) == (of.model, of.asked.ack_level)
        assert batch.HasField("outputs") == (of.asked.outputs is not None)
        assert batch.WhichOneof("tokens") == of.tokens
        assert len(batch.features) == (4 * 3 * of.width * of.token_count if of.width else 0)
        stream.answer(batch)
    for number, reply in enumerate(replies):
        assert shows(await reply, number, (one, other)[number % 2].token_count)


@pytest.mark.parametrize("tokens", ["text", "ids", "features"])
async def test_what_a_row_says_stands_in_its_own_place(batcher, stub, tokens):
    of = kind(2, tokens=tokens, width=3 if tokens == "features" else 0)
    given = {
        "text": lambda number: bytes([number, number + 1]),
        "ids": lambda number: np.array([number, number + 1]),
        "features": lambda number: np.full((2, 3), number, np.float32),
    }[tokens]
    rows = [(str(number), 10 + number, 5 + number, 20 + number, 30 + number) for number in range(4)]
    tokens_given = [given(number) for number in range(4)]
    replies = [
        batcher.submit(Sent(of, *one, what)).reply for one, what in zip(rows, tokens_given, strict=True)
    ]
    stream = await stub.stream()
    batch = await stream.next()
    columns = zip(
        batch.session_ids,
        batch.positions,
        batch.acknowledged_positions,
        batch.incarnations,
        batch.history_digests,
        strict=True,
    )
    assert list(columns) == rows
    sent = {"text": batch.text, "ids": bytes(batch.ids.values), "features": batch.features}[tokens]
    assert sent == b"".join(
        bytes(what.tolist()) if tokens == "ids" else bytes(what) for what in tokens_given
    )
    stream.answer(batch)
    for number, reply in enumerate(replies):
        assert shows(await reply, number, 12 + number)


async def test_kinds_take_turns(batcher, stub, monkeypatch):
    """One that is asked for a lot does not hold up another."""
    monkeypatch.setattr(batcher_module, "MAX_ROWS", 2)
    replies = [submit(batcher, number) for number in range(8)]
    replies.append(submit(batcher, 8, text=b"xy"))
    stream, order = await stub.stream(), []
    for _ in range(5):
        batch = await stream.next()
        order.append(sessions(batch))
        stream.answer(batch)
        await settled()
    assert order.index([8]) == 1
    assert sorted(itertools.chain(*order)) == list(range(9))
    await asyncio.gather(*replies)


async def test_messages_have_bounds(batcher, stub):
    replies = [submit(batcher, number) for number in range(700)]
    replies += [submit(batcher, number, text=b"x" * 1000) for number in range(700, 710)]
    stream = await stub.stream()
    counts = {1: [], 1000: []}
    while sum(map(sum, counts.values())) < 710:
        batch = await stream.next()
        counts[batch.tokens_per_row].append(len(batch.session_ids))
        stream.answer(batch)
        await settled()
    assert max(counts[1]) == 256
    assert counts[1000] == [4, 4, 2]
    await asyncio.gather(*replies)


# -- one session ---------------------------------------------------------------------------------------


async def test_rows_of_a_session_go_one_after_the_other_in_order(batcher, stub):
    replies = [submit(batcher, 0, position) for position in range(4)]
    replies.append(submit(batcher, 1))
    stream, order = await stub.stream(), []
    while len(order) < 5:
        batch = await stream.next()
        assert len(set(batch.session_ids)) == len(batch.session_ids)
        order += zip(sessions(batch), batch.positions, strict=True)
        stream.answer(batch)
        await settled()
    assert [position for session, position in order if session == 0] == [0, 1, 2, 3]
    assert order.index((1, 0)) <= 1  # it does not wait for those
    for position, reply in enumerate(replies[:4]):
        assert shows(await reply, 0, position + 1)
    assert shows(await replies[4], 1, 1)


async def test_rows_of_a_session_keep_their_order_where_their_kinds_differ(batcher, stub):
    texts = [b"a", b"bb", b"c", b"dd"]
    replies = [submit(batcher, 0, position, text=text) for position, text in enumerate(texts)]
    stream, sent = await stub.stream(), []
    while len(sent) < 4:
        batch = await stream.next()
        sent.append(batch.text)
        stream.answer(batch)
        await settled()
    assert sent == texts
    await asyncio.gather(*replies)


async def test_who_comes_behind_a_row_that_was_given_up_goes_on(batcher, stub):
    first, second = submit(batcher, 0), submit(batcher, 0, 1)
    first.cancel()
    stream = await stub.stream()
    batch = await stream.next()
    assert list(batch.positions) == [1]
    stream.answer(batch)
    assert shows(await second, 0, 2)


async def with_a_blocked_write(batcher, stub):
    """Returns a stream with one row under way, to which writes block from now on, and the row's reply."""
    first = submit(batcher, 0)
    stream = await stub.stream()
    await stream.next()
    stream.can_write.clear()
    return stream, first


# -- cancellation and time limits --------------------------------------------------------------------------


async def test_a_row_that_was_given_up_before_it_left_is_not_sent(batcher, stub):
    replies = [submit(batcher, number) for number in range(3)]
    replies[1].cancel()
    stream = await stub.stream()
    batch = await stream.next()
    assert sessions(batch) == [0, 2]
    stream.answer(batch)
    assert shows(await replies[0], 0, 1)
    assert shows(await replies[2], 2, 1)


async def test_the_reply_to_a_row_that_was_given_up_is_dropped(batcher, stub):
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    batch = await stream.next()
    replies[1].cancel()
    stream.answer(batch)
    assert shows(await replies[0], 0, 1)
    assert shows(await replies[2], 2, 1)
    assert replies[1].cancelled()


async def test_nothing_is_sent_where_all_have_given_up(batcher, stub):
    for number in range(3):
        submit(batcher, number).cancel()
    await settled()
    assert not stub.streams
    assert not batcher._queues


async def test_a_time_limit_is_of_one_row(batcher, stub):
    impatient = submit(batcher, 0, limit_s=0.01)
    patient = submit(batcher, 1)
    stream = await stub.stream()
    batch = await stream.next()
    with pytest.raises(DeadlinePassed) as caught:
        await impatient
    assert caught.value.is_silence
    assert leaves_unsure(caught.value)
    assert not patient.done()
    stream.answer(batch)
    assert shows(await patient, 1, 1)
    assert len(stub.streams) == 1


@pytest.mark.parametrize("limits_s", [[2.0, 6.0], [6.0], [math.inf, 6.0]], ids=str)
async def test_a_message_says_how_long_somebody_waits_for_it(batcher, stub, limits_s):
    """So that the server does not run what nobody waits for; 0 is no limit."""
    replies = [submit(batcher, number, limit_s=limit_s) for number, limit_s in enumerate(limits_s)]
    stream = await stub.stream()
    batch = await stream.next()
    if math.inf in limits_s:
        assert batch.timeout_s == 0
    else:
        assert max(limits_s) / 2 < batch.timeout_s <= max(limits_s)
    stream.answer(batch)
    await asyncio.gather(*replies, return_exceptions=True)


async def test_a_time_limit_holds_while_others_are_answered(batcher, stub):
    """The alarm of a row that was answered rings, and the next one is set."""
    replies = [submit(batcher, number, limit_s=0.01 * (number + 1)) for number in range(4)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(batch, [0, 2])
    outcomes = await asyncio.gather(*replies, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1::2]] == [DeadlinePassed, DeadlinePassed]
    assert shows(outcomes[0], 0, 1)
    assert shows(outcomes[2], 2, 1)


async def test_a_row_that_could_not_be_sent_in_time_is_given_up(batcher, stub):
    stream, first = await with_a_blocked_write(batcher, stub)
    second, third = submit(batcher, 1, limit_s=0.01), submit(batcher, 2, limit_s=0.01)
    for reply in (second, third):
        with pytest.raises(DeadlinePassed):
            await reply
    stream.answer(stream.seen[0])
    await first


# -- silence -------------------------------------------------------------------------------------------


async def test_after_silence_the_next_one_goes_over_a_new_stream(batcher, stub, calls):
    slow = submit(batcher, 0, limit_s=0.1)
    patient = submit(batcher, 1)
    old = await stub.stream()
    batch = await old.next()
    with pytest.raises(DeadlinePassed):
        await slow
    [(suspected, waited_s)] = calls.suspected
    assert suspected is old
    assert waited_s >= batcher_module.LATE_S
    quick = submit(batcher, 2)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await quick, 2, 1)
    old.answer(batch)  # nobody has given the old one up for those who still wait
    assert shows(await patient, 1, 1)


async def test_a_silent_stream_ends_once_nobody_waits_for_it(batcher, stub):
    replies = [submit(batcher, number, limit_s=0.1 + 0.1 * number) for number in range(2)]
    outcomes = await asyncio.gather(*replies, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlinePassed, DeadlinePassed]
    await settled()
    [stream] = stub.streams
    assert stream.is_cancelled
    assert not batcher._left


async def test_a_short_limit_says_nothing_against_the_stream(batcher, stub, calls, monkeypatch):
    monkeypatch.setattr(batcher_module, "LATE_S", LIMIT_S)  # however slow the machine is
    reply = submit(batcher, 0, limit_s=0.001)
    with pytest.raises(DeadlinePassed):
        await reply
    assert not calls.suspected


async def test_a_write_that_blocks_holds_up_only_its_own_stream(batcher, stub):
    stream, first = await with_a_blocked_write(batcher, stub)
    blocked = submit(batcher, 1, limit_s=0.1)
    with pytest.raises(DeadlinePassed):
        await blocked
    again = submit(batcher, 1)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await again, 1, 1)
    stream.answer(stream.seen[0])
    assert shows(await first, 0, 1)


async def test_a_write_that_blocks_is_noticed_though_its_caller_has_given_up(batcher, stub):
    """Rows that wait behind it are never sent; they have to find out."""
    stream, first = await with_a_blocked_write(batcher, stub)
    blocked = submit(batcher, 1)
    await settled()
    blocked.cancel()
    with pytest.raises(DeadlinePassed):
        await submit(batcher, 2, limit_s=0.1)
    again = submit(batcher, 2)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await again, 2, 1)
    stream.answer(stream.seen[0])
    assert shows(await first, 0, 1)


async def test_a_write_that_blocks_does_not_outlive_its_stream(batcher, stub, monkeypatch):
    """Nobody waits for it any more, so the stream looks idle, and is left; later rows go over another."""
    monkeypatch.setattr(batcher_module, "IDLE_S", 0.02)
    first = submit(batcher, 0)
    stream = await stub.stream()
    stream.answer(await stream.next())
    await first
    stream.can_write.clear()
    given_up = submit(batcher, 0, 1, limit_s=0.05)
    await settled()
    sender = batcher._sender
    given_up.cancel()
    await asyncio.wait([sender], timeout=1)
    assert sender.done()
    assert stream.is_cancelled
    reply = submit(batcher, 1)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await reply, 1, 1)


async def test_a_write_that_never_hears_of_the_end_of_its_stream_holds_nobody_up(batcher, stub):
    """As one of grpc.aio that waits for a call to begin."""
    stream, first = await with_a_blocked_write(batcher, stub)
    blocked = submit(batcher, 1)
    await settled()
    sender = batcher._sender
    stream.give(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, (), (), "it ended"))
    for reply in (first, blocked):
        with pytest.raises(ServerUnavailable):
            await reply
    again = submit(batcher, 2)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await again, 2, 1)
    assert sender.done()


async def test_an_idle_stream_is_ended_in_good_form(batcher, stub, monkeypatch):
    monkeypatch.setattr(batcher_module, "IDLE_S", 0.05)
    reply = submit(batcher, 0, limit_s=0.05)
    stream = await stub.stream()
    stream.answer(await stream.next())
    await reply
    await stream.ended.wait()
    assert not stream.is_cancelled
    assert not batcher.is_in_use
    reply = submit(batcher, 1)
    stream = await stub.stream(1)
    stream.answer(await stream.next())
    assert shows(await reply, 1, 1)


# -- several replicas ----------------------------------------------------------------------------------


async def test_where_there_are_several_replicas_a_session_keeps_its_stream(stub, calls):
    """gRPC gives streams that open one after the other one replica after the other."""
    calls.replica_count, calls.is_inherited = 3, False
    steps = Steps(calls)
    ledgers = [Ledger(pb.Session(session_id=str(number)), 0) for number in range(30)]

    async def served():
        """Returns the sessions of each stream after one more step of all."""
        replies = []
        for ledger in ledgers:
            entry = ledger.repeat(b"x", ledger.position, ASKED)
            replies.append(steps.send(ledger, entry, stub, time.monotonic() + LIMIT_S).reply)
        seen = []
        for stream in stub.streams:
            batch = await stream.next()
            seen.append(sessions(batch))
            stream.answer(batch)
        await asyncio.gather(*replies)
        return seen

    first = await served()
    assert len(first) == 3
    assert all(len(of_one) > 3 for of_one in first)
    assert sorted(itertools.chain(*first)) == list(range(30))
    assert await served() == first
    await steps.close()


async def test_replicas_that_come_later_get_streams_too(stub, calls, monkeypatch):
    monkeypatch.setattr(batcher_module, "FIRST_RENEW_S", 0.0)
    batcher = Batcher(calls, stub, renews=True)
    reply = submit(batcher, 0)
    old = await stub.stream()
    old.answer(await old.next())
    await reply
    await settled()
    late = submit(batcher, 1)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await late, 1, 1)
    await old.ended.wait()
    assert not old.is_cancelled
    await nothing_left(batcher, stub)


# -- replies in parts ----------------------------------------------------------------------------------


async def test_replies_come_in_parts_and_in_any_order(batcher, stub):
    replies = [submit(batcher, number) for number in range(6)]
    stream = await stub.stream()
    batch = await stream.next()
    for part in ([4], [0, 5], [1, 2]):
        stream.answer(batch, part)
        await settled()
        for number in part:
            assert shows(replies[number].result(), number, 1)
    assert not replies[3].done()
    stream.answer(batch, [3])
    assert shows(await replies[3], 3, 1)
    assert batcher._line.messages == {}


async def test_a_part_makes_room_for_the_next_message(batcher, stub):
    """One slow row must not hold up those who come later."""
    replies = [submit(batcher, number) for number in range(2)]
    stream = await stub.stream()
    slow = await stream.next()
    stream.answer(slow, [0])
    await settled()
    for number in range(2, 6):
        replies.append(submit(batcher, number))
        batch = await stream.next()
        stream.answer(batch)
        assert shows(await replies[-1], number, 1)
    stream.answer(slow, [1])
    assert shows(await replies[1], 1, 1)


async def test_messages_are_answered_in_any_order_by_their_tags(batcher, stub):
    one = [submit(batcher, number) for number in (0, 1)]
    stream = await stub.stream()
    first = await stream.next()
    two = [submit(batcher, number) for number in (2, 3)]
    second = await stream.next()
    assert first.tag != second.tag
    stream.answer(second, [1])
    stream.answer(first, [1])
    stream.answer(second, [0])
    stream.answer(first, [0])
    for number, reply in enumerate([*one, *two]):
        assert shows(await reply, number, 1)


async def test_a_reply_with_a_tag_that_nobody_knows_says_nothing(batcher, stub):
    reply = submit(batcher, 0)
    stream = await stub.stream()
    batch = await stream.next()
    stranger = pb.Batch()
    stranger.CopyFrom(batch)
    stranger.tag = batch.tag + 1
    stream.answer(stranger)
    stream.refuse(stranger, InvalidRequest("no"))
    await settled()
    assert not reply.done()
    stream.answer(batch)
    assert shows(await reply, 0, 1)


async def test_a_reply_that_comes_twice_says_nothing_the_second_time(batcher, stub):
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(batch, [0])
    stream.answer(batch, [0], errors={0: PositionConflict("once more", expected_position=9)})
    stream.answer(batch, [1])
    await settled()
    assert shows(replies[0].result(), 0, 1)
    assert shows(replies[1].result(), 1, 1)
    stream.answer(batch, [2])
    assert shows(await replies[2], 2, 1)
    stream.answer(batch)
    stream.refuse(batch, InvalidRequest("no"))
    await settled()


async def test_a_reply_that_makes_no_sense_fails_those_it_may_be_about(batcher, stub):
    """They do not wait for a reader that is gone until their time is up."""
    replies = [submit(batcher, number) for number in range(2)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(batch, [0])
    result = pb.BatchResult(tag=batch.tag, rows=[5], positions=[1], history_digests=[1], incarnations=[1])
    stream.give(pb.StreamBatchesResponse(result=result))
    assert shows(await replies[0], 0, 1)
    with pytest.raises(Exception, match="reply") as caught:
        await replies[1]
    assert leaves_unsure(caught.value)
    again = submit(batcher, 1)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await again, 1, 1)


async def test_a_server_that_tells_no_digests_is_understood(batcher, stub):
    reply = submit(batcher, 0)
    stream = await stub.stream()
    batch = await stream.next()
    outputs = pb.Outputs(token_count=1)
    result = pb.BatchResult(tag=batch.tag, positions=[1], incarnations=[1], outputs=outputs)
    stream.give(pb.StreamBatchesResponse(result=result))
    assert ((await reply).position, (await reply).history_digest) == (1, 0)


async def test_a_row_with_outputs_of_its_own_is_the_reply_of_its_session(batcher, stub):
    """A repetition that asks for other outputs gets those that are kept, as alone."""
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    batch = await stream.next()
    own = pb.SeparateRow(row=1, model_version=2, outputs=pb.Outputs(token_count=1, token_log_probs=[0.5]))
    stream.answer(batch, separate_rows=[own, pb.SeparateRow(row=2, model_version=2)], replayed_rows=[1, 2])
    assert shows(await replies[0], 0, 1)
    reply = await replies[1]
    assert (reply.session_id, reply.position, reply.history_digest) == ("1", 1, 1)
    assert (reply.replayed, reply.model_version, reply.token_log_probs.tolist()) == (True, 2, [0.5])
    assert await replies[2] is None  # too large for this message: it is asked for alone


# -- errors --------------------------------------------------------------------------------------------


async def test_the_error_of_a_row_is_that_row_s_only(batcher, stub):
    replies = [submit(batcher, number) for number in range(4)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(
        batch,
        [1, 2, 3],
        {1: PositionConflict("one", expected_position=4), 3: Overloaded("three", retry_after_s=0.5)},
    )
    stream.answer(batch, [0])
    outcomes = await asyncio.gather(*replies, return_exceptions=True)
    assert shows(outcomes[0], 0, 1)
    assert shows(outcomes[2], 2, 1)
    assert (type(outcomes[1]), outcomes[1].expected_position) == (PositionConflict, 4)
    assert (type(outcomes[3]), outcomes[3].retry_after_s) == (Overloaded, 0.5)


@pytest.mark.parametrize("ends", [True, False], ids=["the stream ends", "the message is refused"])
async def test_each_caller_has_an_error_of_its_own(batcher, stub, ends):
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    batch = await stream.next()
    if ends:
        stream.end()
    else:
        stream.refuse(batch, Overloaded("not now", retry_after_s=0.1))
    outcomes = await asyncio.gather(*replies, return_exceptions=True)
    assert len({id(outcome) for outcome in outcomes}) == 3
    outcomes[0].tell("applied to the first")
    outcomes[0].metadata["of"] = "the first"
    outcomes[0].add_note("of the first")
    for other in outcomes[1:]:
        assert "first" not in str(other)
        assert "of" not in other.metadata
        assert not getattr(other, "__notes__", [])
        assert (other.pending, other.not_applied) == ((), ())


async def test_a_reply_does_not_hold_the_error_of_another_row(batcher, stub):
    """An error holds the frames that it was raised in."""
    replies = [submit(batcher, number) for number in range(2)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(batch, errors={1: PositionConflict("one")})
    kept = await replies[0]
    assert replies[1].exception() not in kept._batch.errors.values()


async def test_a_message_refused_as_a_whole_is_sent_again_in_halves(batcher, stub):
    """Only the row at fault is sent alone in the end, and refused in words about a chunk."""
    replies = [submit(batcher, number) for number in range(8)]
    stream, sizes, refused = await stub.stream(), [], 0
    while not all(reply.done() for reply in replies):
        batch = await stream.next()
        sizes.append(len(batch.session_ids))
        if "5" in batch.session_ids:
            stream.refuse(batch, InvalidRequest("no", field="batch.outputs"))
            refused += 1
        else:
            stream.answer(batch)
        await settled()
    assert sizes[0] == 8
    assert refused <= 4
    for number, reply in enumerate(replies):
        if number == 5:
            assert reply.result() is None
        else:
            assert shows(reply.result(), number, 1)


async def test_rows_behind_rows_of_a_refused_message_stay_behind(batcher, stub):
    replies = [submit(batcher, 0), submit(batcher, 1), submit(batcher, 0, 1), submit(batcher, 0, 2)]
    stream = await stub.stream()
    first = await stream.next()
    assert (sessions(first), list(first.positions)) == ([0, 1], [0, 0])
    stream.refuse(first, InvalidRequest("too many"))
    while not all(reply.done() for reply in replies):
        batch = await stream.next()
        assert len(set(batch.session_ids)) == len(batch.session_ids)
        stream.answer(batch)
        await settled()
    assert shows(replies[0].result(), 0, 1)
    assert shows(replies[1].result(), 1, 1)
    assert shows(replies[2].result(), 0, 2)
    assert shows(replies[3].result(), 0, 3)


async def test_rows_given_up_meanwhile_are_not_sent_again(batcher, stub):
    replies = [submit(batcher, number) for number in range(4)]
    stream = await stub.stream()
    batch = await stream.next()
    replies[0].cancel()
    replies[1].cancel()
    stream.refuse(batch, InvalidRequest("no"))
    batch = await stream.next()
    assert sessions(batch) == [2, 3]
    stream.answer(batch)
    await asyncio.gather(*replies[2:])


async def test_rows_of_a_message_whose_reply_cannot_be_written_are_in_doubt(batcher, stub):
    """They may have been applied; sent again unseen, a refusal of the second sending would deny it."""
    replies = [submit(batcher, number) for number in range(4)]
    stream = await stub.stream()
    stream.refuse(await stream.next(), InternalFailure("the reply cannot be written"))
    for outcome in await asyncio.gather(*replies, return_exceptions=True):
        assert leaves_unsure(outcome)
        assert outcome.retryable
    replies = [submit(batcher, number) for number in range(4)]
    assert len((await stream.next()).session_ids) == 2  # so that the row at fault comes to be alone
    for reply in replies:
        reply.cancel()
    alone = submit(batcher, 9, text=b"xy")
    while (batch := await stream.next()).tokens_per_row == 1:
        stream.answer(batch)
    stream.refuse(batch, InternalFailure("the reply cannot be written"))
    with pytest.raises(InternalFailure):
        await alone


async def test_a_refusal_that_may_pass_is_for_each_caller_to_repeat(batcher, stub):
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    stream.refuse(await stream.next(), Overloaded("not now", retry_after_s=0.25))
    for outcome in await asyncio.gather(*replies, return_exceptions=True):
        assert (type(outcome), outcome.retry_after_s) == (Overloaded, 0.25)
        assert not leaves_unsure(outcome)


# -- ends of streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
)
async def test_rows_under_way_on_a_stream_that_ends_are_in_doubt(batcher, stub, code):
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(batch, [1])
    await settled()
    stream.end(code=code)
    assert shows(await replies[1], 1, 1)
    for reply in (replies[0], replies[2]):
        with pytest.raises(ServerUnavailable) as caught:
            await reply
        assert leaves_unsure(caught.value)
    again = submit(batcher, 0)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await again, 0, 1)


async def test_a_goodbye_has_its_rows_sent_elsewhere(batcher, stub):
    reply = submit(batcher, 0)
    stream = await stub.stream()
    await stream.next()
    told = {"requests_read": "0", "requests_answered": "0"}
    stream.end(Draining("leaving", retry_after_s=0.0, metadata=told))
    with pytest.raises(Draining) as caught:
        await reply
    assert caught.value.is_goodbye
    assert leaves_unsure(caught.value)


async def test_rows_that_wait_when_a_stream_ends_go_over_the_next(batcher, stub):
    """They were never sent, so they are not failed."""
    under_way = [submit(batcher, 0)]
    stream = await stub.stream()
    await stream.next()
    under_way.append(submit(batcher, 1))
    await stream.next()
    waiting = [submit(batcher, number) for number in (2, 3)]
    await settled()
    stream.end()
    for reply in under_way:
        with pytest.raises(ServerUnavailable):
            await reply
    new = await stub.stream(1)
    batch = await new.next()
    assert sessions(batch) == [2, 3]
    new.answer(batch)
    for number, reply in zip((2, 3), waiting, strict=True):
        assert shows(await reply, number, 1)


async def test_a_stream_that_ended_while_nobody_used_it_is_not_used_again(batcher, stub):
    reply = submit(batcher, 0)
    stream = await stub.stream()
    stream.answer(await stream.next())
    await reply
    stream.end()
    reply = submit(batcher, 1)
    new = await stub.stream(1)
    new.answer(await new.next())
    assert shows(await reply, 1, 1)


@pytest.mark.parametrize("ending", [Overloaded("no more streams", retry_after_s=1.0), None])
async def test_what_a_stream_does_not_take_goes_alone(batcher, stub, ending):
    """A server that lets no more streams in, and a message that is too large."""
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    await stream.next()
    stream.end(ending, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert await asyncio.gather(*replies) == [None, None, None]


async def test_of_several_messages_only_the_largest_was_surely_too_large(batcher, stub):
    """The others may have been read, and applied: they are not said to be untouched."""
    small = submit(batcher, 0)
    stream = await stub.stream()
    await stream.next()
    large = submit(batcher, 1, text=b"x" * 4000)
    await stream.next()
    stream.end(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert await large is None
    with pytest.raises(ServerUnavailable) as caught:
        await small
    assert leaves_unsure(caught.value)


async def test_messages_become_smaller_where_they_were_too_large(batcher, stub):
    text = b"x" * 1000
    replies = [submit(batcher, number, text=text) for number in range(4)]
    stream = await stub.stream()
    await stream.next()
    stream.end(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert await asyncio.gather(*replies) == [None] * 4
    replies = [submit(batcher, number, text=text) for number in range(4)]
    stream = await stub.stream(1)
    while not all(reply.done() for reply in replies):
        batch = await stream.next()
        assert len(batch.session_ids) <= 2
        stream.answer(batch)
        await settled()


@pytest.mark.parametrize(
    "ending",
    [Overloaded("no reply could be written", retry_after_s=0.0), Unauthenticated("the token has expired")],
    ids=["a stall", "a gate between"],
)
async def test_what_ends_a_stream_that_answered_does_not_say_that_nothing_was_applied(
    batcher, stub, ending
):
    """It says something of the stream, not of the rows that had been read."""
    ending.metadata |= {"requests_read": "2", "requests_answered": "1"}
    first = submit(batcher, 0)
    stream = await stub.stream()
    stream.answer(await stream.next())
    await first
    reply = submit(batcher, 1)
    await stream.next()
    stream.end(ending)
    with pytest.raises(Exception, match=ending.message) as caught:
        await reply
    assert leaves_unsure(caught.value)
    assert caught.value.retryable


async def test_a_stream_that_was_never_let_in_has_applied_nothing(batcher, stub):
    reply = submit(batcher, 0)
    stream = await stub.stream()
    stream.end(Unauthenticated("who are you"))
    with pytest.raises(Unauthenticated) as caught:
        await reply
    assert not leaves_unsure(caught.value)


# -- closing and breaking ------------------------------------------------------------------------------


async def test_closing_ends_a_quiet_stream_in_good_form(batcher, stub):
    reply = submit(batcher, 0)
    stream = await stub.stream()
    stream.answer(await stream.next())
    await reply
    assert own_tasks() == ["Line._read"]
    await batcher.close()
    assert stream.ended.is_set()
    assert not stream.is_cancelled
    await settled()
    assert own_tasks() == []  # though its last read brings nothing


async def test_closing_ends_what_waits_and_what_is_under_way(batcher, stub, calls):
    replies = [submit(batcher, 0)]
    stream = await stub.stream()
    await stream.next()
    replies.append(submit(batcher, 1))
    await stream.next()
    replies += [submit(batcher, 2), submit(batcher, 2, 1)]
    await settled()
    await batcher.close()
    calls.lifetime.end()
    stub.broken = ClientClosed("the client is closed")
    stream.give(ClientClosed("the client was closed while the call was under way"))
    for reply in replies:
        with pytest.raises(ClientClosed):
            await reply


async def test_what_cannot_be_sent_fails_its_callers_only(batcher, stub):
    stub.broken = ServerUnavailable("cannot connect: too many files")
    replies = [submit(batcher, number) for number in range(2)]
    outcomes = await asyncio.gather(*replies, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ServerUnavailable, ServerUnavailable]
    stub.broken = None
    reply = submit(batcher, 2)
    stream = await stub.stream()
    stream.answer(await stream.next())
    assert shows(await reply, 2, 1)


async def test_a_history_that_cannot_be_written_fails_the_callers(batcher, stub, calls):
    def broken(*_):
        raise OSError("no space left on device")

    calls.history = SimpleNamespace(sent=broken, got=broken, failed=broken)
    with pytest.raises(OSError, match="no space"):
        await submit(batcher, 0)
    calls.history = None
    reply = submit(batcher, 1)
    stream = await stub.stream()
    stream.answer(await stream.next())
    assert shows(await reply, 1, 1)


async def test_a_history_has_each_message_and_all_that_was_said_of_it(batcher, stub, calls, tmp_path):
    said = []

    class Noted(Recorder):
        def got(self, number, reply):
            said.append((number, "got", list(reply.result.rows)))

        def failed(self, number, error):
            said.append((number, "failed", type(error)))

    calls.history = Noted(tmp_path / "history")
    replies = [submit(batcher, number) for number in range(3)]
    stream = await stub.stream()
    batch = await stream.next()
    stream.answer(batch, [2])
    await settled()
    stream.end()
    await asyncio.gather(*replies, return_exceptions=True)
    [(number, what, rows), last] = said
    assert (what, rows) == ("got", [2])
    assert last == (number, "failed", ServerUnavailable)
    calls.history.close()
    calls.history = None


# -- nothing is left behind ----------------------------------------------------------------------------


async def test_ten_thousand_steps_leave_nothing_behind(batcher, stub):
    """With cancellations, errors, parts, late replies and streams that end among them."""
    serving = asyncio.create_task(_serve(stub))
    outcomes = []
    try:
        for _ in range(100):
            replies = [
                submit(batcher, f"{number % 37}.{number}", text=b"x" * (1 + number % 3))
                for number in range(100)
            ]
            await asyncio.sleep(0)
            for reply in replies[::9]:
                reply.cancel()
            outcomes += await asyncio.gather(*replies, return_exceptions=True)
        kinds = {type(outcome).__name__ for outcome in outcomes}
        assert kinds == {"RowReply", "CancelledError", "PositionConflict", "ServerUnavailable"}
        await settled()
        assert not list(batcher._waiting())
        assert not batcher._behind
        assert len(batcher._line.messages) <= 2 if batcher._line else True
        gc.collect()
        held = [one for one in gc.get_objects() if isinstance(one, Sent)]
        assert len(held) < 300
        assert len(asyncio.all_tasks()) < 10
    finally:
        serving.cancel()


async def _serve(stub):
    """Answers in parts; every 50th message is the last of its stream, every 10th row is refused."""
    number = 0
    while True:
        stream = await stub.stream(number)
        count = 0
        while True:
            batch = await stream.next()
            count += 1
            if count == 50:
                stream.end()
                break
            rows = list(range(len(batch.session_ids)))
            for part in (rows[1::2], rows[::2]):
                if part:
                    refused = {row: PositionConflict("no") for row in part if row % 10 == 3}
                    stream.answer(batch, part, refused)
        number += 1

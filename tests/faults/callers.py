"""Callers at random, behind a gateway at random: `python -m tests.faults.callers --cases N --seed S`.

A case is one session and one caller, who steps, streams, settles, repeats, goes on, cancels, breaks off,
gives up session objects and closes clients, as its dice say. The gateway loses, delays and doubles what it
forwards. The caller keeps a book of what it was told; in the end what is stored must be what the book
allows, and until then no call may raise what is not documented, say of a chunk what is not so, or hang.

The same seed gives a case the same script and the same faults as long as the answers are the same: when
processes answer is up to the machine, so a case that is run again may go another way. Run it several times.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import numpy as np

import holdfast
from holdfast import errors
from holdfast.client.status import from_rpc
from holdfast.demo.processes import ServerProcess
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.faults.caller_book import Book
from tests.faults.caller_sources import KINDS, RUBBISH, AsyncIterator, Iterator, SourceFailed
from tests.faults.gateway import Gateway
from tests.support.models import write_hash_model

MODEL = "hash"
JOBS = 24
SHARED_BY = 12
"""Cases under way, and how many of them share a client."""

THREADS_SHARE = 0.4
"""Of cases that use a `Client`; the others use an `AsyncClient`."""

TIMEOUT_S = 0.5
QUICK = holdfast.RetryPolicy(initial_s=0.005, max_s=0.02, attempt_s=0.08)
OVERTIME_S = 12.0
"""By so much a call may outlive its time limit on a machine that is busy."""

HANG_S = 60.0
LAST_S = 20.0
"""With the faults over, a settlement has so long."""

LATE_SOURCE_S = 5.0

FORKS = hasattr(errors, "ClientForked")
FORK_SHARE = 0.004

ACTIONS = {
    "step": 8, "step at": 4, "stream": 9, "settle": 2, "pair": 1, "wrong step": 2, "step behind": 1,
    "resume": 1, "take over": 1, "new client": 1, "old object": 2, "close under way": 1,
    "delete session": 0.3,
}  # fmt: skip
POLICIES = {
    "repeat": 2, "repeat at": 4, "go on": 2, "settle": 3, "settle through": 4, "resume": 2, "take over": 2,
    "new client": 1, "overtake": 2, "settle fenced": 1, "nothing": 2,
}  # fmt: skip

ALWAYS = (
    errors.ServerUnavailable, errors.DeadlinePassed, errors.Overloaded, errors.StoreUnavailable,
)  # fmt: skip
CONFLICTS = (errors.PositionConflict, errors.HistoryConflict)
GONE = (errors.SessionDeleted, errors.SessionLost, errors.SessionNotFound)


class View:
    """A session object, and what its caller counted.

    Attributes:
        number: Of the object, in its case.
        session: Itself.
        client: Its client.
        life: Of the session, when it was opened.
        count: Tokens whose replies it gave, and those before it was opened.
    """

    def __init__(self, number, session, client):
        self.life = 0
        self.number = number
        self.session = session
        self.client = client
        self.count = session.position


class Clients:
    """The clients of one face: shared ones, and those that a script may close."""

    def __init__(self, make, address):
        self._make = make
        self._address = address
        self._shared = []
        self._uses = 0

    def shared(self):
        """Returns a client that others use, too."""
        if self._uses % (SHARED_BY * JOBS) == 0:
            self._shared.append(self.own())
        self._uses += 1
        return self._shared[-1]

    def own(self):
        """Returns a client for one caller."""
        return self._make(self._address, retry=QUICK, timeout_s=TIMEOUT_S)

    @property
    def all_shared(self):
        return self._shared


class AsyncFace:
    """Calls of `AsyncClient`."""

    name = "asyncio"
    can_cancel = True

    def __init__(self, address, _):
        self.clients = Clients(holdfast.AsyncClient, address)

    async def open(self, client, session_id, **options):
        return await client.open_session(session_id, model=MODEL, **options)

    async def do(self, target, method, *arguments, **options):
        return await getattr(target, method)(*arguments, **options)

    async def read(self, session, tokens, take, options, keep):
        """Reads a stream until `take`, which gets the replies, has enough; returns what is kept open."""
        stream = session.stream(tokens, **options)
        async for reply in stream:
            if take(reply):
                if keep == "open":
                    return stream
                if keep == "close":
                    await stream.aclose()
                break
        return None

    async def close_stream(self, stream):
        await stream.aclose()


class ThreadFace:
    """Calls of `Client`, each in a thread."""

    name = "threads"
    can_cancel = False

    def __init__(self, address, pool):
        self.clients = Clients(holdfast.Client, address)
        self._pool = pool

    async def _run(self, call):
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def open(self, client, session_id, **options):
        return await self._run(lambda: client.open_session(session_id, model=MODEL, **options))

    async def do(self, target, method, *arguments, **options):
        return await self._run(lambda: getattr(target, method)(*arguments, **options))

    async def read(self, session, tokens, take, options, keep):
        """As that of `AsyncFace`."""
        return await self._run(lambda: self._read(session, tokens, take, options, keep))

    def _read(self, session, tokens, take, options, keep):
        stream = session.stream(tokens, **options)
        for reply in stream:
            if take(reply):
                if keep == "open":
                    return stream
                if keep == "close":
                    stream.close()
                break
        return None

    async def close_stream(self, stream):
        await self._run(stream.close)


class Caller:
    """One case.

    Args:
        case: Its number.
        seed: Of the run.
        face: Through which it calls.
        gateway: Between it and the server.
        stub: Of the server itself.

    Attributes:
        book: What it was told.
    """

    def __init__(self, case, seed, face, gateway, stub):
        self._case = case
        self._rng = random.Random(f"{seed} caller {case}")
        self._name = f"case-{case}.{secrets.token_hex(4)}"
        self._face = face
        self._gateway = gateway
        self._stub = stub
        self._supply = list(self._rng.sample(range(256), 256))
        self._weights = [weight * self._rng.choice((0, 1, 1, 3)) for weight in POLICIES.values()]
        self._weights[-1] += 0.5
        self._views = []
        self._own_clients = []
        self._closed = set()
        self._taps = []
        self.book = Book()

    async def run(self):
        """Plays the script and judges what came of it."""
        self.book.say(f"by {self._face.name}")
        client = self._face.clients.shared() if self._rng.random() < 0.7 else self._own()
        try:
            await self._open(client)
            for _ in range(self._rng.randint(3, 9)):
                await self._act()
            await self._judge()
        except _Hangs as error:
            self.book.blame(str(error))
        finally:
            for client in self._own_clients:
                await self._close(client)

    async def _act(self):
        [action] = self._rng.choices(list(ACTIONS), list(ACTIONS.values()))
        if FORKS and self._rng.random() < FORK_SHARE:
            action = "fork"
        self.book.counts[f"action: {action}"] += 1
        await getattr(self, f"_{action.replace(' ', '_')}")()

    # -- actions ------------------------------------------------------------------------------

    async def _step(self):
        tokens = self._draw()
        if tokens:
            await self._try_step(self._view, tokens, None)

    async def _step_at(self):
        tokens = self._draw()
        if tokens:
            await self._try_step(self._view, tokens, self._view.count)

    async def _wrong_step(self):
        """Steps ahead of the session, with other tokens than are pending, or with what is no tokens."""
        view, tokens = self._view, self._draw()
        if not tokens:
            return
        way = self._rng.choice(("ahead", "other tokens", "no tokens"))
        if way == "no tokens":
            await self._try_step(view, self._rng.choice(RUBBISH), None)
        elif way == "ahead":
            await self._try_step(view, tokens, view.count + self._rng.randint(1, 5))
        elif view.session.pending:
            await self._try_step(view, tokens, view.count)

    async def _step_behind(self):
        """Asks again for a reply, or says that other tokens were applied."""
        view = self._view
        if not view.count or view.session.pending:
            return
        start = self._rng.randrange(max(0, view.count - 6), view.count)
        tokens = self.book.history[start : start + self._rng.randint(1, 3)]
        if self._rng.random() < 0.3:
            tokens = bytes([self._supply[-1]]) + tokens[1:]
        await self._try_step(view, tokens, start)

    async def _pair(self):
        """Makes two calls on one session at the same time."""
        view, both = self._view, [self._draw(), self._draw()]
        if not all(both):
            return
        had_pending = bool(view.session.pending)
        self.book.say(f"two steps at once: {[list(tokens) for tokens in both]}")
        calls = [self._face.do(view.session, "step", tokens, outputs="hash") for tokens in both]
        outcomes = await self._timed(asyncio.gather(*calls, return_exceptions=True), 3 * TIMEOUT_S)
        done = sorted(
            (outcome.position, tokens, outcome)
            for tokens, outcome in zip(both, outcomes, strict=True)
            if not isinstance(outcome, BaseException)
        )
        for _, tokens, reply in done:
            if had_pending:
                self.book.blame("a step was taken while chunks were pending")
            self.book.replied(tokens, view.count, reply)
            view.count += len(tokens)
        failed = [
            (tokens, outcome)
            for tokens, outcome in zip(both, outcomes, strict=True)
            if isinstance(outcome, BaseException)
        ]
        for tokens, error in failed:
            self._check_error(view, error, tokens, may_be_busy=True, is_one_of_two=True)
            self._hand_back(view, tokens)
        self._look(view)
        if failed:
            await self._react(view, failed[-1][0])

    async def _settle(self):
        await self._try_settle(self._view)

    async def _stream(self):
        view = self._view
        tokens = b"".join(filter(None, (self._draw() for _ in range(self._rng.randint(1, 4)))))
        if tokens:
            await self._try_stream(view, tokens)

    async def _resume(self):
        await self._reopen()

    async def _take_over(self):
        await self._reopen(take_over=True)

    async def _new_client(self):
        old = self._view.client
        if old in self._own_clients and self._rng.random() < 0.8:
            await self._close(old)
        await self._reopen(client=self._own())

    async def _old_object(self):
        """Goes back to a session object that was given up, for a moment."""
        others = [view for view in self._views[:-1] if view.life == self.book.life]
        if not others:
            return
        view = self._rng.choice(others)
        self.book.has_rival = True
        self.book.say(f"back to session object {view.number}")
        if self._rng.random() < 0.7:
            await self._try_settle(view)
        elif tokens := self._draw():
            await self._try_step(view, tokens, None, reacts=False)

    async def _close_under_way(self):
        view = self._view
        if view.client not in self._own_clients:
            return
        pause_s = self._rng.uniform(0, 0.1)
        closing = asyncio.create_task(self._close(view.client, pause_s))
        self._closed.add(view.client)
        await self._rng.choice((self._step, self._stream, self._settle))()
        await closing
        if view is self._view:
            if self._rng.random() < 0.5 and (tokens := self._draw()):
                await self._try_step(view, tokens, None, reacts=False)
            await self._reopen(client=self._own())

    async def _delete_session(self):
        view = self._view
        self.book.may_be_deleted = True
        self.book.say("delete the session")
        try:
            await self._timed(self._face.do(view.session, "delete"), TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 -- judged
            self._check_error(view, error, b"", about_tokens=False)
        if self._rng.random() < 0.5 and (tokens := self._draw()):
            await self._try_step(view, tokens, None, reacts=False)
        await self._reopen()

    async def _fork(self):
        """Has a child use what it inherited."""
        self.book.say("fork")
        status = await asyncio.to_thread(_fork_and_step, self._view.session, self._face.can_cancel)
        if status != 0:
            self.book.blame(f"a forked child that used the session ended with {status}")

    # -- what to do after an error ---------------------------------------------------------------

    async def _leave(self, view):
        """Goes on as if nothing were pending."""

    async def _react(self, view, tokens=b""):
        """Does after an error what this caller does."""
        if view is not self._view or not isinstance(tokens, bytes):
            return
        [policy] = self._rng.choices(list(POLICIES), self._weights)
        self.book.counts[f"policy: {policy}"] += 1
        if view.client in self._closed and policy not in ("resume", "take over", "settle fenced"):
            policy = "new client"
        if policy == "repeat" and tokens:
            self._withdraw(tokens)
            await self._try_step(view, tokens, None, reacts=False)
        elif policy == "repeat at":
            await self._repeat_at(view, tokens)
        elif policy == "go on" and (other := self._draw()):
            await self._try_step(view, other, None, reacts=False)
        elif policy == "settle":
            await self._try_settle(view)
        elif policy == "settle through":
            for _ in range(4):
                if await self._try_settle(view):
                    break
        elif policy == "resume":
            await self._reopen(client=self._usable())
        elif policy == "take over":
            await self._reopen(client=self._usable(), take_over=True)
        elif policy == "new client":
            await self._new_client()
        elif policy == "overtake":
            await self._overtake(view)
        elif policy == "settle fenced":
            await self._settle_fenced(view)

    async def _settle_fenced(self, view):
        """Takes the session over from itself."""
        await self._reopen(client=self._usable(), take_over=True)
        if view.life == self.book.life:
            await self._try_settle(view)

    async def _overtake(self, view):
        """Brings the session to where a second chunk that is in doubt would go on, by other tokens."""
        pending = view.session.pending
        await self._reopen(client=self._usable(), hands_back=not pending)
        if pending and (tokens := self._draw(len(pending[0].tokens))):
            await self._try_step(self._view, tokens, None, reacts=False)

    async def _repeat_at(self, view, tokens):
        for _ in range(4):
            pending = view.session.pending
            if pending:
                position, tokens = pending[0]
            elif tokens and not set(tokens) & set(self.book.history):
                self._withdraw(tokens)
                position = view.count
            else:
                return
            if await self._try_step(view, tokens, position, reacts=False) and not view.session.pending:
                return

    # -- calls ----------------------------------------------------------------------------------

    async def _try_step(self, view, tokens, position, *, reacts=True):
        """Steps; returns whether a reply came."""
        await self._quiesce(view)
        session, pending = view.session, view.session.pending
        timeout_s = self._timeout_s()
        self.book.say(
            f"[{view.number}] step {_shown(tokens)} at {position}, stands at {view.count}, "
            f"pending {_shown(pending)}, timeout {timeout_s}"
        )
        is_behind = position is not None and position < view.count
        at = {} if position is None else {"position": position}
        try:
            reply = await self._timed(
                self._cancelled_at_random(
                    self._face.do(session, "step", tokens, outputs="hash", timeout_s=timeout_s, **at)
                ),
                timeout_s,
            )
        except BaseException as error:  # noqa: BLE001 -- judged
            conflicts = is_behind
            self._check_error(
                view, error, tokens, at=position, may_conflict=conflicts, was_pending=bool(pending)
            )
            self._look(view)
            if not is_behind:
                self._hand_back(view, tokens)
            if reacts:
                await self._react(view, tokens if not is_behind else b"")
            return False
        if pending and (position is None or (position, tokens) != tuple(pending[0])):
            self.book.blame("a step was taken while another chunk was pending")
        if not isinstance(tokens, bytes):
            self.book.blame("what is no tokens was applied")
            return False
        start = view.count if position is None else position
        self.book.say(f"    reply to position {reply.position}{', replayed' if reply.replayed else ''}")
        self.book.replied(tokens, start, reply)
        if not is_behind:
            view.count += len(tokens)
        self._look(view)
        return True

    async def _try_settle(self, view, timeout_s=None):
        """Settles; returns whether it came to its end."""
        await self._quiesce(view)
        share = 0.25 if timeout_s is None else 0.0
        pending, timeout_s = view.session.pending, timeout_s or self._timeout_s()
        self.book.say(f"[{view.number}] settle {_shown(pending)}, timeout {timeout_s}")
        try:
            replies = await self._timed(
                self._cancelled_at_random(self._face.do(view.session, "settle", timeout_s), share),
                timeout_s,
            )
        except BaseException as error:  # noqa: BLE001 -- judged
            self._check_error(view, error, b"", was_pending=bool(pending))
            for chunk in pending:
                self._hand_back(view, chunk.tokens)
            self._look(view)
            return False
        self.book.say(f"    replies to positions {[reply.position for reply in replies]}")
        if len(replies) != len(pending):
            self.book.blame(f"{len(replies)} replies settle {len(pending)} chunks")
        for chunk, reply in zip(pending, replies, strict=False):
            self.book.replied(chunk.tokens, chunk.position, reply)
            view.count += len(chunk.tokens)
        self._look(view)
        return True

    async def _try_stream(self, view, tokens):
        await self._quiesce(view)
        rng, had_pending, timeout_s = self._rng, bool(view.session.pending), self._timeout_s()
        kind, source = self._source(tokens)
        options = {"chunk": rng.randint(1, 4), "timeout_s": timeout_s, "outputs": "hash"}
        if rng.random() < 0.8:
            options["max_in_flight"] = rng.randint(1, 8)
        enough = rng.choice((None, None, rng.randint(1, 5)))
        keep = rng.choice(("leave", "close", "open"))
        self.book.say(
            f"[{view.number}] stream {_shown(tokens)} as {kind}, {options}, stands at {view.count}, "
            f"pending {_shown(view.session.pending)}, stops after {enough}, {keep}"
        )
        first, replies = view.count, 0

        def take(reply):
            nonlocal replies
            if had_pending:
                self.book.blame("a stream was taken while chunks were pending")
            start = view.count
            done = tokens[start - first :][: reply.token_count]
            self.book.say(f"    reply to position {reply.position}{', replayed' * reply.replayed}")
            self.book.replied(done, start, reply)
            view.count += len(done)
            replies += 1
            return replies == enough

        stream = error = None
        try:
            stream = await self._timed(
                self._cancelled_at_random(self._face.read(view.session, source, take, options, keep), 0.3),
                (timeout_s + 0.3) * (len(tokens) + 1),
            )
        except BaseException as failure:  # noqa: BLE001 -- judged
            error = failure
        if stream is not None:
            await self._use_while_open(view, stream)
        tap = source if isinstance(source, Iterator | AsyncIterator) else None
        if error is not None:
            self._check_error(
                view, error, b"", was_pending=had_pending, source=tap, about_tokens=tap is None
            )
        self._account(view, error, first, tokens, tap)
        if error is not None and (len(view.session.pending) < 2 or rng.random() < 0.6):
            await self._react(view)
        elif view.session.pending and view is self._view:
            what = rng.choice((self._overtake, self._settle_fenced, self._react, self._leave))
            await what(view)

    def _account(self, view, error, first, tokens, tap):
        """Sees what became of a stream's tokens: those that were not taken are the caller's own again."""
        if tap is None:
            self._hand_back(view, tokens[view.count - first :])
            self._look(view)
            return
        tap.first, tap.view = first, view
        tap.not_applied = b"".join(chunk.tokens for chunk in getattr(error, "not_applied", ()))
        self._taps.append(tap)
        self._put_back(tap.not_applied + tap.rest)

    async def _use_while_open(self, view, stream):
        """Makes a call while a stream is open, and closes the stream."""
        if self._rng.random() < 0.3 and (tokens := self._draw()):
            try:
                reply = await self._timed(
                    self._face.do(view.session, "step", tokens, outputs="hash", timeout_s=0.05), 0.05
                )
            except Exception as error:  # noqa: BLE001 -- judged
                self._check_error(view, error, tokens, may_be_busy=True, is_one_of_two=True)
                self._put_back(tokens)
            else:
                self.book.blame(f"a step was taken while a stream was open: {reply}")
        await self._face.close_stream(stream)

    async def _quiesce(self, view):
        """Waits until every source has given what it was asked for, and sees that this was taken."""
        taps, self._taps = self._taps, []
        for tap in taps:
            deadline_s = time.monotonic() + LATE_SOURCE_S
            while time.monotonic() < deadline_s and (tap.is_asked or self._missing(tap)):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            if missing := self._missing(tap):
                self.book.blame(f"{list(missing)} were fetched, and nothing says what became of them")
        if taps:
            self._look(view)

    def _missing(self, tap):
        """Returns what a source has given that is neither replied to, nor pending, nor said not to be."""
        known = set(self.book.history) | set(tap.not_applied)
        known |= {token for chunk in tap.view.session.pending for token in chunk.tokens}
        return bytes(token for token in tap.given if token not in known)

    async def _cancelled_at_random(self, coroutine, share=0.25):
        """Awaits a call, or gives it up at some moment, once or twice."""
        if not self._face.can_cancel or self._rng.random() >= share:
            return await coroutine
        pause_s = self._rng.choice((0, 0.002, 0.02, 0.1)) * self._rng.random()
        self.book.say(f"    cancelled after {pause_s:.4f} s")
        self.book.counts["cancellations"] += 1
        if self._rng.random() < 0.4:
            return await asyncio.wait_for(coroutine, pause_s)
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(pause_s)
        task.cancel()
        if self._rng.random() < 0.4:
            await asyncio.sleep(self._rng.choice((0, 0.001, 0.01)))
            task.cancel()
        return await task

    async def _timed(self, call, limit_s):
        """Awaits a call, and sees that it does not outlive its time limit by much."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(limit_s + HANG_S):
                return await call
        except TimeoutError:
            if time.monotonic() - began_s > limit_s + HANG_S - 1:
                raise _Hangs(f"a call of {limit_s} s did not end in {HANG_S} s more") from None
            raise
        finally:
            took_s = time.monotonic() - began_s
            if took_s > limit_s + OVERTIME_S:
                self.book.blame(f"a call of {limit_s} s took {took_s:.1f} s")

    # -- what errors say ------------------------------------------------------------------------

    def _check_error(
        self, view, error, tokens, *, at=None, may_conflict=False, may_be_busy=False, was_pending=False,
        source=None, about_tokens=True, is_one_of_two=False,
    ):  # fmt: skip
        """Sees that an error is one that may come here, and that it says what is so."""
        self.book.say(f"    {type(error).__name__}: {error}")
        pending = view.session.pending
        if isinstance(error, asyncio.CancelledError | TimeoutError):
            return
        if isinstance(error, SourceFailed) and source is not None:
            return
        if isinstance(error, TypeError | ValueError):
            if isinstance(tokens, bytes) and (source is None or not source.has_rubbish):
                self.book.blame(f"{error!r} about what is right")
            return
        self.book.counts[type(error).__name__] += 1
        if not isinstance(error, HoldfastError):
            self.book.blame(f"an exception that is not documented: {error!r}")
            return
        rival = self.book.has_rival
        allowed = (
            isinstance(error, ALWAYS)
            or (isinstance(error, errors.ClientClosed) and view.client in self._closed)
            or (isinstance(error, errors.ChunkPending) and (was_pending or is_one_of_two or pending))
            or (isinstance(error, errors.SessionBusy) and may_be_busy)
            or (isinstance(error, CONFLICTS) and (rival or may_conflict))
            or (isinstance(error, GONE) and (self.book.may_be_deleted or self.book.was_fenced))
            or (isinstance(error, errors.PositionGap) and at is not None and at > view.count)
        )
        if not allowed:
            self.book.blame(f"an exception that nothing explains: {error!r}")
        if not about_tokens or may_be_busy:
            return
        if [tuple(chunk) for chunk in error.pending] != [tuple(chunk) for chunk in pending]:
            self.book.blame(f"error.pending is {_shown(error.pending)}, the session's {_shown(pending)}")
        denied = {token for chunk in error.not_applied for token in chunk.tokens} & set(self.book.history)
        if denied:
            self.book.blame(f"{sorted(denied)} were applied, and an error says that they were not")
        if {chunk.position for chunk in error.not_applied} & {chunk.position for chunk in pending}:
            self.book.blame(f"{_shown(error.not_applied)} are not applied, and {_shown(pending)} pending")
        left = set(tokens) - {token for chunk in (*pending, *error.not_applied) for token in chunk.tokens}
        if left and "nothing was sent" not in str(error) and not (at is not None and at < view.count):
            self.book.blame(f"nothing says what became of {sorted(left)}")

    def _look(self, view):
        """Looks at a session object and notes what it says of itself."""
        position, pending = view.session.position, view.session.pending
        if position != view.count:
            self.book.blame(f"the session stands at {position}, its caller counts {view.count}")
        self.book.looked(view.number, position, pending)

    # -- opening and closing ----------------------------------------------------------------------

    @property
    def _view(self):
        return self._views[-1]

    def _own(self):
        client = self._face.clients.own()
        self._own_clients.append(client)
        return client

    def _usable(self):
        client = self._view.client
        return self._own() if client in self._closed else client

    async def _close(self, client, after_s=0.0):
        await asyncio.sleep(after_s)
        self._closed.add(client)
        try:
            await self._timed(self._face.do(client, "close"), 10)
        except Exception as error:  # noqa: BLE001 -- judged
            self.book.blame(f"close() raised {error!r}")

    async def _reopen(self, *, client=None, take_over=False, hands_back=True):
        view = self._view
        await self._quiesce(view)
        self._look(view)
        doubted = b"".join(chunk.tokens for chunk in view.session.pending)
        if doubted:
            self.book.has_rival = True
        await self._open(client or self._usable(), take_over=take_over)
        if hands_back and self._rng.random() < 0.6:
            self._put_back(doubted)

    async def _open(self, client, *, take_over=False):
        for _ in range(40):
            if client in self._closed:
                client = self._own()
            try:
                session = await self._timed(
                    self._face.open(client, self._name, take_over=take_over), TIMEOUT_S
                )
                break
            except HoldfastError as error:
                self.book.say(f"    open: {error!r}")
                if not isinstance(error, (*ALWAYS, *(GONE if self.book.may_be_deleted else ()))):
                    self.book.blame(f"an opening raised {error!r}")
        else:
            raise _Hangs("the session could not be opened")
        number = len(self._views)
        self._views.append(View(number, session, client))
        self.book.say(
            f"[{number}] opened at {session.position}, resumed {session.resumed}, take over {take_over}"
        )
        self.book.opened(
            number, session.position, session.history_digest, resumed=session.resumed, fences=take_over
        )
        self._view.life = self.book.life

    # -- tokens -----------------------------------------------------------------------------------

    def _draw(self, count=0):
        """Returns the next tokens to hand over, for the first time or again; b"" when all are."""
        count = count or self._rng.randint(1, 3)
        known = set(self.book.history)
        known |= {token for view in self._views for chunk in view.session.pending for token in chunk.tokens}
        self._supply = [token for token in self._supply if token not in known]
        tokens, self._supply = self._supply[:count], self._supply[count:]
        return bytes(tokens)

    def _hand_back(self, view, tokens):
        """What was not taken of these is the caller's own again: it hands it over again, or goes on."""
        if isinstance(tokens, bytes):
            pending = {token for chunk in view.session.pending for token in chunk.tokens}
            self._put_back(bytes(token for token in tokens if token not in pending))

    def _put_back(self, tokens):
        if self._rng.random() < 0.7:
            history = set(self.book.history)
            again = [token for token in tokens if token not in history]
            self._supply = again + [token for token in self._supply if token not in again]

    def _withdraw(self, tokens):
        self._supply = [token for token in self._supply if token not in tokens]

    def _source(self, tokens):
        """Returns the kind of a source, and one of that kind that gives these tokens."""
        rng, kind = self._rng, self._rng.choice(KINDS)
        if kind == "bytes":
            return kind, tokens
        pieces, rest = [], tokens
        while rest:
            count = rng.randint(1, 3)
            pieces.append(rest[:count])
            rest = rest[count:]
        if kind == "pieces":
            return kind, pieces
        rubbish = rng.random() < 0.1
        if rubbish:
            for _ in range(rng.randint(1, 2)):
                pieces.insert(rng.randint(0, len(pieces)), rng.choice(RUBBISH))
        slowest_s = rng.choice((0, 0, 0.005, 0.03))
        arguments = [pieces, lambda: slowest_s * rng.random(), rng.choice((-1, -1, rng.randint(0, 4)))]
        source = Iterator(*arguments)
        if kind == "async iterator":
            source = AsyncIterator(*arguments, is_stubborn=rng.random() < 0.3)
        source.has_rubbish = rubbish
        return kind, source

    # -- the end ----------------------------------------------------------------------------------

    async def _judge(self):
        """Settles with faults off, and compares what is stored with the book."""
        self.book.say("the faults are over")
        view = self._view
        await self._quiesce(view)
        await self._gateway.calm_down(self._case)
        self._look(view)
        if view.client not in self._closed and self._rng.random() < 0.7:
            await self._settle_at_last(view)
        else:
            await self._reopen(take_over=self._rng.random() < 0.5)
        request = pb.GetSessionRequest(session_id=self._name, include_state=True)
        try:
            found = await self._stub.GetSession(request, timeout=20)
        except grpc.aio.AioRpcError as failure:
            if not (self.book.may_be_deleted and isinstance(from_rpc(failure), GONE)):
                self.book.blame(f"the session is not to be read: {from_rpc(failure)!r}")
            return
        state = int(np.frombuffer(found.state[0].tensor.data, "<i8")[0])
        self.book.judge(found.session.position, found.session.history_digest, state)
        self.book.counts["tokens"] += len(self.book.history)

    async def _settle_at_last(self, view):
        """Nothing stands in its way any more but another writer, or the end of the session."""
        began_s = time.monotonic()
        is_over = await self._try_settle(view, LAST_S)
        if time.monotonic() - began_s > 1:
            self.book.counts["last settlements above 1 s"] += 1
            self.book.say(f"    that took {time.monotonic() - began_s:.1f} s")
        if is_over:
            return
        if not (self.book.has_rival or self.book.was_fenced or self.book.may_be_deleted):
            self.book.blame("with the faults over, settle() did not end")
        await self._reopen()

    def _timeout_s(self):
        return self._rng.choice((TIMEOUT_S, TIMEOUT_S, 0.25, 0.1, 0.02))


class _Hangs(Exception):
    """A call does not end; the case is over."""


def _shown(tokens):
    if isinstance(tokens, tuple):
        return [(position, list(tokens)) for position, tokens in tokens]
    return list(tokens) if isinstance(tokens, bytes) else repr(tokens)


def _fork_and_step(session, is_async):
    """Returns the status of a child that steps a session it has inherited: 0 if it is refused at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks in a process with threads
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            if is_async:
                session.step(b"x").send(None)
            else:
                session.step(b"x")
        except HoldfastError:
            os._exit(0)
        except BaseException:  # noqa: BLE001 -- what it is does not matter
            os._exit(1)
        os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Totals:
    """What many cases came to.

    Attributes:
        counts: What happened, by name.
        faults: What the gateway did, by name.
        wrong: Cases with violations: number, violations, script.
    """

    def __init__(self):
        self.counts = Counter()
        self.faults = Counter()
        self.wrong = []

    def add(self, case, book):
        """Adds a case."""
        self.counts += book.counts
        self.counts["cases"] += 1
        if book.wrong:
            self.wrong.append((case, book.wrong, book.script))


async def run(folder, numbers, seed, *, jobs=JOBS, progress=None):
    """Plays cases, several at a time, and returns their totals."""
    write_hash_model(folder / "models" / MODEL / "1" / "model.onnx")
    totals, left = Totals(), iter(numbers)

    async def play(faces, gateway, stub):
        for case in left:
            face = faces[random.Random(f"{seed} face {case}").random() < THREADS_SHARE]
            caller = Caller(case, seed, face, gateway, stub)
            await caller.run()
            totals.add(case, caller.book)
            if progress is not None:
                progress(totals)

    flags = ("--models", str(folder / "models"))
    with (
        ThreadPoolExecutor(2 * jobs, thread_name_prefix="caller") as pool,
        ServerProcess(folder / "server", *flags) as server,
        Gateway(server.address, seed) as gateway,
    ):
        faces = [AsyncFace(gateway.address, pool), ThreadFace(gateway.address, pool)]
        async with grpc.aio.insecure_channel(server.address) as channel, asyncio.TaskGroup() as group:
            stub = StreamingInferenceServiceStub(channel)
            for _ in range(jobs):
                group.create_task(play(faces, gateway, stub))
        for face in faces:
            for client in face.clients.all_shared:
                await face.do(client, "close")
        totals.faults = gateway.counts
    return totals


def report(totals, seed):
    """Returns the violations in words, with what replays them."""
    lines = []
    for case, wrong, script in totals.wrong:
        lines += [f"case {case}: python -m tests.faults.callers --seed {seed} --case {case}"]
        lines += [f"    {line}" for line in (*wrong, "the script:", *script)]
    return "\n".join(lines)


def main(arguments):
    """Runs the command; returns 0 if Law 1 held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.callers", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="callers (1000)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--case", type=int, help="play this one only, as often as --times says")
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    numbers = range(options.cases) if options.case is None else [options.case] * options.times
    began_s = time.monotonic()

    def progress(totals):
        if totals.counts["cases"] % 500 == 0:
            print(f"{totals.counts['cases']} cases, {len(totals.wrong)} wrong", flush=True)

    with tempfile.TemporaryDirectory(prefix="callers-") as folder:
        jobs = JOBS if options.case is None else 1  # one dice per case
        totals = asyncio.run(run(Path(folder), numbers, options.seed, jobs=jobs, progress=progress))
    print(json.dumps({"counts": dict(sorted(totals.counts.items())), "faults": totals.faults}, indent=1))
    print(f"{time.monotonic() - began_s:.0f} s; cases with violations: {len(totals.wrong)}")
    print(report(totals, options.seed))
    return 1 if totals.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

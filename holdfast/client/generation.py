"""A generation as its session's writer sees it: one short call after the other, each from the last on.

A call is for a few tokens, a *burst*, so that the server is never far ahead of who reads them. The next one
has the last token as its prompt, at the place where that was applied: the server finds it applied, and its
reply says what follows. So the next call, the call after a broken one, and the call to another replica are
one and the same, and a token that was committed and did not arrive comes again.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc.aio

from holdfast.client.calls import Calls
from holdfast.client.farewell import FAREWELL_S
from holdfast.client.fate import leaves_unsure, tell_fate, telling_pending
from holdfast.client.generated import GeneratedToken, events_of, tokens_of
from holdfast.client.ledger import Asked, Entry, Ledger
from holdfast.client.recovery import LeftGeneration, Recovery
from holdfast.client.reply import StepReply
from holdfast.client.status import from_rpc
from holdfast.client.tokens import to_message
from holdfast.client.turn import Turn
from holdfast.errors import (
    ClientClosed,
    DeadlinePassed,
    HistoryConflict,
    HoldfastError,
    ServerUnavailable,
)
from holdfast.pending import Tokens
from holdfast.v1 import holdfast_pb2 as pb

BURST_TOKENS = 16
TEXT_BYTES = 64
"""Of the text that a stop text may begin in."""

MAX_SAID_IDS = 1024

QUIET_S = 0.05
"""A session that several replicas serve is taken to stand still after so long."""


class Generation:
    """Gives the tokens of one generation. Lives on the client's event loop.

    Args:
        calls: Of the client.
        session_id: Of the session, as are the others.
        ledger: Of the session.
        recovery: Of the session.
        turn: Of the session; held from the first token to the last.
        template: What all calls have in common.
        prompt: Tokens to apply first; None is none.
        timeout_s: Longest time without any progress; None is the client's.
    """

    def __init__(
        self,
        calls: Calls,
        session_id: str,
        ledger: Ledger,
        recovery: Recovery,
        turn: Turn,
        template: pb.GenerateRequest,
        prompt: Tokens | None,
        timeout_s: float | None,
    ) -> None:
        self._calls = calls
        self._session_id = session_id
        self._ledger = ledger
        self._recovery = recovery
        self._turn = turn
        self._template = template
        self._prompt = prompt
        self._timeout_s = timeout_s
        self._asked = Asked(b"", template.ack_level)
        self._before = (0, 0)  # position and digest before the prompt
        self._entry: Entry | None = None  # the prompt's, until its reply has come
        self._count = 0
        self._text = b""
        self._said: dict[int, None] = {}
        self._is_ahead = False  # the server may have committed what has not come
        self._has_broken = False  # so may a call that was given up, wherever that runs
        self._end = (0, 0, 0)  # position, digest and incarnation behind all that is known of it

    async def tokens(self) -> AsyncGenerator[GeneratedToken, None]:
        """Yields the tokens; holds the session until nothing more is under way."""
        deadline_s = self._calls.deadline_s(self._timeout_s)
        with telling_pending(self._ledger):
            self._calls.lifetime.check_before_sending()
            await self._turn.take("a generation that has not ended", self._calls.left_s(deadline_s))
        try:
            with telling_pending(self._ledger):
                self._ledger.check_nothing_pending()
            left = self._recovery.left
            if self._prompt is None and left is not None and left.is_last:
                await self._go_behind(left, deadline_s)
            self._before = self._ledger.position, self._ledger.history_digest
            if self._prompt is not None:
                [self._entry] = self._ledger.take([self._prompt], self._asked)
            async for token in self._all(deadline_s):
                yield token
        finally:
            if self._is_ahead:
                self._leave()
            else:
                self._turn.release()

    async def _go_behind(self, left: LeftGeneration, deadline_s: float) -> None:
        """Takes what an earlier generation has committed late; the server would take it for this one's."""
        attempt = 0
        while True:
            try:
                await left.take_rest(attempt, deadline_s)
                return
            except HoldfastError as error:
                attempt += 1
                await self._recovery.recover(error, attempt, deadline_s)

    async def _all(self, deadline_s: float) -> AsyncIterator[GeneratedToken]:
        attempt = 0
        while True:
            was_unsure = self._entry is not None and self._entry.is_unsure
            if self._entry is not None:
                self._entry.is_unsure = True  # and stays so if this is left before the reply has come
            try:
                async with contextlib.aclosing(self._burst(BURST_TOKENS, attempt, deadline_s)) as burst:
                    async for event in burst:
                        attempt, deadline_s = 0, self._calls.deadline_s(self._timeout_s)
                        if isinstance(event, pb.GeneratedToken):
                            yield self._take_token(event)
                        elif isinstance(event, pb.GenerateEnd) and event.finish_reason != _PAUSED:
                            return
            except HoldfastError as error:
                attempt += 1
                if self._entry is not None:
                    self._entry.is_unsure = was_unsure or leaves_unsure(error)
                await self._fail(error, attempt, deadline_s)

    async def _fail(self, error: HoldfastError, attempt: int, deadline_s: float) -> None:
        """Returns when it can go on with another call; else raises what became of the prompt."""
        is_unsure = leaves_unsure(error)
        self._has_broken = self._has_broken or is_unsure
        try:
            await self._recovery.recover(error, attempt, deadline_s, until=self._before[0])
            if self._entry is not None:
                self._before = self._entry.position, self._entry.history_digest
            elif self._prompt is None:
                self._before = self._ledger.position, self._ledger.history_digest
        except HoldfastError as final:
            if self._has_broken:
                self._stay_in_sight()
            self._is_ahead = self._is_ahead and is_unsure and not isinstance(final, ClientClosed)
            if self._entry is not None:
                tell_fate(final, self._ledger)
            else:
                final.tell(
                    f"the session stands at position {self._ledger.position}, and the tokens up to there "
                    "are committed"
                )
            raise

    # -- one call -----------------------------------------------------------------------------

    async def _burst(self, size: int, attempt: int, deadline_s: float) -> AsyncGenerator[Any, None]:
        """Yields what a call for so many tokens gives: their messages and its end."""
        request = self._request(size)
        history = self._calls.history
        number = 0 if history is None else history.sent("Generate", request)
        try:
            async with contextlib.aclosing(self._events(request, attempt, deadline_s)) as events:
                async for event in events:
                    if history is not None:
                        history.got(number, event)
                    self._recovery.heard()
                    kind = event.WhichOneof("event")
                    if kind == "start":
                        self._start(event.start)
                    yield getattr(event, kind)
        except (HoldfastError, asyncio.CancelledError) as error:
            if history is not None:
                history.failed(number, error)
            raise

    async def _events(
        self, request: pb.GenerateRequest, attempt: int, deadline_s: float
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        self._calls.lifetime.check()
        connection = self._recovery.stub.current()
        until_s = self._calls.attempt_deadline_s(attempt, deadline_s)
        stream = connection.emission("Generate", request, metadata=self._calls.metadata)
        self._is_ahead = True
        try:
            while True:
                async with asyncio.timeout(self._calls.left_s(until_s)):
                    message = await stream.read()
                if message is grpc.aio.EOF:
                    raise ServerUnavailable("the call ended before the generation did")
                for event in events_of(message):
                    if event.HasField("end"):
                        self._is_ahead = False
                    yield event
                if event.HasField("end"):
                    with contextlib.suppress(TimeoutError):  # nothing but the status follows
                        async with asyncio.timeout(FAREWELL_S):
                            await stream.read()
                    return
                until_s = self._calls.attempt_deadline_s(0, self._calls.deadline_s(self._timeout_s))
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error)
        except TimeoutError:
            self._calls.suspect(stream)
            failure = DeadlinePassed("nothing came from the server for the whole time limit")
        except asyncio.CancelledError as error:
            raise self._calls.lifetime.explain(error) from None
        finally:
            if not stream.is_over:
                stream.cancel()
        raise failure

    def _request(self, size: int) -> pb.GenerateRequest:
        chunk = self._ledger.to_chunk(Entry(*self._before, b"", self._asked))
        request = pb.GenerateRequest(
            session_id=chunk.session_id,
            model=chunk.model,
            prompt=None if self._prompt is None else to_message(self._prompt),
            position=chunk.position,
            incarnation=chunk.incarnation,
            history_digest=chunk.history_digest,
        )
        request.MergeFrom(self._template)
        request.emitted_tokens, request.emitted_text = self._count, self._text
        request.pause_after, request.may_join = size, True
        if self._said:
            request.sampling.said_ids.extend(list(self._said)[-MAX_SAID_IDS:])
        return request

    def _start(self, start: pb.GenerateStart) -> None:
        """Notes that the prompt is applied, or was before."""
        if not self._said:
            self._said = dict.fromkeys(start.said_ids)
        if self._entry is not None:
            result = pb.ChunkResult(
                session_id=self._session_id,
                incarnation=start.incarnation,
                position=start.position,
                history_digest=start.history_digest,
                replayed=start.replayed,
                model_version=start.model_version,
                outputs=pb.Outputs(token_count=len(self._entry.tokens)),
            )
            self._ledger.answer(self._entry, StepReply(result))
            self._ledger.give()
            self._entry = None
        expected = (self._ledger.position, self._ledger.history_digest or start.history_digest)
        if (start.position, start.history_digest) != expected:
            raise HistoryConflict(
                f"the server goes on from position {start.position} with another history than that of "
                f"position {self._ledger.position} here"
            )

    def _take_token(self, token: pb.GeneratedToken) -> GeneratedToken:
        """Enters a token into the account of the session."""
        self._before = self._ledger.position, self._ledger.history_digest
        self._prompt = tokens_of(token)
        [entry] = self._ledger.take([self._prompt], self._asked)
        result = pb.ChunkResult(
            session_id=self._session_id,
            incarnation=self._ledger.incarnation,
            position=token.position,
            history_digest=token.history_digest,
            replayed=token.replayed,
            ack_level=token.ack_level,
            outputs=pb.Outputs(token_count=len(self._prompt)),
        )
        reply = StepReply(result)
        self._ledger.answer(entry, reply)
        self._ledger.give()
        self._count += 1
        self._text = (self._text + token.text)[-TEXT_BYTES:]
        if self._template.sampling.repetition_penalty not in (0.0, 1.0):
            self._said[token.id] = self._said.pop(token.id, None)
        return GeneratedToken(token, reply)

    # -- left early ---------------------------------------------------------------------------

    def _leave(self) -> None:
        """Finds out, before anything else uses the session, what the server committed beyond what came."""
        self._timeout_s = None  # who set it has left, and a short one could hold the session for ever
        task = asyncio.ensure_future(self._catch_up())
        _LATE.add(task)
        task.add_done_callback(_LATE.discard)

    async def _catch_up(self) -> None:
        attempt = 0
        try:
            while self._is_ahead:
                deadline_s = self._calls.deadline_s(self._timeout_s)
                try:
                    await self._fetch_rest(attempt, deadline_s)
                    self._is_ahead = False
                except HoldfastError as error:
                    attempt += 1
                    with contextlib.suppress(HoldfastError):
                        await self._recovery.recover(error, attempt, deadline_s, until=self._before[0])
                        continue
                    if not error.retryable or isinstance(error, ClientClosed):
                        return  # the next call will get the same refusal
        finally:
            self._stay_in_sight()
            self._turn.release()

    def _stay_in_sight(self) -> None:
        """Lets the calls after this one know of it: a replica that stands still may commit more later."""
        place = self._ledger.position, self._ledger.history_digest
        if self._entry is not None:
            place = self._entry.end, self._entry.end_digest
        self._end = *place, self._ledger.incarnation
        self._recovery.left = self

    @property
    def is_last(self) -> bool:
        """Whether the session stands here where this ended, as far as that is known."""
        ledger = self._ledger
        return (ledger.position, ledger.history_digest, ledger.incarnation) == self._end

    async def take_rest(self, attempt: int, deadline_s: float) -> list[Tokens]:
        """Enters what was committed of it after it was left; returns that, token by token."""
        self._entry = None  # the prompt was settled meanwhile
        return await self._take_up_to(await self._stored(deadline_s), attempt, deadline_s)

    async def _fetch_rest(self, attempt: int, deadline_s: float) -> None:
        """Takes the tokens that the server committed before it noticed that nobody reads them."""
        await self._pass_engine(deadline_s)
        stored, seen = await self._stored(deadline_s), -1
        while (
            self._calls.replica_count > 1 and stored.position != seen
        ):  # it passed an engine, maybe not that one
            await self._calls.lifetime.sleep(QUIET_S)
            seen, stored = stored.position, await self._stored(deadline_s)
        await self._take_up_to(stored, attempt, deadline_s)

    async def _take_up_to(self, stored: pb.Session, attempt: int, deadline_s: float) -> list[Tokens]:
        """Takes the tokens that follow here, up to where the session is stored; returns them."""
        taken: list[Tokens] = []
        if stored.incarnation != self._ledger.incarnation:
            return taken
        end = self._before[0] + (0 if self._prompt is None else len(self._prompt))
        while stored.position > end:  # where the prompt is not applied, nothing is
            known = self._ledger.position
            async with contextlib.aclosing(self._burst(1, attempt, deadline_s)) as burst:
                async for event in burst:
                    if isinstance(event, pb.GeneratedToken):
                        self._take_token(event)
                        taken.append(tokens_of(event))
                        self._end = (
                            self._ledger.position, self._ledger.history_digest, self._ledger.incarnation
                        )  # fmt: skip
            end = self._ledger.position
            if end == known:
                break
        return taken

    async def _stored(self, deadline_s: float) -> pb.Session:
        request = pb.GetSessionRequest(session_id=self._session_id)
        found: pb.Session = (await self._calls.call("GetSession", request, deadline_s=deadline_s)).session
        return found

    async def _pass_engine(self, deadline_s: float) -> None:
        """Waits behind the chunk that the broken call may have under way: a session's chunks take turns."""
        if self._entry is None and self._prompt is not None:
            repetition = Entry(*self._before, self._prompt, self._asked)
            request = pb.StepRequest(chunk=self._ledger.to_chunk(repetition))
            with contextlib.suppress(HoldfastError):  # whatever it says, it has waited
                await self._calls.call_once("Step", request, deadline_s, self._recovery.stub)


_PAUSED = pb.FINISH_REASON_PAUSED
_LATE: set["asyncio.Future[None]"] = set()
"""Kept here, since nothing else keeps a task that nobody waits for."""

"""One writer of a session: positions, retries and resending.

`AsyncSession` and `Session` show it, each in its way. Every chunk carries its position and the digest of
the history before it, so sending it again is always safe. What has no reply stays pending, and nothing new
is taken until it is settled: see `holdfast.client.ledger`. What is done about failures: see
`holdfast.client.recovery`.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, Unpack

from numpy.typing import NDArray

from holdfast.client import forks
from holdfast.client.ack_levels import to_number
from holdfast.client.calls import Calls
from holdfast.client.checkpoints import (
    checkpoint_name,
    delete_checkpoint,
    list_checkpoints,
    restore_checkpoint,
    restore_request,
    save_checkpoint,
)
from holdfast.client.copies import fork_one, forked_batch
from holdfast.client.copy_requests import Where, export_request, fork_request
from holdfast.client.fate import (
    leaves_unsure,
    tell_fate,
    tell_nothing_applied,
    tell_pending,
)
from holdfast.client.fetching import END
from holdfast.client.generated import GeneratedToken, GenerateOptions, template
from holdfast.client.generation import Generation
from holdfast.client.ledger import Asked, Entry, Ledger
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import (
    MAX_POSITION,
    NewId,
    Outputs,
    ReplyOptions,
    SessionId,
    cursor_bytes,
    session_ids_text,
    whole_number,
)
from holdfast.client.pump import Pump
from holdfast.client.recovery import Recovery
from holdfast.client.reply import StepReply
from holdfast.client.sources import MAX_IN_FLIGHT, Source, check_options, is_sequence, open_source
from holdfast.client.steps import Steps
from holdfast.client.tokens import Pieces, TokenSource, normalise, selection, to_arrays
from holdfast.client.turn import Turn
from holdfast.errors import ClientClosed, HistoryConflict, HoldfastError, PositionConflict, PositionGap
from holdfast.pending import PendingChunk
from holdfast.v1 import holdfast_pb2 as pb


class Writer:
    """Writes to one session, one call at a time. Lives on the client's event loop.

    Args:
        calls: Of the client.
        steps: Of the client.
        stub: Of the connection that it was opened on.
        opened: The reply to its opening.
        initial_state: With which it was opened.
        replay_tokens: Tokens kept to send again after a loss in the store.

    Attributes:
        session_id: Of the session, as are the others.
        model: Name of its model.
        model_version: Version of its model.
        resumed: It existed when it was opened here.
    """

    def __init__(
        self,
        calls: Calls,
        steps: Steps,
        stub: Any,
        opened: pb.OpenSessionResponse,
        initial_state: Sequence[pb.NamedTensor],
        replay_tokens: int,
    ) -> None:
        self._calls = calls
        self._steps = steps
        self._ledger = Ledger(opened.session, replay_tokens)
        self._recovery = Recovery(calls, self._ledger, stub, opened, initial_state)
        self._turn = Turn(calls.lifetime)
        self._replay_tokens = replay_tokens
        self._plain = Asked(None, to_number(calls.ack_level))  # what most chunks ask for
        self._made_in = forks.generation()
        self._restoring: pb.RestoreCheckpointRequest | None = None  # may have been done
        self._late: set[asyncio.Future[None]] = set()
        self.session_id: str = opened.session.session_id
        self.model: str = opened.session.model.name
        self.model_version: int = opened.session.model.version
        self.resumed: bool = opened.resumed

    @property
    def position(self) -> int:
        """Tokens applied and answered."""
        return self._ledger.position

    @property
    def history_digest(self) -> int:
        """Names the tokens up to `position`, see `holdfast.history_digest`; 0 if the server tells none."""
        return self._ledger.history_digest

    @property
    def cursor(self) -> bytes:
        """The last cursor known to be stored with the session; b"" if it has none."""
        return self._ledger.cursor

    @property
    def pending(self) -> tuple[PendingChunk, ...]:
        """Chunks taken from the caller that have no reply yet: sent, or fetched from an iterator."""
        return self._ledger.pending

    @property
    def incarnation(self) -> int:
        """Number of this life of the session."""
        return self._ledger.incarnation

    async def step(
        self,
        tokens: TokenSource,
        position: int | None = None,
        top_k: int | None = None,
        token_log_prob: bool = False,
        outputs: Outputs = None,
        state: bool = False,
        ack_level: str | None = None,
        timeout_s: float | None = None,
        cursor: bytes | None = None,
    ) -> StepReply:
        """Does what `AsyncSession.step` says: what the table of `holdfast.client.ledger` says."""
        try:
            asked = self._asked(top_k, token_log_prob, outputs, state, ack_level)
            wanted = normalise(tokens)
            stored = b"" if cursor is None else cursor_bytes(cursor)
            if position is not None:
                position = whole_number("position", position, at_least=0, at_most=MAX_POSITION)
        except (ValueError, TypeError) as error:
            error.add_note("Nothing was sent.")
            raise
        deadline_s = self._calls.deadline_s(timeout_s)
        if not (self._calls.lifetime.is_here and self._turn.take_at_once("a step")):
            await self._begin("a step", deadline_s)
        try:
            ledger, entry = self._ledger, None
            if position is None:
                ledger.check_nothing_pending()
            else:
                entry = ledger.find(wanted, position)
                if entry is None and position < ledger.position:
                    return await self._ask_again(ledger.repeat(wanted, position, asked), deadline_s)
            if entry is None:
                entry = ledger.enter(wanted, asked, stored)
                entry.is_placed = position is not None
                await self._finish(entry, deadline_s, is_new=True)
            else:
                await self._finish(entry, deadline_s)
            return ledger.give()[0]
        finally:
            self._turn.release()

    async def settle(self, timeout_s: float | None = None) -> list[StepReply]:
        """Does what `AsyncSession.settle` says."""
        deadline_s = self._calls.deadline_s(timeout_s)
        await self._begin("a settlement", deadline_s)
        try:
            entries = list(self._ledger.entries)
            for entry in entries:
                await self._finish(entry, deadline_s)
            return self._ledger.give(len(entries)) if entries else []
        finally:
            self._turn.release()

    def pump(
        self,
        tokens: Pieces,
        *,
        chunk: int = 1,
        max_in_flight: int | None = None,
        timeout_s: float | None = None,
        **asked: Unpack[ReplyOptions],
    ) -> Pump:
        """Returns what sends the chunks of a stream and gives their replies; arguments as of `stream`.

        Raises:
            ValueError: An option is out of its range.
        """
        check_options(chunk, max_in_flight)
        if max_in_flight is None:
            max_in_flight = MAX_IN_FLIGHT if is_sequence(tokens) else 1
        return Pump(
            self._calls,
            self._steps,
            self._ledger,
            self._recovery,
            self._turn,
            self._asked(**asked),
            chunk,
            max_in_flight,
            timeout_s,
        )

    async def replies(self, pump: Pump, tokens: Pieces, chunk: int) -> AsyncGenerator[StepReply, None]:
        """Yields the replies to a stream whose source is asked on, or beside, the event loop."""
        source = open_source(tokens, chunk)
        try:
            await pump.begin()
            while (reply := await _next_reply(pump, source)) is not None:
                yield reply
        finally:
            try:
                await source.leave()
            finally:  # also when it is cancelled in this, once more
                self._end(source, pump)

    def generate(
        self,
        max_tokens: int,
        prompt: TokenSource | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[GeneratedToken, None]:
        """Does what `AsyncSession.generate` says."""
        try:
            options.setdefault("ack_level", self._calls.ack_level)
            asked = template(max_tokens, **options)
            tokens = None if prompt is None else normalise(prompt)
        except (ValueError, TypeError) as error:
            error.add_note("Nothing was sent.")
            raise
        generation = Generation(
            self._calls, self.session_id, self._ledger, self._recovery, self._turn, asked, tokens, timeout_s
        )
        return generation.tokens()

    async def state(self) -> dict[str, NDArray[Any]]:
        """Does what `AsyncSession.state` says."""
        request = pb.GetSessionRequest(session_id=self.session_id, include_state=True)
        return to_arrays((await self._calls.call("GetSession", request)).state)

    async def fork(self, new_id: SessionId | NewId) -> "Writer":
        """Returns the writer of a copy; does what `AsyncSession.fork` says."""
        stub = self._calls.next_stub()
        opened = await fork_one(self._calls, stub, self.session_id, new_id, self._where())
        self._check_copied(opened.session.history_digest)
        return Writer(self._calls, self._steps, stub, opened, [], self._replay_tokens)

    async def fork_batch(self, new_ids: Iterable[SessionId]) -> OpenedBatch:
        """Does what `AsyncSession.fork_batch` says."""
        request = fork_request(self.session_id, session_ids_text(new_ids), **self._where())
        forked = await self._calls.call("ForkSession", request)
        self._check_copied(forked.history_digest)
        return forked_batch(forked)

    async def export(self) -> bytes:
        """Does what `AsyncSession.export` says."""
        request = export_request(self.session_id, **self._where())
        exported: pb.ExportSessionResponse = await self._calls.call("ExportSession", request)
        return exported.blob

    async def delete(self) -> int:
        """Does what `AsyncSession.delete` says."""
        request = pb.DeleteSessionRequest(session_id=self.session_id, incarnation=self.incarnation)
        reply: pb.DeleteSessionResponse = await self._calls.call("DeleteSession", request)
        return reply.position

    async def save_checkpoint(self, name: str, timeout_s: float | None = None) -> pb.Checkpoint:
        """Does what `AsyncSession.save_checkpoint` says."""
        name, deadline_s = checkpoint_name(name), self._calls.deadline_s(timeout_s)
        await self._begin("a checkpoint", deadline_s)
        try:
            self._ledger.check_nothing_pending()
            attempt = 0
            while True:
                try:
                    saved = await save_checkpoint(
                        self._calls, self.session_id, name, self.position, self.incarnation, deadline_s
                    )
                except PositionGap as error:  # the store has lost what was answered
                    attempt += 1
                    await self._recovery.recover_loss(error, attempt, deadline_s)
                except PositionConflict as error:
                    attempt += 1
                    await self._recovery.recover(error, attempt, deadline_s)
                else:
                    self._recovery.heard()
                    return saved
        finally:
            self._turn.release()

    async def restore_checkpoint(self, name: str, timeout_s: float | None = None) -> None:
        """Does what `AsyncSession.restore_checkpoint` says."""
        name, deadline_s = checkpoint_name(name), self._calls.deadline_s(timeout_s)
        await self._begin("a return to a checkpoint", deadline_s)
        try:
            self._ledger.check_nothing_pending()
            if self._restoring is None or self._restoring.name != name:
                self._restoring = restore_request(self.session_id, name, self.incarnation)
            try:
                session = await restore_checkpoint(self._calls, self._restoring, deadline_s)
            except HoldfastError as error:
                if not leaves_unsure(error):
                    self._restoring = None
                else:
                    error.tell(f"the session may have been restored to {name!r}: restore it again")
                raise
            self._restoring = None
            self._recovery.heard()
            self._ledger.put_back(session)
            self.model_version = session.model.version
        finally:
            self._turn.release()

    async def checkpoints(self) -> list[pb.Checkpoint]:
        """Does what `AsyncSession.checkpoints` says."""
        return await list_checkpoints(self._calls, self.session_id)

    async def delete_checkpoint(self, name: str) -> None:
        """Does what `AsyncSession.delete_checkpoint` says."""
        await delete_checkpoint(self._calls, self.session_id, name)

    def close(self) -> None:
        """Does what `AsyncSession.close` says."""
        forks.check_same_process(self._made_in)
        self._ledger.check_nothing_pending()
        self._turn.end()

    def leave_block(self, error: type[BaseException] | None) -> None:
        """Does what `AsyncSession.__aexit__` says; `error` is what ends the block."""
        is_inherited = self._made_in != forks.generation()
        if not is_inherited and (error is None or not self.pending):
            self.close()

    # -- for the session without asyncio ----------------------------------------------------------

    def tell_pending(self, error: HoldfastError) -> None:
        """Has an error say what is pending, unless it does."""
        tell_pending(error, self._ledger)

    def leave(self, replies: AsyncGenerator[Any, None]) -> None:
        """Breaks a stream off, without waiting until that is done."""
        task = asyncio.ensure_future(replies.aclose())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def take_back(self, replies: Sequence[StepReply]) -> None:
        """Makes the replies that were given last pending again: they did not reach the caller."""
        self._ledger.take_back(replies)

    # -- one chunk --------------------------------------------------------------------------------

    async def _begin(self, what: str, deadline_s: float) -> None:
        """Gets the session for a call; the error says what is pending all the same."""
        try:
            self._calls.lifetime.check_before_sending()
            await self._turn.take(what, self._calls.left_s(deadline_s))
        except HoldfastError as error:
            tell_pending(error, self._ledger)
            raise

    async def _finish(self, entry: Entry, deadline_s: float, *, is_new: bool = False) -> None:
        """Sends an entry until its reply has come.

        Args:
            entry: The first without a reply.
            deadline_s: Monotonic time at which it is given up.
            is_new: Its caller still has it, and it is let go of if nothing came of it.
        """
        attempt = 0
        try:
            while entry.reply is None:
                if attempt:
                    self._calls.lifetime.check()
                was_unsure, entry.is_unsure = entry.is_unsure, True
                try:
                    reply = await self._call(entry, attempt, deadline_s)
                except HoldfastError as error:
                    entry.is_unsure = was_unsure or entry.is_applied or leaves_unsure(error)
                    attempt += 1
                    await self._recovery.recover(error, attempt, deadline_s)
                else:
                    self._recovery.heard()
                    self._ledger.answer(entry, reply)
        except HoldfastError as error:
            tell_fate(error, self._ledger)
            if is_new and entry in self._ledger.entries and not entry.is_unsure:
                tell_nothing_applied(error, self._ledger)
            raise

    async def _ask_again(self, repetition: Entry, deadline_s: float) -> StepReply:
        """Asks for the reply to a chunk behind the session's position, which stays where it is."""
        attempt = 0
        while True:
            try:
                reply = await self._call(repetition, attempt, deadline_s)
                self._recovery.heard()
                self._ledger.check(repetition, reply)
                return reply
            except HoldfastError as error:
                attempt += 1
                error.tell(f"the session object still stands at position {self.position}")
                await self._recovery.recover(error, attempt, deadline_s)

    def _call(self, entry: Entry, attempt: int, deadline_s: float) -> Coroutine[Any, Any, StepReply]:
        until_s = self._calls.attempt_deadline_s(attempt, deadline_s)
        return self._steps.step(self._ledger, entry, until_s, self._recovery.stub)

    # -- small things -----------------------------------------------------------------------------

    def _where(self) -> Where:
        """Returns where the session stands, as far as its replies were given."""
        return {"position": self.position, "incarnation": self.incarnation}

    def _check_copied(self, history_digest: int) -> None:
        if self.history_digest not in (0, history_digest):
            raise HistoryConflict(
                f"up to position {self.position} the store has other tokens than this session object sent",
                expected_position=self.position,
            ).tell("the copies were made of what is stored")

    def _asked(
        self,
        top_k: int | None = None,
        token_log_prob: bool = False,
        outputs: Outputs = None,
        state: bool = False,
        ack_level: str | None = None,
    ) -> Asked:
        if top_k is None and token_log_prob is False and outputs is None and state is False:
            return self._plain if ack_level is None else Asked(None, to_number(ack_level))
        level = self._calls.ack_level if ack_level is None else ack_level
        selected = selection(top_k, token_log_prob, outputs, state)
        serialised = None if selected is None else selected.SerializeToString()
        return Asked(serialised, to_number(level), bool(state))

    def _end(self, source: Source, pump: Pump) -> None:
        """Ends a stream; what its source has given, or is about to give, stays with the session."""
        try:
            if source.uncollected is not None:
                self._keep(source.uncollected, pump)
        finally:
            pump.release()

    def _keep(self, fetch: "asyncio.Future[Any]", pump: Pump) -> None:
        """Takes what a fetch has brought, or will bring, after its stream was left: nobody else has it."""
        if fetch.done():
            part = _brought(fetch)
            if part is not END:
                pump.take(part)
        else:
            fetch.add_done_callback(lambda fetch: self._keep_late(fetch, pump))

    def _keep_late(self, fetch: "asyncio.Future[Any]", pump: Pump) -> None:
        part = _brought(fetch)
        if part is not END:
            task = asyncio.create_task(self._take_late(part, pump))
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _take_late(self, part: Any, pump: Pump) -> None:
        try:
            await self._turn.take("a part that a source has brought late", None)
        except ClientClosed:  # nobody can send it any more; `pending` says so
            pump.take(part)
            return
        try:
            pump.take(part)
        finally:
            self._turn.release()


async def _next_reply(pump: Pump, source: Source) -> StepReply | None:
    """Returns the next reply; None when the source is empty and every reply was given."""
    while True:
        fetch = source.fetch() if pump.room and not source.is_empty else None
        if fetch is not None and fetch.done():
            part = source.collect()
            if part is not END:
                pump.take(part)
        elif fetch is None and not pump.is_waiting:
            return None
        elif (reply := await pump.reply_or(fetch)) is not None:
            return reply


def _brought(fetch: "asyncio.Future[Any]") -> Any:
    """Returns the part that a fetch has brought, END for none; what else it raised is reported."""
    if fetch.cancelled():
        return END
    error = fetch.exception()
    if error is not None:
        message = "a source of tokens failed after its stream was left"
        fetch.get_loop().call_exception_handler({"message": message, "exception": error, "future": fetch})
        return END
    return fetch.result()

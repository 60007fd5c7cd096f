"""The asyncio client."""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack

import grpc.aio

from holdfast.client.ack_levels import to_number
from holdfast.client.batching import BatchPipeline, BatchReply, batch_message
from holdfast.client.fate import tell_rows
from holdfast.client.history import Recorder
from holdfast.client.lifetime import Lifetime
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import (
    MAX_POSITION,
    BatchOptions,
    SessionId,
    flag,
    seconds,
    session_id_text,
    session_ids_text,
    whole_number,
)
from holdfast.client.recovery import draw_nonce
from holdfast.client.retry import RetryPolicy
from holdfast.client.rows import Rows
from holdfast.client.session import AsyncSession
from holdfast.client.standing import Positions
from holdfast.client.status import from_rpc
from holdfast.client.tls import Tls
from holdfast.client.tokens import state_message
from holdfast.client.transport import Transport
from holdfast.errors import DeadlinePassed, HoldfastError
from holdfast.v1 import holdfast_pb2 as pb

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_REPLAY_TOKENS = 65_536


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of `AsyncClient`, and of `Client`."""

    token: str | None
    tls: bool | Tls
    retry: RetryPolicy | None
    timeout_s: float
    replay_tokens: int
    ack_level: str | None
    connections: int
    http_proxy: bool
    history: str | os.PathLike[str] | Recorder | None


class AsyncClient:
    """Speaks to a Holdfast server from asyncio. `holdfast.Client` has the same methods without it.

    Args:
        address: HOST:PORT; a name may stand for several replicas, which take turns. Several of them as a
            list; a name in a list is looked up once. Or a target as gRPC writes it, "ipv4:HOST:PORT,...".
        token: Bearer token sent with every call; without `tls` whoever is in between can read it.
        tls: True for TLS with the system's authorities, or a `Tls`; default is plain text.
        retry: Pauses between attempts.
        timeout_s: Longest wait of a call, retries included; of a stream, without any progress.
        replay_tokens: Tokens per session kept to send again after a loss in the store.
        ack_level: How durable a commit must be before its reply: `memory`, `fsynced`, `replicated` or
            `fsynced+replicated`; default is the server's. Calls may ask for another one.
        connections: Connections to open to each replica. Several of them reach several workers of a server
            that runs with `--workers`; which one a connection reaches is chance, so a few per worker are
            right. Sessions, streams of batches and other calls take turns; a session leaves its connection
            when it fails.
        http_proxy: Use the proxy that the environment names (`grpc_proxy`, `https_proxy`, `http_proxy`), as
            gRPC does. Never for addresses of this machine.
        history: File to which every request, reply and error is appended, for `holdfast verify`; or a
            `holdfast.client.history.Recorder` shared with other clients, which its owner closes.

    It belongs to the event loop that uses it first.

    Raises:
        TypeError, ValueError: A number is none or out of range, an address is not HOST:PORT, or there is no
            such level.
        OSError: A file of `tls` cannot be read, a name in a list is not known, or the history cannot be
            written.
        ClientForked: gRPC was in use in the parent when this process was forked from it.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        token: str | None = None,
        tls: bool | Tls = False,
        retry: RetryPolicy | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        replay_tokens: int = DEFAULT_REPLAY_TOKENS,
        ack_level: str | None = None,
        connections: int = 1,
        http_proxy: bool = True,
        history: str | os.PathLike[str] | Recorder | None = None,
    ) -> None:
        connections = whole_number("connections", connections, at_least=1)
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._replay_tokens = whole_number("replay_tokens", replay_tokens, at_least=0)
        to_number(ack_level)
        self._transport = Transport(address, tls=tls, connections=connections, http_proxy=http_proxy)
        self.lifetime = Lifetime(self._transport.check)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._retry = retry or RetryPolicy()
        self.ack_level = ack_level
        self._owns_history = history is not None and not isinstance(history, Recorder)
        self.history = history if history is None or isinstance(history, Recorder) else Recorder(history)

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections, unless a child of the process that made them leaves the block."""
        if not self._transport.is_inherited:
            await self.close()

    async def close(self) -> None:
        """Closes the connections and lets go of gRPC; sessions live on in the store.

        May be called again. Calls under way, and later ones, end with ClientClosed.

        Raises:
            ClientForked: This is a child of the process that made the client.
        """
        if not self._transport.is_inherited:
            self.lifetime.end()
        try:
            await self._transport.close()
        finally:
            if self._owns_history and self.history is not None and self._transport.is_closed:
                self.history.close()
                self._owns_history = False

    async def open_session(
        self,
        session_id: SessionId = "",
        *,
        model: str = "",
        version: int = 0,
        must_be_new: bool = False,
        take_over: bool = False,
        initial_state: Mapping[str, Any] | None = None,
    ) -> AsyncSession:
        """Opens a session, or resumes the one that exists.

        Args:
            session_id: 1..128 characters, none of them a control character; "" lets the server make one. 7
                and a UUID are as their text.
            model: Name of the model; may be left out to resume.
            version: Of the model; 0 is the newest, or any to resume.
            must_be_new: Refuse to resume.
            take_over: Fence other writers: whoever holds the session gets SessionDeleted from now on. For a
                writer that was started again and cannot know whether its predecessor still runs.
            initial_state: State by name to start from, without a batch axis: arrays or tensors of the
                model's dtypes. Not looked at where the session is resumed.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; see docs/guides/inputs.md.
            SessionExists, ModelNotFound, ModelMismatch, HoldfastError: As named.
        """
        state = state_message(initial_state)
        version = whole_number("version", version, at_least=0)
        request = pb.OpenSessionRequest(
            session_id=session_id_text(session_id),
            model=pb.ModelRef(name=model, version=version) if model else None,
            must_be_new=flag("must_be_new", must_be_new),
            initial_state=state,
            take_over=flag("take_over", take_over),
            nonce=draw_nonce(),
        )
        stub = self.next_stub()
        reply = await self.call("OpenSession", request, stub=stub)
        return AsyncSession(self, stub, reply, state, self._replay_tokens)

    async def open_batch(
        self,
        model: str,
        session_ids: Iterable[SessionId],
        *,
        version: int = 0,
        must_be_new: bool = False,
        initial_state: Mapping[str, Any] | None = None,
    ) -> OpenedBatch:
        """Opens many sessions, or resumes those that exist.

        Args:
            model: Of all sessions.
            session_ids: B distinct ids.
            version: Of the model; 0 is the newest, or any to resume.
            must_be_new: Refuse to resume.
            initial_state: State by name to start from, (B, ...): a row for each session, else as for
                `open_session`. Not looked at where a session is resumed.

        Returns:
            Where they stand; rows fail one by one, see `OpenedBatch.errors`.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; see docs/guides/inputs.md.
            HoldfastError: The batch as a whole was refused.
        """
        ids = session_ids_text(session_ids)
        request = pb.OpenBatchRequest(
            model=pb.ModelRef(name=model, version=whole_number("version", version, at_least=0)),
            session_ids=ids,
            must_be_new=flag("must_be_new", must_be_new),
            nonce=draw_nonce(),
            initial_state=state_message(initial_state, row_count=len(ids)),
        )
        return OpenedBatch(ids, await self.call("OpenBatch", request))

    async def step_batch(
        self,
        model: str,
        session_ids: Iterable[SessionId],
        tokens: Rows,
        positions: Positions | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[BatchOptions],
    ) -> BatchReply:
        """Applies the same number of tokens to each of many sessions.

        Args:
            model: Of all sessions.
            session_ids: B distinct ids, of sessions that exist: see `open_batch`.
            tokens: T tokens for each: B * T bytes, a list of B texts of T bytes, ids (B,) or (B, T), or
                features (B, width) or (B, T, width).
            positions: Tokens each session has consumed before, as numbers; or an `OpenedBatch` or
                `BatchReply` of the same sessions in the same order, which name their histories too. None
                appends where each session stands; then the call is not repeated when the connection breaks.
            timeout_s: Longest wait, retries included; default is the client's.
            **options: version, top_k, token_log_prob, outputs and ack_level, as in `AsyncSession.step`.

        Returns:
            The reply; rows fail one by one, see `BatchReply.errors`.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            HoldfastError: The batch as a whole was refused, or its fate is unknown; the message says which.
        """
        self.lifetime.check_before_sending()
        options.setdefault("ack_level", self.ack_level)
        batch = batch_message(session_ids, tokens, positions, model=model, **options)
        request, deadline_s = pb.StepBatchRequest(batch=batch), self.deadline_s(timeout_s)
        try:
            if positions is None:
                reply = await self.call_once("StepBatch", request, deadline_s)
            else:
                reply = await self.call("StepBatch", request, deadline_s=deadline_s)
        except HoldfastError as error:
            tell_rows(error, has_positions=positions is not None)
            raise
        return BatchReply(reply.result, batch.session_ids)

    def batches(
        self, model: str, *, max_in_flight: int = 4, **options: Unpack[BatchOptions]
    ) -> BatchPipeline:
        """Returns a pipeline of batches over one stream, as a context manager.

        Args:
            model: Of all sessions.
            max_in_flight: Batches sent ahead of their replies.
            **options: version, top_k, token_log_prob, outputs and ack_level, as in `AsyncSession.step`.
        """
        asked: dict[str, Any] = {"model": model, "ack_level": self.ack_level, **options}
        return BatchPipeline(self, asked, whole_number("max_in_flight", max_in_flight, at_least=1))

    async def get_session(self, session_id: SessionId) -> pb.Session:
        """Returns what is known of a session, without opening it.

        Raises:
            SessionNotFound, SessionDeleted, ModelMismatch, RecordCorrupt, HoldfastError: As named.
        """
        request = pb.GetSessionRequest(session_id=session_id_text(session_id))
        found: pb.Session = (await self.call("GetSession", request)).session
        return found

    async def delete_session(self, session_id: SessionId, *, incarnation: int = 0) -> int:
        """Destroys a session in the store, its state included.

        Args:
            session_id: Of the session.
            incarnation: The one to delete, so that a session opened again since stays; 0 is any.

        Returns:
            The position at which it ended. One deleted within the last hour gives the same answer again.

        Raises:
            SessionNotFound, SessionDeleted, HoldfastError: As named; SessionDeleted where it has another
                incarnation.
        """
        request = pb.DeleteSessionRequest(
            session_id=session_id_text(session_id),
            incarnation=whole_number("incarnation", incarnation, at_least=0, at_most=MAX_POSITION),
        )
        reply: pb.DeleteSessionResponse = await self.call("DeleteSession", request)
        return reply.position

    async def release_session(
        self, session_id: SessionId, *, discard: bool = False
    ) -> pb.ReleaseSessionResponse:
        """Lets a session go on that is in quarantine; for administrators.

        Args:
            session_id: Of the session.
            discard: Free its id instead; the record is kept aside for inspection. The way out for a record
                that is damaged.

        Returns:
            Why it was held, and where it stands.

        Raises:
            SessionNotFound, RecordCorrupt, HoldfastError: As named.
        """
        request = pb.ReleaseSessionRequest(
            session_id=session_id_text(session_id), discard=flag("discard", discard)
        )
        released: pb.ReleaseSessionResponse = await self.call("ReleaseSession", request)
        return released

    async def list_models(self) -> list[pb.Model]:
        """Returns every model served."""
        return list((await self.call("ListModels", pb.ListModelsRequest())).models)

    async def get_model(self, name: str, version: int = 0) -> pb.Model:
        """Returns one model; version 0 is the newest.

        Raises:
            ModelNotFound: There is none.
        """
        request = pb.GetModelRequest(model=pb.ModelRef(name=name, version=version))
        found: pb.Model = (await self.call("GetModel", request)).model
        return found

    async def reload_models(self) -> pb.ReloadModelsResponse:
        """Has a server look for new model files now; for administrators.

        Returns:
            What is served now, and which files are refused and why; of the process that was reached.

        Raises:
            PermissionDenied, HoldfastError: As named.
        """
        reloaded: pb.ReloadModelsResponse = await self.call("ReloadModels", pb.ReloadModelsRequest())
        return reloaded

    # -- for sessions ---------------------------------------------------------------------------

    def next_stub(self) -> Any:
        """Returns the connection whose turn it is, which has the rpcs as a stub has them.

        Raises:
            ClientForked, ClientClosed, WrongEventLoop: The client may not be used here, or not any more.
        """
        self.lifetime.check()
        return self._transport.next_stub()

    def suspect(self, used: Any, waited_s: float | None = None) -> None:
        """Has the next attempts go over a new connection, since one over this one had no reply in time.

        Args:
            used: The stub, or the stream over it.
            waited_s: For how long the attempt waited; a stream knows by itself.
        """
        self._transport.suspect(used, waited_s)

    async def call(
        self, rpc: str, request: Any, *, deadline_s: float | None = None, stub: Any = None
    ) -> Any:
        """Calls an rpc until it succeeds, fails for good, or the time is up; first over `stub`, if given.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        until_s = self.deadline_s(None) if deadline_s is None else deadline_s
        attempt = 0
        while True:
            try:
                return await self.call_once(rpc, request, self.attempt_deadline_s(attempt, until_s), stub)
            except HoldfastError as error:
                if not error.retryable:
                    raise
                attempt += 1
                stub = None
                await self.pause(error, attempt, until_s)

    async def call_once(self, rpc: str, request: Any, deadline_s: float, stub: Any = None) -> Any:
        """Calls an rpc once, over the connection of `stub` or the one whose turn it is.

        Raises:
            HoldfastError: See `holdfast.errors`.
        """
        if self.history is None:
            return await self._send(rpc, request, deadline_s, stub)
        number = self.history.sent(rpc, request)
        try:
            reply = await self._send(rpc, request, deadline_s, stub)
        except (HoldfastError, asyncio.CancelledError) as error:
            self.history.failed(number, error)
            raise
        self.history.got(number, reply)
        return reply

    async def _send(self, rpc: str, request: Any, deadline_s: float, stub: Any) -> Any:
        self.lifetime.check()
        connection = (stub or self.next_stub()).current()
        began_s = time.monotonic()
        left_s = self.left_s(deadline_s)
        try:
            return await connection.unary(rpc, request, timeout=left_s, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error)
        except asyncio.CancelledError as error:
            raise self.lifetime.explain(error) from None
        if isinstance(failure, DeadlinePassed) and failure.is_silence:
            self.suspect(connection, time.monotonic() - began_s)
        raise failure

    async def pause(self, error: HoldfastError, attempt: int, deadline_s: float) -> None:
        """Waits before the next attempt.

        Raises:
            HoldfastError: The given one, if the pause would outlast the time limit.
        """
        pause_s = self._retry.pause_s(attempt, error.retry_after_s)
        if time.monotonic() + pause_s >= deadline_s:
            raise error
        await self.lifetime.sleep(pause_s)

    def deadline_s(self, timeout_s: float | None) -> float:
        """Returns the monotonic time at which a call that starts now has to be done."""
        limit_s = self._timeout_s if timeout_s is None else seconds("timeout_s", timeout_s)
        return time.monotonic() + limit_s

    def attempt_deadline_s(self, attempt: int, deadline_s: float) -> float:
        """Returns the monotonic time at which attempt 0, 1, 2, … is given up for the next one."""
        return min(deadline_s, time.monotonic() + self._retry.limit_s(attempt))

    def left_s(self, deadline_s: float) -> float:
        """Returns the seconds left, at least a moment."""
        return max(0.001, deadline_s - time.monotonic())

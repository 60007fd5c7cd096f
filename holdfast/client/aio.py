"""The asyncio client."""

import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Self, TypedDict, Unpack

from holdfast.client.batch_reply import BatchReply
from holdfast.client.batching import BatchPipeline, batch_message
from holdfast.client.calls import Calls
from holdfast.client.checkpoints import (
    delete_checkpoint,
    list_checkpoints,
    restore_checkpoint,
    restore_request,
    save_checkpoint,
)
from holdfast.client.fate import tell_rows
from holdfast.client.history import Recorder
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.opening import batch_opening, session_opening
from holdfast.client.options import (
    MAX_POSITION,
    BatchOptions,
    NewId,
    OpenBatchOptions,
    OpenOptions,
    SessionId,
    flag,
    session_id_text,
    whole_number,
)
from holdfast.client.retry import RetryPolicy
from holdfast.client.rows import Rows
from holdfast.client.session import AsyncSession
from holdfast.client.session_calls import SessionCalls
from holdfast.client.standing import Positions
from holdfast.client.steps import Steps
from holdfast.client.tls import Tls
from holdfast.client.transport import Transport
from holdfast.client.watching import Watch, WatchedChunk, WatchOptions, watch_request
from holdfast.client.writer import Writer
from holdfast.errors import HoldfastError
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


class AsyncClient(SessionCalls):
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
        self._replay_tokens = whole_number("replay_tokens", replay_tokens, at_least=0)
        self._calls = Calls(
            Transport(address, tls=tls, connections=connections, http_proxy=http_proxy),
            token=token,
            retry=retry or RetryPolicy(),
            timeout_s=timeout_s,
            ack_level=ack_level,
            history=history,
        )
        self._steps = Steps(self._calls)

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections, unless a child of the process that made them leaves the block."""
        if not self._calls.is_inherited:
            await self.close()

    async def close(self) -> None:
        """Closes the connections and lets go of gRPC; sessions live on in the store.

        May be called again. Calls under way, and later ones, end with ClientClosed.

        Raises:
            ClientForked: This is a child of the process that made the client.
        """
        await self._steps.close()
        await self._calls.close()

    async def open_session(
        self, session_id: SessionId | NewId = NewId.FROM_SERVER, **options: Unpack[OpenOptions]
    ) -> AsyncSession:
        """Opens a session, or resumes the one that exists.

        Args:
            session_id: 1..128 characters, none of them a control character; 7 and a UUID are as their text.
                If it is left out, the server makes one that nobody can guess.
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
        request = session_opening(session_id, **options)
        stub = self._calls.next_stub()
        opened = await self._calls.call("OpenSession", request, stub=stub)
        writer = Writer(self._calls, self._steps, stub, opened, request.initial_state, self._replay_tokens)
        return AsyncSession(writer)

    async def open_batch(
        self, model: str, session_ids: Iterable[SessionId], **options: Unpack[OpenBatchOptions]
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
        request = batch_opening(model, session_ids, **options)
        return OpenedBatch(request.session_ids, await self._calls.call("OpenBatch", request))

    async def step_batch(
        self,
        model: str,
        session_ids: Iterable[SessionId],
        tokens: Rows,
        positions: Positions | None = None,
        *,
        cursors: Sequence[bytes | None] | None = None,
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
                appends to each session; the call is then not repeated when the connection breaks.
            cursors: Stored with each session by the commit of its row, as `cursor` of `AsyncSession.step`;
                None for a row leaves what is stored.
            timeout_s: Longest wait, retries included; default is the client's.
            **options: version, top_k, token_log_prob, outputs and ack_level, as in `AsyncSession.step`.

        Returns:
            The reply; rows fail one by one, see `BatchReply.errors`.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            HoldfastError: The batch as a whole was refused, or its fate is unknown; the message says which.
        """
        self._calls.lifetime.check_before_sending()
        options.setdefault("ack_level", self._calls.ack_level)
        batch = batch_message(session_ids, tokens, positions, model=model, cursors=cursors, **options)
        request, deadline_s = pb.StepBatchRequest(batch=batch), self._calls.deadline_s(timeout_s)
        try:
            if positions is None:
                reply = await self._calls.call_once("StepBatch", request, deadline_s)
            else:
                reply = await self._calls.call("StepBatch", request, deadline_s=deadline_s)
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
        asked: dict[str, Any] = {"model": model, "ack_level": self._calls.ack_level, **options}
        return BatchPipeline(self._calls, asked, whole_number("max_in_flight", max_in_flight, at_least=1))

    async def get_session(self, session_id: SessionId) -> pb.Session:
        """Returns what is known of a session, without opening it.

        Raises:
            SessionNotFound, SessionDeleted, ModelMismatch, RecordCorrupt, HoldfastError: As named.
        """
        request = pb.GetSessionRequest(session_id=session_id_text(session_id))
        found: pb.Session = (await self._calls.call("GetSession", request)).session
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
        reply: pb.DeleteSessionResponse = await self._calls.call("DeleteSession", request)
        return reply.position

    async def save_checkpoint(
        self, session_id: SessionId, name: str, *, position: int | None = None, incarnation: int = 0
    ) -> pb.Checkpoint:
        """Keeps a session, as it was last committed, under a name, beside it and as long as it.

        Args:
            session_id: Of the session.
            name: Rules as for session ids; one of that name is replaced.
            position: That it must have; None is any.
            incarnation: That it must have; 0 is any.

        Raises:
            TooManyCheckpoints, PositionConflict, PositionGap, SessionNotFound, SessionDeleted,
            SessionQuarantined, HoldfastError: As named.
        """
        return await save_checkpoint(self._calls, session_id, name, position, incarnation)

    async def checkpoints(self, session_id: SessionId) -> list[pb.Checkpoint]:
        """Returns the checkpoints of a session, the oldest first.

        Raises:
            SessionNotFound, SessionDeleted, HoldfastError: As named.
        """
        return await list_checkpoints(self._calls, session_id)

    async def delete_checkpoint(self, session_id: SessionId, name: str) -> None:
        """Deletes a checkpoint.

        Raises:
            CheckpointNotFound, SessionNotFound, SessionDeleted, HoldfastError: As named.
        """
        await delete_checkpoint(self._calls, session_id, name)

    async def restore_checkpoint(
        self, session_id: SessionId, name: str, *, incarnation: int = 0
    ) -> pb.Session:
        """Puts a session back to a checkpoint, in a new incarnation: its writers get SessionDeleted.

        Who writes to the session itself uses `AsyncSession.restore_checkpoint`, and goes on.

        Args:
            session_id: Of the session.
            name: Of the checkpoint, which stays.
            incarnation: That the session must have; 0 is any.

        Returns:
            The session as it is then.

        Raises:
            CheckpointNotFound, ModelMismatch, SessionNotFound, SessionDeleted, SessionQuarantined,
            HoldfastError: As named.
        """
        request = restore_request(session_id, name, incarnation)
        return await restore_checkpoint(self._calls, request)

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
        released: pb.ReleaseSessionResponse = await self._calls.call("ReleaseSession", request)
        return released

    def watch_session(
        self, session_id: SessionId, **options: Unpack[WatchOptions]
    ) -> AsyncGenerator[WatchedChunk, None]:
        """Yields what becomes of a session, whoever uses it and wherever, until it ends.

        The first chunk says where the session stands, without tokens. When a server leaves or dies, another
        one takes its place; what was missed meanwhile is counted in `skipped_tokens`.

        Args:
            session_id: Of the session, which must exist.
            max_rate_hz: At most so many chunks a second, up to 1000; the newest are shown. Default is 30.
            top_k: So many likeliest next tokens after each token.
            token_log_prob: Log-probability of each token.
            state: The state after each chunk.

        Raises:
            TypeError, ValueError: What was passed is not what it should be.
            SessionNotFound, SessionDeleted: There is no such session; later its end is the last chunk.
            PermissionDenied, InvalidRequest, HoldfastError: As named; StoreUnavailable where the server's
                store has no channels for it, the text says why.
        """
        return Watch(self._calls, watch_request(session_id, **options)).chunks()

    async def list_models(self) -> list[pb.Model]:
        """Returns every model served."""
        return list((await self._calls.call("ListModels", pb.ListModelsRequest())).models)

    async def get_model(self, name: str, version: int = 0) -> pb.Model:
        """Returns one model; version 0 is the newest.

        Raises:
            ModelNotFound: There is none.
        """
        request = pb.GetModelRequest(model=pb.ModelRef(name=name, version=version))
        found: pb.Model = (await self._calls.call("GetModel", request)).model
        return found

    async def reload_models(self) -> pb.ReloadModelsResponse:
        """Has a server look for new model files now; for administrators.

        Returns:
            What is served now, and which files are refused and why; of the process that was reached.

        Raises:
            PermissionDenied, HoldfastError: As named.
        """
        reloaded: pb.ReloadModelsResponse = await self._calls.call("ReloadModels", pb.ReloadModelsRequest())
        return reloaded

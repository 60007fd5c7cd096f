"""A session with asyncio, as its writer sees it: tokens in, replies out."""

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Self

from numpy.typing import NDArray

from holdfast.client.generated import GeneratedToken, GenerateOptions, Stop
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.options import NewId, Outputs, SessionId
from holdfast.client.reply import StepReply
from holdfast.client.tokens import Pieces, TokenSource
from holdfast.client.writer import Writer
from holdfast.pending import PendingChunk
from holdfast.v1 import holdfast_pb2 as pb


class AsyncSession:
    """One writer's session. Made by `AsyncClient.open_session`.

    Not for concurrent use: calls wait for each other. `close`, or leaving it as a context manager, ends its
    use here; the session itself lives on in the store until `delete` or its expiry.

    Attributes:
        session_id: Its id.
        model: Name of its model.
        model_version: Version of its model.
        resumed: It existed when it was opened here.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.session_id = writer.session_id
        self.model = writer.model
        self.model_version = writer.model_version
        self.resumed = writer.resumed

    @property
    def position(self) -> int:
        """Tokens applied and answered."""
        return self._writer.position

    @property
    def history_digest(self) -> int:
        """Names the tokens up to `position`, see `holdfast.history_digest`; 0 if the server tells none."""
        return self._writer.history_digest

    @property
    def cursor(self) -> bytes:
        """The last cursor known to be stored with the session; b"" if it has none. See `step`."""
        return self._writer.cursor

    @property
    def pending(self) -> tuple[PendingChunk, ...]:
        """Chunks taken from the caller that have no reply yet: sent, or fetched from an iterator."""
        return self._writer.pending

    @property
    def incarnation(self) -> int:
        """Number of this life of the session."""
        return self._writer.incarnation

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes it here, as `close` does; after an error only if nothing is pending, and never in a child.

        Raises:
            ChunkPending: Chunks have no reply yet, and no other error says so.
        """
        self._writer.leave_block(kind)

    async def step(
        self,
        tokens: TokenSource,
        *,
        position: int | None = None,
        cursor: bytes | None = None,
        top_k: int | None = None,
        token_log_prob: bool = False,
        outputs: Outputs = None,
        state: bool = False,
        ack_level: str | None = None,
        timeout_s: float | None = None,
    ) -> StepReply:
        """Applies one chunk and returns its reply.

        Args:
            tokens: k >= 1 tokens: str or bytes, ids, or features (k, width), from whatever holds them; see
                docs/guides/inputs.md.
            position: Tokens of the session before this chunk, for a call that may be a repetition: a
                chunk that was applied is answered by the reply it had. Repeat it with the same tokens.
            cursor: 1..256 bytes to store with the session by the commit of this chunk, such as the place in
                a source up to which it has read. A writer that is started again finds it in `cursor`, and
                reads on from there. None leaves the stored one.
            top_k: So many likeliest next tokens after each token. A repetition gets what was asked for the
                first time, of this and of the following.
            token_log_prob: Log-probability of each token.
            outputs: Name of an output tensor, several names, or True for all.
            state: The state after the chunk.
            ack_level: How durable the commit must be before the reply; default is the client's.
            timeout_s: Longest wait, retries included; default is the client's.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            ChunkPending: Chunks taken before have no reply yet; call `settle`, or repeat the first of them.
            PositionGap: `position` is ahead of the session.
            SessionBusy: Another call or stream held the session for the whole time limit.
            ClientClosed: The client is closed.
            HoldfastError: See `holdfast.errors`. `error.pending` has the chunk if it may have been applied.
        """
        return await self._writer.step(
            tokens, position, top_k, token_log_prob, outputs, state, ack_level, timeout_s, cursor
        )

    async def settle(self, timeout_s: float | None = None) -> list[StepReply]:
        """Has every pending chunk applied, once, and returns their replies in order.

        Args:
            timeout_s: Longest wait, retries included; default is the client's.

        Raises:
            HoldfastError: As in `step`. Call it again: replies that had come are not lost.
        """
        return await self._writer.settle(timeout_s)

    def stream(
        self,
        tokens: Pieces,
        *,
        chunk: int = 1,
        max_in_flight: int | None = None,
        top_k: int | None = None,
        token_log_prob: bool = False,
        outputs: Outputs = None,
        state: bool = False,
        ack_level: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StepReply, None]:
        """Applies many chunks and yields their replies in order.

        Left early, by `break`, an error or a cancellation, it settles nothing: `position` counts the
        replies that were given, and what else was sent, or fetched from an iterator, is in `pending`.

        Args:
            tokens: Tokens as in `step`, or a sequence, iterable or async iterable of such pieces, single
                tokens among them: each goes out as it comes. An iterator that is not asynchronous runs in a
                thread of its own, and is asked only when a reply is wanted.
            chunk: Most tokens sent together, of one piece.
            max_in_flight: Most chunks under way, 1..32. Default is 32 for what has a length and an index,
                and 1 for iterators, which thus may wait, or feed back what the last reply gave.
            top_k: As in `step`, as are the other selections.
            token_log_prob: As in `step`.
            outputs: As in `step`.
            state: As in `step`.
            ack_level: As in `step`.
            timeout_s: Longest time without any progress; default is the client's.

        Raises:
            TypeError, ValueError: `chunk` or another option is not what it should be; or a piece is not,
                and those before it are sent.
            HoldfastError: As in `step`.
        """
        pump = self._writer.pump(
            tokens,
            chunk=chunk,
            max_in_flight=max_in_flight,
            top_k=top_k,
            token_log_prob=token_log_prob,
            outputs=outputs,
            state=state,
            ack_level=ack_level,
            timeout_s=timeout_s,
        )
        return self._writer.replies(pump, tokens, chunk)

    def generate(
        self,
        max_tokens: int,
        prompt: TokenSource | None = None,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Stop = (),
        min_tokens: int = 0,
        candidates: int = 0,
        ack_level: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[GeneratedToken, None]:
        """Applies a prompt and generates tokens, each of which is committed before it is given.

        The tokens are a function of the session's history, the prompt and these options, whatever fails
        meanwhile: a broken call, a restart or another replica changes none of them. Left early, by
        `break`, an error or a cancellation, the session stands behind the last token that was committed,
        which may be a few further than the last one given; the next call waits until that is known.

        Args:
            max_tokens: At most so many, 1..65536.
            prompt: Tokens to apply first, as in `step`, at most the model's `max_chunk_tokens`. None goes
                on after the session's last token, which needs a model that gives `token_log_prob` over at
                most 4096 ids, or one over subwords.
            temperature: Divides the logits; 0 takes the likeliest token.
            top_k: Only the likeliest so many tokens; 0 is all. This and the next two apply in this order.
            top_p: Only the likeliest tokens that together reach this probability.
            min_p: Only tokens at least this probable in proportion to the likeliest.
            repetition_penalty: Applies to ids in the prompt or generated before, ahead of the temperature:
                a positive logit is divided by it, a negative one multiplied.
            seed: The random number for a token depends on the seed and the token's position alone.
            stop: Ids that end the generation when they are drawn, and are not applied; and texts, of 1..64
                bytes, that end it when what was generated ends with one. One of them, or several.
            min_tokens: No `stop` counts before so many tokens.
            candidates: So many likeliest tokens with each token.
            ack_level: How durable each commit must be before its token is given; default is the client's.
            timeout_s: Longest time without any progress; default is the client's.

        Raises:
            TypeError, ValueError: What was passed is not what it should be; nothing was sent.
            InvalidRequest: The model cannot do what is asked, or a number is out of its range; nothing was
                changed.
            HoldfastError: As in `step`. What was given is committed.
        """
        options: GenerateOptions = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "stop": stop,
            "min_tokens": min_tokens,
            "candidates": candidates,
        }
        if ack_level is not None:
            options["ack_level"] = ack_level
        return self._writer.generate(max_tokens, prompt, timeout_s=timeout_s, **options)

    async def state(self) -> dict[str, NDArray[Any]]:
        """Returns the stored state by name, without a batch axis."""
        return await self._writer.state()

    async def fork(self, new_id: SessionId | NewId = NewId.FROM_SERVER) -> "AsyncSession":
        """Copies the session, as it stands at `position`, to another id; both go on independently.

        Args:
            new_id: Of the copy; if it is left out, one is made that nobody can guess.

        Returns:
            The copy, which goes on at that position. It has no kept replies, and no cursor.

        Raises:
            TypeError, ValueError: `new_id` is no id; nothing was sent.
            SessionExists: It is taken.
            PositionConflict: The store is ahead of `position`: settle what is pending, or read the stream
                on.
            SessionDeleted, SessionQuarantined, PositionGap, HistoryConflict, HoldfastError: As named.
        """
        return AsyncSession(await self._writer.fork(new_id))

    async def fork_batch(self, new_ids: Iterable[SessionId]) -> OpenedBatch:
        """Copies the session, as it stands at `position`, to many ids, in two round trips to the store.

        Args:
            new_ids: B distinct ids of the copies.

        Returns:
            Where the copies stand, for `AsyncClient.step_batch`; rows fail one by one, see
            `OpenedBatch.errors`.

        Raises:
            TypeError, ValueError: They are no ids; nothing was sent.
            HoldfastError: As of `fork`.
        """
        return await self._writer.fork_batch(new_ids)

    async def export(self) -> bytes:
        """Returns the session, as it stands at `position`, as a blob for `AsyncClient.import_session`.

        Raises:
            HoldfastError: As of `fork`.
        """
        return await self._writer.export()

    async def save_checkpoint(self, name: str, timeout_s: float | None = None) -> pb.Checkpoint:
        """Keeps the session, as it stands here, under a name, beside it and as long as it.

        Args:
            name: 1..128 characters, rules as for session ids; one of that name is replaced.
            timeout_s: Longest wait, retries included; default is the client's.

        Raises:
            TypeError, ValueError: `name` is no name; nothing was sent.
            ChunkPending: Chunks have no reply yet; call `settle`.
            TooManyCheckpoints: The server allows no more of them; see its setting `max_checkpoints`.
            PositionConflict: Another writer has stepped the session.
            SessionDeleted, SessionQuarantined, HoldfastError: As named.
        """
        return await self._writer.save_checkpoint(name, timeout_s)

    async def restore_checkpoint(self, name: str, timeout_s: float | None = None) -> None:
        """Puts the session back to a checkpoint, and goes on from there, with its position and cursor.

        The session gets a new incarnation, so every other writer gets SessionDeleted. The checkpoint stays.

        Args:
            name: Of the checkpoint.
            timeout_s: Longest wait, retries included; default is the client's.

        Raises:
            TypeError, ValueError: `name` is no name; nothing was sent.
            ChunkPending: Chunks have no reply yet; call `settle`.
            CheckpointNotFound, ModelMismatch, SessionDeleted, SessionQuarantined: Nothing was changed.
            HoldfastError: As in `step`. If it is not known whether the session was put back, call it again.
        """
        await self._writer.restore_checkpoint(name, timeout_s)
        self.model_version = self._writer.model_version

    async def checkpoints(self) -> list[pb.Checkpoint]:
        """Returns the checkpoints of the session, the oldest first."""
        return await self._writer.checkpoints()

    async def delete_checkpoint(self, name: str) -> None:
        """Deletes a checkpoint.

        Raises:
            CheckpointNotFound, HoldfastError: As named.
        """
        await self._writer.delete_checkpoint(name)

    async def close(self) -> None:
        """Ends its use here: later steps and streams are refused. The session lives on in the store.

        Raises:
            ChunkPending: Chunks have no reply yet: call `settle` before. It is still open then.
            ClientForked: This is a child of the process that opened it.
        """
        self._writer.close()

    async def delete(self) -> int:
        """Destroys the session in the store, its state included; returns the position at which it ended.

        Raises:
            SessionNotFound, SessionDeleted, HoldfastError: As named; another incarnation is not touched.
        """
        return await self._writer.delete()


def writer_of(session: AsyncSession) -> Writer:
    """Returns the writer of a session, for the session without asyncio around it."""
    return session._writer  # noqa: SLF001

"""What a watcher is shown of a chunk: the reply that the caller has, or else another run of the model.

The caller of a step asks for what it needs, the watcher for something else. Where the reply has not got
that, the chunk runs again from the state before it, in a thread that comes after all others: nobody but the
watcher waits for it. Nothing of it is kept.
"""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np

from holdfast.errors import InvalidRequest, ModelFailed, ReplyTooLarge
from holdfast.v1 import holdfast_pb2 as pb
from service.common.priority import be_nice
from service.engine.asked import Asked, Selection, TokenKind
from service.engine.checks import validate
from service.engine.rows import Rows, to_tokens, token_sums
from service.engine.run import run_batch
from service.engine.watch_events import Event
from service.model.protocol import Halt, Model, Models
from service.rpc import codec
from service.rpc.follower import Ended, Shown, Standing, Step
from service.store.outputs import encode_outputs
from service.store.record import Record

RUN_S = 1.0
"""A run for a watcher that takes longer is ended, and the watcher goes without what it gives."""


class Runs:
    """Runs chunks again, one at a time. `close` ends its thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="watch", initializer=be_nice)

    async def outputs(
        self, model: Model, selection: Selection, event: Event, before: bytes
    ) -> bytes | None:
        """Returns what a chunk gives, as its reply would have it; None where that cannot be had.

        Args:
            model: Of the session.
            selection: What to return.
            event: The chunk.
            before: The raw state before it.
        """
        try:
            rows = _rows(model, selection, event, before)
        except (InvalidRequest, ReplyTooLarge):
            return None
        loop, halt = asyncio.get_running_loop(), model.new_halt()
        run = loop.run_in_executor(self._threads, _run, model, rows, halt)
        ends = loop.call_later(RUN_S, functools.partial(setattr, halt, "terminate", True))
        try:
            return await run
        except ModelFailed:
            return None
        finally:
            halt.terminate = True  # nobody waits for it any more, if it runs at all
            ends.cancel()

    def close(self) -> None:
        """Ends the thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class View:
    """Makes the messages of one watch.

    Args:
        models: The models served.
        runs: Runs chunks again.
        request: What is asked.
    """

    def __init__(self, models: Models, runs: Runs, request: pb.WatchSessionRequest) -> None:
        self._models = models
        self._runs = runs
        self._selection = Selection(top_k=request.top_k, token_log_prob=request.token_log_prob)
        self._asks_outputs = self._selection != Selection()
        self._asks_state = request.include_state
        self._model: Model | None = None

    @property
    def wants_state(self) -> bool:
        """Whether the states of the session are needed."""
        return self._asks_outputs or self._asks_state

    def check(self, record: Record) -> None:
        """Makes sure that the model of a session has what is asked.

        Raises:
            InvalidRequest: It has not.
        """
        model = self._models.find_fingerprint(record.fingerprint)
        assert model is not None, "bug: a session is watched whose model is not served"
        contract = model.contract
        kind: Literal["ids", "features"] = "features" if contract.vocabulary is None else "ids"
        try:
            validate(Asked(kind, 1, contract.input.width, selection=self._selection), model)
        except InvalidRequest as error:
            error.field = error.field.removeprefix("outputs.")
            raise

    async def message(self, shown: Shown) -> pb.WatchSessionResponse:
        """Returns the message of what is to be shown."""
        match shown.what:
            case Ended(incarnation=incarnation, position=position):
                reply = pb.WatchSessionResponse(incarnation=incarnation, position=position, ended=True)
            case Standing(record=record):
                reply = self._standing(record)
            case Step(event=event, before=before):
                reply = await self._step(event, before)
        reply.skipped_tokens = shown.skipped_tokens
        return reply

    def _standing(self, record: Record) -> pb.WatchSessionResponse:
        self._model = model = self._models.find_fingerprint(record.fingerprint)
        reply = pb.WatchSessionResponse(
            position=record.position,
            history_digest=record.digest,
            incarnation=record.incarnation,
            model_version=0 if model is None else model.version,
        )
        self._add_state(reply, record.state)
        return reply

    async def _step(self, event: Event, before: bytes | None) -> pb.WatchSessionResponse:
        reply = pb.WatchSessionResponse(
            position=event.position,
            history_digest=event.digest,
            incarnation=event.incarnation,
            model_version=event.model_version,
            tokens=_tokens(event),
            replayed=event.replayed,
            committed_unix_s=event.committed_unix_s,
            replica=event.replica,
        )
        if self._asks_outputs and (outputs := await self._outputs(event, before)) is not None:
            reply.outputs.CopyFrom(outputs)
        self._add_state(reply, event.state)
        return reply

    async def _outputs(self, event: Event, before: bytes | None) -> pb.Outputs | None:
        kept = asked_of(pb.Outputs.FromString(event.outputs), self._selection)
        if kept is not None or before is None or self._model is None:
            return kept
        data = await self._runs.outputs(self._model, self._selection, event, before)
        return None if data is None else pb.Outputs.FromString(data)

    def _add_state(self, reply: pb.WatchSessionResponse, state: bytes | None) -> None:
        model = self._model
        if self._asks_state and state and model is not None and len(state) == model.contract.state_bytes:
            reply.outputs.state.extend(codec.from_raw_state(state, model.contract))


def asked_of(outputs: pb.Outputs, selection: Selection) -> pb.Outputs | None:
    """Returns what is asked, of what a reply has; None if it has not got all of it. Pure.

    Args:
        outputs: Of the reply.
        selection: What is asked; only candidates and log-probabilities count.
    """
    given, asked = outputs.top_k, selection.top_k
    if asked > given or (selection.token_log_prob and not outputs.token_log_probs):
        return None
    found = pb.Outputs(token_count=outputs.token_count)
    if asked:
        found.top_k = asked
        found.top_ids.extend(np.reshape(outputs.top_ids, (-1, given))[:, :asked].ravel().tolist())
        log_probs = np.array(outputs.top_log_probs, np.float32)
        found.top_log_probs.extend(log_probs.reshape(-1, given)[:, :asked].ravel().tolist())
    if selection.token_log_prob:
        found.token_log_probs.extend(outputs.token_log_probs)
    return found


def _rows(model: Model, selection: Selection, event: Event, before: bytes) -> Rows:
    """Returns a chunk as rows that can run.

    Raises:
        InvalidRequest, ReplyTooLarge: The model does not take it, or gives too much.
    """
    kind = cast(TokenKind, event.kind)
    asked = Asked(kind, event.token_count, event.width, selection=selection)
    needs = validate(asked, model)
    tokens = to_tokens(asked, event.tokens, 1)
    rows = Rows(asked, [event.key], tokens, token_sums(tokens), np.array([event.position]))
    rows.model, rows.needs = model, needs
    rows.states = np.frombuffer(before, np.uint8).reshape(1, -1).copy()
    return rows


def _run(model: Model, rows: Rows, halt: Halt) -> bytes:
    run_batch(model, [rows], encode_outputs, halt)
    return rows.outputs.tobytes()


def _tokens(event: Event) -> pb.Tokens:
    if event.kind == "text":
        return pb.Tokens(text=event.tokens)
    if event.kind == "ids":
        return pb.Tokens(ids=pb.TokenIds(values=np.frombuffer(event.tokens, "<i8").tolist()))
    shape = event.token_count, event.width
    tensor: Any = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=event.tokens)
    return pb.Tokens(features=tensor)

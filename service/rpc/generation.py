"""Generate: a loop of ordinary chunks, each of which says what follows it.

The prompt is a chunk, and so is every token after it: batched with all other steps, committed once, with a
reply that is kept. What a reply says of the next token is part of it, so the same call made again walks
along the kept replies to where the session stands, and goes on from there as the first one would have.
"""

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from holdfast.errors import InvalidRequest, ModelFailed, PositionGap, ServiceError, StoreRegressed
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.asked import Asked
from service.engine.checks import reply_bytes
from service.engine.driver import Driver
from service.engine.ranking import ranked_candidates
from service.engine.rows import Chunk, Reply
from service.engine.rules import MAX_KEPT_REPLIES, MAX_KEPT_REPLY_BYTES, Claim, decide
from service.engine.sampling import NOTHING, Options, Sample, draw
from service.engine.sessions import OpenSession, Sessions
from service.model.contract import Contract
from service.model.protocol import Model, Models
from service.rpc import codec
from service.rpc.call import Call
from service.rpc.emission import Emission
from service.rpc.following import Following, digest_at, next_id
from service.rpc.generation_request import (
    MAX_SAID_IDS,
    MAX_STOP_TEXT_BYTES,
    Wanted,
    can_probe,
    check_against,
    features_of,
    has_texts,
    read_request,
    tokens_of,
    unwritable,
)
from service.rpc.joining import Joint
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import Functions
from service.telemetry.rpc_metrics import RpcMetrics


class Generations:
    """Serves the calls of Generate.

    Args:
        engine: Applies the chunks.
        sessions: Reads sessions.
        models: The models served.
        calls: Knows the calls under way.
        max_chunk_tokens: Most tokens of a prompt.
    """

    def __init__(
        self, engine: Driver, sessions: Sessions, models: Models, calls: OpenCalls, max_chunk_tokens: int
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._models = models
        self._calls = calls
        self._max_chunk_tokens = max_chunk_tokens
        self._count = 0  # under way

    def rpcs(self) -> Functions:
        """Returns the rpc by name."""
        return {"Generate": self.generate}

    async def generate(self, call: Call, metrics: RpcMetrics) -> None:
        """Serves one call."""
        emission = Emission(call, self._calls, metrics)
        await emission.serve(pb.GenerateRequest, functools.partial(self._replies, call))

    async def _replies(self, call: Call, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        call.session_id = request.session_id
        wanted = read_request(request, call.caller.tenant, self._max_chunk_tokens)
        model = await self._model(wanted)
        check_against(wanted, model.contract)
        generation = _Generation(self._engine, self._sessions, model, wanted, self._calls.max_call_s)
        self._count += 1
        try:
            async for message in self._messages(generation.run(), wanted):
                yield message
        finally:
            self._count -= 1

    async def _messages(
        self, events: AsyncIterator[tuple[pb.GenerateResponse, bool]], wanted: Wanted
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Puts events into messages, as the request allows."""
        if not wanted.may_join:
            async for event, _ in events:
                yield event
            return
        joint = Joint(lambda: self._count - 1, is_continued=wanted.emitted_count > 0)
        try:
            async for event, is_followed in events:
                if (message := joint.add(event, is_followed=is_followed)) is not None:
                    yield message
        except ServiceError:
            if (message := joint.rest()) is not None:  # committed before the failure
                yield message
            raise

    async def _model(self, wanted: Wanted) -> Model:
        """Returns the model of the session; the one that is named if that is clear without a look."""
        if wanted.asked.model_name and wanted.asked.model_version:
            return self._models.find(wanted.asked.model_name, wanted.asked.model_version)
        return (await self._sessions.read(wanted.key)).model


class _Generation:
    """One call: where it stands, and what it has emitted.

    Args:
        engine: Applies the chunks.
        sessions: Reads sessions.
        model: Of the session.
        wanted: What is asked.
        max_call_s: Longest wait of a chunk.
    """

    def __init__(
        self, engine: Driver, sessions: Sessions, model: Model, wanted: Wanted, max_call_s: float
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._model = model
        self._wanted = wanted
        self._max_call_s = max_call_s
        self._position = wanted.position
        self._incarnation = wanted.incarnation
        self._digest = wanted.digest
        self._kept: deque[tuple[int, int]] = deque()  # replies of this call: position, and bytes
        self._acknowledged = wanted.position
        self._count = wanted.emitted_count
        self._text = wanted.emitted_text
        self._options = wanted.options or Options()
        self._said = dict.fromkeys((*wanted.said, *(() if self._contract.texts else wanted.prompt_ids)))
        self._unwritable = unwritable(self._contract, wanted.limits)

    @property
    def _contract(self) -> Contract:
        return self._model.contract

    async def run(self) -> AsyncIterator[tuple[pb.GenerateResponse, bool]]:
        """Yields the events, and of each whether the next one should come with it."""
        if self._wanted.prompt:
            reply = await self._apply(self._wanted.asked, self._wanted.prompt)
            yield self._start(reply.model_version, replayed=reply.replayed), True
            following = await self._following(reply)
        else:
            stored, following = await self._look()
            is_behind = stored.record.position != self._position
            yield self._start(self._model.version, replayed=is_behind), True
        emitted_count = 0
        while True:
            if self._stops(following):
                yield _end(pb.FINISH_REASON_STOP, following.number), False
                return
            asked, tokens = self._next_chunk(following)
            text = tokens if asked.kind == "text" else b""
            self._count += 1  # what is drawn after the token knows of it
            self._said[following.number] = self._said.pop(following.number, None)  # the last said is last
            self._text = (self._text + text)[-MAX_STOP_TEXT_BYTES:]
            reply = await self._apply(asked, tokens)
            emitted_count += 1
            why = self._why_over(emitted_count)
            yield pb.GenerateResponse(token=self._token(following, text, reply)), why is not None
            if why is not None:
                yield _end(why), False
                return
            following = await self._following(reply)

    def _stops(self, following: Following) -> bool:
        """Whether what follows ends the generation.

        A subword without text can do nothing else: it was drawn where it was a stop id, which it need not
        be in a call that finds the reply.
        """
        limits, texts = self._wanted.limits, self._contract.texts
        if self._contract.feedback is not None:
            return False
        if texts and not texts[following.number]:
            return True
        return following.number in limits.stop_ids and self._count >= limits.min_tokens

    def _why_over(self, emitted_count: int) -> Any:
        """Returns why nothing follows the token that was emitted, None if something does."""
        limits = self._wanted.limits
        if self._count >= limits.min_tokens and any(map(self._text.endswith, limits.stop_texts)):
            return pb.FINISH_REASON_STOP
        if self._count >= limits.max_tokens:
            return pb.FINISH_REASON_MAX_TOKENS
        return pb.FINISH_REASON_PAUSED if emitted_count == limits.pause_after else None

    def _start(self, model_version: int, *, replayed: bool) -> pb.GenerateResponse:
        start = pb.GenerateStart(
            position=self._position,
            history_digest=self._digest,
            incarnation=self._incarnation,
            model_version=model_version,
            replayed=replayed,
        )
        if self._options.penalty != 1.0:
            start.said_ids.extend(list(self._said)[-MAX_SAID_IDS:])
        return pb.GenerateResponse(start=start)

    # -- chunks -------------------------------------------------------------------------------

    def _next_chunk(self, following: Following) -> tuple[Asked, bytes]:
        if self._contract.feedback is not None:
            width = self._contract.input.width
            return self._wanted.asked._replace(
                kind="features", token_count=1, width=width
            ), following.features
        kind, tokens, count = tokens_of(self._contract, following.number)
        return self._wanted.asked._replace(kind=kind, token_count=count, width=1), tokens

    async def _apply(self, asked: Asked, tokens: bytes) -> Reply:
        """Applies a chunk, or finds its reply; notes where the session stands after it."""
        outcome: asyncio.Future[Reply | ServiceError] = asyncio.get_running_loop().create_future()

        def reply(_: Chunk, value: Reply | ServiceError) -> None:
            if not outcome.done():
                outcome.set_result(value)

        chunk = Chunk(
            self._wanted.key,
            asked,
            tokens,
            reply,
            position=self._position,
            acknowledged=self._acknowledged,
            incarnation=self._incarnation,
            digest=self._digest,
            sample=self._sample(),
            deadline_s=time.monotonic() + self._max_call_s,
        )
        try:
            self._engine.submit(chunk)
            result = await outcome
        finally:
            chunk.is_cancelled = True  # if the caller left before the chunk ran
        if isinstance(result, PositionGap) and self._kept:
            raise StoreRegressed(
                f"the reply to position {self._position} was given, the store is back at "
                f"{result.expected_position}: send the tokens from there again",
                expected_position=result.expected_position,
            )
        if isinstance(result, ServiceError):
            raise result
        if self._acknowledged is None:
            self._acknowledged = result.position - asked.token_count
        self._position, self._digest = result.position, result.digest
        self._incarnation = result.incarnation
        self._keep(asked, result)
        return result

    def _keep(self, asked: Asked, reply: Reply) -> None:
        """Has the store keep as many replies of this call as it can beside the next one."""
        assert asked.selection is not None, "bug: a chunk of a generation asks for nothing"
        room = MAX_KEPT_REPLY_BYTES - reply_bytes(asked.selection, self._contract, 1)
        self._kept.append((reply.position, len(reply.outputs)))
        while len(self._kept) >= MAX_KEPT_REPLIES or sum(size for _, size in self._kept) > room:
            self._acknowledged, _ = self._kept.popleft()

    def _sample(self) -> Sample | None:
        """Returns how to draw what comes next."""
        if self._contract.feedback is not None:
            return None
        limits = self._wanted.limits
        is_early = self._count < limits.min_tokens
        return Sample(
            self._options,
            self._wanted.seed,
            tuple(self._said) if self._options.penalty != 1.0 else (),
            (*self._unwritable, *(limits.stop_ids if is_early else ())),
        )

    # -- what follows ---------------------------------------------------------------------------

    async def _following(self, reply: Reply) -> Following:
        """Returns what a reply says of the next token; finds it out if the chunk was a step of others."""
        outputs = pb.Outputs.FromString(reply.outputs)
        feedback = self._contract.feedback
        if feedback is not None:
            found = next((named.tensor for named in outputs.tensors if named.name == feedback.name), None)
            if found is None:
                raise self._unknown()
            values = np.frombuffer(found.data, feedback.dtype).reshape(-1, *feedback.shape)[-1]
            features = features_of(values)
            if not np.isfinite(np.frombuffer(features, "<f4")).all():
                raise ModelFailed(
                    f"output {feedback.name!r} holds NaN or infinity at position {reply.position} and "
                    "cannot be the next input"
                )
            return Following(0, features=features)
        if not outputs.sampled_ids:
            if not can_probe(self._contract):
                raise self._unknown()
            _, following = await self._look()
            return following
        return self._checked(
            Following(
                outputs.sampled_ids[0],
                outputs.sampled_log_probs[0],
                top_ids=tuple(outputs.top_ids),
                top_log_probs=tuple(outputs.top_log_probs),
            )
        )

    async def _look(self) -> tuple[OpenSession, Following]:
        """Finds out what follows where the call stands, from what is stored of the session."""
        stored = await self._sessions.read(self._wanted.key)
        record, position = stored.record, self._position
        if stored.model is not self._model:
            self._model = stored.model
            check_against(self._wanted, stored.model.contract)
        is_begun = self._count > 0 or not self._wanted.prompt  # else a step of others was just like it
        if position is not None and position < record.position and is_begun:
            number = next_id(record, position, self._digest, self._contract)
            if number is not None:
                self._digest = self._digest or digest_at(record, position)
                self._incarnation = record.incarnation
                return stored, Following(number, np.nan)
        claim = Claim(1, b"\0", position, position, self._incarnation, self._digest)
        if decide(record, claim) is not None:  # a step of others, which no token of this model is
            raise self._unknown()
        self._position, self._digest, self._incarnation = record.position, record.digest, record.incarnation
        if self._acknowledged is None:
            self._acknowledged = record.position
        values = await self._engine.probe(self._model, record.state)
        assert self._contract.ranked is not None, "bug: a model generates that cannot"
        role = self._contract.ranked.role if self._contract.texts else "log_probs"
        sample = self._sample()
        assert sample is not None, "bug: tokens are drawn where none are"
        drawn = draw(values, role, [sample], np.array([record.position]))
        following = Following(int(drawn.ids[0]), float(drawn.log_probs[0]))
        if self._wanted.top_k:
            ids, log_probs = ranked_candidates(values, self._wanted.top_k, role)
            following = following._replace(
                top_ids=tuple(ids[0].tolist()), top_log_probs=tuple(log_probs[0].tolist())
            )
        return stored, self._checked(following)

    def _checked(self, following: Following) -> Following:
        if following.number == NOTHING:
            raise ModelFailed(f"the model gives no token a probability at position {self._position}")
        return following

    def _unknown(self) -> InvalidRequest:
        return InvalidRequest(
            "the prompt was applied by a step, whose reply does not say what follows, and this model does "
            "not tell it later: send further tokens as prompt",
            field="prompt",
        )

    def _token(self, following: Following, text: bytes, reply: Reply) -> pb.GeneratedToken:
        token = pb.GeneratedToken(
            id=following.number,
            text=text if has_texts(self._contract) else b"",
            log_prob=following.log_prob,
            top_ids=following.top_ids,
            top_log_probs=following.top_log_probs,
            position=reply.position,
            history_digest=reply.digest,
            replayed=reply.replayed,
            ack_level=codec.ack_number(reply.ack_level),
        )
        if following.features:
            width = self._contract.input.width
            tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[width], data=following.features)
            token.features.CopyFrom(tensor)
        return token


def _end(why: Any, stop_id: int | None = None) -> pb.GenerateResponse:
    return pb.GenerateResponse(end=pb.GenerateEnd(finish_reason=why, stop_id=stop_id))

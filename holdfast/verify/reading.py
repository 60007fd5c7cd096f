"""Turns recorded histories into what is judged: of each session the chunks, their replies, the sights."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from holdfast.client.history import FAILURE, REPLY, START, Frame, read_frames
from holdfast.client.tokens import to_arrays
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.verify.session_history import (
    Attempt,
    Deletion,
    OpenGeneration,
    Outputs,
    Reply,
    SessionHistory,
    Sight,
)


class ModelId(NamedTuple):
    """What a session says of its model; an empty fingerprint is unknown, version 0 is any."""

    name: str
    version: int
    fingerprint: str


UNKNOWN_MODEL = ModelId("", 0, "")

_STEPS: dict[str, tuple[Any, Any]] = {
    "Step": (pb.StepRequest, pb.StepResponse),
    "StreamSteps": (pb.StreamStepsRequest, pb.StreamStepsResponse),
}
_SETTLED = ("INVALID_REQUEST", "POSITION_CONFLICT", "HISTORY_CONFLICT", "MODEL_MISMATCH")
"""Reasons for which a generation ends without a chunk under way."""
_BATCHES: dict[str, tuple[Any, Any]] = {
    "StepBatch": (pb.StepBatchRequest, pb.StepBatchResponse),
    "StreamBatches": (pb.StreamBatchesRequest, pb.StreamBatchesResponse),
}


@dataclass
class RecordedSession:
    """A session as recorded.

    Attributes:
        history: What is judged.
        model: Its model, as far as anybody said.
        open_fates: Requests to open it that had no good reply: when they were sent, their nonce, and
            whether they were to take it over.
        begun: Sights of lives that began, with the nonce of the opening.
        answered_nonces: Of openings with a good reply, which tells what became of earlier attempts.
        restore_fates: Requests to put it back that had no good reply: when they were sent, and their nonce.
    """

    history: SessionHistory = field(default_factory=SessionHistory)
    model: ModelId = UNKNOWN_MODEL
    open_fates: list[tuple[float, int, bool]] = field(default_factory=list)
    begun: list[tuple[Sight, int]] = field(default_factory=list)
    answered_nonces: set[int] = field(default_factory=set)
    restore_fates: list[tuple[float, int]] = field(default_factory=list)


class Histories:
    """Collects sessions from the files of any number of clients.

    Args:
        paths: The files.

    Attributes:
        sessions: By id.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a history.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.sessions: dict[str, RecordedSession] = {}
        requests: dict[int, Frame] = {}
        answers: dict[int, list[Frame]] = defaultdict(list)
        for path in paths:
            for frame in read_frames(path):
                if frame.rpc:
                    requests[frame.number] = frame
                elif frame.kind != START:
                    answers[frame.number].append(frame)
        read = {
            "OpenSession": self._open,
            "OpenBatch": self._open_batch,
            "GetSession": self._get,
            "DeleteSession": self._delete,
            "Step": self._step,
            "StreamSteps": self._step,
            "RestoreCheckpoint": self._restore,
            "DeleteBatch": self._delete_batch,
            "ForkSession": self._fork,
            "ImportSession": self._import,
        }
        for number, request in sorted(requests.items(), key=lambda entry: entry[1].time_s):
            found = answers.get(number, [])
            if request.rpc in _BATCHES:
                self._batch(request, found)
            elif request.rpc == "Generate":
                self._generate(request, found)
            else:
                read[request.rpc](request, found[-1] if found else None)
        for session in self.sessions.values():
            session.history.sights.sort(key=lambda sight: sight.sent_s)
            for sight, begun_by in session.begun:
                asked = [sent_s for sent_s, nonce, _ in session.open_fates if nonce and nonce == begun_by]
                asked += [sent_s for sent_s, nonce in session.restore_fates if nonce and nonce == begun_by]
                sight.asked_s = min([sight.sent_s, *asked])
            unanswered = [
                (sent_s, takes_over)
                for sent_s, nonce, takes_over in session.open_fates
                if not nonce or nonce not in session.answered_nonces
            ]
            session.history.openings = [sent_s for sent_s, _ in unanswered]
            session.history.takeovers = [sent_s for sent_s, takes_over in unanswered if takes_over]
            session.history.restores = [
                sent_s
                for sent_s, nonce in session.restore_fates
                if not nonce or nonce not in session.answered_nonces
            ]

    def session(self, session_id: str) -> RecordedSession:
        """Returns a session, new if nobody named it before."""
        return self.sessions.setdefault(session_id, RecordedSession())

    # -- one reader per rpc -------------------------------------------------------------------

    def _open(self, request: Frame, answer: Frame | None) -> None:
        asked = pb.OpenSessionRequest.FromString(request.body)
        if answer is None or answer.kind != REPLY:
            if asked.session_id:
                self.session(asked.session_id).open_fates.append(
                    (request.time_s, asked.nonce, asked.take_over)
                )
            return
        reply = pb.OpenSessionResponse.FromString(answer.body)
        initial = to_arrays(asked.initial_state) if asked.initial_state and not reply.resumed else None
        took_over = asked.take_over and reply.resumed
        sight = Sight(
            request.time_s, reply.session.incarnation, reply.session.position,
            digest=reply.session.history_digest,
            is_opening=not reply.resumed, took_over=took_over, heard_s=answer.time_s, initial=initial,
        )  # fmt: skip
        self._see(request, reply.session, sight)
        session = self.session(reply.session.session_id)
        session.answered_nonces.add(asked.nonce)
        session.begun.append((sight, asked.nonce))

    def _open_batch(self, request: Frame, answer: Frame | None) -> None:
        asked = pb.OpenBatchRequest.FromString(request.body)
        reply = None
        if answer is not None and answer.kind == REPLY:
            reply = pb.OpenBatchResponse.FromString(answer.body)
        initial = to_arrays(asked.initial_state)
        failed = set() if reply is None else {error.row for error in reply.errors}
        resumed = set() if reply is None else set(reply.resumed_rows)
        for row, session_id in enumerate(asked.session_ids):
            session = self.session(session_id)
            if answer is None or reply is None or row in failed:
                session.open_fates.append((request.time_s, asked.nonce, False))
                continue
            session.answered_nonces.add(asked.nonce)
            sight = Sight(
                request.time_s, reply.incarnations[row], reply.positions[row],
                digest=reply.history_digests[row], is_opening=row not in resumed, heard_s=answer.time_s,
                initial={name: array[row] for name, array in initial.items()}
                if initial and row not in resumed else None,
            )  # fmt: skip
            session.history.sights.append(sight)
            session.begun.append((sight, asked.nonce))
            _learn(session, asked.model, reply.model_versions[row])

    def _get(self, request: Frame, answer: Frame | None) -> None:
        if answer is None or answer.kind != REPLY:
            return
        reply = pb.GetSessionResponse.FromString(answer.body)
        found = reply.session
        state = to_arrays(reply.state)
        self._see(request, found, Sight(
            request.time_s, found.incarnation, found.position, digest=found.history_digest, state=state
        ))  # fmt: skip

    def _restore(self, request: Frame, answer: Frame | None) -> None:
        asked = pb.RestoreCheckpointRequest.FromString(request.body)
        session = self.session(asked.session_id)
        if answer is None or answer.kind != REPLY:
            session.restore_fates.append((request.time_s, asked.nonce))
            return
        found = pb.RestoreCheckpointResponse.FromString(answer.body).session
        sight = Sight(
            request.time_s, found.incarnation, found.position, digest=found.history_digest,
            was_put_back=True, heard_s=answer.time_s,
        )  # fmt: skip
        self._see(request, found, sight)
        session.answered_nonces.add(asked.nonce)
        session.begun.append((sight, asked.nonce))

    def _see(self, request: Frame, found: pb.Session, sight: Sight) -> None:
        session = self.session(found.session_id)
        session.history.sights.append(sight)
        session.model = ModelId(found.model.name, found.model.version, found.fingerprint)

    def _delete(self, request: Frame, answer: Frame | None) -> None:
        asked = pb.DeleteSessionRequest.FromString(request.body)
        deleted_s = answer.time_s if answer is not None and answer.kind == REPLY else None
        deletion = Deletion(request.time_s, asked.incarnation, deleted_s)
        self.session(asked.session_id).history.deletions.append(deletion)

    def _fork(self, request: Frame, answer: Frame | None) -> None:
        """A copy of what has consumed nothing begins as that did; any other one in the middle."""
        if answer is None or answer.kind != REPLY:
            return
        asked = pb.ForkSessionRequest.FromString(request.body)
        reply = pb.ForkSessionResponse.FromString(answer.body)
        source = self.session(asked.session_id)
        initials = (sight.initial for sight in source.history.sights if sight.is_opening)
        initial = next(initials, None) if reply.position == 0 else None
        for session_id, incarnation in zip(reply.new_session_ids, reply.incarnations, strict=True):
            if not incarnation:
                continue
            sight = Sight(
                request.time_s, incarnation, reply.position, digest=reply.history_digest,
                is_opening=reply.position == 0, is_copy=True, heard_s=answer.time_s, initial=initial,
            )  # fmt: skip
            copy = self.session(session_id)
            copy.history.sights.append(sight)
            copy.model = source.model
            _learn(copy, reply.model, reply.model.version)

    def _import(self, request: Frame, answer: Frame | None) -> None:
        """An imported session begins where the exported one stood, which the request does not name."""
        if answer is None or answer.kind != REPLY:
            return
        found = pb.ImportSessionResponse.FromString(answer.body).session
        sight = Sight(
            request.time_s, found.incarnation, found.position,
            digest=found.history_digest, is_copy=True, heard_s=answer.time_s,
        )  # fmt: skip
        self._see(request, found, sight)

    def _delete_batch(self, request: Frame, answer: Frame | None) -> None:
        asked = pb.DeleteBatchRequest.FromString(request.body)
        failed: set[int] = set()
        deleted_s = None
        if answer is not None and answer.kind == REPLY:
            deleted_s = answer.time_s
            failed = {error.row for error in pb.DeleteBatchResponse.FromString(answer.body).errors}
        for row, session_id in enumerate(asked.session_ids):
            incarnation = asked.incarnations[row] if asked.incarnations else 0
            deletion = Deletion(request.time_s, incarnation, None if row in failed else deleted_s)
            self.session(session_id).history.deletions.append(deletion)

    def _step(self, request: Frame, answer: Frame | None) -> None:
        asked, given = _STEPS[request.rpc]
        result = None
        if answer is not None and answer.kind == REPLY:
            result = given.FromString(answer.body).result
        self._add_chunk(request, asked.FromString(request.body).chunk, answer, result)

    def _add_chunk(
        self, request: Frame, chunk: pb.Chunk, answer: Frame | None, result: pb.ChunkResult | None
    ) -> None:
        session = self.session(chunk.session_id)
        position = chunk.position if chunk.HasField("position") else None
        attempt = Attempt(request.time_s, _tokens(chunk.tokens), position, chunk.incarnation)
        if answer is not None and result is not None:
            attempt.reply = Reply(
                answer.time_s, result.incarnation, result.position, result.replayed,
                _outputs(result.outputs), result.history_digest,
                is_foreign=result.session_id != chunk.session_id or result.tag != chunk.tag,
            )  # fmt: skip
            _learn(session, chunk.model, result.model_version)
        elif answer is not None:
            _fail(attempt, answer)
        session.history.attempts.append(attempt)

    def _generate(self, request: Frame, answers: list[Frame]) -> None:
        """Enters the prompt, and every token that was emitted, as a chunk of its own."""
        asked = pb.GenerateRequest.FromString(request.body)
        session = self.session(asked.session_id)
        attempts = session.history.attempts
        incarnation = asked.incarnation
        position = asked.position if asked.HasField("position") else None

        def enter(tokens: NDArray[Any]) -> Attempt:
            attempts.append(Attempt(request.time_s, tokens, position, incarnation))
            return attempts[-1]

        unanswered = enter(_tokens(asked.prompt)) if asked.HasField("prompt") else None
        if unanswered is not None:
            unanswered.is_repetition = asked.emitted_tokens > 0
        is_open = True
        for answer in answers:
            if answer.kind != REPLY:
                unanswered = unanswered or enter(np.zeros(0, np.int64))
                _fail(unanswered, answer)
                is_open = unanswered.reason not in _SETTLED
                continue
            event = pb.GenerateResponse.FromString(answer.body)
            if event.HasField("end"):
                is_open = False
                continue
            said: pb.GenerateStart | pb.GeneratedToken = event.start
            if event.HasField("token"):
                said, unanswered = event.token, enter(_generated(event.token))
            else:
                incarnation = event.start.incarnation
                _learn(session, asked.model, event.start.model_version)
            position = said.position
            if (
                event.HasField("token") and said.replayed
            ):  # an earlier call has applied it, and may have more
                session.history.generations.append(OpenGeneration(incarnation, position))
            if unanswered is not None:
                unanswered.reply = Reply(
                    answer.time_s, incarnation, position, said.replayed,
                    Outputs(len(unanswered.tokens)), said.history_digest,
                )  # fmt: skip
                unanswered = None
        if is_open and position is not None:
            known = position + (0 if unanswered is None else len(unanswered.tokens))
            session.history.generations.append(OpenGeneration(incarnation, known))

    def _batch(self, request: Frame, answers: list[Frame]) -> None:
        asked, given = _BATCHES[request.rpc]
        batch = asked.FromString(request.body).batch
        tokens = _batch_tokens(batch)
        attempts = [
            Attempt(
                request.time_s, tokens[row],
                batch.positions[row] if batch.positions else None,
                batch.incarnations[row] if batch.incarnations else 0,
            )
            for row in range(len(batch.session_ids))
        ]  # fmt: skip
        for row, attempt in enumerate(attempts):
            self.session(batch.session_ids[row]).history.attempts.append(attempt)
        unanswered = set(range(len(attempts)))
        for answer in answers:
            reply = given.FromString(answer.body) if answer.kind == REPLY else None
            if isinstance(reply, pb.StreamBatchesResponse) and reply.HasField("error"):
                for row in unanswered:
                    _refuse(attempts[row], reply.error.status)
            elif reply is not None:
                numbers = list(reply.result.rows) or range(len(attempts))
                unanswered -= set(numbers)
                self._answer_rows(batch, attempts, numbers, answer, reply.result)
            else:
                for row in unanswered:
                    _fail(attempts[row], answer)

    def _answer_rows(
        self,
        batch: pb.Batch,
        attempts: list[Attempt],
        numbers: Sequence[int],
        answer: Frame,
        result: pb.BatchResult,
    ) -> None:
        """Enters what a reply says of the rows with these numbers."""
        errors = {error.row: error.status for error in result.errors}
        replayed = set(result.replayed_rows)
        shown = _rows_of(result, len(numbers))
        versions = {row.row: row.model_version for row in result.separate_rows}
        for place, number in enumerate(numbers):
            if place in errors:
                _refuse(attempts[number], errors[place])
                continue
            attempts[number].reply = Reply(
                answer.time_s,
                result.incarnations[place],
                result.positions[place],
                place in replayed,
                shown[place],
                result.history_digests[place] if result.history_digests else 0,
            )
            session = self.session(batch.session_ids[number])
            _learn(session, batch.model, versions.get(place, result.model_version))


def _learn(session: RecordedSession, asked: pb.ModelRef, version: int) -> None:
    if not session.model.name and asked.name:
        session.model = ModelId(asked.name, version, "")


def _fail(attempt: Attempt, answer: Frame) -> None:
    assert answer.kind == FAILURE, "bug: an answer that is neither reply nor failure"
    body = json.loads(answer.body)
    attempt.reason = body["reason"]
    attempt.expected_position = body.get("expected_position")


def _refuse(attempt: Attempt, status: status_pb2.Status) -> None:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    attempt.reason = info.reason or "UNKNOWN"
    position = info.metadata.get("expected_position")
    attempt.expected_position = None if position is None else int(position)


def _tokens(tokens: pb.Tokens) -> NDArray[Any]:
    kind = tokens.WhichOneof("kind")
    if kind == "text":
        return np.frombuffer(tokens.text, np.uint8).astype(np.int64)
    if kind == "ids":
        return np.array(tokens.ids.values, np.int64)
    return np.frombuffer(tokens.features.data, "<f4").reshape(tuple(tokens.features.shape))


def _generated(token: pb.GeneratedToken) -> NDArray[Any]:
    if token.HasField("features"):
        return np.frombuffer(token.features.data, "<f4").reshape(1, -1)
    if token.text:
        return np.frombuffer(token.text, np.uint8).astype(np.int64)
    return np.array([token.id], np.int64)


def _batch_tokens(batch: pb.Batch) -> NDArray[Any]:
    """Returns (B, T) or (B, T, width)."""
    rows, per_row = len(batch.session_ids), batch.tokens_per_row or 1
    kind = batch.WhichOneof("tokens")
    if kind == "text":
        return np.frombuffer(batch.text, np.uint8).astype(np.int64).reshape(rows, per_row)
    if kind == "ids":
        return np.array(batch.ids.values, np.int64).reshape(rows, per_row)
    return np.frombuffer(batch.features, "<f4").reshape(rows, per_row, -1)


def _outputs(outputs: pb.Outputs) -> Outputs:
    count = outputs.token_count
    shown = Outputs(count, tensors=to_arrays(outputs.tensors), state=to_arrays(outputs.state))
    if outputs.top_ids:  # one row, and not `count`, where the model ranks once a chunk
        width = outputs.top_k
        shown.top_ids = np.array(outputs.top_ids, np.int64).reshape(-1, width)
        shown.top_log_probs = np.array(outputs.top_log_probs, np.float32).reshape(-1, width)
    if outputs.token_log_probs:
        shown.token_log_probs = np.array(outputs.token_log_probs, np.float32)
    return shown


def _rows_of(result: pb.BatchResult, row_count: int) -> list[Outputs]:
    """Cuts the outputs of a batch into those of each row."""
    whole = _outputs(result.outputs)

    def part(array: NDArray[Any] | None, row: int) -> Any:
        if array is None:
            return None
        size = len(array) // row_count
        return array[row * size : (row + 1) * size]

    rows = [
        Outputs(
            whole.token_count // row_count,
            part(whole.top_ids, row),
            part(whole.top_log_probs, row),
            part(whole.token_log_probs, row),
            {name: part(array, row) for name, array in whole.tensors.items()},
        )
        for row in range(row_count)
    ]
    for separate in result.separate_rows:
        rows[separate.row] = _outputs(separate.outputs)
    return rows

"""What a client sends and gets: as a history for `holdfast verify`, for the transcript, and as answers."""

from typing import NamedTuple

import numpy as np

from holdfast.client.history import Recorder
from holdfast.v1 import holdfast_pb2 as pb


class Answer(NamedTuple):
    """What was said of one chunk.

    Attributes:
        sent_s, heard_s: When the chunk was sent, and when this came.
        session_id: Whose chunk it was.
        tokens: Of the chunk.
        position, digest, incarnation: Where it was meant to go; None and 0 are anywhere.
        stamp: Incarnation, position and digest after it.
        is_replicated: It says that this survives a fail-over.
    """

    sent_s: float
    heard_s: float
    session_id: str
    tokens: np.ndarray
    position: int | None
    digest: int
    incarnation: int
    stamp: tuple[int, int, int]
    is_replicated: bool


class NotedRecorder(Recorder):
    """Records, and notes what is sent and got.

    Args:
        path: Of the history.
        note: Writes a line of the transcript: what, session, more.
        answers: Gets every answer.
        loop: Tells the time.
    """

    def __init__(self, path, note, answers, loop):
        super().__init__(path)
        self._note = note
        self._answers = answers
        self._loop = loop
        self._asked = {}

    def sent(self, rpc, request):
        number = super().sent(rpc, request)
        self._asked[number] = rpc, request, self._loop.now_s
        self._note("sends", *_described(rpc, request))
        return number

    def got(self, number, reply):
        super().got(number, reply)
        rpc, request, sent_s = self._asked.get(number, ("", None, 0.0))
        if rpc not in ("StreamBatches", "Generate"):  # whose replies come in parts
            self._asked.pop(number, None)
        session_id, what = _described(rpc, request)
        if isinstance(reply, pb.OpenSessionResponse | pb.GetSessionResponse):
            what += f": at {reply.session.position}, incarnation {reply.session.incarnation}"
        elif rpc == "Generate":
            what += f": {str(reply).split()}"
        elif hasattr(reply, "result"):
            answers = list(self._read(request, reply.result, sent_s))
            self._answers += answers
            what += f": at {[answer.stamp[1] for answer in answers]}"
            if getattr(reply.result, "replayed", False) or getattr(reply.result, "replayed_rows", ()):
                what += " again"
        self._note("got", session_id, what)

    def failed(self, number, error):
        super().failed(number, error)
        session_id, what = _described(*self._asked.pop(number, ("", None))[:2])
        reason = getattr(error, "reason", "") or type(error).__name__
        self._note("failed", session_id, f"{what}: {reason}")

    def _read(self, request, result, sent_s):
        now_s, is_replicated = self._loop.now_s, result.ack_level == pb.ACK_LEVEL_REPLICATED
        if isinstance(result, pb.ChunkResult):
            chunk = request.chunk
            yield Answer(
                sent_s,
                now_s,
                chunk.session_id,
                _tokens(chunk.tokens),
                chunk.position if chunk.HasField("position") else None,
                chunk.history_digest,
                chunk.incarnation,
                (result.incarnation, result.position, result.history_digest),
                is_replicated,
            )
            return
        rows = request.batch
        tokens = np.array(rows.ids.values, np.int64).reshape(len(rows.session_ids), -1)
        failed = {error.row for error in result.errors}
        for place, row in enumerate(result.rows or range(len(rows.session_ids))):
            if place not in failed:
                yield Answer(
                    sent_s,
                    now_s,
                    rows.session_ids[row],
                    tokens[row],
                    rows.positions[row] if rows.positions else None,
                    rows.history_digests[row] if rows.history_digests else 0,
                    rows.incarnations[row] if rows.incarnations else 0,
                    (result.incarnations[place], result.positions[place], result.history_digests[place]),
                    is_replicated,
                )


def _tokens(tokens):
    if tokens.WhichOneof("kind") == "text":
        return np.frombuffer(tokens.text, np.uint8).astype(np.int64)
    return np.array(tokens.ids.values, np.int64)


def _described(rpc, request):
    """Returns the session of a request and what it asks, in words."""
    if rpc in ("Step", "StreamSteps"):
        chunk = request.chunk
        what = (
            f"{rpc} {_tokens(chunk.tokens).tolist()} at {chunk.position}, incarnation {chunk.incarnation}"
        )
        return chunk.session_id.encode(), what
    if rpc in ("StepBatch", "StreamBatches"):
        return b"", f"{rpc} of {list(request.batch.session_ids)} at {list(request.batch.positions)}"
    session_id = getattr(request, "session_id", "").encode()
    return session_id, f"{rpc}{', taking over' if getattr(request, 'take_over', False) else ''}"

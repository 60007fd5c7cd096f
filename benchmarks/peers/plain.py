"""What a careful user would write: unary calls, whose states are fetched, advanced and stored together.

Calls that arrive while others are served wait, and form the next group: one MGET, one run of all rows, one
pipeline of SETs with their expiry. redis-py's asyncio client with hiredis, uvloop, the settings of gRPC and
collector that Holdfast has. Same model, same store, same contract.

It keeps no position, so it is not exactly once: a retry applies its token again, and of two writers of a
session on two servers one overwrites the other.
"""

import asyncio
import sys
from pathlib import Path

import grpc
import numpy as np
import redis.asyncio
from numpy.typing import NDArray

from benchmarks.graphs import open_graph
from benchmarks.serving import run
from holdfast.v1 import holdfast_pb2 as pb
from model_export.contract import SWITCH
from service.engine.ranking import top_candidates

_TOP_K = 5
_TTL_S = 86_400
_MOST_ROWS = 256
"""Of a group: above it a run costs as much per row, and all wait longer."""

_Waiting = tuple[pb.Chunk, "asyncio.Future[pb.StepResponse]"]


class Plain:
    """Serves Step.

    Args:
        model: The ONNX file.
        store: URL of the store.
    """

    def __init__(self, model: Path, store: str) -> None:
        self._session = open_graph(model)
        self._hidden = self._session.get_inputs()[1].shape[1]
        self._redis = redis.asyncio.Redis.from_url(store)
        self._waiting: list[_Waiting] = []
        self._serving: asyncio.Task[None] | None = None

    async def step(self, request: pb.StepRequest, _: object) -> pb.StepResponse:
        """Takes one token."""
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append((request.chunk, reply))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await reply

    async def _serve(self) -> None:
        """Serves group after group until nobody waits."""
        while group := self._next_group():
            try:
                replies = await self._answer([chunk for chunk, _ in group])
            except Exception as error:  # noqa: BLE001 -- told to all whose calls these were
                for _, reply in group:
                    if not reply.done():
                        reply.set_exception(error)
            else:
                for (_, reply), answer in zip(group, replies, strict=True):
                    if not reply.done():
                        reply.set_result(answer)
        self._serving = None

    def _next_group(self) -> list[_Waiting]:
        """Takes the calls that wait, each session at most once."""
        group: dict[str, _Waiting] = {}
        later: list[_Waiting] = []
        for waiting in self._waiting:
            session_id = waiting[0].session_id
            if session_id in group or len(group) == _MOST_ROWS:
                later.append(waiting)
            else:
                group[session_id] = waiting
        self._waiting = later
        return list(group.values())

    async def _answer(self, chunks: list[pb.Chunk]) -> list[pb.StepResponse]:
        keys = [f"plain:{chunk.session_id}" for chunk in chunks]
        before = self._states(await self._redis.mget(keys))
        tokens = np.array([[chunk.tokens.text[0] for chunk in chunks]], np.int64)
        feed = {"token": tokens, "h": before, SWITCH: np.array(False)}
        logits, after = self._session.run(["logits", "h_next"], feed)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, state in zip(keys, after, strict=True):
                pipeline.set(key, state.tobytes(), ex=_TTL_S)
            await pipeline.execute()
        ids, log_probs = top_candidates(logits[0], _TOP_K)
        return [
            pb.StepResponse(
                result=pb.ChunkResult(
                    session_id=chunk.session_id,
                    outputs=pb.Outputs(
                        token_count=1, top_k=_TOP_K, top_ids=best, top_log_probs=log_probs_of_best
                    ),
                )
            )
            for chunk, best, log_probs_of_best in zip(chunks, ids.tolist(), log_probs.tolist(), strict=True)
        ]

    def _states(self, stored: list[bytes | None]) -> NDArray[np.float32]:
        """Returns the states (rows, hidden); a session that is not stored begins at zeros."""
        zeros = bytes(4 * self._hidden)
        joined = b"".join(state or zeros for state in stored)
        return np.frombuffer(joined, np.float32).reshape(len(stored), self._hidden)


if __name__ == "__main__":
    handler = grpc.unary_unary_rpc_method_handler(
        Plain(Path(sys.argv[1]), sys.argv[2]).step,
        request_deserializer=pb.StepRequest.FromString,
        response_serializer=pb.StepResponse.SerializeToString,
    )
    run({"Step": handler})

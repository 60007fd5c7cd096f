"""What one would write first: unary calls, and per token one GET, one run of one row, one SET.

Same model, same store, same contract, redis-py's asyncio client with its pool. It keeps no position, so it
is not exactly once: a retry applies its token again.
"""

import sys
from pathlib import Path

import grpc
import numpy as np
import redis.asyncio

from benchmarks.graphs import open_graph
from benchmarks.serving import run
from holdfast.v1 import holdfast_pb2 as pb
from model_export.contract import SWITCH
from service.engine.ranking import top_candidates

_TOP_K = 5
_MOST_CONNECTIONS = 1024
"""Above the callers; the pool refuses calls beyond its limit, 100 by default."""


class Plain:
    """Serves Step.

    Args:
        model: The ONNX file.
        store: URL of the store.
    """

    def __init__(self, model: Path, store: str) -> None:
        self._session = open_graph(model)
        self._hidden = self._session.get_inputs()[1].shape[1]
        self._redis = redis.asyncio.Redis.from_url(store, max_connections=_MOST_CONNECTIONS)

    async def step(self, request: pb.StepRequest, _: object) -> pb.StepResponse:
        """Takes one token."""
        chunk = request.chunk
        key = f"plain:{chunk.session_id}"
        stored = await self._redis.get(key)
        h = np.frombuffer(stored, np.float32) if stored else np.zeros(self._hidden, np.float32)
        token = np.array([[chunk.tokens.text[0]]], np.int64)
        feed = {"token": token, "h": h[np.newaxis], SWITCH: np.array(False)}
        logits, next_h = self._session.run(["logits", "h_next"], feed)
        await self._redis.set(key, next_h.tobytes(), ex=86_400)
        ids, log_probs = top_candidates(logits[0], _TOP_K)
        outputs = pb.Outputs(
            token_count=1, top_k=_TOP_K, top_ids=ids[0].tolist(), top_log_probs=log_probs[0].tolist()
        )
        return pb.StepResponse(result=pb.ChunkResult(session_id=chunk.session_id, outputs=outputs))


if __name__ == "__main__":
    handler = grpc.unary_unary_rpc_method_handler(
        Plain(Path(sys.argv[1]), sys.argv[2]).step,
        request_deserializer=pb.StepRequest.FromString,
        response_serializer=pb.StepResponse.SerializeToString,
    )
    run({"Step": handler})

"""The ceiling: a grpc.aio server that answers every message with bytes made before, and keeps nothing."""

from functools import cache

import grpc
import grpc.aio

from benchmarks.serving import run
from holdfast.v1 import holdfast_pb2 as pb

_TOP_K = 5
_INCARNATION = _DIGEST = 1 << 52


def _outputs(token_count: int) -> pb.Outputs:
    return pb.Outputs(
        token_count=token_count,
        top_k=_TOP_K,
        top_ids=[97] * (token_count * _TOP_K),
        top_log_probs=[-1.0] * (token_count * _TOP_K),
    )


_RESULT = pb.ChunkResult(
    session_id="session", incarnation=_INCARNATION, position=1, outputs=_outputs(1), history_digest=_DIGEST
)
_REPLY = pb.StreamStepsResponse(result=_RESULT).SerializeToString()
"""The same bytes are a StepResponse."""


@cache
def _batch_reply(rows: int, tokens_per_row: int) -> bytes:
    """Returns a reply as large as Holdfast's."""
    result = pb.BatchResult(
        positions=[1] * rows,
        incarnations=[_INCARNATION] * rows,
        history_digests=[_DIGEST] * rows,
        outputs=_outputs(rows * tokens_per_row),
    )
    return pb.StreamBatchesResponse(result=result).SerializeToString()


async def _step(_: object, __: grpc.aio.ServicerContext) -> bytes:
    return _REPLY


async def _stream_steps(_: object, context: grpc.aio.ServicerContext) -> None:
    while await context.read() is not grpc.aio.EOF:
        await context.write(_REPLY)


async def _stream_batches(_: object, context: grpc.aio.ServicerContext) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        batch = request.batch
        await context.write(_batch_reply(len(batch.session_ids), batch.tokens_per_row))


if __name__ == "__main__":
    run(
        {
            "Step": grpc.unary_unary_rpc_method_handler(
                _step, request_deserializer=pb.StepRequest.FromString
            ),
            "StreamSteps": grpc.stream_stream_rpc_method_handler(
                _stream_steps, request_deserializer=pb.StreamStepsRequest.FromString
            ),
            "StreamBatches": grpc.stream_stream_rpc_method_handler(
                _stream_batches, request_deserializer=pb.StreamBatchesRequest.FromString
            ),
        }
    )

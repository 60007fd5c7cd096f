"""The ceiling: a grpc.aio server that answers every chunk with the same bytes and keeps nothing."""

import asyncio

import grpc
import grpc.aio

from benchmarks.serving import serve
from holdfast.v1 import holdfast_pb2 as pb

_OUTPUTS = pb.Outputs(token_count=1, top_k=5, top_ids=range(5), top_log_probs=[-1.0] * 5)
_RESULT = pb.ChunkResult(session_id="x", incarnation=1 << 62, position=1, outputs=_OUTPUTS)
_REPLY = pb.StreamStepsResponse(result=_RESULT).SerializeToString()
"""Serialised once; the same bytes are a StepResponse."""


async def _echo_stream(_: object, context: grpc.aio.ServicerContext) -> None:
    while await context.read() is not grpc.aio.EOF:
        await context.write(_REPLY)


async def _echo_step(_: object, __: grpc.aio.ServicerContext) -> bytes:
    return _REPLY


HANDLERS = {
    "StreamSteps": grpc.stream_stream_rpc_method_handler(
        _echo_stream, request_deserializer=pb.StreamStepsRequest.FromString
    ),
    "Step": grpc.unary_unary_rpc_method_handler(_echo_step, request_deserializer=pb.StepRequest.FromString),
}

if __name__ == "__main__":
    asyncio.run(serve(HANDLERS))

"""The ceiling: a grpc.aio server that answers every chunk with the same bytes and keeps nothing."""

import asyncio
import sys

import grpc
import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb

SERVICE = "holdfast.v1.StreamingInferenceService"


_OUTPUTS = pb.Outputs(token_count=1, top_k=5, top_ids=range(5), top_log_probs=[-1.0] * 5)
_RESULT = pb.ChunkResult(session_id="x", incarnation=1 << 62, position=1, outputs=_OUTPUTS)
_REPLY = pb.StreamStepsResponse(result=_RESULT).SerializeToString()
"""Serialised once; the same bytes are a StepResponse."""


async def _echo_stream(_: object, context: grpc.aio.ServicerContext) -> None:
    while await context.read() is not grpc.aio.EOF:
        await context.write(_REPLY)


async def _echo_step(_: object, __: grpc.aio.ServicerContext) -> bytes:
    return _REPLY


async def main() -> None:
    """Serves on a free port, printed, until the process is ended."""
    server = grpc.aio.server()
    handlers = {
        "StreamSteps": grpc.stream_stream_rpc_method_handler(
            _echo_stream, request_deserializer=pb.StreamStepsRequest.FromString
        ),
        "Step": grpc.unary_unary_rpc_method_handler(
            _echo_step, request_deserializer=pb.StepRequest.FromString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port} http=none", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""The ceiling: a grpc.aio server that answers every chunk with the same bytes and keeps nothing."""

import asyncio
import sys

import grpc
import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb

SERVICE = "holdfast.v1.StreamingInferenceService"


async def _echo(_: object, context: grpc.aio.ServicerContext) -> None:
    outputs = pb.Outputs(token_count=1, top_k=5, top_ids=range(5), top_log_probs=[-1.0] * 5)
    result = pb.ChunkResult(session_id="x", incarnation=1 << 62, position=1, outputs=outputs)
    reply = pb.StreamStepsResponse(result=result).SerializeToString()
    while await context.read() is not grpc.aio.EOF:
        await context.write(reply)


async def main() -> None:
    """Serves on a free port, printed, until the process is ended."""
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        _echo, request_deserializer=pb.StreamStepsRequest.FromString
    )
    handlers = grpc.method_handlers_generic_handler(SERVICE, {"StreamSteps": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port} http=none", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

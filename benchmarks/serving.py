"""Serves a few rpcs of the contract by hand-written handlers, for contestants that are not Holdfast."""

import grpc
import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb

_SERVICE: str = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].full_name


async def serve(handlers: dict[str, grpc.RpcMethodHandler]) -> None:
    """Serves on a free port, printed as `holdfast serve` prints it, until the process is ended.

    Args:
        handlers: By name of the rpc.
    """
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port} http=none", flush=True)
    await server.wait_for_termination()

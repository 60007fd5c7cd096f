"""Serves a few rpcs of the contract by hand-written handlers, for contestants that are not Holdfast.

On the loop that Holdfast uses, with its settings of gRPC, and with the garbage collector kept back in the
same way: all lower what an echo costs (streams from 81 to 45 us), so the ceiling is as high as it gets.
"""

import asyncio

import grpc
import grpc.aio
import uvloop

from holdfast.v1 import holdfast_pb2 as pb
from service.common.collector import relieve_collector

_SERVICE: str = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].full_name


def run(handlers: dict[str, grpc.RpcMethodHandler]) -> None:
    """Serves on a free port, printed as `holdfast serve` prints it, until the process is ended.

    Opening sessions succeeds and does nothing: a load asks for it before it is measured, and none of these
    contestants needs it.

    Args:
        handlers: By name of the rpc; OpenBatch is added.
    """
    handlers = {**handlers, "OpenBatch": grpc.unary_unary_rpc_method_handler(_open_batch)}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(handlers))


async def _open_batch(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
    return pb.OpenBatchResponse().SerializeToString()


async def _serve(handlers: dict[str, grpc.RpcMethodHandler]) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    relieve_collector()
    print(f"ready grpc=127.0.0.1:{port} http=none", flush=True)
    await server.wait_for_termination()

"""The server of grpc.aio, kept safe from what a stranger writes into the head of a call.

grpc.aio decodes the path of a call as UTF-8 in the loop that takes calls. A path that is not UTF-8 ends the
loop, and with it the server: one request of anybody. The path of a registered method is known without being
decoded, so every method is registered here, and any other is refused without a look at its name. The calls
of each method are taken by a loop of its own: one loop for all would pay for all of them with each call.

grpc.aio also logs metadata that is not UTF-8, tokens included, with a trace. That line is left out.

Both need names that grpcio keeps to itself (1.85). If one is missing, this file cannot be imported.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from grpc._cython import cygrpc
from grpc._cython.cygrpc import AioServer, _handle_rpc, _schedule_rpc_coro
from grpc.aio._server import Server, _augment_channel_arguments

from service.rpc.ending import Endings
from service.rpc.gate import Gate

_WRONG_ENCODING = "Invalid encoding on %s"

logging.getLogger(cygrpc.__name__).addFilter(lambda record: record.msg != _WRONG_ENCODING)


class GrpcServer(Server):
    """A server of grpc.aio that answers registered methods only.

    Args:
        options: Channel arguments.
        gate: Has the handlers.
    """

    def __init__(self, options: Sequence[tuple[str, Any]], gate: Gate) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Server(self._loop, _augment_channel_arguments(options, None), gate)
        nothing: Any = None  # no handler of a method's own: the gate is asked for that of each call
        for service, names in gate.services.items():
            self.add_registered_method_handlers(service, dict.fromkeys(names, nothing))

    def give_up_unread(self, now_s: float) -> None:
        """Ends calls that should be over by this monotonic time."""
        self._server.endings.give_up_unread(now_s)


class _Server(AioServer):  # type: ignore[misc]  # it has no types
    """Takes calls in loops of its own; everything else is grpc.aio's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Any, gate: Gate) -> None:
        self._gate = gate
        self._own_loop = loop
        self.endings = Endings()
        super().__init__(loop, None, (), (), options, None)

    async def _request_registered_call(self, method: bytes) -> NoReturn:
        while True:
            self._begin(method.decode(), await super()._request_registered_call(method))

    async def _request_call(self) -> NoReturn:
        """Takes the calls of methods that are not registered; "" has no handler, so they are refused."""
        while True:
            self._begin("", await super()._request_call())

    def _begin(self, method: str, state: Any) -> None:
        call = _handle_rpc(method, self._gate, (), state, self._own_loop, False)
        self.endings.begin(self._own_loop, _schedule_rpc_coro(call, state, self._own_loop, method))

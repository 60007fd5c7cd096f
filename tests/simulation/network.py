"""Calls between clients and replicas, in place of gRPC: both sides see what grpc.aio would show them.

Messages of a call come in order, some time after they were sent. A call that is cut fails at both sides,
each of which learns of it in its own time. gRPC repeats no message, so nothing here does.
"""

import asyncio
from collections import deque

import grpc
import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb

DELAY_S = 0.0005

_METHODS = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"].methods_by_name


def _reply_type(rpc):
    return getattr(pb, _METHODS[rpc].output_type.name)


class Line:
    """A queue that one task reads."""

    def __init__(self):
        self._items = deque()
        self._reader = None

    def put(self, item):
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self):
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._items.popleft()


class Call:
    """A call, with the two sides of it.

    Args:
        network: Carries it.
        replica: Serves it.
        client: The process that calls.
        rpc: Its name.
        timeout_s: The client gives up after so long; None is never.
    """

    def __init__(self, network, replica, client, rpc, timeout_s=None):
        self.rpc = rpc
        self.replica = replica
        self.client = client
        self.status = None  # of the client's side: code, details, trailers
        self.replies = Line()
        self.ended = network.loop.create_future()
        self._network = network
        self._loop = network.loop
        self._process = replica.process  # one that takes its place knows nothing of this call
        self._there_s = self._back_s = 0.0
        self._served = None
        self._task = None
        self._ending = None
        self._deadline_s = None if timeout_s is None else self._loop.now_s + timeout_s
        if timeout_s is not None:
            late = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ()
            self._loop.call_later(timeout_s, self.give_up, late)
        network.calls[self] = None
        self._to_server(self._begin)

    # -- the client's side ------------------------------------------------------------------------

    def now_s(self):
        return self._loop.now_s

    def send(self, message):
        """Sends a message, serialised; None is the end of all messages."""
        self._to_server(self._receive, grpc.aio.EOF if message is None else message)

    def end(self, status):
        """Ends the client's side with a status."""
        if self.status is None:
            self.status = status
            self._network.calls.pop(self, None)
            self.replies.put(None)
            self.ended.set_result(None)

    def give_up(self, status):
        """Ends the client's side, and has the server told."""
        if self.status is None:
            self.end(status)
            self._to_server(self._reset)

    def cut(self):
        """Breaks it off on the way: both sides learn of it."""
        self._network.calls.pop(self, None)
        gone = grpc.StatusCode.UNAVAILABLE, "Socket closed", ()
        self._to_client(self.end, gone)
        self._to_server(self._reset)

    # -- the server's side, as the context of a handler ----------------------------------------------

    async def read(self):
        return await self._served.get()

    async def write(self, raw):
        self._to_client(self.replies.put, raw)

    async def abort(self, code, details="", trailers=()):
        self._ending = code, details, trailers
        raise grpc.aio.AbortError

    def code(self):
        return 0 if self._ending is None else self._ending[0]

    def time_remaining(self):
        return None if self._deadline_s is None else self._deadline_s - self._loop.now_s

    def invocation_metadata(self):
        return ()

    async def _serve(self, handler):
        serve = handler.stream_stream or handler.stream_unary
        try:
            reply = await serve(None, self)
        except grpc.aio.AbortError:
            self._to_client(self.end, self._ending)
            return
        if reply is not None:
            await self.write(reply)
        self._to_client(self.end, (grpc.StatusCode.OK, "", ()))

    def _begin(self):
        is_there = self._process is self.replica.process
        handler = self.replica.handlers.get(self.rpc) if is_there else None
        if handler is None:
            self._to_client(self.end, (grpc.StatusCode.UNAVAILABLE, "Connection refused", ()))
            return
        self._served = Line()
        self._task = asyncio.get_running_loop().create_task(self._serve(handler), name=self.rpc)

    def _receive(self, message):
        if self._served is not None:
            self._served.put(message)

    def _reset(self):
        if self._task is not None:
            self._task.cancel()

    # -- the way ------------------------------------------------------------------------------------

    def _to_server(self, act, *arguments):
        self._there_s = max(self._there_s, self._network.arrives_s())
        if self._process.is_alive:
            self._loop.call_at(self._there_s, act, *arguments, context=self._process.context)
        else:
            refused = grpc.StatusCode.UNAVAILABLE, "Connection refused", ()
            self._loop.call_at(self._there_s, self.end, refused, context=self.client.context)

    def _to_client(self, act, *arguments):
        self._back_s = max(self._back_s, self._network.arrives_s())
        self._loop.call_at(self._back_s, act, *arguments, context=self.client.context)


class Network:
    """Carries calls.

    Attributes:
        calls: Under way.
    """

    def __init__(self, loop):
        self.loop = loop
        self.calls = {}

    def arrives_s(self):
        """Draws when a message arrives that is sent now."""
        return self.loop.now_s + self.loop.random.expovariate(1 / DELAY_S)

    def cut(self, is_meant):
        """Breaks off the calls that are meant."""
        for call in [call for call in self.calls if is_meant(call)]:
            call.cut()


class Stub:
    """What a client calls a replica by: as `holdfast.client.connection.Connection`."""

    def __init__(self, network, replica, client):
        self._network = network
        self._replica = replica
        self._client = client

    def __getattr__(self, rpc):
        if rpc not in _METHODS:
            raise AttributeError(rpc)
        return lambda metadata: Stream(self._begun(rpc))

    def current(self):
        return self

    def emission(self, rpc, request, *, metadata):
        call = self._begun(rpc)
        call.send(request.SerializeToString())
        call.send(None)
        return Stream(call)

    async def unary(self, rpc, request, *, timeout, metadata):
        call = self._begun(rpc, timeout)
        call.send(request.SerializeToString())
        call.send(None)
        try:
            raw = await call.replies.get()
            await asyncio.shield(call.ended)
        except asyncio.CancelledError:
            call.give_up((grpc.StatusCode.CANCELLED, "Locally cancelled", ()))
            raise
        if raw is None or call.status[0] is not grpc.StatusCode.OK:
            raise _error(call.status)
        return _reply_type(rpc).FromString(raw)

    def _begun(self, rpc, timeout_s=None):
        return Call(self._network, self._replica, self._client, rpc, timeout_s)


class Stream:
    """A call with streams both ways: as `holdfast.client.connection.Stream`."""

    def __init__(self, call):
        self._call = call
        self._is_cancelled = False
        self.since_s = call.now_s()

    @property
    def is_over(self):
        return self._call.status is not None

    async def write(self, request):
        status = self._call.status
        if status is not None:
            if status[0] is grpc.StatusCode.OK:
                raise asyncio.InvalidStateError("the call has ended")
            raise _error(status)
        self._call.send(request.SerializeToString())
        await asyncio.sleep(0)

    async def read(self):
        raw = await self._call.replies.get()
        if raw is not None:
            self.since_s = self._call.now_s()
            return _reply_type(self._call.rpc).FromString(raw)
        self._call.replies.put(None)
        if self._is_cancelled:
            raise asyncio.CancelledError
        if self._call.status[0] is not grpc.StatusCode.OK:
            raise _error(self._call.status)
        return grpc.aio.EOF

    async def done_writing(self):
        self._call.send(None)

    async def code(self):
        await asyncio.shield(self._call.ended)
        return self._call.status[0]

    def cancel(self):
        self._is_cancelled = self._call.status is None
        self._call.give_up((grpc.StatusCode.CANCELLED, "Locally cancelled", ()))


def _error(status):
    code, details, trailers = status
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)

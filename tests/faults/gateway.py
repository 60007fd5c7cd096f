"""A gateway between clients and a server that loses, delays and doubles what it forwards, by a case's dice.

It forwards every rpc byte for byte over real sockets and knows no message: only the id of a session, which
it finds by its look, so that each case has dice of its own. The same seed gives a case the same faults,
call by call; which call comes when is up to the processes. A message with chunks of several cases has the
faults of its first one, unless one of them is to be left alone.
"""

import asyncio
import random
import re
import threading
from collections import Counter, defaultdict, deque

import grpc
import grpc.aio

NAME = re.compile(rb"case-(\d+)\.")
"""What the id of a case's session looks like."""

CALL_FAULTS = {
    "refused": 5,  # not forwarded
    "reply lost": 6,
    "never answered": 3,  # forwarded
    "never forwarded": 2,  # nor answered
    "answered late": 4,  # after the caller's attempt
    "forwarded late": 7,  # refused, and delivered a moment later
    "forwarded twice": 6,
    "forwarded twice, once late": 4,
    "stood still": 4,  # for a moment
}
MESSAGE_FAULTS = {
    "message cut": 3,  # the stream ends, the message is not forwarded
    "message forwarded, then cut": 3,
    "messages forwarded late": 7,  # the stream ends; this one and those after it arrive a moment later
    "message forwarded twice": 4,
    "message stood still": 4,
}
REPLY_FAULTS = {
    "reply cut": 3,  # the stream ends instead of it
    "reply passed, then cut": 3,
    "reply swallowed": 2,  # and all after it; the stream stays
    "reply late": 4,
}
RATES = (0.35, 0.22, 0.14)
"""Share of calls, messages and replies that something happens to, in a case of full malice."""

LATE_S = (0.002, 0.25)
STILL_S = (0.001, 0.05)
HELD_S = 0.05


class Cut(Exception):
    """The stream ends here."""


class Dice:
    """Draws the faults of one case."""

    def __init__(self, seed, case):
        self._rng = random.Random(f"{seed} faults {case}")
        self._malice = self._rng.choice((0.3, 1, 1, 1.5))

    def draw(self, table, rate):
        """Returns the name of a fault, or None."""
        what = self._rng.choices(list(table), list(table.values()))[0]
        return what if self._rng.random() < rate * self._malice else None

    def late_s(self, bounds=LATE_S):
        """Returns how long something takes that takes its time."""
        return self._rng.uniform(*bounds)


class Gateway:
    """Forwards until its `with` block ends, on an event loop in a thread of its own.

    Args:
        upstream: HOST:PORT of the server.
        seed: Of all dice.

    Attributes:
        address: HOST:PORT.
        counts: Faults, by name.
    """

    def __init__(self, upstream, seed):
        self._upstream = upstream
        self._seed = seed
        self._dice = {}
        self._calm = set()
        self._under_way = defaultdict(set)  # tasks by case
        self.counts = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(20)

    async def calm_down(self, case):
        """Does nothing to a case any more; returns when all that was delayed has arrived."""
        self._calm.add(case)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._settled(case), self._loop))

    async def _settled(self, case):
        while tasks := self._under_way[case]:
            await asyncio.wait(set(tasks))
        del self._under_way[case]
        self._dice.pop(case, None)

    async def _serve(self):
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._channel = grpc.aio.insecure_channel(self._upstream)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([_Handler(self)])
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._ready.set()
        await self._stopping.wait()
        await server.stop(0)
        await self._channel.close()

    def draw(self, case, table, rate):
        """Returns the fault that a case has next, or None."""
        if case is None or case in self._calm:
            return None
        if case not in self._dice:
            self._dice[case] = Dice(self._seed, case)
        what = self._dice[case].draw(table, rate)
        if what is not None:
            self.counts[what] += 1
        return what

    def late_s(self, case, bounds=LATE_S):
        """Returns how long something of a case takes."""
        dice = self._dice.get(case)
        return dice.late_s(bounds) if dice is not None else bounds[0]

    def draw_for(self, cases, table, rate):
        """Returns the fault of a message with chunks of these cases, or None."""
        return None if self._calm & set(cases) else self.draw(next(iter(cases), None), table, rate)

    def start(self, cases, coroutine):
        """Runs something of these cases to its end, whoever gives it up."""
        task = asyncio.create_task(coroutine)
        for case in cases:
            self._under_way[case].add(task)
            task.add_done_callback(self._under_way[case].discard)
        task.add_done_callback(_retrieve)
        return task

    # -- calls --------------------------------------------------------------------------------

    async def call(self, method, request, context):
        """Handles a call with one request and one reply."""
        cases = cases_of(request)
        case = next(iter(cases), None)
        what = self.draw_for(cases, CALL_FAULTS, RATES[0])
        if what == "refused":
            await _refuse(context)
        if what == "never forwarded":
            await asyncio.Event().wait()
        if what == "forwarded late":
            self.start(cases, self._forward(method, request, self.late_s(case)))
            await _refuse(context)
        if what == "stood still":
            await asyncio.sleep(self.late_s(case, STILL_S))
        forwarded = self.start(cases, self._forward(method, request))
        if what == "forwarded twice":
            forwarded = self.start(cases, self._forward(method, request))
        if what == "forwarded twice, once late":
            self.start(cases, self._forward(method, request, self.late_s(case)))
        try:
            reply = await asyncio.shield(forwarded)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
        if what == "reply lost":
            await _refuse(context)
        if what == "never answered":
            await asyncio.Event().wait()
        if what == "answered late":
            await asyncio.sleep(self.late_s(case))
        return reply

    async def _forward(self, method, request, after_s=0.0):
        await asyncio.sleep(after_s)
        return await self._channel.unary_unary(method)(request, timeout=20)

    async def stream(self, method, requests, context):
        """Handles a call with many requests and replies."""
        answers_in_order = not method.endswith("Batches")
        await _Stream(self, self._channel.stream_stream(method), context, answers_in_order).run(requests)


class _Stream:
    """One stream through the gateway.

    Args:
        gateway: Whose dice it uses.
        method: Calls the server.
        context: Of the client's call.
        answers_in_order: Each message has one reply, so those to second copies can be told; else they pass.
    """

    def __init__(self, gateway, method, context, answers_in_order):
        self._gateway = gateway
        self._method = method
        self._context = context
        self._answers_in_order = answers_in_order
        self._cases = {}  # of its messages; an ordered set
        self._call = method(timeout=60)
        self._is_extra = deque()  # of every reply to come: whether it answers a second copy
        self._is_over = False

    async def run(self, requests):
        """Forwards both ways until either ends."""
        up, down = asyncio.create_task(self._up(requests)), asyncio.create_task(self._down())
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if up.done() and up.exception() is None:
                await asyncio.wait((down,))  # the client has said all it has to say
            for one in (up, down):
                if one.done() and isinstance(one.exception(), Cut):
                    await _refuse(self._context)
                if one.done() and not isinstance(one.exception(), (grpc.aio.AioRpcError, type(None))):
                    raise one.exception()
            code = await self._call.code()
            if code != grpc.StatusCode.OK:
                trailers = tuple(await self._call.trailing_metadata())
                await self._context.abort(code, await self._call.details(), trailers)
        finally:
            up.cancel()
            up.add_done_callback(_retrieve)
            self._is_over = True
            self._gateway.start(self._cases, self._see_out(down))

    @property
    def _first(self):
        return next(iter(self._cases), None)

    async def _up(self, requests):
        async for request in requests:
            cases = cases_of(request)
            self._cases |= cases
            what = self._gateway.draw_for(cases, MESSAGE_FAULTS, RATES[1])
            if what == "message cut":
                raise Cut
            if what == "messages forwarded late":
                await self._hold(request, requests)
                raise Cut
            if what == "message stood still":
                await asyncio.sleep(self._gateway.late_s(self._first, STILL_S))
            for copy in range(1 + (what == "message forwarded twice")):
                self._is_extra.append(copy > 0)
                try:
                    await self._call.write(request)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # how it ended is what reading tells
            if what == "message forwarded, then cut":
                raise Cut
        await self._call.done_writing()

    async def _down(self):
        while (reply := await self._call.read()) is not grpc.aio.EOF:
            is_extra = self._answers_in_order and self._is_extra.popleft()
            if is_extra or self._is_over:
                continue
            what = self._gateway.draw_for(cases_of(reply) or self._cases, REPLY_FAULTS, RATES[2])
            if what == "reply cut":
                raise Cut
            if what == "reply swallowed":
                await asyncio.Event().wait()
            if what == "reply late":
                await asyncio.sleep(self._gateway.late_s(self._first))
            await self._context.write(reply)
            if what == "reply passed, then cut":
                raise Cut

    async def _see_out(self, down):
        """Ends the call a moment after the client has: what was forwarded may still arrive."""
        await asyncio.sleep(self._gateway.late_s(self._first, STILL_S))
        down.cancel()
        down.add_done_callback(_retrieve)
        self._call.cancel()

    async def _hold(self, request, requests):
        """Holds a message back, and those behind it; they arrive, even if the client has hung up."""
        held = [request]
        try:
            async with asyncio.timeout(HELD_S):
                async for following in requests:
                    held.append(following)  # noqa: PERF401 -- kept when time is up
        except TimeoutError:
            pass
        finally:
            cases = {case: None for message in held for case in cases_of(message)}
            self._gateway.start(cases, self._deliver(held))

    async def _deliver(self, requests):
        """Delivers messages of a stream that has ended, on another one."""
        await asyncio.sleep(self._gateway.late_s(self._first))
        call = self._method(timeout=20)
        for request in requests:
            await call.write(request)
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, gateway):
        self._gateway = gateway

    def service(self, details):
        method = details.method

        async def call(request, context):
            return await self._gateway.call(method, request, context)

        async def stream(requests, context):
            await self._gateway.stream(method, requests, context)

        if method.rpartition("/")[2].startswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(call)


def cases_of(message):
    """Returns the numbers of the cases that a message belongs to, as the keys of a dict, in order."""
    return {int(number): None for number in NAME.findall(message)}


async def _refuse(context):
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway has cut this off")


def _retrieve(task):
    if not task.cancelled():
        task.exception()

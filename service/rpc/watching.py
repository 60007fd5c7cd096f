"""WatchSession: what others do with a session, as it happens, at the pace of who watches."""

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from holdfast.errors import InvalidRequest
from holdfast.v1 import holdfast_pb2 as pb
from service.common.background import Wake
from service.engine.driver import Driver
from service.engine.sessions import Sessions
from service.model.protocol import Models
from service.rpc import codec
from service.rpc.call import Call
from service.rpc.emission import Emission
from service.rpc.follower import Ended, Follower
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import Functions
from service.rpc.watch_view import Runs, View
from service.rpc.watches import Watches
from service.store.store import Store
from service.telemetry.rpc_metrics import RpcMetrics

DEFAULT_RATE_HZ = 30.0
MAX_RATE_HZ = 1000.0


class Watching:
    """Serves the watches of this process, and has it tell those of others.

    Args:
        engine: Is given whom to tell what becomes of sessions, while somebody watches one.
        sessions: Reads sessions.
        models: The models served.
        calls: Knows the calls under way.
        store: Where sessions live.
        timeout_s: Longest wait for it.
    """

    def __init__(
        self,
        engine: Driver,
        sessions: Sessions,
        models: Models,
        calls: OpenCalls,
        store: Store,
        timeout_s: float,
    ) -> None:
        self._sessions = sessions
        self._models = models
        self._calls = calls
        on_any = functools.partial(setattr, engine, "watched")
        self._watches = Watches(store, timeout_s=timeout_s, on_any=on_any)
        self._runs = Runs()

    @property
    def turns(self) -> tuple[tuple[str, Callable[[], Awaitable[None]]], ...]:
        """What has to be kept going, by the names of `background.TASKS`."""
        return ("store_channels", self._watches.channels.turn), ("watches", self._watches.turn)

    def close(self) -> None:
        """Ends its thread, and tells others nothing any more."""
        self._watches.close()
        self._runs.close()

    def rpcs(self) -> Functions:
        """Returns the rpc by name."""
        return {"WatchSession": self.watch_session}

    async def watch_session(self, call: Call, metrics: RpcMetrics) -> None:
        """Serves one call."""
        produce = functools.partial(self._produce, call)
        await Emission(call, self._calls, metrics).serve(pb.WatchSessionRequest, produce)

    async def _produce(
        self, call: Call, request: pb.WatchSessionRequest
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        """Yields where the session stands, and then what becomes of it.

        Raises:
            InvalidRequest, SessionNotFound, SessionDeleted, ModelMismatch, RecordCorrupt: As named.
            StoreUnavailable: Nothing is heard of the session, for the channels of the store are closed.
        """
        call.session_id = request.session_id
        key = codec.key_of(call.caller.tenant, request.session_id)
        pause_s = 1 / _rate_hz(request.max_rate_hz)
        view, wakes = View(self._models, self._runs, request), Wake()
        follower = Follower(wakes.ring)
        with self._watches.following(key, follower, wants_state=view.wants_state):
            await self._watches.begin(key)
            session = await self._sessions.read(key)
            view.check(session.record)
            follower.looked(session.record, 0)
            next_s = 0.0
            while True:
                if self._watches.channels.trouble:
                    raise self._watches.channels.unavailable()
                if follower.needs_look:
                    await self._watches.look(key, follower)
                    continue
                if (wait_s := next_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                    continue
                if (shown := follower.take()) is None:
                    await wakes.wait()
                    continue
                next_s = time.monotonic() + pause_s
                yield await view.message(shown)
                if isinstance(shown.what, Ended):
                    return


def _rate_hz(asked: float) -> float:
    if math.isnan(asked) or not 0 <= asked <= MAX_RATE_HZ:
        raise InvalidRequest(
            f"max_rate_hz is {asked:g}, expected more than 0 and at most {MAX_RATE_HZ:g}, or 0 for the "
            f"default, {DEFAULT_RATE_HZ:g}",
            field="max_rate_hz",
        )
    return asked or DEFAULT_RATE_HZ

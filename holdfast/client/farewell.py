"""The end of a stream whose replies have all come."""

import asyncio
import contextlib
from typing import Any

import grpc.aio

from holdfast.errors import ClientClosed

FAREWELL_S = 1.0


async def say_farewell(call: Any) -> None:
    """Ends a stream in good form, so that its server does not count it as one that was broken off.

    How it ends is of no consequence: everything was answered.
    """
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, ClientClosed):
        async with asyncio.timeout(FAREWELL_S):
            await call.done_writing()
            await call.code()

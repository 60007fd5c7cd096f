"""Loads by the client library: what users of `holdfast.AsyncClient` and `holdfast.Client` see.

Each turn has a client of its own in the process of the load, and its sessions are opened before it begins.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from holdfast import AsyncClient, AsyncSession, Client, Session
from holdfast.bench.loads import DRAWS, ClosedLoop, OpenCall, Send, Took

_MODEL = "python-source"
_TOKENS = [bytes([ord("a") + number]) for number in range(DRAWS)]
_OPENINGS_UNDER_WAY = 64

AsyncSessions = Mapping[str, AsyncSession]


class Callers:
    """Tasks that share an AsyncClient, each with a session and one token under way.

    Args:
        name: Sets its sessions apart from those of other loads.
        caller_count: Tasks at once.
        open_call: `steps` or `streams`.
    """

    def __init__(self, name: str, caller_count: int, open_call: OpenCall) -> None:
        self._loop = ClosedLoop(name, caller_count, open_call)
        self._sessions: AsyncSessions = {}

    async def open(self, clients: Sequence[AsyncClient]) -> None:
        """Opens the sessions with the client of this turn, or resumes them."""
        places = asyncio.Semaphore(_OPENINGS_UNDER_WAY)

        async def opened(session_id: str) -> AsyncSession:
            async with places:
                return await clients[0].open_session(session_id, model=_MODEL)

        ids = self._loop.session_ids
        self._sessions = dict(zip(ids, await asyncio.gather(*map(opened, ids)), strict=True))

    async def run(self, _: Sequence[AsyncClient], seconds: float) -> Took:
        """Loads the server for a while; see `ClosedLoop.run`."""
        return await self._loop.run([self._sessions], seconds)


@asynccontextmanager
async def steps(sessions: AsyncSessions, session_ids: Sequence[str]) -> AsyncIterator[Send]:
    """A `session.step` per token."""
    session = sessions[session_ids[0]]

    async def send(position: int) -> None:
        await session.step(_TOKENS[position % DRAWS])

    yield send


@asynccontextmanager
async def streams(sessions: AsyncSessions, session_ids: Sequence[str]) -> AsyncIterator[Send]:
    """A `session.stream` per caller, which gives its next token when the last has its reply."""

    async def source() -> AsyncIterator[bytes]:
        for token in itertools.cycle(_TOKENS):
            yield token

    replies = sessions[session_ids[0]].stream(source())

    async def send(_: int) -> None:
        await anext(replies)

    yield send
    await replies.aclose()


@asynccontextmanager
async def by_threads(address: str) -> AsyncIterator[Client]:
    """Connects as a program without asyncio does."""
    with Client(address) as client:
        yield client


class Threads:
    """Threads that share a Client, each with a session and one token under way.

    Args:
        name: Sets its sessions apart from those of other loads.
        thread_count: Threads at once.
    """

    def __init__(self, name: str, thread_count: int) -> None:
        self._ids = [f"{name}-{number}" for number in range(thread_count)]
        self._sessions: list[Session] = []

    async def open(self, clients: Sequence[Client]) -> None:
        """Opens the sessions with the client of this turn, or resumes them; nothing else runs meanwhile."""
        self._sessions = [clients[0].open_session(session_id, model=_MODEL) for session_id in self._ids]

    async def run(self, _: Sequence[Client], seconds: float) -> Took:
        """Loads the server for a while.

        Raises:
            HoldfastError: Of the first thread that saw one.
        """
        return await asyncio.to_thread(self._run, seconds)

    def _run(self, seconds: float) -> Took:
        started_s = time.monotonic()
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            step_on = [pool.submit(_step_on, session, started_s + seconds) for session in self._sessions]
        latencies_s = [latency_s for thread in step_on for latency_s in thread.result()]
        return Took(len(latencies_s), time.monotonic() - started_s, latencies_s)


def _step_on(session: Session, until_s: float) -> list[float]:
    """Steps one session until then; returns what each step took."""
    latencies_s: list[float] = []
    for token in itertools.cycle(_TOKENS):
        sent_s = time.monotonic()
        if sent_s >= until_s:
            break
        session.step(token)
        latencies_s.append(time.monotonic() - sent_s)
    return latencies_s

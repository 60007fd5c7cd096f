"""A load to be judged: writers with sessions of their own, recorded as they go.

Half of the sessions are stepped by single calls, some by streams, the rest as rows of messages, with pauses
between. Now and then a writer starts again with a new client, as a process would that was restarted. What
fails is sent again or taken up where the session stands; whether that was right is for the checker.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast import AsyncClient, AsyncSession, HoldfastError, Tls
from holdfast.client.history import Recorder
from holdfast.v1 import holdfast_pb2 as pb

ROWS = 8
"""Sessions in a message of rows."""

GONE = ("SESSION_LOST", "SESSION_EXPIRED", "SESSION_DELETED", "SESSION_NOT_FOUND")
MOVED = ("POSITION_CONFLICT", "HISTORY_CONFLICT", "STORE_REGRESSED", *GONE)
"""Reasons after which a writer looks where its session stands."""

LOOK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class LoadSettings:
    """What a load is.

    Attributes:
        session_count: Sessions at once.
        think_s: Mean pause between the requests of a session.
        max_chunk: Most tokens in a chunk.
        timeout_s: Longest wait of a call, retries included.
        restart_chance: Of a new client, before each request.
        token, tls: As clients take them.
    """

    session_count: int = 50
    think_s: float = 0.05
    max_chunk: int = 16
    timeout_s: float = 10.0
    restart_chance: float = 0.01
    token: str | None = None
    tls: bool | Tls = False


class Load:
    """Runs writers until told to stop.

    Args:
        address: Gives an address for each new client.
        model: As GetModel describes it.
        recorder: Notes everything; None notes nothing.
        rng: Draws tokens, pauses and restarts.
        settings: See there.
        prefix: Of the session ids.

    Attributes:
        may_restart: Whether writers start again at all.
        good_count: Replies so far.
        good_s: Loop time of the last reply of each writer.
        errors: Errors that writers saw, by reason: those that the client did not heal by itself.
    """

    def __init__(
        self,
        address: Callable[[], str],
        model: pb.Model,
        recorder: Recorder | None,
        rng: random.Random,
        settings: LoadSettings,
        prefix: str,
    ) -> None:
        self._address = address
        self._model = model
        self._recorder = recorder
        self._rng = rng
        self._settings = settings
        self._stopping = asyncio.Event()
        self._ids = [f"{prefix}-{number}" for number in range(settings.session_count)]
        self.may_restart = True
        self.good_count = 0
        self.good_s: dict[str, float] = {}
        self.errors: Counter[str] = Counter()

    @property
    def session_ids(self) -> list[str]:
        """All sessions."""
        return list(self._ids)

    async def run(self) -> None:
        """Runs the writers until `stop`."""
        single = len(self._ids) // 2
        streamed = single + len(self._ids) // 4
        async with asyncio.TaskGroup() as group:
            for session_id in self._ids[:single]:
                group.create_task(self._write(session_id, self._step_some))
            for session_id in self._ids[single:streamed]:
                group.create_task(self._write(session_id, self._stream_some))
            for start in range(streamed, len(self._ids), ROWS):
                group.create_task(self._write_rows(self._ids[start : start + ROWS]))

    def stop(self) -> None:
        """Lets the writers finish what is under way."""
        self._stopping.set()

    async def look(self) -> None:
        """Reads every session once, so that the history ends with where they stand."""
        async with self._client(LOOK_TIMEOUT_S) as client:
            looks = await asyncio.gather(*map(client.get_session, self._ids), return_exceptions=True)
        self.errors.update(look.reason for look in looks if isinstance(look, HoldfastError))

    async def close(self) -> None:
        """Deletes every session."""
        async with self._client(LOOK_TIMEOUT_S) as client:
            await asyncio.gather(*map(client.delete_session, self._ids), return_exceptions=True)

    # -- writers ------------------------------------------------------------------------------

    async def _write(
        self, session_id: str, some: Callable[[AsyncSession, random.Random], AsyncIterator[None]]
    ) -> None:
        """Has one session written, by one client after the other."""
        rng = random.Random(self._rng.random())  # noqa: S311 -- no secret
        while not self._stopping.is_set():
            async with self._client() as client:
                with self._counted():
                    session = await client.open_session(
                        session_id, model=self._model.name, version=self._model.version
                    )
                    async for _ in self._until_moved(some, session, rng):
                        self._note_good(session_id)
                        if self._wants_restart(rng):
                            break
            await self._think(rng)

    async def _until_moved(
        self,
        some: Callable[[AsyncSession, random.Random], AsyncIterator[None]],
        session: AsyncSession,
        rng: random.Random,
    ) -> AsyncIterator[None]:
        """Writes on through errors after which the same session object can go on, once that is settled."""
        while not self._stopping.is_set():
            try:
                if await session.settle():
                    yield
                async with contextlib.aclosing(some(session, rng)) as steps:  # type: ignore[type-var]
                    async for _ in steps:
                        yield
            except HoldfastError as error:
                if error.reason in MOVED:
                    raise
                self.errors[error.reason] += 1

    async def _step_some(self, session: AsyncSession, rng: random.Random) -> AsyncIterator[None]:
        while not self._stopping.is_set():
            await session.step(self._draw(rng), **self._selection(rng))
            yield
            await self._think(rng)

    async def _stream_some(self, session: AsyncSession, rng: random.Random) -> AsyncIterator[None]:
        async def pieces() -> AsyncIterator[Any]:
            for _ in range(rng.randint(1, 200)):
                if self._stopping.is_set():
                    return
                yield self._draw(rng)
                await self._think(rng)

        chunk = rng.choice((1, 4, self._settings.max_chunk))
        async for _ in session.stream(pieces(), chunk=chunk, **self._selection(rng)):
            yield

    async def _write_rows(self, session_ids: Sequence[str]) -> None:
        rng = random.Random(self._rng.random())  # noqa: S311 -- no secret
        rows = _Rows(session_ids)
        while not self._stopping.is_set():
            async with self._client() as client:
                while not self._stopping.is_set():
                    with self._counted():
                        await self._open_rows(client, rows)
                        await self._step_rows(client, rows, rng)
                        self._note_good(session_ids[0])
                    await self._think(rng)
                    if self._wants_restart(rng):
                        break

    async def _open_rows(self, client: AsyncClient, rows: "_Rows") -> None:
        """Opens the rows that are not open, or no longer, or not where they were."""
        ids = [session_id for session_id in rows.ids if session_id not in rows.positions]
        if not ids:
            return
        opened = await client.open_batch(self._model.name, ids, version=self._model.version)
        for row, session_id in enumerate(ids):
            error = opened.errors.get(row)
            if error is None:
                rows.opened(session_id, int(opened.positions[row]))
            else:
                self.errors[error.reason] += 1

    async def _step_rows(self, client: AsyncClient, rows: "_Rows", rng: random.Random) -> None:
        """Sends what each row has waiting, as often as it takes until all are answered."""
        if not rows.waiting:
            count = rng.randint(1, self._settings.max_chunk)
            rows.waiting = {session_id: self._draw(rng, count) for session_id in rows.ids}
        ids = [session_id for session_id in rows.waiting if session_id in rows.positions]
        if not ids:
            return
        reply = await client.step_batch(
            self._model.name,
            ids,
            _as_rows([rows.waiting[session_id] for session_id in ids]),
            [rows.positions[session_id] for session_id in ids],
            version=self._model.version,
            **self._selection(rng),
        )
        for row, session_id in enumerate(ids):
            error = reply.errors.get(row)
            if error is None:
                rows.answered(session_id)
            elif error.expected_position is not None and error.reason == "POSITION_GAP":
                await self._heal(client, rows, session_id, error.expected_position)
            elif error.reason in MOVED:
                self.errors[error.reason] += 1
                del rows.positions[session_id]  # so it is opened before it is stepped
            else:
                self.errors[error.reason] += 1

    async def _heal(self, client: AsyncClient, rows: "_Rows", session_id: str, position: int) -> None:
        """Sends the tokens again that the store has lost, as the client does for sessions."""
        lost = rows.sent[session_id][position : rows.positions[session_id]]
        if len(lost):
            await client.step_batch(self._model.name, [session_id], _as_rows([lost]), [position])

    # -- small things -------------------------------------------------------------------------

    def _client(self, timeout_s: float | None = None) -> AsyncClient:
        return AsyncClient(
            self._address(),
            token=self._settings.token,
            tls=self._settings.tls,
            timeout_s=timeout_s or self._settings.timeout_s,
            history=self._recorder,
        )

    @contextlib.contextmanager
    def _counted(self) -> Any:
        try:
            yield
        except HoldfastError as error:
            self.errors[error.reason] += 1

    def _note_good(self, writer: str) -> None:
        self.good_count += 1
        self.good_s[writer] = asyncio.get_running_loop().time()

    def _wants_restart(self, rng: random.Random) -> bool:
        return self.may_restart and rng.random() < self._settings.restart_chance

    async def _think(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.expovariate(1 / self._settings.think_s) if self._settings.think_s else 0)

    def _draw(self, rng: random.Random, count: int | None = None) -> Any:
        count = count or rng.randint(1, self._settings.max_chunk)
        if not self._model.HasField("vocabulary"):
            draws = np.random.default_rng(rng.getrandbits(32))
            return draws.standard_normal((count, self._model.input.width), np.float32)
        if self._model.vocabulary.is_bytes:
            return rng.randbytes(count)
        return [rng.randrange(self._model.vocabulary.size) for _ in range(count)]

    def _selection(self, rng: random.Random) -> dict[str, Any]:
        if not self._model.HasField("vocabulary"):
            return {"outputs": True}
        return {
            "top_k": rng.choice((0, 3)) or None,
            "token_log_prob": self._model.has_token_log_prob and rng.random() < 0.9,
        }


class _Rows:
    """Sessions stepped as rows, each with what it has sent; those that are open have a position."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.positions: dict[str, int] = {}
        self.sent: dict[str, Any] = {}
        self.waiting: dict[str, Any] = {}

    def opened(self, session_id: str, position: int) -> None:
        """Takes a session up where it stands."""
        self.positions[session_id] = position
        if session_id in self.sent:
            self.sent[session_id] = self.sent[session_id][:position]

    def answered(self, session_id: str) -> None:
        """Moves a session on by what it had waiting."""
        tokens, before = self.waiting.pop(session_id), self.sent.get(session_id)
        self.sent[session_id] = tokens if before is None else _joined([before, tokens])
        self.positions[session_id] += len(tokens)


def _as_rows(parts: Sequence[Any]) -> Any:
    """Joins the tokens of rows, as `step_batch` takes them."""
    return np.stack(parts) if isinstance(parts[0], np.ndarray) else _joined(parts)


def _joined(parts: Sequence[Any]) -> Any:
    """Joins tokens of one form, one after the other."""
    if isinstance(parts[0], bytes):
        return b"".join(parts)
    if isinstance(parts[0], list):
        return [token for part in parts for token in part]
    return np.concatenate(parts)

"""The clients of a simulation: the client library as it is, over simulated calls.

A writer does what a program does that uses the library as its errors say: it goes on with what is pending,
opens a session again that was taken from it, and takes over where it was killed itself.
"""

import asyncio
import contextlib
import functools
import itertools

from holdfast.client.aio import AsyncClient
from holdfast.client.calls import Calls
from holdfast.client.retry import RetryPolicy
from holdfast.client.steps import Steps
from holdfast.errors import ChunkPending, HoldfastError, SessionQuarantined
from tests.simulation.copying import Copying
from tests.simulation.network import Stub
from tests.simulation.recorder import NotedRecorder
from tests.simulation.replica import RAISES, STALLS
from tests.simulation.talk import TALK_IDS
from tests.simulation.talking import Talking

LAST_LIMIT_S = 120.0
"""Once nothing breaks any more, everything has to be done within so long."""

TALK_ID = "talk"
"""A session of all writers that can go on by itself."""

FIRST_TOKEN = 1000
"""Those before have a meaning."""

WORDS = 350
"""That a writer has for itself in sessions of few ids."""

OWN_SHARE = 0.25
"""Of what a writer does, with the session that is its own."""

FOR_OTHERS = {"POSITION_CONFLICT", "HISTORY_CONFLICT", "SESSION_EXISTS"}
"""Refusals for what another writer did."""


class SimulatedClient(AsyncClient):
    """A client whose calls go to one replica or another."""

    def __init__(self, loop, network, replicas, process, *, replay_tokens, **options):
        super().__init__("127.0.0.1:1", replay_tokens=replay_tokens)
        connections = Replicas([Stub(network, replica, process) for replica in replicas], loop.random)
        self._calls = Calls(connections, token=None, retry=RetryPolicy(attempt_s=1.0), **options)
        self._steps = Steps(self._calls)


class Replicas:
    """What is called over: as `holdfast.client.transport.Transport`; a call goes to any replica."""

    is_inherited = is_closed = False

    def __init__(self, stubs, draw):
        self.replica_count = len(stubs)
        self._stubs = stubs
        self._draw = draw

    def check(self):
        pass

    def next_stub(self):
        return self._draw.choice(self._stubs)

    def suspect(self, used, waited_s=None):
        pass


class Writer(Copying, Talking):
    """One program that writes to some sessions.

    Args:
        world: See there.
        number: Of the writer.
        session_ids: Which it writes to, beside one that nobody else writes to.
        history: Where it records what it sends and gets.

    Attributes:
        name: For transcripts.
        own_id: The session that nobody else writes to; a new one from time to time.
        has_opened_own: It may have been opened.
        talk_id: Another one that nobody else writes to, and that can go on by itself.
        copy_ids: Of copies that nobody else has made, or writes to.
    """

    def __init__(self, world, number, session_ids, history):
        self.name = name = f"writer {number}"
        self._own_ids = (f"{name}, {count}" for count in itertools.count())
        self._renew_own()
        self.process = world.loop.new_process(name)
        self._world = world
        self._draw = world.loop.random
        self._session_ids = session_ids
        self.talk_id = f"{name}, talk"
        self.copy_ids = []
        world.models[self.talk_id] = "talk"
        words = FIRST_TOKEN + number * WORDS
        assert words + WORDS <= TALK_IDS, "there are too many writers for the words of a talk"
        self._own_words = itertools.cycle(range(words, words + WORDS))
        self._path = history
        self._sessions = {}

    async def run(self, count):
        """Does so many things."""
        for _ in range(count):
            await self.act()
            await asyncio.sleep(self._draw.expovariate(1 / self._world.pause_s))

    async def begin(self):
        """Makes its client; called in its process."""
        world = self._world
        self.client = SimulatedClient(
            world.loop,
            world.network,
            world.replicas,
            self.process,
            timeout_s=8.0,
            replay_tokens=self._draw.choice([0, 64, 65536]),
            ack_level=self._draw.choice(world.ack_levels),
            history=NotedRecorder(
                self._path, functools.partial(world.note, self.name), world.answers, world.loop
            ),
        )

    async def act(self):
        """Does one thing, whatever comes of it."""
        session_id = self._draw.choice(self._session_ids)
        acts = (
            self._step, self._step, self._stream, self._stream, self._together, self._together, self._batch,
            self._leave,
        )  # fmt: skip
        if self._draw.random() < OWN_SHARE:
            if self._draw.random() < 0.3:  # it is done with that one
                self._sessions.pop(self.own_id, None)
                self._renew_own()
            session_id, acts = self.own_id, (self._step, self._stream, self._stream, self._leave)
        act = self._draw.choice(acts)
        if self._world.chance.random() < self._world.restore_share:
            act = self._world.chance.choice((self._save, self._restore, self._go_back))
        if self._world.chance.random() < self._world.talk_share:
            act = self._world.chance.choice((self._generate, self._generate, self._talk_step, self._fork))
            session_id = self._world.chance.choice((TALK_ID, self.talk_id))
        if self._world.chance.random() < self._world.copy_share:
            act = self._world.chance.choice((self._fork, self._move))
        try:
            await act(session_id)
        except HoldfastError as error:
            await self._failed(act.__name__[1:], session_id, error)

    async def _failed(self, what, session_id, error):
        """Goes on as the error says."""
        self._world.note(self.name, f"{what} fails", session_id.encode(), error.reason)
        if session_id in (self.own_id, self.talk_id, *self.copy_ids):
            self._world.check_own(session_id, error.reason)
        now_s = self._world.loop.now_s
        if self._world.can_tell_apart:
            self._world.not_applied += [(now_s, session_id, chunk) for chunk in error.not_applied]
        if isinstance(error, SessionQuarantined) and self._draw.random() < 0.5:
            with contextlib.suppress(HoldfastError):
                await self.client.release_session(session_id)
        if not error.pending and not isinstance(error, ChunkPending):
            self._sessions.pop(session_id, None)

    async def _opened(self, session_id):
        """Returns a session, of which nothing is pending."""
        session = self._sessions.get(session_id)
        if session is None:
            take_over = self._draw.random() < self._world.takeover_share
            must_be_new = False
            if session_id == self.own_id:  # after the first time, what was left under way is fenced off
                take_over = self.has_opened_own
                must_be_new = not take_over
                self.has_opened_own = True
            session = await self.client.open_session(
                session_id,
                model=self._world.model_of(session_id),
                must_be_new=must_be_new,
                take_over=take_over,
            )
            self._sessions[session_id] = session
        if session.pending:
            try:
                await session.settle()
            except HoldfastError:
                if self._draw.random() < 0.3:  # it gives up, as a program that is started again
                    self._sessions.pop(session_id, None)
                raise
        return session

    def _chunk(self, session_id):
        """Returns tokens for a session, such as its model takes."""
        return self._tokens() if self._world.model_of(session_id) == "hash" else self._words()

    def _token(self):
        return FIRST_TOKEN + self._draw.randrange(self._world.kind_count)

    def _tokens(self, times=1):
        count = self._draw.randint(1, self._world.most_tokens * times)
        tokens = [self._token() for _ in range(count)]
        if self._draw.random() < self._world.poison_share:
            tokens[-1] = self._draw.choice([RAISES, STALLS])
        return tokens

    async def _step(self, session_id):
        await self._step_once(await self._opened(session_id), self._tokens())

    async def _talk_step(self, session_id):
        await self._step_once(await self._opened(session_id), self._words())

    async def _step_once(self, session, tokens):
        """Steps a session, now and then with a short time limit or another level; some are given up."""
        options = {}
        if self._draw.random() < 0.1:
            options["timeout_s"] = self._draw.choice([0.001, 0.01, 0.3])
        if self._draw.random() < 0.2:
            options["ack_level"] = self._draw.choice(self._world.ack_levels)
        self._world.means(session, tokens, len(tokens))
        cursor = self._world.cursor_of(session, tokens)
        work = session.step(tokens, outputs="hash", cursor=cursor, **options)
        if self._draw.random() < 0.1:
            await self._cancelled(work)
        else:
            await work

    async def _cancelled(self, work):
        task = asyncio.create_task(work)
        await asyncio.wait([task], timeout=self._draw.expovariate(1 / 0.003))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _save(self, session_id):
        session = await self._opened(session_id)
        await session.save_checkpoint(self._world.chance.choice("abc"))

    async def _restore(self, session_id):
        """Goes back to a checkpoint, perhaps of another writer; others find out."""
        session = await self._opened(session_id)
        await session.restore_checkpoint(self._world.chance.choice("abc"))

    async def _go_back(self, session_id):
        """Goes back to where it stood before some steps."""
        session = await self._opened(session_id)
        await session.save_checkpoint("a")
        for _ in range(self._world.chance.randint(1, 3)):
            await self._step_once(session, self._chunk(session_id))
        if not session.pending:
            await session.restore_checkpoint("a")

    async def _stream(self, session_id):
        session = await self._opened(session_id)
        tokens = [token for _ in range(4) for token in self._tokens(2)]
        size, ahead = self._draw.choice([(1, 1), (1, 8), (2, 16), (4, 32)])
        left = self._draw.randint(1, 12)
        self._world.means(session, tokens, size)
        replies = session.stream(tokens, chunk=size, max_in_flight=ahead, outputs="hash")
        async with contextlib.aclosing(replies):
            async for _ in replies:
                left -= 1
                if not left and self._draw.random() < 0.3:
                    break

    async def _together(self, _):
        """Steps all its sessions at the same time, a few times, most of them by as many tokens."""
        sessions = []
        for session_id in [*self._session_ids, self.own_id]:
            try:
                sessions.append(await self._opened(session_id))
            except HoldfastError as error:
                await self._failed("together", session_id, error)
        count = self._draw.randint(1, self._world.most_tokens)
        for _ in range(self._draw.randint(1, 4)):
            works = [self._one_of_many(session, count) for session in sessions]
            sessions = [session for session in await asyncio.gather(*works) if session is not None]

    async def _one_of_many(self, session, count):
        """Steps a session, now or in a moment; returns it, if all is well."""
        if self._draw.random() < 0.3:
            await asyncio.sleep(self._draw.expovariate(1 / 0.001))
        tokens = self._tokens()
        if self._draw.random() < 0.8:
            tokens = (tokens * count)[-count:]
        try:
            await self._step_once(session, tokens)
        except HoldfastError as error:
            await self._failed("together", session.session_id, error)
            return None
        return None if session.pending else session

    async def _batch(self, _):
        ids = self._session_ids
        width = self._draw.randint(1, 3)
        opened = await self.client.open_batch("hash", ids)
        if opened.errors:
            return
        positions = opened
        if self._draw.random() < 0.3:
            for _ in range(2):
                await self.client.step_batch("hash", ids, self._rows(ids, width), outputs="hash")
            return
        if self._draw.random() < 0.5:
            for _ in range(self._draw.randint(1, 3)):
                rows = self._rows(ids, width)
                reply = await self.client.step_batch("hash", ids, rows, positions, outputs="hash")
                if reply.errors:
                    return
                positions = reply
            return
        await self._pipeline(ids, width, [int(position) for position in opened.positions])

    def _rows(self, ids, width):
        return [[self._token() for _ in range(width)] for _ in ids]

    async def _pipeline(self, ids, width, positions):
        """Sends batches ahead of their replies; what fails is sent again in order, as it was."""
        batches = [(self._rows(ids, width), [p + width * n for p in positions]) for n in range(3)]
        for _ in range(3):
            async with self.client.batches("hash", outputs="hash") as pipeline:
                sent = [await pipeline.submit(ids, rows, places) for rows, places in batches]
                replies = await asyncio.gather(*sent, return_exceptions=True)
            bad = [n for n, reply in enumerate(replies) if isinstance(reply, BaseException)]
            if not bad:
                return
            if not all(getattr(replies[n], "retryable", False) for n in bad):
                raise replies[bad[0]]
            batches = batches[bad[0] :]

    async def _leave(self, session_id):
        """Lets go of a session, as a program does that is started again; seldom deletes it."""
        session = self._sessions.pop(session_id, None)
        if session is not None and self._draw.random() < self._world.delete_share:
            await session.delete()

    def _renew_own(self):
        self.own_id, self.has_opened_own = next(self._own_ids), False

    # -- the end --------------------------------------------------------------------------------

    async def settle(self):
        """Has everything settled that is pending; called when nothing breaks any more."""
        for session in self._sessions.values():
            if session.pending:
                with contextlib.suppress(HoldfastError):
                    await session.settle(timeout_s=LAST_LIMIT_S)

    async def look(self, session_id):
        """Takes a session over, steps it, and looks where it stands."""
        model = self._world.model_of(session_id)
        session = await self.client.open_session(session_id, model=model, take_over=True)
        await session.step([1], outputs="hash", timeout_s=LAST_LIMIT_S)
        await self.client.get_session(session_id)

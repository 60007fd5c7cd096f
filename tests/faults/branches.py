"""Sessions that branch while things break: forks, checkpoints, blobs and generations, all of it recorded.

They are stepped beside those of `holdfast.verify.load`, and judged with them by `holdfast verify`, which
holds what a copy gives against the record of its source. What was generated is held against the loop of
`tests.support.generation_oracle`, run from the recorded tokens.
"""

import asyncio
import contextlib
import copy
import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np

import holdfast
from holdfast import HoldfastError
from holdfast.verify.chain import origins_of
from holdfast.verify.load import MOVED
from holdfast.verify.reading import Histories
from tests.faults.verdict import MODEL
from tests.support.generation_oracle import Loop

BRANCHING = 8
"""Writers."""

THINK_S = 0.05
TIMEOUT_S = 4.0
MOST_TOKENS = 300
"""Of a session; then its writer goes over to another."""

OPTIONS = ({}, {"temperature": 0.5}, {"top_k": 5, "repetition_penalty": 1.25}, {"top_p": 0.75})

NAMES = {"repetition_penalty": "penalty"}
"""What the loop calls an option."""


class Generated(NamedTuple):
    """A generation, or its beginning.

    Attributes:
        session_id: Whose.
        position, digest: Where the session stood before it.
        prompt: Applied first.
        options: Of `generate`.
        count: Tokens asked for.
        is_over: It came to its end.
        ids: What came.
    """

    session_id: str
    position: int
    digest: int
    prompt: bytes
    options: dict
    count: int
    is_over: bool
    ids: tuple[int, ...]


class Branches:
    """Runs writers until told to stop.

    Args:
        load: Of which it is a part: its pauses before a store may lose something hold here, too.
        address: Gives an address for each new client.
        recorder: Notes everything.
        rng: Draws what happens.
        count: Writers.

    Attributes:
        acts: What was done, by kind.
        errors: Errors that writers saw, by reason.
        generated: All generations.
    """

    def __init__(self, load, address, recorder, rng, count=BRANCHING):
        self._load = load
        self._address = address
        self._recorder = recorder
        self._rng = rng
        self._names = [f"branching-{number}" for number in range(count)]
        self._numbers = itertools.count()
        self._stopping = False
        self._kept = set()
        self.acts = Counter()
        self.errors = Counter()
        self.generated = []

    async def run(self):
        """Runs the writers until `stop`."""
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._write(name))

    def stop(self):
        """Lets the writers finish what is under way."""
        self._stopping = True

    async def look(self):
        """Reads every session that is still there once, so that the history ends with where they stand."""
        async with self._client(30.0) as client:
            looks = await asyncio.gather(
                *map(client.get_session, sorted(self._kept)), return_exceptions=True
            )
        self.errors.update(look.reason for look in looks if isinstance(look, HoldfastError))

    def _client(self, timeout_s=TIMEOUT_S):
        return holdfast.AsyncClient(self._address(), timeout_s=timeout_s, history=self._recorder)

    async def _write(self, name):
        while not self._stopping:
            session_id = f"{name}-{next(self._numbers)}"
            self._kept.add(session_id)
            async with self._client() as client:
                is_used_up = False
                while not (self._stopping or is_used_up):
                    with self._counted():
                        session = await client.open_session(session_id, model=MODEL)
                        is_used_up = await self._use(client, session)
                    await self._think()
            self._load.good_s.pop(session_id, None)

    async def _use(self, client, session):
        """Acts on a session until it is used up, which it returns, or is not where it was."""
        acts = (self._step, self._step, self._generate, self._go_back, self._fork, self._move)
        while not self._stopping:
            try:
                await session.settle()
                if session.position >= MOST_TOKENS:
                    await self._until_calm(session)
                    return True
                act = self._rng.choice(acts)
                if not self._load.may_restart:
                    act = self._rng.choice((self._step, self._generate))
                await act(client, session)
                self._note_good(session)
            except HoldfastError as error:
                if error.reason in MOVED:
                    raise
                self.errors[error.reason] += 1
            await self._think()
        return False

    # -- acts ---------------------------------------------------------------------------------

    async def _step(self, _, session):
        await session.step(self._rng.randbytes(self._rng.randint(1, 16)), token_log_prob=True)
        self.acts["step"] += 1

    async def _generate(self, _, session):
        prompt = self._rng.choice((b"", b"def f(", b"import ", self._rng.randbytes(5)))
        options = {**self._rng.choice(OPTIONS), "seed": self._rng.getrandbits(62)}
        position, digest = session.position, session.history_digest
        count, ids, is_over = self._rng.randint(1, 40), [], False
        left = self._rng.randint(1, 60)
        try:
            async with contextlib.aclosing(session.generate(count, prompt or None, **options)) as tokens:
                async for token in tokens:
                    ids.append(token.id)
                    if len(ids) == left:
                        break
                else:
                    is_over = True
        finally:
            self.generated.append(
                Generated(session.session_id, position, digest, prompt, options, count, is_over, tuple(ids))
            )
        self.acts["generation"] += 1

    async def _go_back(self, client, session):
        """Saves a checkpoint, steps, and goes back to it."""
        await session.save_checkpoint("here")
        for _ in range(self._rng.randint(1, 3)):
            await self._step(client, session)
        await self._until_calm(session)
        await session.restore_checkpoint("here")
        self.acts["restore"] += 1

    async def _fork(self, client, session):
        new_id = f"{session.session_id}-fork-{next(self._numbers)}"
        forked = await session.fork(new_id)
        self._load.good_s.pop(session.session_id, None)  # it rests, and loses nothing that it does not keep
        await self._use_copy(client, forked)
        self.acts["fork"] += 1

    async def _move(self, client, session):
        blob = await session.export()
        new_id = f"{session.session_id}-import-{next(self._numbers)}"
        imported = await client.import_session(blob, new_id)
        self._load.good_s.pop(session.session_id, None)
        await self._use_copy(client, imported)
        self.acts["import"] += 1

    async def _use_copy(self, client, session):
        """Steps a copy, has it generate, and deletes some."""
        self._kept.add(session.session_id)
        try:
            for act in (self._step, self._generate, self._step):
                await session.settle()
                await act(client, session)
                self._note_good(session)
            await self._until_calm(session)
            if self._rng.random() < 0.5:
                self._kept.discard(session.session_id)
                await session.delete()
        finally:
            self._load.good_s.pop(session.session_id, None)

    # -- small things -------------------------------------------------------------------------

    async def _until_calm(self, session):
        """Keeps a session going while the store may lose what only its client can send again."""
        while not self._load.may_restart and not self._stopping:
            try:
                await session.settle()
                await self._step(None, session)
                self._note_good(session)
            except HoldfastError as error:
                if error.reason in MOVED:
                    raise
                self.errors[error.reason] += 1
            await self._think()

    def _note_good(self, session):
        self._load.good_s[session.session_id] = asyncio.get_running_loop().time()

    @contextlib.contextmanager
    def _counted(self):
        try:
            yield
        except HoldfastError as error:
            self.errors[error.reason] += 1

    async def _think(self):
        await asyncio.sleep(self._rng.expovariate(1 / THINK_S))


def judge_generated(path, generated):
    """Holds generations against an uninterrupted loop.

    Args:
        path: Of the history.
        generated: The generations.

    Returns:
        How many tokens were held against it, how many generations began where the record does not tell all
        that was before, and words for each that is wrong.
    """
    sessions = Histories([path]).sessions
    origins = origins_of(session.history for session in sessions.values())
    checked_count = unknown_count = 0
    wrong, fresh = [], Loop(MODEL)
    for one in generated:
        begin = origins.find(one.position, one.digest)
        if begin is None or begin[0] is not None:
            unknown_count += 1
            continue
        loop = copy.copy(fresh)  # which replaces what it has, and changes nothing of it
        loop.apply(bytes(np.array(begin[1], np.uint8)))
        if not (one.prompt or one.position):
            unknown_count += 1  # nothing was consumed that could tell what follows
            continue
        options = {NAMES.get(name, name): value for name, value in one.options.items()}
        expected = tuple(number for number, _, _ in loop.generate(one.count, one.prompt, **options))
        checked_count += len(one.ids)
        if one.ids != (expected if one.is_over else expected[: len(one.ids)]):
            wrong.append(f"{one.session_id} at {one.position}: {one.ids}, expected {expected}")
    return checked_count, unknown_count, wrong

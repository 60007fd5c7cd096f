"""Generations of a simulation: how writers ask for them, and the law that they must keep.

Whatever broke meanwhile, a generation gives the tokens that an uninterrupted one gives, each once and all
of them, or the first of them if it could not go on.
"""

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field

import numpy as np

from service.engine.sampling import Options
from tests.simulation.talk import SAID_IDS, Wanted, uninterrupted


@dataclass
class Talk:
    """A generation.

    Attributes:
        session_id: Whose it was.
        position, digest: Where the session stood before it.
        prompt: Applied first; empty is none.
        wanted: What was asked.
        given: Position after each token, and its id.
        is_over: It came to its end.
    """

    session_id: str
    position: int
    digest: int
    prompt: list[int]
    wanted: Wanted
    given: list[tuple[int, int]] = field(default_factory=list)
    is_over: bool = False


class Talking:
    """What a writer does with a session that can go on by itself."""

    async def _generate(self, session_id):
        await self._talk_on(await self._opened(session_id), session_id == self.talk_id)

    async def _talk_on(self, session, is_alone):
        """Generates; now and then it leaves early, or is cancelled.

        Args:
            session: The session.
            is_alone: Nobody else writes to it; else a prompt tells this generation from all others.
        """
        chance = self._world.chance
        prompt = [] if is_alone and chance.random() < 0.3 else self._words()
        wanted = self._wanted()
        talk = Talk(session.session_id, session.position, session.history_digest, prompt, wanted)
        self._world.talks.append(talk)
        if prompt:
            self._world.means(session, prompt, len(prompt))
        left = chance.randint(1, 8) if chance.random() < 0.2 else -1
        work = self._take(session, talk, left)
        if chance.random() < 0.1:
            await self._cancelled(work)
        else:
            await work
        if not talk.is_over:  # where it stands is known once what was under way is
            await (session.settle() if chance.random() < 0.5 else session.step(self._words()))

    async def _take(self, session, talk, left):
        options, wanted = talk.wanted.options, talk.wanted
        tokens = session.generate(
            wanted.max_tokens, talk.prompt or None, temperature=options.temperature, top_k=options.top_k,
            top_p=options.top_p, min_p=options.min_p, repetition_penalty=options.penalty, seed=wanted.seed,
            stop=wanted.stop_ids, min_tokens=wanted.min_tokens,
        )  # fmt: skip
        async with contextlib.aclosing(tokens):
            async for token in tokens:
                talk.given.append((token.position, token.id))
                self._world.note(self.name, "generated", talk.session_id.encode(), f"{token!r}")
                left -= 1
                if not left:
                    return
                if self._world.chance.random() < 0.1:
                    await asyncio.sleep(self._world.chance.expovariate(1 / 0.005))
        talk.is_over = True

    def _wanted(self):
        chance = self._world.chance
        if (
            not self._world.can_tell_apart
        ):  # a chunk of others may be taken for one's own, and must be alike
            return Wanted(Options(), 7, (), 0, chance.choice([1, 4, 20]))
        options = Options(
            chance.choice([1.0, 1.0, 1.5]),
            chance.choice([0.0, 0.75, 1.0, 2.0]),
            chance.choice([0, 0, 3]),
            chance.choice([1.0, float(np.float32(0.7))]),
            chance.choice([0.0, 0.25]),
        )
        most = chance.choice([1, 4, 20, 40])
        stop_ids = chance.choice([(), (), (3,), (5, 9)])
        return Wanted(options, chance.getrandbits(62), stop_ids, min(most, chance.choice([0, 6])), most)

    def _words(self):
        """Returns tokens that this writer has not used before, and no other has."""
        return [self._next_word() for _ in range(self._world.chance.randint(1, 4))]

    def _next_word(self):
        if not self._world.can_tell_apart:
            return SAID_IDS + self._world.chance.randrange(2)
        return next(self._own_words)


def misspoken(talks, stored):
    """Yields generations that gave other tokens than an uninterrupted one.

    Args:
        talks: The generations.
        stored: Records of each session.
    """
    for talk in talks:
        place = talk.position, talk.digest
        states = {
            int(np.frombuffer(record.state, np.int64)[0])
            for record in stored.get(talk.session_id, ())
            if record.state and place == (record.position, record.digest)
        }
        if len(states) != 1:
            yield talk.session_id, f"a generation began at {talk.position}, where the session never stood"
            continue
        start = talk.position + len(talk.prompt)
        numbers = uninterrupted(states.pop(), talk.position, talk.prompt, talk.wanted)
        expected = list(enumerate(numbers, start + 1))
        if talk.given == (expected if talk.is_over else expected[: len(talk.given)]):
            continue
        pairs = enumerate(itertools.zip_longest(talk.given, expected))
        number, (got, wanted) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        yield (
            talk.session_id,
            f"token {number} of a generation from {talk.position} is {got}, expected {wanted}",
        )

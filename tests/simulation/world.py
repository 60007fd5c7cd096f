"""One run: a deployment, its faults, and what came of it, all of it drawn from a seed."""

import asyncio
import contextlib
import logging
import math
import random
import secrets
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

from holdfast.errors import HoldfastError
from holdfast.history_digest import digest_after
from service.engine import driver
from service.engine.limits import EngineLimits
from service.engine.window import Window
from service.rpc.codec import key_of
from service.rpc.credentials import ANYBODY
from service.store.record import decode
from tests.simulation.laws import judge
from tests.simulation.loop import SimulatedLoop, Stuck
from tests.simulation.network import Network
from tests.simulation.replica import RUN_TIMEOUT_S, Replica, SimulatedRunner
from tests.simulation.store import Primary
from tests.simulation.writers import FOR_OTHERS, TALK_ID, Writer

MOST_FAULTS = 100
"""Of a run: writers that are held up all the time would never end."""

LIMIT_S = 3600.0
"""Virtual time after which a run counts as stuck."""

MAY_END = {"SESSION_DELETED", "SESSION_LOST", "SESSION_EXPIRED", "SESSION_QUARANTINED", "SESSION_NOT_FOUND"}
"""What a last step may be refused with, once nothing breaks any more."""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        seed: See there.
        broken: Session and words for every law that was broken.
        step_count: Callbacks that ran, each of them a choice of who is next.
        trace: Names their order.
        faults: Injected, by kind.
        replies: What callers got, by reason; "OK" is a reply.
        lines: Transcript: virtual seconds, who, what, session.
    """

    seed: int
    broken: list = field(default_factory=list)
    step_count: int = 0
    trace: int = 0
    faults: Counter = field(default_factory=Counter)
    events: Counter = field(default_factory=Counter)
    lines: list = field(default_factory=list)

    def transcript(self, session_id=""):
        """Returns the lines that concern a session; of all if none is named."""
        for now_s, who, what, key, more in self.lines:
            if not session_id or not key or key in (session_id.encode(), _key(session_id)):
                name = key.decode(errors="replace").rpartition(":")[2]
                yield f"{now_s - 1000.0:10.6f} {who:9} {what} {name} {_told(more)}".rstrip()


class World:
    """A deployment of a run.

    Attributes:
        pause_s, takeover_share, poison_share, delete_share, most_tokens: What writers are like in this run.
        ack_levels: What they ask for; where nobody asks for more than memory a fail-over forgets most.
        kind_count: Of tokens; where there are two, different writers often send the same chunk.
        answers: All that clients got.
        not_applied: Time, session and chunk, of errors that say so.
        meant: Session, position, history digest and tokens of steps, as their writers meant them.
        cursors: By session, position and digest after the chunk, those that writers gave it.
        copies: Copies, and blobs, that writers got.
        talks: Generations.
        models: By session, the names of their models, where it is not `hash`.
    """

    def __init__(self, loop, folder, outcome):
        self.loop = loop
        self.outcome = outcome
        draw = loop.random
        self.pause_s = draw.choice([0.0005, 0.005, 0.05])
        self.takeover_share = draw.choice([0.0, 0.1, 0.5])
        self.poison_share = draw.choice([0.0, 0.0, 0.1])
        self.delete_share = draw.choice([0.0, 0.0, 0.3])
        self.most_tokens = draw.choice([1, 4])
        self.ack_levels = draw.choice([[None, "memory"], [None, "memory", "replicated"]])
        self.chance = random.Random(f"{outcome.seed}, cursors and checkpoints")
        self.cursor_share = self.chance.choice([0.0, 0.4, 0.8])
        self.restore_share = self.chance.choice([0.0, 0.0, 0.3])
        self.talk_share = self.chance.choice([0.0, 0.2, 0.5])
        self.copy_share = self.chance.choice([0.0, 0.1, 0.4])
        self.kind_count = 1 << 30
        if is_alike := draw.random() < 0.2:
            self.kind_count, self.most_tokens, self.takeover_share, self.ack_levels = 2, 1, 0.0, [None]
        self.fault_pause_s = draw.choice([0.01, 0.05, 0.5])
        self.network = Network(loop)
        self.primary = Primary(loop, self.note)
        store_process = loop.new_process("store")
        limits = EngineLimits(
            max_batch=draw.choice([2, 8, 64]),
            hot_state_bytes=draw.choice([1, 2000, 1 << 20]),
            session_ttl_s=draw.choice([86_400.0, 86_400.0, 3.0]),
            run_timeout_s=RUN_TIMEOUT_S,
        )
        run_s = draw.choice([0.0003, 0.005])
        self.replicas = [
            Replica(f"replica {number}", loop, self.primary, store_process, limits, run_s)
            for number in range(draw.choice([2, 2, 3, 5]))
        ]
        self.answers = []
        self.not_applied = []
        self.meant = []
        self.cursors = {}
        self.copies = []
        self.talks = []
        self.models = {TALK_ID: "talk"}
        self._leaving = []
        self._folder = folder
        session_count = 1 if is_alike else draw.choice([1, 1, 2, 3, 6, 12])
        self._session_ids = [f"s{number}" for number in range(session_count)]
        self.writers = [self._new_writer(number) for number in range(draw.choice([2, 4, 8]))]

    def note(self, who, what, key=b"", more=None):
        """Writes a line of the transcript."""
        self.outcome.events[what] += 1
        self.outcome.lines.append((self.loop.now_s, who, what, key, more))

    @property
    def can_tell_apart(self):
        """Whether a chunk of some tokens is known by them."""
        return self.kind_count > 2

    def means(self, session, tokens, size):
        """Notes where chunks of so many tokens are meant to go."""
        digest = session.history_digest
        for start in range(0, len(tokens) if self.can_tell_apart else 0, size):
            chunk = tokens[start : start + size]
            self.meant.append((session.session_id, session.position + start, digest, chunk))
            digest = digest_after(digest, np.array(chunk))

    def cursor_of(self, session, tokens):
        """Returns a cursor for a step, and notes where it belongs; mostly none."""
        if not self.can_tell_apart or self.chance.random() >= self.cursor_share:
            return None
        cursor = b"cursor %d" % len(self.cursors)
        digest = digest_after(session.history_digest, np.array(tokens))
        self.cursors[session.session_id, session.position + len(tokens), digest] = cursor
        return cursor

    def model_of(self, session_id):
        """Returns the name of a session's model."""
        return self.models.get(session_id, "hash")

    def check_own(self, session_id, reason):
        """Notes a refusal that only another writer can give reason for, of a session that has none."""
        if reason in FOR_OTHERS and _key(session_id) not in self.primary.forgotten:
            self.outcome.broken.append((session_id, f"{reason}, though nobody else writes to the session"))

    async def run(self):
        """Lets the writers write while things break, then everything settle, and looks."""
        for replica in self.replicas:
            await self._in(replica.process, replica.start())
        for writer in self.writers:
            await self._in(writer.process, writer.begin())
        faults = asyncio.create_task(self._break_things())
        works = [self.loop.spawn(writer.process, writer.run(8)) for writer in self.writers]
        await asyncio.wait(works)
        faults.cancel()
        await asyncio.wait([faults])
        await self._heal()
        for work in works:
            work.result()
        if not faults.cancelled():
            faults.result()
        for writer in self.writers:
            await self._in(writer.process, writer.settle())
        own_ids = [writer.own_id for writer in self.writers if writer.has_opened_own]
        talk_ids = [session_id for session_id in self.models if self.model_of(session_id) == "talk"]
        copy_ids = [copy.session_id for copy in self.copies if copy.session_id]
        for session_id in dict.fromkeys([*self._session_ids, *own_ids, *talk_ids, *copy_ids]):
            await self._look(session_id)
        for replica in self.replicas:
            await self._in(replica.process, replica.stop())

    async def _look(self, session_id):
        writer = self.writers[0]
        try:
            await self._in(writer.process, writer.look(session_id))
        except HoldfastError as error:
            if error.reason not in MAY_END:
                self.outcome.broken.append(
                    (session_id, f"the last step ended with {error.reason}: {error}")
                )

    def _new_writer(self, number):
        return Writer(self, number, self._session_ids, self._folder / f"{number}.history")

    async def _in(self, process, work):
        await self.loop.spawn(process, work)

    # -- faults ---------------------------------------------------------------------------------

    async def _break_things(self):
        kinds = (
            self._pause, self._kill, self._drain, self._cut_calls, self._break_store_connection,
            self._restart_store, self._fail_over, self._fail_over_unnoticed, self._fill_up,
            self._cut_off_replication,
        )  # fmt: skip
        kinds = self.loop.random.sample(kinds, self.loop.random.randint(1, len(kinds)))
        if not self.can_tell_apart:
            kinds.append(self._fail_over)
        for _ in range(MOST_FAULTS):
            await asyncio.sleep(self.loop.random.expovariate(1 / self.fault_pause_s))
            kind = self.loop.random.choice(kinds)
            name = kind.__name__[1:].replace("_", " ")
            self.outcome.faults[name] += 1
            self.note("fault", name)
            await kind()

    async def _heal(self):
        self.primary.is_down = self.primary.is_full = self.primary.is_cut_off = False
        for leaving in self._leaving:
            await leaving
        for replica in self.replicas:
            if not replica.handlers:
                await self._start_again(replica)

    async def _start_again(self, replica):
        replica.renew()
        await self._in(replica.process, replica.start())

    def _for(self, least_s, most_s):
        return asyncio.sleep(self.loop.random.uniform(least_s, most_s))

    async def _pause(self):
        victim = self.loop.random.choice([*self.replicas, *self.writers])
        self.loop.hold(victim.process, self.loop.random.choice([0.01, 0.1, 1.5]))

    async def _kill(self):
        replica = self.loop.random.choice(self.replicas)
        self.network.cut(lambda call: call.replica is replica)
        replica.kill()
        await self._for(0.0, 0.1)
        await self._start_again(replica)

    async def _drain(self):
        replica = self.loop.random.choice(self.replicas)
        patience_s = self.loop.random.choice([0.0, 0.05, math.inf])
        leaving = self.loop.spawn(replica.process, replica.stop(patience_s))
        self._leaving.append(leaving)
        await asyncio.shield(leaving)  # it leaves in good form, even if nothing breaks any more
        await self._start_again(replica)

    async def _cut_calls(self):
        one = self.loop.random.choice([*self.replicas, *self.writers])
        self.network.cut(lambda call: one in (call.replica, call.client) or one.process is call.client)

    async def _break_store_connection(self):
        self.loop.random.choice(self.replicas).store.connection.snap()

    async def _restart_store(self):
        self.primary.is_down = True
        self.primary.break_connections()
        await self._for(0.0, 0.3)
        self.primary.is_down = False

    async def _fail_over(self):
        self.primary.is_down = True
        self.primary.fail_over(self.loop.random.choice([0, 1, 1, 2, 3, 6]))
        if self.loop.random.random() < 0.5:  # a machine with more than the store on it
            await self._cut_calls()
        await self._for(0.0, 0.1)
        self.primary.is_down = False

    async def _fail_over_unnoticed(self):
        """A replica stands still meanwhile: what it has in memory is not what is stored."""
        replica = self.loop.random.choice(self.replicas)
        await self._for(0.0, 0.002)
        self.loop.hold(replica.process, 0.3)
        await self._fail_over()

    async def _fill_up(self):
        self.primary.is_full = True
        await self._for(0.0, 0.2)
        self.primary.is_full = False

    async def _cut_off_replication(self):
        self.primary.is_cut_off = True
        await self._for(0.0, 0.3)
        self.primary.is_cut_off = False


def simulate(seed):
    """Runs what a seed names; returns what came of it."""
    outcome = Outcome(seed)
    loop = SimulatedLoop(seed)
    with tempfile.TemporaryDirectory(prefix="simulation-") as folder, _virtual(loop):
        world = World(loop, Path(folder), outcome)
        try:
            loop.run(world.run(), LIMIT_S)
        except Stuck as error:
            outcome.broken.append(("", f"something is held for ever: {error}"))
        else:
            drivers = [driver for replica in world.replicas for driver in replica.drivers]
            paths = sorted(Path(folder).glob("*.history"))
            outcome.broken += judge(
                paths,
                world.primary,
                drivers,
                world.answers,
                world.not_applied,
                world.meant,
                world.cursors,
                world.copies,
                world.talks,
                _key,
                can_tell_apart=world.can_tell_apart,
            )
        outcome.broken += [("", _trouble(context)) for context in loop.troubles]
    outcome.step_count, outcome.trace = loop.step_count, loop.trace
    return outcome


@contextlib.contextmanager
def _virtual(loop):
    """Puts what the seed decides in the place of clocks, chance and threads."""
    draw = loop.random

    def busy_s(_):
        return draw.choice([0.0, loop.now_s])

    state, disabled = random.getstate(), logging.root.manager.disable
    random.seed(draw.random())
    logging.disable(logging.CRITICAL)
    with (
        mock.patch.object(time, "monotonic", loop.time),
        mock.patch.object(secrets, "randbelow", draw.randrange),
        mock.patch.object(secrets, "randbits", draw.getrandbits),
        mock.patch.object(secrets, "token_hex", lambda size: draw.randbytes(size).hex()),
        mock.patch.object(Window, "busy_s", busy_s),
        mock.patch.object(driver, "Runner", SimulatedRunner),
    ):
        try:
            yield
        finally:
            random.setstate(state)
            logging.disable(disabled)


def _key(session_id):
    return key_of(ANYBODY.tenant, session_id)


def _told(more):
    if not isinstance(more, bytes):
        return "" if more is None else str(more)
    record = decode(more)
    return f"at {record.position}, incarnation {record.incarnation}, digest {record.digest}"


def _trouble(context):
    return f"{context['message']}: {context.get('exception')!r}"

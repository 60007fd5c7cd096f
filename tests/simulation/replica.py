"""A replica of a simulation: the servicer, the engine and its core as they are, over a simulated store.

Not real are the model, which is a hash of all tokens, and the runner: its threads are virtual time.
"""

import asyncio
import contextlib
import hashlib
import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np

from holdfast.errors import ModelFailed, ModelNotFound
from service.engine.admission import Admission, Bounds
from service.engine.changes import Changes
from service.engine.checkpoints import Checkpoints
from service.engine.copies import Copies
from service.engine.driver import Driver
from service.engine.effects import Failure, Kind
from service.engine.probing import probe
from service.engine.rows import Reply
from service.engine.run import run_batch
from service.engine.sessions import Sessions
from service.model.contract import OutputSpec, Vocabulary
from service.rpc.access import Access
from service.rpc.batches import BatchLimits
from service.rpc.checkpoints import CheckpointRpcs
from service.rpc.copies import CopyRpcs
from service.rpc.credentials import ANYBODY
from service.rpc.generation import Generations
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import build_rpcs
from service.rpc.sessions import SessionRpcs
from service.rpc.steps import StepRpcs
from service.telemetry.rpc_metrics import NUMBER_COUNT, RpcMetrics
from tests.simulation.store import SimulatedStore
from tests.simulation.talk import TALK_IDS, log_probs_of
from tests.support.fakes import HASH_CONTRACT, CountingObserver, HashModel

RAISES, STALLS = 254, 253
PATIENCE_S = 0.2
RUN_TIMEOUT_S = 2.0


class Model(HashModel):
    """The hash of all tokens, of which there are many; raises where it finds token 254.

    Args:
        run_s: What a run takes, about.
    """

    contract = replace(HASH_CONTRACT, vocabulary=Vocabulary("ids", 1 << 31))

    def __init__(self, run_s):
        super().__init__()
        self.run_s = run_s

    def run(self, tokens, states, needed=None, halt=None):
        if (tokens == RAISES).any():
            raise RuntimeError("token 254")
        outputs, after = super().run(tokens, states, needed, halt)
        self.batch_sizes.clear()
        return outputs, after


class TalkModel(HashModel):
    """The same hash, but of fewer tokens, and it says what follows: a pure function of the hash.

    Args:
        run_s: What a run takes, about.
    """

    name = "talk"
    fingerprint = hashlib.sha256(b"talk").digest()
    contract = replace(
        HASH_CONTRACT,
        vocabulary=Vocabulary("ids", TALK_IDS),
        outputs=(
            *HASH_CONTRACT.outputs,
            OutputSpec("following", np.dtype("<f4"), (TALK_IDS,), "log_probs"),
            OutputSpec("log_prob", np.dtype("<f4"), (), "token_log_prob"),
        ),
    )

    def __init__(self, run_s):
        super().__init__()
        self.run_s = run_s

    def run(self, tokens, states, needed=None, halt=None):
        outputs, after = super().run(tokens, states, needed, halt)
        self.batch_sizes.clear()
        if "following" in needed:
            outputs["following"] = log_probs_of(outputs["hash"])
        if "log_prob" in needed:
            before = np.concatenate([states["s"][np.newaxis], outputs["hash"][:-1]])
            outputs["log_prob"] = np.take_along_axis(
                log_probs_of(before), tokens[..., np.newaxis].astype(np.int64), axis=-1
            )[..., 0]
        return outputs, after


class Served:
    """The models of a replica."""

    def __init__(self, *models):
        self._models = models

    def __iter__(self):
        return iter(self._models)

    def find(self, name, version=0):
        for model in self._models:
            if model.name == name:
                return model
        raise ModelNotFound(f"no model is named {name!r}")

    def find_fingerprint(self, fingerprint):
        return next((model for model in self._models if model.fingerprint == fingerprint), None)


class SimulatedRunner:
    """Implements `Runner`: what runs on the loop holds its process, what runs in a thread takes time."""

    def __init__(self, encode, timeout_s):
        self._encode = encode
        self._timeout_s = timeout_s
        self.is_leaving = False
        self.late_count = 0  # runs beside batches that began after it was told to leave

    async def run(self, group, kind, *, in_thread):
        self.late_count += self.is_leaving and kind is not Kind.BATCH
        loop = asyncio.get_running_loop()
        on_loop = not in_thread and kind in (Kind.BATCH, Kind.SEARCH)
        stalls = any((rows.tokens == STALLS).any() for rows in group)
        seconds = loop.random.expovariate(1 / group[0].model.run_s)
        if stalls:
            seconds = self._timeout_s if kind is Kind.LONG else PATIENCE_S
        if on_loop:
            loop.hold(loop.process, seconds)
        else:
            await asyncio.sleep(seconds)
        if stalls:
            return Failure(ModelFailed("the run did not end"), True, 0.0, on_loop)
        try:
            run_batch(group[0].model, group, self._encode, group[0].model.new_halt())
        except ModelFailed as error:
            return Failure(error, False, 0.0005, on_loop)
        return None

    async def probe(self, model, state):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(loop.random.expovariate(1 / model.run_s))
        return probe(model, state, model.new_halt())

    def close(self):
        pass


class CountedDriver(Driver):
    """A driver of which every answer is counted.

    Args:
        is_stale: Whether what is stored under a key was forgotten by the store that it is connected to.
        arguments: As of `Driver`.

    Attributes:
        answers: How often each chunk, and each row of each message, was answered.
        stale: Keys, and stamps of repeated replies that rest on what the store had forgotten by then.
    """

    def __init__(self, is_stale, *arguments):
        super().__init__(*arguments)
        self.answers = Counter()
        self.stale = []
        self._is_stale = is_stale
        self._numbers = itertools.count()
        self._messages = {}

    def submit(self, chunk):
        number, reply = next(self._numbers), chunk.reply
        self.answers[number] = 0

        def counted(chunk, outcome):
            self.answers[number] += 1
            if isinstance(outcome, Reply) and outcome.replayed:
                self._look_at(chunk.key, (outcome.incarnation, outcome.position, outcome.digest))
            reply(chunk, outcome)

        chunk.reply = counted
        super().submit(chunk)

    def submit_rows(self, rows):
        message = rows.message
        number, _ = self._messages.get(id(message), (None, None))
        if number is None:
            number, reply = next(self._numbers), message.reply
            self._messages[id(message)] = number, message  # kept, so that the id is not used again

            def counted(answered, error):
                for row in answered.numbers.tolist():
                    self.answers[number, row] += 1
                if error is None and answered.is_replayed:
                    for key, stamp in zip(answered.keys, answered.next_stamps.tolist(), strict=True):
                        self._look_at(key, tuple(stamp))
                reply(answered, error)

            message.reply = counted
        for row in rows.numbers.tolist():
            self.answers[number, row] = 0
        super().submit_rows(rows)

    async def stop(self):
        self._runner.is_leaving = True
        await super().stop()

    @property
    def late_count(self):
        """Runs beside batches that began after it was told to leave."""
        return self._runner.late_count

    def _look_at(self, key, stamp):
        if self._is_stale(key, stamp):
            self.stale.append((key, stamp))


class Replica:
    """One replica; killed or drained, it is started again in a new process.

    Attributes:
        name: For transcripts.
        process: The present one.
        handlers: Of its rpcs; empty while it does not listen.
        drivers: Of every process that was not killed.
    """

    def __init__(self, name, loop, primary, store_process, limits, run_s):
        self.name = name
        self.handlers = {}
        self.drivers = []
        self._loop = loop
        self._primary = primary
        self._store_process = store_process
        self._limits = limits
        self._run_s = run_s
        self.process = loop.new_process(name)

    async def start(self):
        """Listens; called in its process."""
        limits = self._limits
        models = Served(Model(self._run_s), TalkModel(self._run_s))
        store = SimulatedStore(self._loop, self._primary, self._store_process, self.process)
        self.store = store
        self.driver = CountedDriver(store.has_forgotten, models, store, CountingObserver().count, limits)
        self.drivers.append(self.driver)
        self.driver.start()
        sessions = Sessions(
            models, store, self.driver, ttl_s=limits.session_ttl_s, ack_level=limits.ack_level
        )
        checkpoints = Checkpoints(
            models, store, self.driver, ttl_s=limits.session_ttl_s, max_count=2, ack_level=limits.ack_level
        )
        changes = Changes(store, self.driver, limits.ack_level)
        copies = Copies(models, store, changes, ttl_s=limits.session_ttl_s)
        self.calls = OpenCalls(
            Admission(Bounds()), max_call_s=60.0, max_stall_s=30.0, max_age_s=0.0, places=1000
        )
        functions = {
            **SessionRpcs(sessions, max_rows=256).rpcs(),
            **StepRpcs(self.driver, self.calls, BatchLimits(models, 256, 256)).rpcs(),
            **CheckpointRpcs(checkpoints, sessions).rpcs(),
            **CopyRpcs(copies, max_rows=256).rpcs(),
            **Generations(self.driver, sessions, models, self.calls, 256).rpcs(),
        }
        rpcs = build_rpcs(
            functions,
            self.calls,
            Access(None, asks_certificates=False),
            lambda rpc: RpcMetrics(("", "", rpc), [0.0] * NUMBER_COUNT),
        )
        self.handlers = {name: rpc.build(lambda _: ANYBODY) for name, rpc in rpcs.items()}

    async def stop(self, patience_s=math.inf):
        """Drains, for so long; called in its process."""
        await self.calls.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.driver.drain(), None if patience_s == math.inf else patience_s)
        self.handlers = {}
        await self.driver.stop()

    def kill(self):
        """Ends its process where it stands."""
        self.handlers = {}
        self.drivers.remove(self.driver)
        self._loop.kill(self.process)
        self.store.connection.snap()

    def renew(self):
        """Gets a new process for the next start."""
        self.process = self._loop.new_process(self.name)

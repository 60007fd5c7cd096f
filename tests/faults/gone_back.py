"""A store that goes back under two replicas and two writers: `python -m tests.faults.gone_back --rounds N`.

Both replicas have every session in memory, both writers step every session through both replicas, with the
history digest they know or without any. In each round all write for a moment; then the store loses what it
had: its file is cut, an older file or a cut-off replica's takes its place, or somebody writes older records
over the newer ones while the servers' connections stand. Every other time one writer then brings the
sessions to the positions they had, by other tokens, before anybody else comes. The model is `hash`: a token
lost, doubled or reordered, or a reply computed from another history, is a wrong number.

At the end of a round every reply since the store went back must be a link of one chain that ends in what is
stored; what is stored must be what these tokens give.
"""

import argparse
import asyncio
import json
import random
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import grpc
import numpy as np

from holdfast.client.status import from_rpc
from holdfast.errors import (
    HistoryConflict,
    PositionConflict,
    PositionGap,
    SessionDeleted,
    SessionLost,
    SessionNotFound,
    StoreRegressed,
)
from holdfast.history_digest import FACTORS, PRIMES, run_of
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.store.keys import session_key
from service.store.record import decode
from tests.nemesis.store import StoreProcess
from tests.support.hash_oracle import hash_of
from tests.support.models import write_hash_model
from tests.support.server import ServerProcess

MODEL = "hash"
SESSIONS = 6
WRITING_S = 0.4
MAX_APPENDED, MAX_APPENDED_AT_ONCE = 20, 3
"""Tokens without a position that are remembered, and as many of them whose replies are still to come."""

REFUSALS = (
    HistoryConflict, PositionConflict, PositionGap, StoreRegressed, SessionDeleted, SessionLost,
    SessionNotFound,
)  # fmt: skip


class Books:
    """What is known of every history that was ever written: the oracle.

    Attributes:
        last: Writer, replica and position of the last reply, by session.
        counts: What happened.
        wrong: What must not have happened, in words.
    """

    def __init__(self):
        self._states = {}  # of the model, by session and digest
        self._parents = {}  # digest before, by session and digest
        self._appended = {}  # tokens sent without a position, by session
        self._replied = {}  # digests of the replies of this round, by session
        self.last = {}
        self.counts = Counter()
        self.wrong = []

    def begin(self, name, digest):
        """Notes a session that was opened."""
        self._states[name, digest] = 0

    def sent(self, name, before, tokens):
        """Notes tokens that may be applied: after this history, or after any where it is None."""
        if before is None:
            self._appended[name] = [*self._appended.get(name, ())[-MAX_APPENDED:], tokens]
            return
        after = run_of(tokens).after(before)
        self._states[name, after] = hash_of(tokens, self._states[name, before])
        self._parents[name, after] = before

    def knows(self, name, digest):
        """Whether tokens that were sent can give this history."""
        return (name, digest) in self._states or self._explain(name, digest, MAX_APPENDED_AT_ONCE)

    def applied(self, name, before, tokens, result):
        """Checks a reply to tokens after a history; None: after whichever it was."""
        after = result.history_digest
        if not self.knows(name, after) or (before is not None and run_of(tokens).after(before) != after):
            self.wrong.append(f"{name}: a reply names a history that nobody wrote")
            return
        if _output_of(result) != self._states[name, after]:
            self.wrong.append(
                f"{name} at {result.position}: a reply from another history than its digest's"
            )
        self._replied.setdefault(name, []).append(after)
        self.counts["replies"] += 1
        self.counts["tokens"] += len(tokens)

    def close_round(self, name, record):
        """Checks that what is stored continues every reply since the store went back."""
        replied, digest = self._replied.pop(name, []), record.digest
        state = int(np.frombuffer(record.state, "<i8")[0])
        if not self.knows(name, digest) or self._states[name, digest] != state:
            self.wrong.append(f"{name}: what is stored is not what its tokens give")
        chain = set()
        while digest is not None:
            chain.add(digest)
            digest = self._parents.get((name, digest))
        found = sum(digest in chain for digest in replied)
        self.counts["replies found in the stored history"] += found
        if found < len(replied):
            self.wrong.append(f"{name}: {len(replied) - found} replies are not in the stored history")

    def _explain(self, name, after, depth):
        """Finds out whether tokens without a position, applied to a known history, give this one."""
        for tokens in self._appended.get(name, ())[::-1]:
            before = _before(after, run_of(tokens))
            if (name, before) in self._states or (depth > 1 and self._explain(name, before, depth - 1)):
                self.sent(name, before, tokens)
                return True
        return False


class Writer:
    """Steps every session, each time through either replica."""

    def __init__(self, stubs, books, rng):
        self._stubs, self._books, self._rng = stubs, books, rng
        self._known = {}

    async def write(self, until_s):
        """Writes until then; every chunk has its outcome when this returns."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.gather(*(self._step(f"s{number}") for number in range(SESSIONS)))

    async def catch_up(self):
        """Brings sessions that the other writer stepped last to where they were, by other tokens.

        That goes through the other replica; then the other writer goes on through its own, and both of them
        remember what the store has lost.
        """
        await asyncio.gather(
            *(self._catch_up(name, *last) for name, last in dict(self._books.last).items())
        )

    async def _catch_up(self, name, other, replica, position):
        if other is self:
            return
        known = await self._look(name)
        while known is not None and known.position < position:
            count = min(3, position - known.position)
            await self._step(name, count, blind_share=0, replica=1 - replica)
            known = self._known.get(name)
        await other._step(name, replica=replica)

    async def _step(self, name, count=0, blind_share=0.2, replica=None):
        known = self._known.get(name) or await self._look(name)
        tokens = self._rng.randbytes(count or self._rng.randint(1, 3))
        chunk = pb.Chunk(session_id=name, tokens=pb.Tokens(text=tokens))
        is_blind = self._rng.random() < blind_share
        if not is_blind:
            chunk.position = chunk.acknowledged_position = known.position
            chunk.history_digest, chunk.incarnation = known.history_digest, known.incarnation
        before = None if is_blind else known.history_digest
        self._books.sent(name, before, tokens)
        while True:
            number = self._rng.randrange(len(self._stubs)) if replica is None else replica
            try:
                request = pb.StepRequest(chunk=chunk)
                result = (await self._stubs[number].Step(request, timeout=5)).result
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure)
                self._books.counts[error.reason] += 1
                if isinstance(error, REFUSALS) or is_blind:
                    self._known.pop(name, None)  # blind ones are not safe to repeat
                    return
                await asyncio.sleep(0.02)
            else:
                self._books.applied(name, before, tokens, result)
                self._books.last[name] = (self, number, result.position)
                self._known[name] = pb.Session(
                    position=result.position,
                    history_digest=result.history_digest,
                    incarnation=result.incarnation,
                )
                return

    async def _look(self, name):
        """Takes the session as it is stored; opens it where it is gone."""
        request = pb.OpenSessionRequest(
            session_id=name, model=pb.ModelRef(name=MODEL), nonce=secrets.randbelow(2**53 - 1) + 1
        )
        while True:
            try:
                opened = await self._rng.choice(self._stubs).OpenSession(request, timeout=5)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
                continue
            session = self._known[name] = opened.session
            if session.position == 0:
                self._books.begin(name, session.history_digest)
            elif not self._books.knows(name, session.history_digest):
                self._books.wrong.append(f"{name}: a history is stored that nobody wrote")
            return session


def _before(after, run):
    """Returns the history digest before a run, given that after it."""
    halves = []
    for number, done, factor, prime in zip(divmod(after, 2**26), run[:2], FACTORS, PRIMES, strict=True):
        halves.append((number - done) * pow(factor, -run.element_count, prime) % prime)
    return halves[0] << 26 | halves[1]


def _output_of(result):
    [named] = result.outputs.tensors
    return int(np.frombuffer(named.tensor.data, "<i8")[-1])


# -- how a store goes back ------------------------------------------------------------------------


def cut_tail(store, rng, _):
    """Loses the end of its file in a crash."""
    store.kill()
    store.truncate_tail(rng.randint(1, 20_000))
    store.start()


def fail_over(store, rng, older):
    """A replica that was cut off a moment ago takes its place, at the same address."""
    store.kill()
    older[-1].put(store)
    store.start()


def restore(store, rng, older):
    """A backup takes its place, at the same address."""
    store.kill()
    rng.choice(older).put(store)
    store.start()


def write_over(store, rng, older):
    """Somebody writes the records of a backup over the newer ones; no connection breaks."""
    rng.choice(older).write(store)


WAYS = (cut_tail, fail_over, restore, write_over)


class Backup:
    """The records of a store at one moment."""

    def __init__(self, store):
        with store.client() as client:
            self._records = {key: client.get(key) for key in client.scan_iter("holdfast:*")}

    def put(self, store):
        """Makes it all that a stopped store will have."""
        shutil.rmtree(store.folder / "appendonlydir")
        store.start()
        self.write(store)
        store.kill()

    def write(self, store):
        """Writes it over what a running store has."""
        with store.client() as client:
            for key, record in self._records.items():
                client.set(key, record)


async def run(folder, rounds, seed):
    """Returns the books after so many rounds."""
    write_hash_model(folder / "models" / MODEL / "1" / "model.onnx")
    rng, books = random.Random(seed), Books()
    with StoreProcess(folder / "store", appendfsync="always") as store:
        flags = ("--store", store.url, "--models", str(folder / "models"), "--store-timeout-s", "1")
        with ServerProcess(folder / "one", *flags) as one, ServerProcess(folder / "two", *flags) as two:
            channels = [grpc.aio.insecure_channel(server.address) for server in (one, two)]
            stubs = [StreamingInferenceServiceStub(channel) for channel in channels]
            writers = [Writer(stubs, books, random.Random(rng.random())) for _ in range(2)]
            await _rounds(store, writers, books, rng, rounds)
            for channel in channels:
                await channel.close()
    return books


async def _rounds(store, writers, books, rng, rounds):
    older = [Backup(store)]
    loop = asyncio.get_running_loop()
    for _ in range(rounds):
        if rng.random() < 0.5:
            await asyncio.gather(*(writer.catch_up() for writer in writers))
        for share in (0.5, 1.0):  # what the last round wrote is partly in the newest backup
            until_s = loop.time() + WRITING_S * share
            await asyncio.gather(*(writer.write(until_s) for writer in writers))
            if share == 0.5:
                older = [*older[-4:], Backup(store)]
        with store.client() as client:
            for number in range(SESSIONS):
                books.close_round(f"s{number}", decode(client.get(session_key("default", f"s{number}"))))
        way = rng.choice(WAYS)
        books.counts[way.__name__] += 1
        await asyncio.to_thread(way, store, rng, older)


def main(arguments):
    """Runs the command; returns 0 if Law 2 held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.gone_back", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="times the store goes back (200)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gone-back-") as folder:
        books = asyncio.run(run(Path(folder), options.rounds, options.seed))
    print(json.dumps(dict(sorted(books.counts.items())), indent=1))
    print(f"from another history than the stored one: {len(books.wrong)}")
    for line in books.wrong[:20]:
        print(line)
    return 1 if books.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

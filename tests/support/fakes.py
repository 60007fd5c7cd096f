"""Fakes for tests of pure logic: a model whose state is a running sum, a store in memory, an observer.

With the running sum any mix-up of sessions, any lost or doubled token, is a wrong number.
"""

import asyncio
import hashlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from holdfast.errors import AckLevelNotReached, AckLevelUnsupported, ModelNotFound, StoreUnavailable
from service.model.contract import Contract, InputSpec, OutputSpec, StateSpec, Vocabulary
from service.store.beside import checkpoint_field, decode_checkpoint, read_head
from service.store.flag import FLAG_PLACE, has_sibling, without_flag
from service.store.keys import set_aside_key
from service.store.outputs import Outputs
from service.store.protocol import AckLevel, Found, Refusals, Writes
from service.store.record import (
    NO_STAMP,
    STAMP_END,
    STAMP_START,
    Record,
    decode,
    encode,
    new_record,
)
from tests.support.hash_oracle import next_hash

F32 = np.dtype("<f4")

SUM_CONTRACT = Contract(
    input=InputSpec("token", "token_id", np.dtype("<i8"), 1),
    states=(StateSpec("sum", "sum", "sum_next", F32, (2,), 0),),
    outputs=(OutputSpec("total", F32, (), "raw"),),
    vocabulary=Vocabulary("bytes", 256),
)


class AccumulatorModel:
    """State (sum of tokens, number of tokens); output: the sum. Token 255 makes the state infinite."""

    name = "sum"
    version = 1
    contract = SUM_CONTRACT
    fingerprint = hashlib.sha256(b"sum").digest()

    def __init__(self):
        self.batch_sizes = []
        self.fail_with = None

    def new_halt(self):
        return SimpleNamespace(terminate=False)

    def run(self, tokens, states, needed=None, halt=None):
        if self.fail_with is not None:
            raise self.fail_with
        self.batch_sizes.append(tokens.shape[1])
        totals = states["sum"][:, 0] + np.cumsum(np.where(tokens == 255, np.inf, tokens), axis=0)
        counts = states["sum"][:, 1] + len(tokens)
        state = np.stack([totals[-1], counts], axis=1).astype(np.float32)
        return {"total": totals.astype(np.float32)}, {"sum": state}


HASH_CONTRACT = Contract(
    input=InputSpec("token", "token_id", np.dtype("<i8"), 1),
    states=(StateSpec("s", "s", "s_next", np.dtype("<i8"), (), 0),),
    outputs=(OutputSpec("hash", np.dtype("<i8"), (), "raw"),),
    vocabulary=Vocabulary("bytes", 256),
)


class HashModel(AccumulatorModel):
    """State and output: a hash of all tokens in their order, int64; see `tests.support.hash_oracle`."""

    name = "hash"
    contract = HASH_CONTRACT
    fingerprint = hashlib.sha256(b"hash").digest()

    def run(self, tokens, states, needed=None, halt=None):
        if self.fail_with is not None:
            raise self.fail_with
        self.batch_sizes.append(tokens.shape[1])
        state, hashes = states["s"], []
        for row in tokens:
            state = next_hash(state, row.astype(np.int64))
            hashes.append(state)
        return {"hash": np.stack(hashes)}, {"s": state}


class PoisonModel(AccumulatorModel):
    """Raises on token 254, runs until it is halted on 253, leaves out its state on 252."""

    def __init__(self):
        super().__init__()
        self.tried = []
        self.threads = []
        self.stalled = threading.Semaphore(0)

    def run(self, tokens, states, needed=None, halt=None):
        self.tried.append(tokens.shape[1])
        self.threads.append(threading.current_thread())
        if (tokens == 254).any():
            raise RuntimeError("token 254")
        if (tokens == 253).any():
            self.stalled.release()
            while not halt.terminate:
                time.sleep(0.001)
            raise RuntimeError("halted")
        outputs, after = super().run(tokens, states, needed, halt)
        return outputs, {} if (tokens == 252).any() else after


class FakeModels:
    def __init__(self, model):
        self.model = model

    def find(self, name, version=0):
        if name != self.model.name:
            raise ModelNotFound(f"no model is named {name!r}")
        return self.model

    def find_fingerprint(self, fingerprint):
        return self.model if fingerprint == self.model.fingerprint else None


def compared(writes, get):
    """Compares as `commit.lua` does.

    Args:
        writes: As of `StateStore.commit`.
        get: Gives what is stored under a key; called for each record when it is its turn.

    Yields:
        Of each record its number, key, bytes, cursor, what is stored, and whether that is as expected.
    """
    number, size = 0, len(NO_STAMP)
    for part in writes:
        cursors = part.cursors or [None] * len(part.keys)
        for row, (key, record) in enumerate(zip(part.keys, part.records, strict=True)):
            found = get(key)
            stamp = NO_STAMP if found is None else without_flag(found)[STAMP_START:STAMP_END]
            is_expected = stamp == part.expected[size * row : size * (row + 1)]
            yield number, key, bytes(record), cursors[row], found, is_expected
            number += 1


def replaced(found, record, cursor, sibling):
    """Writes as `commit.lua` does.

    Args:
        found: What was stored; None is nothing.
        record: The new record.
        cursor: Of the session, None where it stays.
        sibling: The hash beside the record.

    Returns:
        The record, with its flag, and the hash beside it.
    """
    if found is None or decode(record).deleted:
        sibling = {}
    if cursor:
        sibling = {**sibling, b"cursor": cursor}
    elif cursor is not None:
        sibling = {name: value for name, value in sibling.items() if name != b"cursor"}
    is_flagged = not decode(record).deleted and (
        bool(cursor) or (found is not None and (cursor is not None or has_sibling(found)))
    )
    return (flagged(record) if is_flagged else record), sibling


def with_checkpoint(record, sibling, stamp, name, max_count, saved_ms):
    """Saves as `save_checkpoint.lua` does.

    Returns:
        What `StateStore.save_checkpoint` returns, and the record and the hash beside it as they are then.
    """
    if record is None or without_flag(record)[STAMP_START:STAMP_END] != stamp:
        return Found(record), record, sibling
    field, cursor = checkpoint_field(name), sibling.get(b"cursor", b"")
    if len(sibling.keys() - {b"cursor", field}) >= max_count:
        return None, record, sibling
    kept = struct.pack("<QH", saved_ms, len(cursor)) + cursor + record
    return read_head(field, len(kept), kept), flagged(record), {**sibling, field: kept}


def heads_of(sibling):
    """Lists as `list_checkpoints.lua` does."""
    return [read_head(field, len(kept), kept) for field, kept in sibling.items() if field != b"cursor"]


def flagged(record):
    """Returns a record as it is stored where its session has a sibling."""
    return record[:FLAG_PLACE] + b"\1" + record[STAMP_END:]


class MemoryStore:
    """Implements StateStore on a dict, with switches for its faults."""

    def __init__(self):
        self.records: dict[bytes, bytes] = {}
        self.siblings: dict[bytes, dict[bytes, bytes]] = {}
        self.is_available = True
        self.lose_reply = False
        self.epoch = 1
        self.unconfirmed: set[bytes] = set()
        self.confirmed: list[tuple[bytes, AckLevel]] = []
        self.load_count = 0
        self.commit_count = 0

    async def load(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._check()
        self.load_count += 1
        return [self.records.get(key) for key in keys]

    async def load_with_cursors(self, keys: Sequence[bytes]) -> list[tuple[bytes | None, bytes]]:
        self._check()
        return [(self.records.get(key), self.siblings.get(key, {}).get(b"cursor", b"")) for key in keys]

    async def commit(self, writes: Sequence[Writes], ttl_s: float) -> Refusals:
        self._check()
        self.commit_count += 1
        refusals = {}
        for number, key, record, cursor, found, is_expected in compared(writes, self.records.get):
            if is_expected:
                sibling = self.siblings.get(key, {})
                self.records[key], self.siblings[key] = replaced(found, record, cursor, sibling)
            else:
                refusals[number] = Found(found)
        if self.lose_reply:
            self.lose_reply = False
            raise StoreUnavailable("reply lost", retry_after_s=0.1)
        return refusals

    def check_level(self, level: AckLevel) -> None:
        if AckLevel.FSYNCED in level:
            raise AckLevelUnsupported("this store has no disk")

    async def confirm(self, keys: Sequence[bytes], level: AckLevel, epoch: int) -> Refusals:
        await asyncio.sleep(0)
        refusals = {}
        for number, key in enumerate(keys):
            if key in self.unconfirmed or epoch != self.epoch:
                refusals[number] = AckLevelNotReached("not yet", retry_after_s=0.1)
            else:
                self.confirmed.append((key, level))
        return refusals

    async def set_aside(self, key: bytes, record: bytes, ttl_s: float) -> bool:
        self._check()
        if self.records.get(key) != record:
            return False
        self.records[set_aside_key(key)] = self.records.pop(key)
        self.siblings.pop(key, None)
        return True

    async def save_checkpoint(self, key, stamp, name, max_count):
        self._check()
        record, sibling = self.records.get(key), self.siblings.get(key, {})
        now_ms = int(time.time() * 1000)
        saved, record, sibling = with_checkpoint(record, sibling, stamp, name, max_count, now_ms)
        if record is not None:
            self.records[key], self.siblings[key] = record, sibling
        return saved

    async def list_checkpoints(self, key):
        self._check()
        return heads_of(self.siblings.get(key, {}))

    async def load_checkpoint(self, key, name):
        self._check()
        kept = self.siblings.get(key, {}).get(checkpoint_field(name))
        return None if kept is None else decode_checkpoint(kept)

    async def delete_checkpoint(self, key, name):
        self._check()
        return self.siblings.get(key, {}).pop(checkpoint_field(name), None) is not None

    async def time_to_live_s(self, key: bytes) -> float:
        return 0.0

    def _check(self):
        if not self.is_available:
            raise StoreUnavailable("down", retry_after_s=0.1)


class CountingObserver:
    """Adds up what the engine reports; reasons of refusals by themselves."""

    def __init__(self):
        self.counts = Counter()
        self.reasons = Counter()

    def count(self, report):
        for name in report.__slots__:
            value = getattr(report, name)
            self.counts[name] += value if isinstance(value, int) else len(value)
        self.reasons.update(report.refused)

    def refused(self, reason):
        self.reasons[reason] += 1


def open_session(store: MemoryStore, name: str, model=AccumulatorModel) -> Record:
    """Stores a session as OpenSession leaves it, under its name as the key; returns its record."""
    record = new_record(model.fingerprint, bytes(model.contract.state_bytes))
    store.records[name.encode()] = encode(record)
    return record


def encode_totals(outputs: Outputs) -> np.ndarray:
    """Encodes each row's output `total`, float32 (k,)."""
    return outputs.tensors["total"].reshape(outputs.row_count, -1).view(np.uint8)

"""The states of sessions that ran lately, in this process's memory, so that a step need not read the store.

A copy may be out of date: another replica may have moved the session on. That is harmless, since a commit
compares stamps. A session has a *slot*, and what is known of it stands in that row of a few arrays, so that
a batch is read and written by index. Least recently used sessions give way beyond `max_bytes`.

The *tail* of a session is the replies its record keeps, encoded. The next record needs it only if the
client sends ahead, and an answer from it rests on a record just read; so otherwise a commit drops it.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.rows import Rows
from service.model.contract import Contract
from service.model.protocol import Model
from service.store.record import Record, decode_replies, encode_replies
from service.store.record_rows import RecordRows, cut_rows

_FIRST_ROWS = 64
_OLDEST_SHARE = 8
_SAMPLE_ROWS = 4096
"""Room is made among the least recently used eighth, told from the others by a sample of so many."""

_FREED_SHARE = 256
_FORGOTTEN_ROWS = 256
"""A 256th of the bound is freed at a time, from so many of them after the other: nobody waits for long."""

ENTRY_BYTES = 400
"""What a session takes here beside its key, state and kept replies: between 230 and 400 as measured, by how
full the tables are, which grow to twice their size."""

_STAMP = slice(0, 3)
_NONCE, _MODEL, _ROW, _SIZE, _COLUMN_COUNT = range(3, 8)


class Cache:
    """Hot sessions by key.

    Args:
        max_bytes: Bound on the memory held: states, kept replies, and what each session takes by itself.
        busy: Sessions that have work waiting or under way, now and later; they stay, whatever the bound, so
            the bound on waiting work adds to it.

    Attributes:
        slots: Of the sessions, by key.
        models: By their numbers.
        held_bytes: Memory held, as counted.
    """

    def __init__(self, max_bytes: int, busy: Container[bytes]) -> None:
        self._max_bytes = max_bytes
        self._busy = busy
        self.slots: dict[bytes, int] = {}
        self._keys = np.empty(_FIRST_ROWS, np.object_)
        self._tails = np.empty(_FIRST_ROWS, np.object_)
        self._tail_bytes = np.zeros(_FIRST_ROWS, np.int64)  # 1 more than it has; 0: there is none
        self._columns = np.zeros((_FIRST_ROWS, _COLUMN_COUNT), np.int64)
        self._verified_s = np.zeros(_FIRST_ROWS)
        self._used = np.zeros(_FIRST_ROWS, np.int64)  # 0: the slot is free
        self._turn = 0
        self._oldest: list[int] = []  # slots, as far as they were not used after this turn:
        self._oldest_turn = 0
        self._free = list(range(_FIRST_ROWS))
        self.models: list[Model] = []
        self._states: list[_StateRows] = []  # of each
        self._model_numbers: dict[bytes, int] = {}
        self.held_bytes = 0

    def look_up(self, rows: Rows, slots: NDArray[np.int64]) -> None:
        """Fills in where sessions stand, as far as this process knows, and marks them as used."""
        self._turn += 1
        self._used[slots] = self._turn
        columns = self._columns.take(slots, 0)  # at a third of the time of an index, as below
        rows.slots, rows.stamps, rows.nonces = slots, columns[:, _STAMP], columns[:, _NONCE]
        rows.models, rows.places = columns[:, _MODEL], columns[:, _ROW]

    def model_at(self, slot: int) -> Model:
        """Returns the model that a session runs on."""
        return self.models[int(self._columns[slot, _MODEL])]

    def record(self, slot: int) -> Record:
        """Returns what the store is believed to hold, without the state. The tail must be here."""
        incarnation, position, digest, nonce = self._columns[slot, : _NONCE + 1].tolist()
        fingerprint, replies = self.model_at(slot).fingerprint, decode_replies(self._tails[slot])
        return Record(incarnation, position, fingerprint, b"", replies, digest=digest, nonce=nonce)

    def verified_s(self, slot: int) -> float:
        """Returns the monotonic time at which the store was known to hold the record."""
        return float(self._verified_s[slot])

    def age_s(self, key: bytes, now_s: float) -> float:
        """Returns how long ago the store was known to hold the record of a session; 0 if it is not hot."""
        slot = self.slots.get(key)
        return 0.0 if slot is None else now_s - self.verified_s(slot)

    def knows_all(self, slot: int, since_s: float) -> bool:
        """Whether the record, with its kept replies, was known to be in the store at that time or later."""
        return bool(self._verified_s[slot] >= since_s and self._tail_bytes[slot])

    def has_tails(self, slots: NDArray[np.int64], since_s: float) -> NDArray[np.bool_]:
        """Tells which sessions have their tail here, known to be in the store at that time or later.

        A store that has gone back may have come to the same stamp by chunks that were cut otherwise. The
        state is the same then, the replies are not.
        """
        has: NDArray[np.bool_] = (self._tail_bytes[slots] > 0) & (self._verified_s[slots] >= since_s)
        return has

    def tail(self, slot: int) -> bytes:
        """Returns the kept replies, as `record.encode_replies` gives them."""
        tail: bytes = self._tails[slot]
        return tail

    def put(self, key: bytes, model: Model, record: Record, *, verified_s: float) -> None:
        """Takes in what the store holds, instead of what was known of the session before."""
        assert not record.deleted, "bug: a session that is over is hot"
        assert not record.quarantine_reason, "bug: a session in quarantine is hot"
        self.discard(key)
        [slot] = self._claim(1)
        number = self._number(model)
        states = self._states[number]
        [row] = states.claim(1)
        states.rows[row] = np.frombuffer(record.state, np.uint8)
        tail = encode_replies(record.replies)
        tail_bytes = 1 + len(tail)
        size = ENTRY_BYTES + len(key) + model.contract.state_bytes
        stamp = (record.incarnation, record.position, record.digest)
        self._columns[slot] = (*stamp, record.nonce, number, row, size)
        self._tails[slot], self._tail_bytes[slot] = tail, tail_bytes
        self._keys[slot] = key
        self.slots[key] = slot
        self._came(slot, size + tail_bytes, verified_s)

    def put_rows(
        self, keys: Sequence[bytes], model: Model, records: RecordRows, *, verified_s: float
    ) -> None:
        """Takes in what the store holds of distinct sessions of one model; see `put`."""
        if not self.slots.keys().isdisjoint(keys):
            for key in keys:
                self.discard(key)
        slots = np.array(self._claim(len(keys)))
        number = self._number(model)
        states = self._states[number]
        columns = np.empty((len(keys), _COLUMN_COUNT), np.int64)
        columns[:, _STAMP], columns[:, _NONCE] = records.stamps, records.nonces
        columns[:, _MODEL], columns[:, _ROW] = number, states.claim(len(keys))
        columns[:, _SIZE] = np.fromiter(map(len, keys), np.int64, len(keys))
        columns[:, _SIZE] += ENTRY_BYTES + model.contract.state_bytes
        states.rows[columns[:, _ROW]] = records.states
        self._columns[slots] = columns
        self._tails[slots] = cut_rows(records.tails)
        tail_bytes = 1 + records.tails.shape[1]
        self._tail_bytes[slots] = tail_bytes
        self._keys[slots] = keys
        self.slots.update(zip(keys, slots.tolist(), strict=True))
        self._came(slots, int(columns[:, _SIZE].sum()) + len(keys) * tail_bytes, verified_s)

    def _came(self, slots: NDArray[np.int64] | int, size_bytes: int, verified_s: float) -> None:
        """Notes when sessions were read, and makes room for them."""
        self._verified_s[slots] = verified_s
        self._turn += 1
        self._used[slots] = self._turn
        self.held_bytes += size_bytes
        self._shrink()

    def discard(self, key: bytes) -> None:
        """Forgets a session, if it is hot."""
        slot = self.slots.pop(key, None)
        if slot is None:
            return
        number, row, size = self._columns[slot, _MODEL:].tolist()
        self._states[number].release([row])
        self.held_bytes -= size + int(self._tail_bytes[slot])
        self._tails[slot], self._tail_bytes[slot] = None, 0
        self._keys[slot] = None
        self._used[slot] = 0
        self._free.append(slot)

    def _free_slots(self, slots: NDArray[np.int64]) -> None:
        """Forgets the sessions of these slots; see `discard`."""
        for key in self._keys[slots].tolist():
            del self.slots[key]
        columns = self._columns[slots]
        for number in np.unique(columns[:, _MODEL]):
            self._states[number].release(columns[columns[:, _MODEL] == number, _ROW].tolist())
        self.held_bytes -= int(columns[:, _SIZE].sum())
        self._drop_tails(slots)
        self._keys[slots] = None
        self._used[slots] = 0
        self._free += slots.tolist()

    def gather(self, rows: Rows) -> None:
        """Fills in the raw states of rows of one model: copies, which a run may change."""
        rows.states = self._states[rows.models[0]].rows.take(rows.places, 0)

    def keep(self, rows: Rows, verified_s: float) -> None:
        """Takes in the records of rows of one model, which are committed.

        Args:
            rows: With next stamps, next states and tails.
            verified_s: Monotonic time at which the store is known to have held the records.
        """
        slots = rows.slots
        self._columns[slots, _STAMP] = rows.next_stamps
        self._states[rows.models[0]].rows[rows.places] = rows.next_states
        self._verified_s[slots] = verified_s
        self._drop_tails(slots)
        if rows.tails is not None:
            self._keep_tails(slots, rows.tails)
            self._shrink()

    def _keep_tails(self, slots: NDArray[np.int64], tails: Sequence[bytes]) -> None:
        """Stores tails of sessions that have none here."""
        sizes = np.fromiter(map(len, tails), np.int64, len(tails)) + 1
        self._tails[slots] = tails
        self._tail_bytes[slots] = sizes
        self.held_bytes += int(sizes.sum())

    def _drop_tails(self, slots: NDArray[np.int64]) -> None:
        sizes = self._tail_bytes[slots]
        if np.count_nonzero(sizes):
            self.held_bytes -= int(sizes.sum())
            self._tails[slots] = None
            self._tail_bytes[slots] = 0

    def _number(self, model: Model) -> int:
        number = self._model_numbers.get(model.fingerprint)
        if number is None:
            number = self._model_numbers[model.fingerprint] = len(self.models)
            size_bytes = model.contract.state_bytes
            self.models.append(model)
            self._states.append(_StateRows(size_bytes, self._max_bytes // size_bytes))
        return number

    def _claim(self, count: int) -> list[int]:
        """Returns free slots."""
        while len(self._free) < count:
            self._grow()
        slots = self._free[-count:]
        del self._free[-count:]
        return slots

    def _grow(self) -> None:
        """Doubles the number of slots."""
        count = len(self._keys)
        self._keys = np.concatenate([self._keys, np.empty_like(self._keys)])
        self._tails = np.concatenate([self._tails, np.empty_like(self._tails)])
        self._tail_bytes = np.concatenate([self._tail_bytes, np.zeros_like(self._tail_bytes)])
        self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)])
        self._verified_s = np.concatenate([self._verified_s, np.zeros_like(self._verified_s)])
        self._used = np.concatenate([self._used, np.zeros_like(self._used)])
        self._free.extend(range(count, 2 * count))

    def _shrink(self) -> None:
        """Forgets idle sessions that were not used for long, where the bound is passed."""
        if self.held_bytes <= self._max_bytes:
            return
        target_bytes, is_found = self._max_bytes - self._max_bytes // _FREED_SHARE, False
        while (excess_bytes := self.held_bytes - target_bytes) > 0:
            if not self._oldest:
                if is_found:
                    return  # all of them are busy
                self._find_oldest()
                is_found = True
            slots = np.array(self._oldest[-_FORGOTTEN_ROWS:])
            del self._oldest[-_FORGOTTEN_ROWS:]
            used = self._used[slots]
            slots = slots[(used > 0) & (used <= self._oldest_turn)]
            idle = slots[[key not in self._busy for key in self._keys[slots].tolist()]]
            sizes = self._columns[idle, _SIZE] + self._tail_bytes[idle]
            enough = 1 + int(np.searchsorted(sizes.cumsum(), excess_bytes))
            self._oldest += idle[enough:].tolist()
            self._free_slots(idle[:enough])

    def _find_oldest(self) -> None:
        """Finds those that were not used for longest, in the order of their slots: that is how they lie."""
        live = np.flatnonzero(self._used)
        used = self._used[live]
        sample = used[:: 1 + len(used) // _SAMPLE_ROWS]
        place = (len(sample) - 1) // _OLDEST_SHARE
        self._oldest_turn = int(np.partition(sample, place)[place])
        self._oldest = live[used <= self._oldest_turn].tolist()


class _StateRows:
    """The states of one model's sessions: one row of raw bytes each, tensors one after the other.

    All rows that the bound allows are there from the start; memory that was never written to costs nothing.

    Args:
        state_bytes: Bytes of a row.
        count: Rows that the bound allows; busy sessions may need more.
    """

    def __init__(self, state_bytes: int, count: int) -> None:
        self.rows = np.zeros((count + _FIRST_ROWS, state_bytes), np.uint8)
        self._free: list[int] = []
        self._used_count = 0

    def claim(self, count: int) -> list[int]:
        """Returns free rows."""
        missing = count - len(self._free)
        if missing > 0:
            self._free += range(self._used_count, self._used_count + missing)
            self._used_count += missing
            if self._used_count > len(self.rows):
                more = np.zeros((len(self.rows) // 8 + missing, self.rows.shape[1]), np.uint8)
                self.rows = np.concatenate([self.rows, more])
        rows = self._free[-count:]
        del self._free[-count:]
        return rows

    def release(self, rows: Iterable[int]) -> None:
        """Frees rows."""
        self._free += rows


def split_rows(contract: Contract, rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Views rows of raw bytes, (B, state_bytes), as tensors (B, ...) by state name."""
    states = {}
    offset = 0
    for spec in contract.states:
        part = np.ascontiguousarray(rows[:, offset : offset + spec.size_bytes])
        states[spec.name] = part.view(spec.dtype).reshape(len(rows), *spec.shape)
        offset += spec.size_bytes
    return states


def join_rows(contract: Contract, states: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Inverse of `split_rows`."""
    parts = []
    for spec in contract.states:
        part = np.ascontiguousarray(states[spec.name], spec.dtype)
        parts.append(part.reshape(len(part), -1).view(np.uint8))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

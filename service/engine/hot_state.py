"""The states of sessions that ran lately, in this process's memory, so that a step need not read the store.

A copy may be out of date: another replica may have moved the session on. That is harmless, since a
commit compares stamps. Least recently used sessions give way beyond `max_bytes`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.contract import Contract
from service.model.protocol import Model
from service.store.record import NO_STAMP, KeptReply, Record, draw_incarnation

_FIRST_ROWS = 64


@dataclass(slots=True, eq=False)
class HotSession:
    """A session whose state is in memory.

    Attributes:
        model: The model it runs on.
        rows: Where its state lies.
        slot: Its row there.
        record: What the store is believed to hold, without the state; None if nothing.
        incarnation: Of the record, or the one drawn for a session about to be opened.
        verified_s: Monotonic time at which the store was known to hold `record`.
    """

    model: Model
    rows: "StateRows"
    slot: int
    record: Record | None
    incarnation: int
    verified_s: float

    @property
    def is_stored(self) -> bool:
        """Whether the store holds a live record; else the session is about to be opened."""
        return self.record is not None and not self.record.closed

    @property
    def position(self) -> int:
        """Tokens consumed."""
        return self.record.position if self.record is not None and not self.record.closed else 0

    @property
    def replies(self) -> tuple[KeptReply, ...]:
        """Replies kept for retries."""
        return self.record.replies if self.record is not None else ()

    @property
    def stamp(self) -> bytes:
        """Stamp that a commit must find."""
        return NO_STAMP if self.record is None else self.record.stamp


class StateRows:
    """The states of one model's sessions: one row of raw bytes each, tensors one after the other."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._rows = np.zeros((_FIRST_ROWS, contract.state_bytes), np.uint8)
        self._free = list(range(_FIRST_ROWS))

    def claim(self, state: bytes) -> int:
        """Stores a state, raw or b"" for the initial one, and returns its slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._rows[slot] = np.frombuffer(state, np.uint8) if state else 0
        return slot

    def release(self, slot: int) -> None:
        """Frees a slot."""
        self._free.append(slot)

    def gather(self, slots: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Copies the states in `slots` into arrays (B, ...) by state name."""
        return split_rows(self._contract, self._rows[slots])

    def scatter(self, slots: Sequence[int], states: bytes) -> None:
        """Replaces the states in `slots` by raw states, one after the other."""
        self._rows[slots] = np.frombuffer(states, np.uint8).reshape(len(slots), -1)

    def _grow(self) -> None:
        count = len(self._rows)
        self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._free.extend(range(count, 2 * count))


def split_rows(contract: Contract, rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Views rows of raw bytes, (B, state_bytes), as tensors (B, ...) by state name."""
    states = {}
    offset = 0
    for spec in contract.states:
        part = np.ascontiguousarray(rows[:, offset : offset + spec.size_bytes])
        states[spec.name] = part.view(spec.dtype).reshape(len(rows), *spec.shape)
        offset += spec.size_bytes
    return states


def join_rows(contract: Contract, states: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Inverse of `split_rows`."""
    parts = [
        np.ascontiguousarray(states[spec.name], spec.dtype).reshape(len(states[spec.name]), -1)
        for spec in contract.states
    ]
    if len(parts) == 1:
        return parts[0].view(np.uint8)
    return np.concatenate([part.view(np.uint8) for part in parts], axis=1)


class HotSessions:
    """Hot sessions by key, least recently used first.

    Args:
        max_bytes: Bound on the state bytes held.
        is_busy: Tells whether a session has work waiting or under way; such sessions stay, whatever
            the bound, so the bound on waiting work adds to it.
    """

    def __init__(self, max_bytes: int, is_busy: Callable[[bytes], bool]) -> None:
        self._max_bytes = max_bytes
        self._is_busy = is_busy
        self._sessions: OrderedDict[bytes, HotSession] = OrderedDict()
        self._rows: dict[bytes, StateRows] = {}
        self._held_bytes = 0

    def get(self, key: bytes) -> HotSession | None:
        """Returns a session and marks it as used."""
        session = self._sessions.get(key)
        if session is not None:
            self._sessions.move_to_end(key)
        return session

    def put(self, key: bytes, model: Model, record: Record | None, *, verified_s: float) -> HotSession:
        """Takes in what the store holds, instead of what was known of the session before."""
        self.discard(key)
        rows = self._rows.get(model.fingerprint)
        if rows is None:
            rows = self._rows[model.fingerprint] = StateRows(model.contract)
        state = record.state if record is not None else b""
        session = HotSession(
            model=model,
            rows=rows,
            slot=rows.claim(state),
            record=record._replace(state=b"") if record is not None else None,
            incarnation=draw_incarnation() if record is None or record.closed else record.incarnation,
            verified_s=verified_s,
        )
        self._sessions[key] = session
        self._held_bytes += model.contract.state_bytes
        self._shrink()
        return session

    def discard(self, key: bytes) -> None:
        """Forgets a session, if it is hot."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.rows.release(session.slot)
            self._held_bytes -= session.model.contract.state_bytes

    def _shrink(self) -> None:
        """Forgets idle sessions, oldest first, until the bound holds or each was looked at once."""
        for _ in range(len(self._sessions)):
            if self._held_bytes <= self._max_bytes:
                return
            key = next(iter(self._sessions))
            if self._is_busy(key):
                self._sessions.move_to_end(key)
            else:
                self.discard(key)

"""The store of a simulation: one primary that keeps records, and the connections of replicas to it.

A commit does what `commit.lua` does: it writes a record over the expected stamp, and over nothing else. A
connection carries requests in order, and breaks: then what is under way fails, and whether it was executed
before, is executed later, or never, nobody is told. A fail-over takes back the latest writes that no
replica of the store has confirmed.
"""

import asyncio
import math
from typing import NamedTuple

from holdfast.errors import AckLevelNotReached, AckLevelUnsupported, StoreFull, StoreUnavailable
from service.store.beside import CheckpointHead, checkpoint_field, decode_checkpoint
from service.store.keys import set_aside_key
from service.store.protocol import AckLevel, Found
from service.store.record import decode
from tests.support.fakes import compared, replaced, with_checkpoint

ACK_TIMEOUT_S = 1.0
TIMEOUT_S = 2.0


class Write(NamedTuple):
    """A record that was written, or taken away.

    Attributes:
        key: Of the record.
        before, after: What was stored; None is nothing.
        sibling: What lay beside it before.
    """

    key: bytes
    before: bytes | None
    after: bytes | None
    sibling: dict


class Primary:
    """Keeps the records.

    Attributes:
        records: By key.
        siblings: What lies beside them, by key.
        written: Every record that was ever stored, by key, forgotten or not.
        forgotten: Keys of which the store has forgotten something, or that have expired.
        expired_s: By incarnation, of sessions that have, those before a takeover too, when they did.
        shown: By key, each time that something else was stored there: when, and what.
        stays: By key, incarnation, position and digest, each time that it came there, and when that was
            taken back.
        is_down, is_full, is_cut_off: It does not answer; takes no writes; has no replicas.
        misplaced: Keys at which a record was written over one that it does not continue.
        cursors: By key, position and digest, those that were stored with the session there.
    """

    def __init__(self, loop, note):
        self._loop = loop
        self._note = note
        self.records = {}
        self.siblings = {}
        self.written = {}
        self.forgotten = set()
        self.expired_s = {}
        self.shown = {}
        self.stays = {}
        self.expires_s = {}
        self.is_down = self.is_full = self.is_cut_off = False
        self.connections = []
        self.misplaced = set()
        self.cursors = {}
        self._kept = {}  # by key, positions and digests of which there ever was a checkpoint
        self._log = []
        self._replicated_count = 0

    def get(self, key):
        """Returns a record; None if nothing is stored or it has expired."""
        expires_s = self.expires_s.get(key)
        if expires_s is not None and self._loop.now_s >= expires_s:
            if key in self.records:
                for raw in self.written[key]:
                    self.expired_s.setdefault(decode(raw).incarnation, self._loop.now_s)
            self.records.pop(key, None)  # no write that a fail-over takes back: replicas know the time, too
            self.siblings.pop(key, None)
            del self.expires_s[key]
            self.forgotten.add(key)
            self._show(key)
            self._note("store", "expires", key)
        return self.records.get(key)

    def cursor(self, key):
        """Returns the cursor of a session; b"" if it has none."""
        return self.siblings.get(key, {}).get(b"cursor", b"")

    def commit(self, writes, ttl_s):
        """See `StateStore.commit`."""
        refusals = {}
        for number, key, record, cursor, found, is_expected in compared(writes, self.get):
            if not is_expected:
                refusals[number] = Found(found)
            elif self.is_full:
                refusals[number] = StoreFull("the store is full", retry_after_s=0.1)
            else:
                sibling = self.siblings.get(key, {})
                if found is not None and not _continues(
                    decode(found), decode(record), self._kept.get(key, ())
                ):
                    self.misplaced.add(key)
                self._put(key, *replaced(found, record, cursor, sibling), ttl_s)
                self._note("store", "writes", key, record)
        return refusals

    def save_checkpoint(self, key, stamp, name, max_count):
        """See `StateStore.save_checkpoint`."""
        if self.is_full:
            return StoreFull("the store is full", retry_after_s=0.1)
        before, sibling = self.get(key), self.siblings.get(key, {})
        now_ms = int(self._loop.now_s * 1000)
        saved, record, sibling = with_checkpoint(before, sibling, stamp, name, max_count, now_ms)
        if isinstance(saved, CheckpointHead):
            self._log.append(Write(key, before, record, self.siblings.get(key, {})))
            self.records[key], self.siblings[key] = record, sibling
            self._show(key)
            self._kept.setdefault(key, set()).add((saved.position, saved.digest))
            self._note("store", "saves", key, record)
        return saved

    def checkpoint(self, key, name):
        """See `StateStore.load_checkpoint`."""
        self.get(key)
        kept = self.siblings.get(key, {}).get(checkpoint_field(name))
        return None if kept is None else decode_checkpoint(kept)

    def set_aside(self, key, record, ttl_s):
        """See `StateStore.set_aside`."""
        if self.get(key) != record:
            return False
        self._put(key, None, {}, 0.0)
        self._put(set_aside_key(key), record, {}, ttl_s)
        return True

    def replicate(self):
        """Has the replicas of the store take all that is written; returns whether there are any."""
        if not self.is_cut_off:
            self._replicated_count = len(self._log)
        return not self.is_cut_off

    def fail_over(self, count):
        """A replica takes over, which lacks so many of the latest writes, if they were not confirmed."""
        left_count = max(self._replicated_count, len(self._log) - count)
        while len(self._log) > left_count:
            key, before, after, sibling = self._log.pop()
            if after is not None and _place(after) != _place(before):
                self.stays[key, *_place(after)][-1][1] = self._loop.now_s
            self.forgotten.add(key)
            if after is not None and key not in self.records:  # it has expired, and so has what was before
                continue
            self.records.pop(key, None) if before is None else self.records.__setitem__(key, before)
            self.siblings[key] = sibling
            self._show(key)
            self._note("store", "forgets a write", key)
        self.break_connections()

    def break_connections(self):
        """Ends every connection."""
        for connection in list(self.connections):
            connection.snap()

    def _put(self, key, record, sibling, ttl_s):
        before = self.records.get(key)
        self._log.append(Write(key, before, record, self.siblings.get(key, {})))
        self.siblings[key] = sibling
        if record is None:
            self.records.pop(key, None)
            self.expires_s.pop(key, None)
            self._show(key)
            return
        if _place(record) != _place(before):
            self.stays.setdefault((key, *_place(record)), []).append([self._loop.now_s, math.inf])
        self.records[key] = record
        self._show(key)
        if not decode(record).deleted:
            cursors = self.cursors.setdefault((key, *_place(record)[1:]), set())
            cursors.add(sibling.get(b"cursor", b""))
        self.written.setdefault(key, set()).add(record)
        if ttl_s:
            self.expires_s[key] = self._loop.now_s + ttl_s
        else:
            self.expires_s.pop(key, None)

    def _show(self, key):
        self.shown.setdefault(key, []).append((self._loop.now_s, self.records.get(key)))


def _place(record):
    """Returns incarnation, position and digest of a record, in quarantine or not; None of none."""
    if record is None:
        return None
    found = decode(record)
    return found.incarnation, found.position, found.digest


def _continues(before, after, checkpoints):
    """Whether a record goes on from the one that it replaces, by a chunk or none, or from a checkpoint."""
    if before.deleted:
        return True  # a session that begins anew
    place = after.position, after.digest
    if after.incarnation == before.incarnation and after.position != before.position:
        last = after.replies[-1]
        if place != (last.position, last.digest):
            return False
        place = last.position - last.token_count, last.digest_before
    elif after.incarnation != before.incarnation and place in checkpoints:
        return True
    return place == (before.position, before.digest)


class Connection:
    """One connection to the primary; carries requests and replies in order until it breaks.

    Attributes:
        is_broken: Nothing goes over it any more, whether its owner knows that or not.
    """

    def __init__(self, loop, primary, store_process, owner_process, on_end):
        self._loop = loop
        self._primary = primary
        self._store = store_process
        self._owner = owner_process
        self._on_end = on_end
        self._waiting = {}
        self._there_s = self._back_s = 0.0
        self.is_broken = False
        primary.connections.append(self)

    async def ask(self, act):
        """Has the primary do something, and returns what that gives.

        Raises:
            StoreUnavailable: The connection broke, or no reply came in time.
        """
        reply = self._loop.create_future()
        draw = self._loop.random
        self._there_s = max(self._there_s, self._loop.now_s + draw.expovariate(1 / 0.0005))
        self._waiting[reply] = act
        self._loop.call_at(self._there_s, self._execute, reply, context=self._store.context)
        timer = self._loop.call_later(TIMEOUT_S, self.snap)
        try:
            return await reply
        finally:
            timer.cancel()

    def snap(self):
        """Breaks the connection; what is on its way may still arrive, later, or never."""
        if self.is_broken:
            return
        self.is_broken = True
        self._primary.connections.remove(self)
        draw = self._loop.random
        for act in self._waiting.values():
            if act is not None and draw.random() < 0.3:
                late_s = draw.expovariate(1 / 0.02)
                self._loop.call_later(late_s, self._late, act, context=self._store.context)
        self._loop.call_later(draw.expovariate(1 / 0.002), self._end, context=self._owner.context)

    def _late(self, act):
        if not self._primary.is_down:
            act()

    def _end(self):
        self._on_end(self)
        for reply in self._waiting:
            if not reply.done():
                reply.set_exception(StoreUnavailable("the connection broke", retry_after_s=0.05))

    def _execute(self, reply):
        if self.is_broken or self._primary.is_down:
            return
        act, self._waiting[reply] = self._waiting[reply], None
        answer = act()
        self._back_s = max(self._back_s, self._loop.now_s + self._loop.random.expovariate(1 / 0.0005))
        self._loop.call_at(self._back_s, self._deliver, reply, answer, context=self._owner.context)

    def _deliver(self, reply, answer):
        if self.is_broken:
            return
        self._waiting.pop(reply, None)
        if not reply.done():
            reply.set_result(answer)


class SimulatedStore:
    """Implements `StateStore` for one replica, over a connection that it makes anew when it breaks."""

    def __init__(self, loop, primary, store_process, owner_process):
        self._loop = loop
        self._primary = primary
        self._processes = store_process, owner_process
        self.epoch = 1
        self.is_available = True
        self._connected_s = loop.now_s
        self.connection = self._connect()

    async def load(self, keys):
        return await self.connection.ask(lambda: [self._primary.get(key) for key in keys])

    async def load_with_cursors(self, keys):
        def read():
            return [(self._primary.get(key), self._primary.cursor(key)) for key in keys]

        return await self.connection.ask(read)

    async def commit(self, writes, ttl_s):
        return await self.connection.ask(lambda: self._primary.commit(writes, ttl_s))

    def check_level(self, level):
        if AckLevel.FSYNCED in level:
            raise AckLevelUnsupported("this store has no disk")

    async def confirm(self, keys, level, epoch):
        is_there = False
        if epoch == self.epoch:
            try:
                is_there = await self.connection.ask(self._primary.replicate)
            except StoreUnavailable:
                is_there = False
            if not is_there:
                await asyncio.sleep(self._loop.random.random() * ACK_TIMEOUT_S)
        if is_there and epoch == self.epoch:
            return {}
        late = AckLevelNotReached("not replicated", retry_after_s=0.05)
        return dict.fromkeys(range(len(keys)), late)

    async def set_aside(self, key, record, ttl_s):
        return await self.connection.ask(lambda: self._primary.set_aside(key, record, ttl_s))

    async def save_checkpoint(self, key, stamp, name, max_count):
        def save():
            return self._primary.save_checkpoint(key, stamp, name, max_count)

        saved = await self.connection.ask(save)
        if isinstance(saved, StoreFull):
            raise saved
        return saved

    async def load_checkpoint(self, key, name):
        return await self.connection.ask(lambda: self._primary.checkpoint(key, name))

    async def time_to_live_s(self, key):
        expires_s = self._primary.expires_s.get(key)
        return 0.0 if expires_s is None else max(0.001, expires_s - self._loop.now_s)

    def has_forgotten(self, key, stamp):
        """Whether the store had forgotten a stamp before it was connected to."""
        stays = self._primary.stays.get((key, *stamp), ())
        return bool(stays) and all(end_s < self._connected_s for _, end_s in stays)

    def _connect(self):
        return Connection(self._loop, self._primary, *self._processes, self._reconnect)

    def _reconnect(self, broken):
        if broken is self.connection:
            self.epoch += 1
            self._connected_s = self._loop.now_s
            self.connection = self._connect()

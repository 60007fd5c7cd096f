"""Sorts chunks by what is known of their sessions: to run, to load, refused, replayed. Pure.

What runs is decided for a whole batch at once, by the vector form of the rules. The other rows are looked
at one by one, and answered only from a record that is known to have been in the store after they came.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ServiceError
from service.engine import rules
from service.engine.asked import Asked
from service.engine.cache import Cache
from service.engine.checks import check_named, check_tokens, validate
from service.engine.heat import fill_reply
from service.engine.rows import NOT_GIVEN, Chunk, Rows, to_tokens, token_sums

JOINED_STEPS = 256
"""Tokens of whole messages that run together, though one of them fills a batch. Up to there a run and its
commit cost less per token the more they have; a larger message runs beside the commit of another one."""

MANY_COLD = 10
"""For so many sessions to be loaded the others of a batch wait, where they are no more than these: a small
run costs nearly as much as a large one, and there would be two."""


@dataclass(slots=True)
class Plan:
    """What becomes of chunks that are taken.

    Attributes:
        cache: What is known of their sessions.
        now_s: Monotonic time.
        epoch_seen_s: What was known before may be what another server of the store never had.
        ready: Rows to run, each of one model.
        cold: Rows that wait for sessions to be loaded.
        refused: Rows, and why.
        replays: Rows with a reply that is kept, and when its record was known to be in the store.
    """

    cache: Cache
    now_s: float
    epoch_seen_s: float
    ready: list[Rows] = field(default_factory=list)
    cold: list[Rows] = field(default_factory=list)
    refused: list[tuple[Rows, ServiceError]] = field(default_factory=list)
    replays: list[tuple[Rows, float]] = field(default_factory=list)

    def add(self, items: Iterable[Chunk | Rows]) -> None:
        """Sorts chunks: joins those that ask for the same, hot and cold ones apart."""
        slots = self.cache.slots
        joined: list[Rows] = []
        alike: dict[tuple[Asked, bool], list[Chunk]] = {}
        for item in items:
            if isinstance(item, Rows):
                joined.append(item)
            else:
                alike.setdefault((item.asked, item.key in slots), []).append(item)
        for rows in (*joined, *map(join, alike.values())):
            wanted, unwanted = rows.by_demand(self.now_s)
            if unwanted is not None:
                self.refused.append((unwanted, rules.late()))
            if wanted is None:
                continue
            try:
                found = np.fromiter(map(slots.__getitem__, wanted.keys), np.int64, len(wanted))
            except KeyError:
                self.cold.append(wanted)
            else:
                self._decide(wanted, found)

    def missing(self) -> list[bytes]:
        """Returns the sessions to load; where these are many, the few rows that could run wait for them."""
        keys = [key for rows in self.cold for key in rows.keys if key not in self.cache.slots]
        if len(keys) >= MANY_COLD and sum(map(len, self.ready)) <= len(keys):
            self.cold, self.ready = self.cold + self.ready, []
        return keys

    def _decide(self, rows: Rows, slots: NDArray[np.int64]) -> None:
        self.cache.look_up(rows, slots)
        runs = rules.continues(
            rows.stamps, rows.positions, rows.incarnations, rows.digests, rows.asked.token_count
        )
        rows.is_ahead = None
        if rows.acknowledged is not None:
            is_ahead = rules.sends_ahead(rows.stamps, rows.acknowledged)
            if np.count_nonzero(is_ahead):  # at a third of the time of `any`
                rows.is_ahead = is_ahead
                runs &= ~is_ahead | self.cache.has_tails(slots, self.epoch_seen_s)
        if np.count_nonzero(runs) < len(rows.keys):
            for place in np.flatnonzero(~runs).tolist():
                self._decide_alone(rows.one(place))
            rows = rows.take(np.flatnonzero(runs))
        numbers = rows.models
        if len(numbers) == 1 or (len(numbers) and (numbers == numbers[0]).all()):
            self._check(rows)
            return
        for number in np.unique(numbers):
            self._check(rows.take(np.flatnonzero(numbers == number)))

    def _check(self, rows: Rows) -> None:
        """Lets the rows run that suit their model."""
        rows.model = self.cache.models[rows.models[0]]
        try:
            rows.needs = validate(rows.asked, rows.model)
        except ServiceError as error:
            self.refused.append((rows, error))
            return
        wrong = check_tokens(rows.asked, rows.tokens, rows.model.contract)
        if wrong:
            self.refused += [(rows.one(place), reason) for place, reason in wrong.items()]
            rows = rows.take(rows.others(wrong))
        if rows.keys:
            self.ready.append(rows)

    def _decide_alone(self, row: Rows) -> None:
        """Answers a row that does not just run, or has it loaded if the answer could be out of date."""
        slot = int(row.slots[0])
        if not self.cache.knows_all(slot, max(row.arrived_s(0), self.epoch_seen_s)):
            self.cache.discard(row.keys[0])
            self.cold.append(row)
            return
        record, row.model = self.cache.record(slot), self.cache.model_at(slot)
        try:
            reply = rules.decide(record, row.claim(0))
            assert reply is not None, "bug: a chunk that runs was held to be out of place"
            check_named(row.model, row.asked.model_name, row.asked.model_version)
        except ServiceError as error:
            self.refused.append((row, error))
            return
        fill_reply(row, record, reply)
        self.replays.append((row, self.cache.verified_s(slot)))


def joins_batch(taken: Sequence[Chunk | Rows], item: Chunk | Rows) -> bool:
    """Tells whether a message that is ready runs with what was taken, though that is a batch already."""
    return isinstance(item, Rows) and sum(map(_step_count, (*taken, item))) <= JOINED_STEPS


def _step_count(item: Chunk | Rows) -> int:
    return item.asked.token_count * (len(item) if isinstance(item, Rows) else 1)


_COLUMNS = attrgetter("key", "tokens", "position", "acknowledged", "incarnation", "digest", "cursor")


def join(chunks: list[Chunk]) -> Rows:
    """Makes rows of chunks that ask for the same, of distinct sessions."""
    asked = chunks[0].asked
    keys, raw, positions, acknowledged, incarnations, digests, cursors = zip(
        *map(_COLUMNS, chunks), strict=True
    )
    tokens = to_tokens(asked, b"".join(raw), len(chunks))
    return Rows(
        asked,
        list(keys),
        tokens,
        token_sums(tokens),
        _column(positions),
        None if acknowledged.count(None) == len(chunks) else _column(acknowledged),
        np.array(incarnations, np.int64) if any(incarnations) else None,
        np.array(digests, np.int64) if any(digests) else None,
        chunks,
        cursors=list(cursors) if any(cursors) else None,
    )


def _column(positions: Sequence[int | None]) -> NDArray[np.int64]:
    if None in positions:
        positions = [NOT_GIVEN if position is None else position for position in positions]
    return np.array(positions, np.int64)

"""The rule of `holdfast pipe`: killed at every point, by itself or beside another, each record comes once.

Server, source and sink are fakes that do what they do atomically, and that stop for good at a chosen point.
What real ones do is in tests/contract/test_pipe_streams.py, and tests/faults/test_pipe.py.
"""

import asyncio
import itertools
import random

import pytest

from holdfast.client.reply import StepReply
from holdfast.errors import (
    InvalidRequest,
    PositionConflict,
    ServerUnavailable,
    SessionDeleted,
    SessionLost,
)
from holdfast.pipe import sessions
from holdfast.pipe.events import Raw, fields_of
from holdfast.pipe.failures import EndFailed, Refused, StepsLost
from holdfast.pipe.flow import Pipe, Rules
from holdfast.pipe.places import Place, cursor_of
from holdfast.pipe.records import Asked, Records
from holdfast.pipe.sources import OthersTurn
from holdfast.v1 import holdfast_pb2 as pb

MODEL = pb.Model(name="m", outputs=[pb.OutputSpec(name="sum", role="raw")])
FIELDS = fields_of("user", "text", "")


class World:
    """What outlives a pipe: sessions, the sink, and what is acknowledged.

    Attributes:
        sessions: Tokens applied, the last chunk and its reply, the cursor; by id.
        records: In the sink, in order.
        marks: Places of the last records, by key.
        done: Entries that are acknowledged.
    """

    def __init__(self, events, *, repeats=False):
        self.events = [
            Raw(Place(place), str(place), fields, "" if fields else "it is torn")
            for place, fields in enumerate(events, 1)
        ]
        self.repeats = repeats
        self.sessions = {}
        self.records, self.marks, self.done = [], {}, set()

    def written(self):
        return [(one["session"], one["position"], one["entry"], one["sum"]) for one in self.records]


class Life:
    """One process: counts what it does, and stops for good at a point, before or after having done it."""

    def __init__(self, world, *, dies_at=None, rng=None):
        self.world = world
        self.dies_at = dies_at
        self.points = 0
        self.died = asyncio.Event()
        self.said = []
        self._rng = rng

    async def point(self):
        self.points += 1
        if self.points == self.dies_at:
            self.died.set()
        if self.died.is_set():
            await asyncio.Event().wait()
        if self._rng is not None:
            for _ in range(self._rng.randrange(4)):
                await asyncio.sleep(0)
                if self.died.is_set():
                    await asyncio.Event().wait()

    # -- the client -----------------------------------------------------------------------------

    async def open_session(self, session_id, *, model, version):
        await self.point()
        resumed = session_id in self.world.sessions
        stored = self.world.sessions.setdefault(session_id, Stored())
        return Session(self, session_id, stored, resumed)

    # -- the source -----------------------------------------------------------------------------

    source_id = "events"
    given = 0

    async def read(self, most):
        await self.point()
        found = []
        while len(found) < most and self.given < len(self.world.events):
            event = self.world.events[self.given]
            self.given += 1
            if self.world.repeats or event.entry not in self.world.done:
                found.append(event)
        return found or None

    def again(self):
        self.given = 0

    async def done_(self, entries):
        await self.point()
        self.world.done.update(entries)
        await self.point()

    # -- the sink -------------------------------------------------------------------------------

    async def last(self, key):
        await self.point()
        return self.world.marks.get(key)

    async def write(self, records):
        await self.point()
        for key, place, record in records:
            if key not in self.world.marks or self.world.marks[key] < place:
                self.world.marks[key] = place
                self.world.records.append(record)
        await self.point()


class Stored:
    def __init__(self):
        self.tokens, self.cursor, self.last, self.incarnation = b"", b"", None, random.random()


class Session:
    def __init__(self, life, session_id, stored, resumed):
        self._life, self.session_id, self._stored = life, session_id, stored
        self._incarnation = stored.incarnation
        self.position, self.cursor, self.resumed, self.pending = (
            len(stored.tokens),
            stored.cursor,
            resumed,
            (),
        )

    async def step(self, tokens, *, position, cursor=b"", **asked):
        await self._life.point()
        assert asked == {"outputs": ("sum",)}
        found = self._apply(tokens, position, cursor)
        await self._life.point()
        self.position = max(self.position, found.position)
        self.cursor = cursor or self.cursor
        return found

    def _apply(self, tokens, position, cursor):
        stored = self._life.world.sessions.get(self.session_id)
        if stored is None or stored.incarnation != self._incarnation:
            raise SessionDeleted("gone")
        if tokens == b"\x00":
            raise InvalidRequest("token 0 is not in the vocabulary")
        if position == len(stored.tokens):
            stored.tokens += tokens
            stored.cursor = cursor or stored.cursor
            total = sum(stored.tokens[: position + len(tokens)])
            stored.last = position, tokens, reply(self.session_id, len(stored.tokens), total)
        if stored.last is None or stored.last[:2] != (position, tokens):
            raise PositionConflict(f"it stands at {len(stored.tokens)}")
        return stored.last[2]

    async def close(self):
        pass


def reply(session_id, position, total):
    values = pb.Tensor(dtype=pb.DATA_TYPE_INT64, shape=[1], data=total.to_bytes(8, "little"))
    outputs = pb.Outputs(token_count=1, tensors=[pb.NamedTensor(name="sum", tensor=values)])
    return StepReply(pb.ChunkResult(session_id=session_id, position=position, outputs=outputs))


class Source:
    """The source of a life; `done` is a method of it and a set of the world."""

    source_id = "events"

    def __init__(self, life, turns=()):
        self._life = life
        self._turns = list(turns)

    async def read(self, most):
        if self._turns and self._turns.pop(0):
            self._life.again()
            raise OthersTurn("another pipe reads")
        return await self._life.read(most)

    async def done(self, entries):
        await self._life.done_(entries)


def pipe_of(life, *, turns=(), dead=None, **rules):
    records = Records("events", "", Asked(outputs=("sum",)), MODEL)
    given = {"concurrency": 3, "read_ahead": 6} | rules
    return Pipe(
        life, Source(life, turns), life, dead, records, Rules("m", FIELDS, **given), life.said.append
    )


async def live(life, **options):
    """Runs a pipe until its end, or until it is killed; returns whether it came to its end."""
    before = asyncio.all_tasks()
    running = asyncio.create_task(pipe_of(life, **options).run())
    dying = asyncio.create_task(life.died.wait())
    await asyncio.wait((running, dying), return_when=asyncio.FIRST_COMPLETED)
    is_dead = life.died.is_set()
    mine = asyncio.all_tasks() - before if is_dead else {dying}
    for task in mine:
        task.cancel()
    await asyncio.gather(*mine, return_exceptions=True)
    if not is_dead:
        await running
    return not is_dead


def events_of(rng, count=14, sessions="abc"):
    return [
        {"user": rng.choice(sessions), "text": "".join(rng.choices("wxyz", k=rng.randint(1, 3)))}
        for _ in range(count)
    ]


def uninterrupted(events):
    """Returns what each session gives, by the events alone."""
    tokens, records = {}, {}
    for number, event in enumerate(events, 1):
        session = event["user"]
        tokens[session] = tokens.get(session, b"") + event["text"].encode()
        record = (session, len(tokens[session]), str(number), sum(tokens[session]))
        records.setdefault(session, []).append(record)
    return records


def by_session(written):
    found = {}
    for record in written:
        found.setdefault(record[0], []).append(record)
    return found


@pytest.mark.parametrize("repeats", [False, True], ids=["acknowledged", "repeated"])
async def test_a_pipe_that_is_killed_at_any_point_loses_and_doubles_nothing(repeats):
    rng = random.Random(5)
    events = events_of(rng)
    whole = Life(World(events, repeats=repeats))
    assert await live(whole)
    expected = uninterrupted(events)
    assert by_session(whole.world.written()) == expected
    for dies_at in range(1, whole.points + 1):
        world = World(events, repeats=repeats)
        assert not await live(Life(world, dies_at=dies_at))
        again = Life(world)
        assert await live(again)
        assert again.said == []
        assert by_session(world.written()) == expected, dies_at
        assert world.done == {event.entry for event in world.events}


async def test_a_pipe_that_is_killed_again_and_again_loses_and_doubles_nothing():
    for seed in range(60):
        rng = random.Random(seed)
        events = events_of(rng, count=25)
        world = World(events, repeats=bool(seed % 2))
        while not await live(Life(world, dies_at=rng.randint(1, 150), rng=rng)):
            pass
        assert by_session(world.written()) == uninterrupted(events), seed


async def test_two_pipes_that_do_not_know_of_each_other_lose_and_double_nothing():
    """As when one was held up, and the other has taken its turn: both have the same events."""
    for seed in range(100):
        rng = random.Random(seed)
        events = events_of(rng, count=25)
        world = World(events)
        lives = [Life(world, rng=random.Random(rng.random())) for _ in range(2)]
        pipes = [pipe_of(life, turns=[rng.random() < 0.2 for _ in range(5)]) for life in lives]
        await asyncio.gather(*(pipe.run() for pipe in pipes))
        assert by_session(world.written()) == uninterrupted(events), seed


async def test_a_pipe_that_has_to_leave_finishes_what_it_has_begun():
    world = World([{"user": str(number), "text": "a"} for number in range(50)])
    life = Life(world)
    pipe = pipe_of(life)
    running = asyncio.create_task(pipe.run())
    while len(world.records) < 5:  # noqa: ASYNC110 -- a fake tells nobody
        await asyncio.sleep(0)
    pipe.leave()
    await running
    begun = {session for session, stored in world.sessions.items() if stored.tokens}
    assert 5 <= len(begun) < 50
    assert {one["session"] for one in world.records} == begun
    assert len(world.done) == len(begun) == pipe.counts.applied


async def test_a_pipe_that_waits_for_events_leaves_at_once():
    life = Life(World([]))
    life.dies_at = 1  # its first read never ends
    pipe = pipe_of(life)
    running = asyncio.create_task(pipe.run())
    await life.died.wait()
    pipe.leave()
    await running
    assert pipe.counts.total == 0


@pytest.mark.parametrize("turns", range(40))
async def test_an_event_that_comes_while_the_last_worker_ends_is_served(turns):
    world = World([{"user": "a", "text": "x"}, {"user": "b", "text": "y"}])
    life = Life(world)
    read = life.read

    async def read_slowly(_):
        for _ in range(turns):
            await asyncio.sleep(0)
        return await read(1)

    life.read = read_slowly
    assert await live(life, concurrency=1)
    assert len(world.records) == 2


async def test_events_that_are_read_ahead_and_sessions_that_are_open_are_bounded():
    rng = random.Random(1)
    world = World(events_of(rng, count=300, sessions=[str(number) for number in range(40)]))
    life = Life(world, rng=rng)
    pipe = pipe_of(life, concurrency=2, read_ahead=7, open_sessions=5)
    running = asyncio.create_task(pipe.run())
    most_read = most_open = 0
    while not running.done():
        most_read = max(most_read, life.given - pipe.counts.total)
        most_open = max(most_open, len(pipe._lines))
        await asyncio.sleep(0)
    assert by_session(world.written()) == uninterrupted([event.fields for event in world.events])
    assert most_read <= 7 + 2
    assert most_open <= 5 + 7 + 2


BAD = [
    {"user": "a", "text": "x"},
    {"user": "a"},
    {"user": "a", "text": "\x00"},
    None,
    {"user": "a", "text": "y"},
]


async def test_a_pipe_stops_at_a_bad_event_after_those_before_it():
    world = World(BAD)
    with pytest.raises(Refused, match="events, entry 2: field 'text' is missing"):
        await live(Life(world))
    assert [one["entry"] for one in world.records] == ["1"]
    world = World(BAD[2:3])
    with pytest.raises(Refused, match="entry 1: session 'a': INVALID_REQUEST: token 0 is not"):
        await live(Life(world))
    assert world.done == set()


async def test_bad_events_are_left_out_loudly():
    world, dead = World(BAD), World([])
    life = Life(world)
    assert await live(life, stops_at_bad=False, dead=Life(dead))
    assert [(one["entry"], one["sum"]) for one in world.records] == [
        ("1", ord("x")),
        ("5", ord("x") + ord("y")),
    ]
    assert [one["entry"] for one in dead.records] == ["2", "4", "3"]
    assert [one["event"] for one in dead.records] == [BAD[1], None, BAD[2]]
    assert sorted(line.partition(":")[2][:18] for line in life.said) == [
        f" events, entry {n}: "[:18] for n in "234"
    ]
    assert world.done == set("12345")


async def test_a_pipe_that_is_killed_among_bad_events_tells_each_of_them_once():
    count = Life(World(BAD))
    assert await live(count, stops_at_bad=False, dead=Life(World([])))
    for dies_at in range(1, count.points + 1):
        world, dead = World(BAD, repeats=True), World([])
        await live(Life(world, dies_at=dies_at), stops_at_bad=False, dead=Life(dead))
        assert await live(Life(world), stops_at_bad=False, dead=Life(dead))
        assert [one["entry"] for one in world.records] == ["1", "5"], dies_at
        assert sorted(one["entry"] for one in dead.records) == ["2", "3", "4"], dies_at


async def test_a_server_that_is_away_is_waited_for(monkeypatch):
    monkeypatch.setattr(sessions, "_PAUSE_S", 0)
    world = World([{"user": "a", "text": "x"}])
    life = Life(world)
    failures = itertools.chain([ServerUnavailable("away")] * 3)
    open_session = life.open_session

    async def sometimes(*words, **named):
        for error in failures:
            raise error
        return await open_session(*words, **named)

    life.open_session = sometimes
    assert await live(life)
    assert len(world.records) == 1
    assert life.said == ["waiting for the server: SERVER_UNAVAILABLE: away"]


async def test_a_session_that_another_writer_moves_goes_on_and_says_so():
    world = World([{"user": "a", "text": "x"}, {"user": "a", "text": "y"}])
    life = Life(world)
    write = life.write

    async def write_and_move(records):
        await write(records)
        if len(world.records) == 1:
            world.sessions["a"].tokens += b"zz"

    life.write = write_and_move
    assert await live(life)
    assert [one["position"] for one in world.records] == [1, 4]
    assert life.said == [
        "session 'a' stood at position 1, and another writer has moved it: going on from 3"
    ]


async def test_a_session_that_ends_begins_anew_and_says_so():
    world = World([{"user": "a", "text": "x"}, {"user": "a", "text": "y"}])
    life = Life(world)
    write = life.write

    async def write_and_end(records):
        await write(records)
        if len(world.records) == 1:
            del world.sessions["a"]

    life.write = write_and_end
    assert await live(life)
    assert [one["position"] for one in world.records] == [1, 1]
    assert "session 'a' stood at position 1 and has ended (SESSION_DELETED): it begins anew" in life.said


async def test_a_session_that_is_lost_ends_the_pipe():
    world = World([{"user": "a", "text": "x"}])
    life = Life(world)

    async def lost(*_, **__):
        raise SessionLost("nothing is stored")

    life.open_session = lost
    with pytest.raises(SessionLost):
        await live(life)


async def test_a_sink_that_fails_ends_the_pipe_and_acknowledges_nothing():
    world = World([{"user": "a", "text": "x"}])
    life = Life(world)

    async def full(records):
        raise EndFailed("no space")

    life.write = full
    with pytest.raises(EndFailed, match="no space"):
        await live(life)
    assert world.done == set()
    assert await live(Life(world))
    assert world.written() == [("a", 1, "1", ord("x"))]


def gone_back(*, repeats):
    """Returns a world whose store has gone back behind what is written: after "xy" it stands after "x"."""
    world = World([{"user": "a", "text": text} for text in "xyz"], repeats=repeats)
    world.sessions["a"] = stored = Stored()
    stored.tokens, stored.cursor = b"x", cursor_of("events", "1")
    stored.last = 0, b"x", reply("a", 1, ord("x"))
    world.marks["a"] = Place(2)
    world.done = {"1", "2"}
    return world


async def test_a_source_that_repeats_heals_the_session():
    world = gone_back(repeats=True)
    assert await live(Life(world))
    assert world.written() == [("a", 3, "3", sum(b"xyz"))]


async def test_a_source_that_repeats_nothing_ends_the_pipe():
    world = gone_back(repeats=False)
    with pytest.raises(StepsLost, match="session 'a' stands at entry 1, records of later ones"):
        await live(Life(world))
    assert world.sessions["a"].tokens == b"x"


async def test_a_session_that_is_not_there_begins_anew_and_says_so():
    world = gone_back(repeats=False)
    world.sessions.clear()
    life = Life(world)
    assert await live(life)
    assert life.said == ["session 'a' has expired, was deleted or is lost: it begins anew at 3"]


async def test_an_event_that_is_gone_before_its_record_was_written_is_told():
    world = gone_back(repeats=False)
    del world.marks["a"]
    world.marks["a"] = Place(0)
    life = Life(world)
    assert await live(life)
    assert "session 'a': entry 1 was applied and its record is missing" in life.said[0]


async def test_a_cursor_of_somebody_else_is_left_alone():
    world = gone_back(repeats=True)
    world.sessions["a"].cursor = b"mine"
    with pytest.raises(Refused, match="its cursor b'mine' was not written by a pipe"):
        await live(Life(world))
    assert world.sessions["a"].cursor == b"mine"


async def test_a_reply_that_is_kept_no_more_is_told():
    world = gone_back(repeats=True)
    world.marks.clear()
    world.sessions["a"].last = None
    with pytest.raises(Refused, match="its record is missing, and its reply is kept no more"):
        await live(Life(world))

"""Who is told of what, by a real engine over a store in memory: who holds a lease, after the caller."""

import asyncio

import numpy as np
import pytest

import service.engine.watched as module
from holdfast.errors import AckLevelNotReached
from service.engine.asked import Asked
from service.engine.rows import Chunk
from service.engine.sessions import Sessions
from service.engine.watch_events import Change, Lease, decode_news, encode_lease
from service.engine.watched import Watched
from service.store.protocol import AckLevel
from tests.support.fakes import FakeModels
from tests.unit.test_driver import send, submit


class Told:
    """Takes what is published."""

    def __init__(self):
        self.messages, self.knew, self.future = [], [], None

    def __call__(self, channel, message):
        if self.future is not None:
            self.knew.append(self.future.done())
        self.messages.append((channel, decode_news(message)))
        return True

    @property
    def news(self):
        return [one for _, one in self.messages]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
async def watched(told):
    watched = Watched(told, lambda is_any: switches.append(is_any))
    switches = watched.switches = []
    yield watched
    watched.close()


def lease(channel, duration_s=6.0, **wants_state):
    return encode_lease(Lease(channel, duration_s, {key.encode(): yes for key, yes in wants_state.items()}))


async def test_a_chunk_of_a_leased_session_is_told_once_its_caller_knows(start, watched, told):
    engine = start("s")
    engine.watched = watched
    watched.hear(lease(b"c", other=True))
    await send(engine, "s", [1], 0)
    assert told.messages == []
    watched.hear(lease(b"c", s=True))
    told.future = submit(engine, "s", [3, 4], 1)
    await told.future
    [(channel, event)] = told.messages
    assert told.knew == [True]
    assert channel == b"c"
    assert (event.key, event.position, event.token_count, event.replayed) == (b"s", 3, 2, False)
    assert np.frombuffer(event.tokens, np.int64).tolist() == [3, 4]
    assert np.frombuffer(event.outputs, np.float32).tolist() == [4, 8]
    assert np.frombuffer(event.state, np.float32).tolist() == [8, 3]


async def test_a_replay_is_told_without_a_state(start, watched, told):
    engine = start("s")
    engine.watched = watched
    watched.hear(lease(b"c", s=True))
    for _ in range(2):
        await send(engine, "s", [3], 0)
    assert [(event.replayed, event.state is None) for event in told.news] == [(False, False), (True, True)]


async def test_states_go_out_only_where_one_is_wanted(start, watched, told):
    engine = start("s")
    engine.watched = watched
    watched.hear(lease(b"blind", s=False))
    await send(engine, "s", [1])
    watched.hear(lease(b"seeing", s=True))
    await send(engine, "s", [2])
    assert [(channel, event.state is None) for channel, event in told.messages] == [
        (b"blind", True), (b"blind", False), (b"seeing", False),
    ]  # fmt: skip


async def test_a_refused_chunk_is_not_told(start, watched, told):
    engine = start("s")
    engine.watched = watched
    watched.hear(lease(b"c", s=True))
    assert await send(engine, "s", [1], 7) == "POSITION_GAP"
    assert told.messages == []


async def test_a_chunk_that_is_applied_though_its_caller_gets_an_error_is_told(start, store, watched, told):
    engine = start("s")
    engine.watched = watched
    watched.hear(lease(b"c", s=True))

    async def confirm(keys, level, epoch):
        return {number: AckLevelNotReached("late") for number in range(len(keys))}

    store.confirm, store.check_level = confirm, lambda _: None
    future = asyncio.get_running_loop().create_future()
    asked = Asked("ids", 1, model_name="sum", ack_level=AckLevel.FSYNCED)
    raw = np.array([1], np.int64).tobytes()
    engine.submit(Chunk(b"s", asked, raw, lambda _, got: future.set_result(got)))
    assert (await asyncio.wait_for(future, 5)).reason == "ACK_LEVEL_NOT_REACHED"
    assert [event.position for event in told.news] == [1]


async def test_what_is_changed_otherwise_is_told_as_a_change(start, model, store, watched, told):
    engine = start("s")
    engine.watched = watched
    sessions = Sessions(FakeModels(model), store, engine, ttl_s=60)
    watched.hear(lease(b"c", s=False))
    await sessions.delete(b"s", 0)
    assert told.messages == [(b"c", Change(b"s"))]


async def test_the_engine_is_asked_only_while_somebody_watches(watched, monkeypatch):
    watched.hear(lease(b"a", s=False))
    watched.hear(lease(b"b", s=False, t=False))
    assert watched.switches == [True]
    watched.hear(lease(b"a", 0.0, s=False))
    watched.hear(lease(b"b", 0.0, s=False))
    assert watched.switches == [True]
    watched.hear(lease(b"b", 0.0, t=False))
    assert watched.switches == [True, False]
    now_s = module.time.monotonic()
    watched.hear(lease(b"a", s=False))
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s + 7)
    watched._sweep()
    assert watched.switches == [True, False, True, False]


async def test_a_watcher_that_cannot_be_told_hurts_nobody(start, watched, caplog):
    engine = start("s")
    engine.watched = watched
    watched.hear(lease(b"c", s=True))

    def fail(*_):
        raise RuntimeError("of the test")

    watched._publish = fail
    assert (await send(engine, "s", [1], 0))[0] == 1
    assert (await send(engine, "s", [2], 1))[0] == 2
    assert "watchers could not be told" in caplog.text

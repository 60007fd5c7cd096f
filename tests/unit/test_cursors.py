"""Cursors in the engine: each is committed with its chunk, once, and with no other."""

import asyncio

import pytest

from service.engine.sessions import Opening, Sessions
from tests.support.fakes import FakeModels, PoisonModel
from tests.unit.test_driver import send, submit
from tests.unit.test_engine_rows import Sent

CURSOR = b"cursor"


def cursor(store, session="s"):
    return store.siblings.get(session.encode(), {}).get(CURSOR)


async def test_an_unknown_outcome_is_found_out_where_the_session_has_a_sibling(start, store):
    engine = start("s")
    for position in range(3):
        store.lose_reply = True
        reply = await send(engine, "s", [7], position, cursor=b"%d" % position)
        assert reply == (position + 1, [7 * (position + 1)], False)
        assert cursor(store) == b"%d" % position
    store.lose_reply = True
    assert await send(engine, "s", [7], 3) == (4, [28], False)
    assert cursor(store) == b"2"


async def test_a_replay_and_a_refusal_commit_no_cursor(start, store):
    engine, other = start("s"), start()
    await send(engine, "s", [1], 0, cursor=b"first")
    for replica in (engine, other):
        assert await send(replica, "s", [1], 0, cursor=b"again") == (1, [1], True)
        assert await send(replica, "s", [2], 0, cursor=b"wrong") == "POSITION_CONFLICT"
        assert cursor(store) == b"first"


async def test_a_chunk_that_lost_against_another_writer_takes_its_cursor_along(start, store):
    """It is decided anew on what is stored, and then has the cursor still."""
    one, two = start("s"), start()
    await send(one, "s", [1], cursor=b"one")
    await send(two, "s", [1], cursor=b"two")
    assert await send(one, "s", [1], cursor=b"three") == (3, [3], False)
    assert cursor(store) == b"three"


async def test_chunks_with_cursors_and_without_share_a_batch(start, store):
    engine = start("abcd")
    names = "abcd"
    sent = [submit(engine, name, [1], 0, cursor=name.encode() if name in "bd" else None) for name in names]
    await asyncio.gather(*sent)
    assert [cursor(store, name) for name in names] == [None, b"b", None, b"d"]


async def test_a_row_that_is_not_finite_takes_no_neighbour_s_cursor(start, store):
    engine = start("abc")
    sent = Sent("abc", [1, 255, 3], [0, 0, 0])
    sent.rows.cursors = [b"a", b"b", b"c"]
    engine.submit_rows(sent.rows)
    outcomes = await asyncio.wait_for(sent.done, 5)
    assert outcomes == [(1, [1], False), "STATE_NOT_FINITE", (1, [3], False)]
    assert [cursor(store, name) for name in "abc"] == [b"a", None, b"c"]


async def test_rows_that_send_ahead_keep_their_cursors(start, store):
    engine = start("ab")
    await send(engine, "a", [1], 0, acknowledged=0)
    sent = Sent("ab", [1, 1], [1, 0], [0, 0])
    sent.rows.cursors = [b"a", b"b"]
    engine.submit_rows(sent.rows)
    assert await asyncio.wait_for(sent.done, 5) == [(2, [2], False), (1, [1], False)]
    assert [cursor(store, name) for name in "ab"] == [b"a", b"b"]


class TestPoison:
    @pytest.fixture
    def model(self):
        return PoisonModel()

    async def test_halves_of_a_failed_batch_keep_their_cursors(self, start, store):
        engine = start("abcdef")
        sent = Sent("abcdef", [1, 2, 254, 4, 5, 6], [0] * 6)
        sent.rows.cursors = [name.encode() for name in "abcdef"]
        engine.submit_rows(sent.rows)
        outcomes = await asyncio.wait_for(sent.done, 5)
        assert outcomes[2] == "MODEL_FAILED"
        assert [cursor(store, name) for name in "abcdef"] == [b"a", b"b", None, b"d", b"e", b"f"]


async def test_openings_read_the_cursor_of_the_very_record(start, store, model):
    engine = start("s")
    sessions = Sessions(FakeModels(model), store, engine, ttl_s=60)
    assert (await sessions.open(b"s", Opening("sum"))).cursor == b""
    await send(engine, "s", [1], 0, cursor=b"one")
    load = store.load

    async def load_before_another_commit(keys):
        found = await load(keys)
        store.load = load
        await send(engine, "s", [1], 1, cursor=b"two")
        return found

    store.load = load_before_another_commit
    opened = await sessions.open(b"s", Opening("sum", take_over=True, nonce=5))
    assert (opened.record.position, opened.cursor) == (2, b"two")
    assert (await sessions.read(b"s")).cursor == b"two"
    await sessions.delete(b"s", 0)
    assert (await sessions.open(b"s", Opening("sum"))).cursor == b""

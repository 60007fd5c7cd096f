"""Copies and deletions where replies are lost, other writers come first, or a level is not reached."""

import pytest

from holdfast.errors import (
    AckLevelNotReached,
    PositionConflict,
    RecordCorrupt,
    ServiceError,
    SessionDeleted,
    SessionExists,
    SessionNotFound,
    StoreUnavailable,
)
from service.engine.changes import MAX_ATTEMPTS, Changes
from service.engine.copies import Copies
from service.engine.deletions import Deletions
from service.engine.meant import Meant
from service.engine.report import SessionEvent
from service.store.blob import decode_blob
from service.store.protocol import AckLevel
from service.store.record import KeptReply, Record, decode, encode
from tests.support.fakes import FakeModels, open_session
from tests.unit.test_store_gone_back import send

ANY = Meant()


@pytest.fixture
async def engine(start):
    return start()


@pytest.fixture
def events():
    return []


@pytest.fixture
def copies(model, store, engine, events):
    changes = Changes(store, engine, AckLevel.MEMORY)
    return Copies(FakeModels(model), store, changes, ttl_s=60, on_event=events.append)


@pytest.fixture
def deletions(store, engine, events):
    return Deletions(store, Changes(store, engine, AckLevel.MEMORY), on_event=events.append)


def stored(store, key):
    return decode(store.records[key])


async def test_a_fork_whose_reply_was_lost_finds_its_own_copies(copies, store, engine):
    open_session(store, "s")
    await send(engine, [1, 2], 0)
    store.lose_reply = True
    with pytest.raises(StoreUnavailable):
        await copies.fork(b"s", [b"a", b"b"], ANY, 5)
    first = stored(store, b"a"), stored(store, b"b")
    await send(engine, [3], 2)
    again = await copies.fork(b"s", [b"a", b"b"], ANY, 5)
    assert tuple(again.copies) == first
    assert (again.record.position, again.record.digest) == (2, first[0].digest)
    assert {copy.nonce for copy in first} == {5}
    assert first[0].incarnation != first[1].incarnation


async def test_a_copy_that_was_stepped_since_is_no_model_for_the_others(copies, store):
    """A late attempt: what was stepped stays, and what is missing is made of the session as it is."""
    source = open_session(store, "s")
    await copies.fork(b"s", [b"a"], ANY, 5)
    copy = stored(store, b"a")
    reply = KeptReply(1, 1, copy.digest, 99, b"x")
    stepped = copy._replace(position=1, digest=99, replies=(reply,), state=b"12345678")
    store.records[b"a"] = encode(stepped)
    again = await copies.fork(b"s", [b"a", b"b"], ANY, 5)
    assert again.copies == [stepped, stored(store, b"b")]
    assert stored(store, b"b")[1:] == source._replace(nonce=5)[1:]


async def test_a_copy_in_quarantine_is_no_model_for_the_others(copies, store):
    open_session(store, "s")
    await copies.fork(b"s", [b"a"], ANY, 5)
    store.records[b"a"] = encode(stored(store, b"a")._replace(quarantine_reason="it fails"))
    again = await copies.fork(b"s", [b"a", b"b"], ANY, 5)
    assert stored(store, b"b").quarantine_reason == ""
    assert again.copies[1] == stored(store, b"b")


async def test_a_fork_that_meets_others_looks_again(copies, store):
    open_session(store, "s")
    tombstone = open_session(store, "t")._replace(deleted=True, state=b"", nonce=9)
    store.records[b"t"] = encode(tombstone)
    commit = store.commit

    async def come_first_and_commit(writes, ttl_s):
        store.commit = commit
        open_session(store, "b")
        del store.records[b"t"]
        return await commit(writes, ttl_s)

    store.commit = come_first_and_commit
    forked = await copies.fork(b"s", [b"a", b"b", b"t"], ANY, 5)
    assert isinstance(forked.copies[1], SessionExists)
    assert [forked.copies[0], forked.copies[2]] == [stored(store, b"a"), stored(store, b"t")]


async def test_writers_that_keep_coming_first_are_named(copies, store):
    open_session(store, "s")
    tombstone = open_session(store, "t")._replace(deleted=True, state=b"")
    store.records[b"t"] = encode(tombstone)
    commit = store.commit

    async def come_first_and_commit(writes, ttl_s):
        nonlocal tombstone
        tombstone = tombstone._replace(incarnation=tombstone.incarnation % 1000 + 1)
        store.records[b"t"] = encode(tombstone)
        return await commit(writes, ttl_s)

    store.commit = come_first_and_commit
    forked = await copies.fork(b"s", [b"t"], ANY, 5)
    assert isinstance(forked.copies[0], PositionConflict)
    assert store.commit_count == MAX_ATTEMPTS


async def test_a_damaged_record_is_left_as_found(copies, deletions, store):
    open_session(store, "s")
    store.records[b"bad"] = b"?"
    forked = await copies.fork(b"s", [b"bad", b"good"], ANY, 5)
    assert isinstance(forked.copies[0], RecordCorrupt)
    assert isinstance(forked.copies[1], Record)
    with pytest.raises(RecordCorrupt):
        await copies.fork(b"bad", [b"c"], ANY, 6)
    with pytest.raises(RecordCorrupt):
        await copies.export(b"bad", ANY)
    [outcome] = await deletions.delete({b"bad": 0})
    assert isinstance(outcome, RecordCorrupt)
    assert store.records[b"bad"] == b"?"


async def test_nothing_is_copied_that_is_not_admitted(copies, store):
    open_session(store, "s")
    asked = []

    def refuse(size_bytes):
        asked.append(size_bytes)
        raise SessionExists("no room")

    with pytest.raises(SessionExists):
        await copies.fork(b"s", [b"a", b"b"], ANY, 5, refuse)
    assert (asked, store.commit_count) == ([16], 0)


async def test_copies_wait_for_the_servers_level(model, store, engine):
    changes = Changes(store, engine, AckLevel.REPLICATED)
    copies = Copies(FakeModels(model), store, changes, ttl_s=60)
    open_session(store, "s")
    store.unconfirmed = {b"b"}
    forked = await copies.fork(b"s", [b"a", b"b"], ANY, 5)
    assert isinstance(forked.copies[0], Record)
    assert isinstance(forked.copies[1], AckLevelNotReached)
    store.unconfirmed = set()
    assert (await copies.fork(b"s", [b"a", b"b"], ANY, 5)).copies == [
        stored(store, b"a"),
        stored(store, b"b"),
    ]
    blob, _ = await copies.export(b"s", ANY)
    store.unconfirmed = {b"i"}
    with pytest.raises(AckLevelNotReached):
        await copies.import_(b"i", decode_blob(blob), 7)
    [outcome] = await Deletions(store, changes).delete({b"i": 0})
    assert isinstance(outcome, AckLevelNotReached)
    store.unconfirmed = set()
    [outcome] = await Deletions(store, changes).delete({b"i": 0})
    assert outcome.deleted


async def test_an_import_whose_reply_was_lost_finds_its_own_session(copies, store):
    open_session(store, "s")
    blob, position = await copies.export(b"s", ANY)
    assert position == 0
    store.lose_reply = True
    with pytest.raises(StoreUnavailable):
        await copies.import_(b"i", decode_blob(blob), 7)
    first = stored(store, b"i")
    assert (await copies.import_(b"i", decode_blob(blob), 7))[0] == first
    with pytest.raises(SessionExists):
        await copies.import_(b"i", decode_blob(blob), 0)
    store.records[b"i"] = encode(first._replace(deleted=True, state=b""))
    with pytest.raises(SessionDeleted):
        await copies.import_(b"i", decode_blob(blob), 7)


async def test_a_deletion_of_many_meets_a_writer_and_deletes_what_it_wrote(
    deletions, store, engine, events
):
    open_session(store, "a"), open_session(store, "b")
    commit = store.commit

    async def come_first_and_commit(writes, ttl_s):
        store.commit = commit
        store.records[b"a"] = encode(stored(store, b"a")._replace(position=4, digest=99))
        del store.records[b"b"]
        return await commit(writes, ttl_s)

    store.commit = come_first_and_commit
    a, b = await deletions.delete({b"a": 0, b"b": 0})
    assert (a.deleted, a.position, stored(store, b"a").state) == (True, 4, b"")
    assert isinstance(b, SessionNotFound)
    assert events == [SessionEvent.DELETED]


async def test_a_deletion_means_an_incarnation(deletions, store, events):
    mine, other = open_session(store, "a"), open_session(store, "b")
    outcomes = await deletions.delete({b"a": mine.incarnation, b"b": other.incarnation + 1})
    assert isinstance(outcomes[0], Record)
    assert isinstance(outcomes[1], SessionDeleted)
    assert not stored(store, b"b").deleted
    again = await deletions.delete({b"a": mine.incarnation})
    assert not isinstance(again[0], ServiceError)
    assert events == [SessionEvent.DELETED], "one that was deleted before is not deleted again"


async def test_what_happens_to_sessions_is_told(copies, store, events):
    open_session(store, "s")
    await copies.fork(b"s", [b"a", b"b"], ANY, 5)
    blob, _ = await copies.export(b"s", ANY)
    await copies.import_(b"i", decode_blob(blob), 7)
    assert events == [SessionEvent.FORKED, SessionEvent.FORKED, SessionEvent.IMPORTED]

"""What one watcher is shown: in order, counted, and newest first where it does not keep up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.watch_events import Event
from service.rpc.follower import Ended, Follower, Standing, Step
from service.store.record import Record

LIFE = 7


def event(position, *, count=1, life=LIFE, replayed=False, state=b"s"):
    state = None if replayed else b"%s%d" % (state, position)
    return Event(
        b"key", life, position, 0, 1, "text", count, 1, b"x" * count, b"", state, replayed, 0.0, "r"
    )


def record(position, *, life=LIFE, deleted=False):
    return Record(life, position, b"f" * 32, b"s%d" % position, deleted=deleted)


def taken(follower):
    found = []
    while (shown := follower.take()) is not None:
        found.append(shown)
    return found


@pytest.fixture
def follower():
    follower = Follower(lambda: None)
    follower.looked(record(10), 0)
    [shown] = taken(follower)
    assert shown == (Standing(record(10)), 0)
    return follower


def test_what_follows_is_shown_with_the_state_before_it(follower):
    for position in (11, 13, 14):
        count = 2 if position == 13 else 1
        follower.saw(event(position, count=count))
        [shown] = taken(follower)
        assert shown == (Step(event(position, count=count), b"s%d" % (position - count)), 0)


def test_the_newest_is_shown_and_the_others_are_counted(follower):
    follower.saw(event(11))
    follower.saw(event(15, count=4))
    follower.saw(event(17, count=2))
    [shown] = taken(follower)
    assert shown == (Step(event(17, count=2), b"s15"), 5)


def test_a_lost_event_is_counted_and_the_next_has_no_state_before_it(follower):
    follower.saw(event(13))
    assert taken(follower) == [(Step(event(13), None), 2)]
    follower.saw(event(14))
    assert taken(follower) == [(Step(event(14), b"s13"), 0)]


def test_a_replay_is_shown_but_does_not_count_nor_take_the_place_of_news(follower):
    follower.saw(event(11))
    assert len(taken(follower)) == 1
    follower.saw(event(11, replayed=True))
    assert taken(follower) == [(Step(event(11, replayed=True), None), 0)]
    follower.saw(event(12))
    follower.saw(event(11, replayed=True))
    assert taken(follower) == [(Step(event(12), b"s11"), 0)]


def test_a_replay_of_what_was_lost_is_news(follower):
    follower.saw(event(11, replayed=True))
    assert taken(follower) == [(Step(event(11, replayed=True), b"s10"), 0)]
    follower.saw(event(12))
    assert taken(follower) == [(Step(event(12), None), 0)]


def test_a_late_event_is_not_shown_but_has_the_record_looked_at(follower):
    follower.saw(event(12))
    taken(follower)
    follower.saw(event(11))
    assert taken(follower) == []
    assert follower.needs_look


def test_a_takeover_is_shown_and_then_what_came_after_it(follower):
    follower.saw(event(12, life=8))
    assert taken(follower) == []
    assert follower.needs_look
    follower.looked(record(11, life=8), follower.position)
    assert taken(follower) == [(Standing(record(11, life=8)), 1), (Step(event(12, life=8), b"s11"), 0)]


def test_a_store_that_has_gone_back_is_shown(follower):
    follower.saw(event(12))
    follower.looked(record(9), 12)
    follower.saw(event(10))
    assert taken(follower)[1:] == [(Standing(record(9)), 0), (Step(event(10), b"s9"), 0)]


def test_a_record_that_was_read_before_an_event_came_has_not_gone_back(follower):
    seen = follower.position
    follower.saw(event(11))
    follower.looked(record(10), seen)
    assert taken(follower) == [(Step(event(11), b"s10"), 0)]


def test_what_is_ahead_of_the_events_is_shown_at_the_second_look(follower):
    follower.looked(record(15), 10)
    assert taken(follower) == []
    follower.looked(record(16), 10)
    assert taken(follower) == [(Standing(record(16)), 6)]


def test_a_glance_asks_for_the_record_only_where_events_do_not_tell(follower):
    for stands in ((LIFE, 10), (LIFE, 12)):
        follower.peeked(stands, 10)
        assert not follower.needs_look
    follower.peeked((LIFE, 13), 10)
    assert follower.needs_look
    follower.looked(record(13), 10)
    assert taken(follower) == [(Standing(record(13)), 3)]


@pytest.mark.parametrize("stands", [None, (8, 10), (LIFE, 9)])
def test_a_glance_sees_an_end_a_takeover_and_a_store_that_has_gone_back(follower, stands):
    follower.peeked(stands, 10)
    assert follower.needs_look


def test_a_glance_at_what_events_tell_a_little_later_asks_for_nothing(follower):
    for position in range(11, 20):
        follower.peeked((LIFE, position), position - 1)
        follower.saw(event(position))
    assert not follower.needs_look


def test_events_that_come_late_are_shown_nevertheless(follower):
    follower.looked(record(12), 10)
    follower.saw(event(12))
    follower.looked(record(14), 12)
    follower.saw(event(14, count=2))
    assert [shown.skipped_tokens for shown in taken(follower)] == [2]


@pytest.mark.parametrize(("end", "position"), [(record(12, deleted=True), 12), (None, 11)])
def test_the_end_comes_after_what_was_before_it(follower, end, position):
    follower.saw(event(11))
    follower.looked(end, 11)
    follower.saw(event(13))
    shown = taken(follower)
    assert shown == [(Step(event(11), b"s10"), 0), (Ended(LIFE, position), position - 11)]


def test_what_came_before_the_record_was_read_is_shown_after_it():
    follower = Follower(lambda: None)
    for position in (10, 11, 12):
        follower.saw(event(position))
    follower.looked(record(11), 0)
    assert taken(follower) == [(Standing(record(11)), 0), (Step(event(12), b"s11"), 0)]


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(("seen", "lost", "again", "late", "taken")))))
def test_what_is_shown_and_what_is_skipped_add_up(acts):
    follower = Follower(lambda: None)
    follower.looked(record(0), 0)
    follower.saw(event(1))
    shown, position, late = taken(follower), 1, []
    for count, act in acts:
        if act == "taken":
            shown += taken(follower)
        elif act == "again":
            follower.saw(event(position, replayed=True))
        else:
            position += count
            if act == "seen":
                follower.saw(event(position, count=count))
            elif act == "late":
                late.append(event(position, count=count))
        for one in late[: len(late) - 1]:
            follower.saw(one)
    follower.looked(record(position), follower.position)
    follower.looked(record(position), follower.position)
    shown += taken(follower)
    before = 0
    for what, skipped in shown[1:]:
        here = what.record.position if isinstance(what, Standing) else what.event.position
        if isinstance(what, Step) and here <= before:
            assert what.event.replayed
            assert skipped == 0
            continue
        count = what.event.token_count if isinstance(what, Step) else 0
        assert here - count - skipped == before
        if isinstance(what, Step) and what.before is not None:
            assert what.before == b"s%d" % (here - count)
        before = here
    assert before == position

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Overloaded
from service.engine.queue import Queue


def test_a_batch_holds_a_session_once_and_holds_it_until_release():
    queue = Queue(10)
    for key, item in [("a", 1), ("a", 2), ("b", 3)]:
        queue.push(key, item)
    assert queue.take(8) == [1, 3]
    assert queue.take(8) == []
    queue.release("a")
    assert queue.take(8) == [2]


def test_put_back_goes_before_what_waits_for_its_session():
    queue = Queue(10)
    queue.push("a", 1)
    queue.push("a", 2)
    [item] = queue.take(1)
    queue.put_back(item, 1)
    assert queue.take(9) == [1]
    queue.release("a")
    assert queue.take(9) == [2]


def test_a_group_waits_for_all_its_sessions_and_holds_those_it_has():
    queue = Queue(10)
    queue.push("a", 1)
    queue.push_group(["a", "b", "c"], "group")
    queue.push("c", 3)
    assert queue.take(9) == [1]
    assert queue.take(9) == []
    queue.release("a")
    assert queue.take(9) == ["group"]
    queue.release("abc")
    assert queue.take(9) == [3]
    queue.release("c")
    assert not any(key in queue for key in "abc")
    assert queue.waiting_count == 0


def test_groups_count_their_chunks():
    queue = Queue(5)
    queue.push_group("abc", "three")
    queue.push("d", "one")
    assert queue.waiting_count == 4
    with pytest.raises(Overloaded, match="4 chunks wait already, with 2 more"):
        queue.push_group("ef", "two")
    assert "e" not in queue
    assert queue.take(2) == ["three"]
    assert queue.take(2) == ["one"]


def test_a_full_queue_refuses_and_keeps_what_it_has():
    queue = Queue(1)
    queue.push("a", 1)
    with pytest.raises(Overloaded):
        queue.push("b", 2)
    assert queue.take(9) == [1]


def test_a_queue_takes_as_much_as_it_may_and_what_is_put_back_counts_again():
    queue = Queue(3)
    queue.push_group("abc", "three")
    assert queue.take(1) == ["three"]
    assert queue.waiting_count == 0
    queue.put_back("three", 3)
    assert queue.waiting_count == 3
    with pytest.raises(Overloaded):
        queue.push("d", "one")
    assert queue.take(1) == ["three"]
    queue.push("d", "one")
    assert queue.waiting_count == 1


def test_a_batch_is_filled_up_to_its_size():
    queue = Queue(10)
    for key in "abc":
        queue.push(key, key)
    assert queue.take(2) == ["a", "b"]
    assert queue.take(2) == ["c"]


EVENTS = st.lists(st.sets(st.sampled_from("abcd"), max_size=3), max_size=60)


@given(EVENTS, st.integers(1, 4))
def test_every_session_leaves_in_order_and_nothing_is_lost(events, max_count):
    """A set of one session is a single chunk, a larger one a group; the empty one takes and releases."""
    queue, pushed, taken, held = Queue(1000), {}, {}, []
    for number, keys in enumerate(events):
        item = (number, frozenset(keys))
        if len(keys) == 1:
            queue.push(min(keys), item)
        elif keys:
            queue.push_group(sorted(keys), item)
        elif held:
            queue.release(held.pop())
        else:
            _take(queue, max_count, taken, held)
        for key in keys:
            pushed.setdefault(key, []).append(item)
    while queue.waiting_count or held:
        while held:
            queue.release(held.pop())
        _take(queue, max_count, taken, held)
    assert taken == pushed
    assert not any(key in queue for key in "abcd")


def _take(queue, max_count, taken, held):
    for item in queue.take(max_count):
        keys = item[1]
        assert not keys & {key for group in held for key in group}
        held.append(sorted(keys))
        for key in keys:
            taken.setdefault(key, []).append(item)

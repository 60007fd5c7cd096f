import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.step_queue import StepQueue
from service.errors import Overloaded


def test_a_batch_holds_a_session_once_and_holds_it_until_release():
    queue = StepQueue(10)
    for key, item in [("a", 1), ("a", 2), ("b", 3)]:
        queue.push(key, item)
    assert queue.take(8) == [("a", 1), ("b", 3)]
    assert queue.take(8) == []
    queue.release("a")
    assert queue.take(8) == [("a", 2)]


def test_put_back_goes_to_the_front_of_its_session():
    queue = StepQueue(10)
    queue.push("a", 1)
    queue.push("a", 2)
    [(key, item)] = queue.take(1)
    queue.put_back(key, item)
    assert queue.take(1) == [("a", 1)]


def test_a_full_queue_refuses_and_keeps_what_it_has():
    queue = StepQueue(1)
    queue.push("a", 1)
    with pytest.raises(Overloaded):
        queue.push("b", 2)
    assert queue.take(9) == [("a", 1)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60), st.integers(1, 4))
def test_every_session_leaves_in_order_and_nothing_is_lost(events, max_count):
    queue, pushed, taken, held = StepQueue(1000), {}, {}, []
    for number, (key, is_push) in enumerate(events):
        if is_push:
            queue.push(key, number)
            pushed.setdefault(key, []).append(number)
        elif held:
            queue.release(held.pop())
        else:
            _take(queue, max_count, taken, held)
    while len(queue) or held:
        while held:
            queue.release(held.pop())
        _take(queue, max_count, taken, held)
    assert taken == pushed


def _take(queue, max_count, taken, held):
    batch = queue.take(max_count)
    assert len({key for key, _ in batch}) == len(batch) <= max_count
    for key, item in batch:
        taken.setdefault(key, []).append(item)
        held.append(key)

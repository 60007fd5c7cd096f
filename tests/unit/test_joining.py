"""Which events share a message, by a clock that the test turns."""

import pytest

from holdfast.client.generated import events_of
from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.joining import HOLD_S_PER_RIVAL, MAX_EVENTS, MAX_HOLD_S, Joint

START = pb.GenerateResponse(start=pb.GenerateStart(position=4))
END = pb.GenerateResponse(end=pb.GenerateEnd(finish_reason=pb.FINISH_REASON_PAUSED))


def token(number):
    return pb.GenerateResponse(token=pb.GeneratedToken(id=number))


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def joint(clock, rivals, *, is_continued=False):
    return Joint(lambda: rivals, is_continued=is_continued, clock=clock)


def test_the_only_generation_sends_each_token_at_once(clock):
    alone = joint(clock, 0, is_continued=True)
    assert alone.add(START, is_followed=True) is None
    assert events_of(alone.add(token(0), is_followed=False)) == [START, token(0)]
    for number in range(1, 5):
        assert events_of(alone.add(token(number), is_followed=False)) == [token(number)]
    assert alone.add(token(5), is_followed=True) is None
    assert events_of(alone.add(END, is_followed=False)) == [token(5), END]
    assert alone.rest() is None


def test_the_first_token_of_a_generation_never_waits(clock):
    one = joint(clock, 1000)
    one.add(START, is_followed=True)
    assert events_of(one.add(token(0), is_followed=False)) == [START, token(0)]
    assert one.add(token(1), is_followed=False) is None


@pytest.mark.parametrize(("rivals", "hold_s"), [(4, 4 * HOLD_S_PER_RIVAL), (1000, MAX_HOLD_S)])
def test_among_others_tokens_wait_for_as_long_as_these_are_many(clock, rivals, hold_s):
    one = joint(clock, rivals, is_continued=True)
    for number in range(3):
        clock.now_s += hold_s / 4
        assert one.add(token(number), is_followed=False) is None
    clock.now_s += hold_s / 3
    assert events_of(one.add(token(3), is_followed=False)) == [token(number) for number in range(4)]
    assert one.add(token(4), is_followed=False) is None, "the time counts from the last message"


def test_the_end_takes_along_what_is_held(clock):
    one = joint(clock, 1000, is_continued=True)
    one.add(token(0), is_followed=False)
    assert events_of(one.add(END, is_followed=False)) == [token(0), END]


def test_a_message_has_so_many_events_at_most(clock):
    one = joint(clock, 1000, is_continued=True)
    given = [one.add(token(number), is_followed=False) for number in range(2 * MAX_EVENTS)]
    messages = [events_of(message) for message in given if message is not None]
    assert [len(events) for events in messages] == [MAX_EVENTS, MAX_EVENTS]
    assert [event for events in messages for event in events] == [
        token(number) for number in range(2 * MAX_EVENTS)
    ]


def test_what_is_held_may_be_taken_before_its_time(clock):
    one = joint(clock, 1000, is_continued=True)
    assert one.rest() is None
    one.add(token(0), is_followed=False)
    one.add(token(1), is_followed=False)
    assert events_of(one.rest()) == [token(0), token(1)]
    assert one.rest() is None

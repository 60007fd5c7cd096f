"""Slots of a cluster, by known values: those of the cluster specification and of a real server."""

import pytest

from service.store.keys import session_key
from service.store.slots import SLOT_COUNT, slot_of


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the check value of the CRC
        (b"", 0),
        (b"foo", 12182),
        (b"somekey", 11058),
        (b"{user1000}.following", 3443),
        (b"{user1000}.followers", 3443),
        (b"user1000", 3443),
        (b"foo{}{bar}", 8363),  # an empty first part: the whole key counts
        (b"foo{{bar}}zap", 4015),  # the part is "{bar"
        (b"{bar", 4015),
        (b"foo{bar}{zap}", 5061),
        (b"bar", 5061),
        (b"a}{bar}", 5061),  # what closes before it opens is no part
    ],
)
def test_known_slots(key, slot):
    assert slot_of(key) == slot % SLOT_COUNT


def test_a_part_may_be_one_byte():
    assert slot_of(b"{b}ar") == slot_of(b"b")


def test_all_keys_of_a_session_share_a_slot():
    key = session_key("tenant", "s")
    assert slot_of(key) == slot_of(key + b":history") == slot_of(b"tenant:s")

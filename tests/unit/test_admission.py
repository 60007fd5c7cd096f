"""The bounds on what is held, and the shares of tenants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Overloaded
from service.engine.admission import MAX_PAUSE_S, MIN_PAUSE_S, Admission, Bounds, Held

BOUNDS = Bounds(streams=10, chunks=100, size_bytes=1000, share=0.8)


def flood(share):
    """Takes single chunks until it is refused; returns how many."""
    for count in range(100_000):
        try:
            share.take(1, 1)
        except Overloaded:
            return count
    raise AssertionError("nothing is refused")


def test_a_tenant_alone_has_its_share_and_no_more():
    admission = Admission(BOUNDS)
    assert flood(admission.share("a")) == 80
    streams = [admission.open_stream("a") for _ in range(8)]
    with pytest.raises(Overloaded, match="open streams"):
        admission.open_stream("a")
    assert admission.held.streams == len(streams)


def test_bytes_are_bounded_as_chunks_are():
    share = Admission(BOUNDS).share("a")
    share.take(1, 800)
    with pytest.raises(Overloaded, match="waiting bytes"):
        share.take(1, 1)


@pytest.mark.parametrize("flooders", [1, 2, 5])
def test_those_that_flood_come_to_have_the_same_and_whoever_comes_later_is_let_in(flooders):
    admission = Admission(Bounds(chunks=10_000))
    shares = [admission.share(f"tenant-{number}") for number in range(flooders)]
    held = [0] * flooders
    for _ in range(100):
        for number, share in enumerate(shares):
            answered = held[number] // 10
            share.change(-answered, 0)
            held[number] += flood(share) - answered
    fair = 10_000 * 4 / (1 + 4 * flooders)
    assert held == pytest.approx([fair] * flooders, rel=0.02)
    assert flood(admission.share("late")) == pytest.approx((10_000 - sum(held)) * 0.8, rel=0.02)


def test_without_tenants_the_whole_bound_is_for_one():
    assert flood(Admission(Bounds(chunks=100, share=1)).share("a")) == 100


def test_a_refusal_counts_nothing_and_asks_for_a_longer_pause_the_fuller_it_is():
    reasons = []
    admission = Admission(BOUNDS, reasons.append)
    share = admission.share("a")
    pauses = []
    for held in (0, 40, 39):
        share.take(held, 0)
        with pytest.raises(Overloaded) as refusal:
            share.take(81, 0)
        pauses.append(refusal.value.retry_after_s)
    assert admission.held == Held(0, 79, 0)
    assert pauses == sorted(set(pauses))
    assert MIN_PAUSE_S <= pauses[0] < pauses[-1] <= MAX_PAUSE_S
    assert reasons == ["OVERLOADED"] * 3


def test_what_a_call_held_is_free_when_it_ends():
    admission = Admission(BOUNDS)
    share = admission.open_stream("a")
    share.take(5, 100)
    share.change(-2, 30)
    assert admission.held == Held(1, 3, 130)
    share.hold(0, 0)
    assert admission.held == Held(1, 0, 0)
    share.close()
    share.close()
    assert admission.held == Held()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(0, 900), st.booleans())))
def test_no_bound_is_ever_passed_and_the_counts_stay_right(acts):
    admission = Admission(BOUNDS)
    shares = {tenant: admission.share(tenant) for tenant in "abc"}
    held = dict.fromkeys("abc", (0, 0))
    for tenant, chunks, size_bytes, gives_back in acts:
        if gives_back:
            shares[tenant].hold(0, 0)
            held[tenant] = (0, 0)
            continue
        before = held[tenant]
        try:
            shares[tenant].take(chunks, size_bytes)
        except Overloaded:
            continue
        held[tenant] = (before[0] + chunks, before[1] + size_bytes)
        total_chunks, total_bytes = (sum(column) for column in zip(*held.values(), strict=True))
        assert (admission.held.chunks, admission.held.size_bytes) == (total_chunks, total_bytes)
        for own, total, bound in zip(held[tenant], (total_chunks, total_bytes), (100, 1000), strict=True):
            assert total <= bound
            assert own * 0.2 <= (bound - total) * 0.8 + 1e-9 or own == before[held[tenant].index(own)]

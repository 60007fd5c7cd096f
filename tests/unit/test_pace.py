"""When a batch waits for more."""

from service.engine.pace import RETURN_S, SAMPLE_S, Pace


def busy(share=1.0):
    pace = Pace()
    pace.sample(100.0, 50.0)
    pace.sample(100.0 + 2 * SAMPLE_S, 50.0 + 2 * share * SAMPLE_S)
    return pace


def test_a_busy_loop_waits_for_a_session_answered_a_moment_ago():
    pace = busy()
    assert not pace.expects_more(101.0)
    pace.answered((b"a",), 101.0)
    assert pace.expects_more(101.0 + RETURN_S / 2)
    assert not pace.expects_more(101.0 + 2 * RETURN_S)


def test_a_loop_with_time_to_spare_never_waits():
    pace = busy(share=0.5)
    pace.answered((b"a",), 101.0)
    assert not pace.expects_more(101.0)


def test_a_session_that_came_back_is_not_waited_for():
    pace = busy()
    pace.answered((b"a",), 101.0)
    pace.came(b"a")
    assert not pace.expects_more(101.0)


def test_only_the_last_answer_of_a_session_counts():
    pace = busy()
    pace.answered((b"a",), 101.0)
    pace.answered((b"b",), 101.0 + RETURN_S / 2)
    pace.answered((b"a",), 101.0 + RETURN_S)
    assert pace.expects_more(101.0 + 1.2 * RETURN_S)
    pace.came(b"a")
    assert pace.expects_more(101.0 + 1.2 * RETURN_S)
    assert not pace.expects_more(101.0 + 1.6 * RETURN_S)


def test_the_share_is_taken_over_a_stretch():
    pace = busy()
    pace.sample(100.0 + 2.5 * SAMPLE_S, 50.0 + 2 * SAMPLE_S)  # too short to say anything
    pace.answered((b"a",), 101.0)
    assert pace.expects_more(101.0)
    pace.sample(101.0, 50.0 + 2 * SAMPLE_S)
    assert not pace.expects_more(101.0)


def test_what_is_old_is_forgotten_while_nobody_asks():
    pace = Pace()
    for number in range(1000):
        pace.answered((b"%d" % number,), number * 2 * RETURN_S)
    assert len(pace._answered_s) == 1

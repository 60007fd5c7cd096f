"""An interrupt at each point of a call where Python lets one come out: nothing is lost, doubled or held.

These points are where functions begin and where functions in C return. Each test tries one after the other,
over an operation that is done anew for each, until one is over without having been interrupted.
"""

import _weakrefset
import contextlib
import inspect
import itertools
import sys

import pytest

import holdfast
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import wait_for

RETRY = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02, attempt_s=60)

# a call that is interrupted before it begins
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


class Interrupt:
    """Interrupts its `with` block once, at the point of a number, and ends there with the interrupt.

    Attributes:
        came: The block had so many points.
    """

    def __init__(self, number):
        self.came = False
        self._left = number

    def __enter__(self):
        sys.setprofile(self._profile)
        return self

    def __exit__(self, kind, *_):
        sys.setprofile(None)
        return kind is KeyboardInterrupt

    def _profile(self, frame, event, _):
        if not is_point(frame, event):
            return
        if self._left == 0:
            sys.setprofile(None)
            self.came = True
            raise KeyboardInterrupt
        self._left -= 1


def is_point(frame, event):
    code = frame.f_code
    if code in (Interrupt.__enter__.__code__, Interrupt.__exit__.__code__):
        return False
    if code.co_filename == _weakrefset.__file__:  # in a finaliser, out of which no exception comes
        return False
    if event == "call":  # also of a generator that goes on with an error, where no interrupt comes out
        return not code.co_flags & inspect.CO_GENERATOR
    return event == "c_return"


def steps(session):
    yield session.step(b"x")


def streams_an_iterator(session):
    return session.stream(iter([b"abc", b"def"]), chunk=2, max_in_flight=3)


def streams_a_sequence(session):
    return session.stream(b"abcdef", chunk=2)


def streams_what_comes_later(session):
    async def later():
        yield b"abc"
        yield b"def"

    return session.stream(later(), chunk=2)


def leaves_a_stream_and_settles(session):
    with contextlib.closing(session.stream(b"abcdef")) as stream:
        yield from itertools.islice(stream, 2)  # not next(), whose return would be such a point
    yield from session.settle()


def leaves_a_stream_of_what_comes_later(session):
    with contextlib.closing(streams_what_comes_later(session)) as stream:
        yield from itertools.islice(stream, 1)


@pytest.mark.parametrize(
    "act",
    [
        steps,
        streams_an_iterator,
        streams_a_sequence,
        streams_what_comes_later,
        leaves_a_stream_and_settles,
        leaves_a_stream_of_what_comes_later,
    ],
)
def test_nothing_is_lost_doubled_or_held(act):
    with ScriptedServer() as server, holdfast.Client(server.address, retry=RETRY, timeout_s=60) as client:
        session = client.open_session("s", model="m")
        given = []
        for number in itertools.count():
            with Interrupt(number) as interrupt:
                given.extend(act(session))
            given.extend(session.settle(timeout_s=5))  # SessionBusy if what was interrupted holds it
            assert b"".join(bytes(map(int, reply.token_log_probs)) for reply in given) == server.applied()
            assert session.position == len(server.applied())
            assert not client._runner._running, "closing would wait for a call that is over"
            assert not client._thread._loop._calls
            if not interrupt.came:
                break
        assert number > 20


def test_a_client_whose_closing_was_interrupted_can_be_closed():
    with ScriptedServer() as server:
        for number in itertools.count():
            client = holdfast.Client(server.address, retry=RETRY, timeout_s=60)
            client.open_session("s", model="m")
            with Interrupt(number) as interrupt:
                client.close()
            client.close()
            wait_for(lambda thread=client._thread._loop._thread: not thread.is_alive())
            if not interrupt.came:
                break
        assert number > 20

"""Sessions against a dictionary of byte strings, on real processes that die, stop and lose their links.

hypothesis draws what happens, by the seed that is printed. `HOLDFAST_FAULTS=long` draws more of it. The
dictionary judges positions as it goes; the checker judges the history of every run at its end.
"""

import itertools
import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import holdfast
from holdfast.errors import PositionConflict, PositionGap, SessionDeleted
from tests.faults import LONG
from tests.faults.scene import Scene
from tests.faults.verdict import MODEL, assert_held, chunk, seeded

RUNS, STEPS, KILLS = (60, 40, 5) if LONG else (8, 20, 2)
NAMES = 4
ROWS = ("row-0", "row-1", "row-2")

texts = st.binary(min_size=1, max_size=12)
names = st.integers(0, NAMES - 1)

pytestmark = pytest.mark.faults


def test_sessions_are_what_a_dictionary_says_whatever_breaks(tmp_path):
    drawn = seeded().getrandbits(32)
    print(f"hypothesis seed {drawn}")
    with Scene(tmp_path) as scene:
        numbers = itertools.count()

        class Machine(Sessions):
            def __init__(self):
                super().__init__(scene, tmp_path / f"history-{next(numbers)}")

        run_state_machine_as_test(
            seed(drawn)(Machine),
            settings=settings(
                max_examples=RUNS, stateful_step_count=STEPS, deadline=None, database=None,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
    total = assert_held(*tmp_path.glob("history-*"))
    assert total.replies > RUNS


class Sessions(RuleBasedStateMachine):
    """The dictionary is `told`: per session what it has been told so far."""

    def __init__(self, scene, history):
        super().__init__()
        self.scene = scene
        self.prefix = history.name
        self.client = holdfast.Client(scene.address(random.Random(0)), timeout_s=20, history=history)
        self.open = {}
        self.told = {}
        self.row_told = {}
        self.last = {}
        self.kills = 0

    def teardown(self):
        self.scene.heal()
        for number, session in self.open.items():
            session.state()  # the last look, for the checker
            assert session.position == len(self.told[number])
        self.client.close()

    def call(self, request):
        """Sends a raw request, recorded like the others."""
        return self.client._runner.run(self.client._client._calls.call("Step", request)).result

    def session(self, number):
        """Returns the session of a number, opened if it is not."""
        if number not in self.open:
            self.told[number] = b""
            self.open[number] = self.client.open_session(f"{self.prefix}-{number}", model=MODEL)
            assert self.open[number].position == 0  # resumed, if the first reply was lost
        return self.open[number]

    def tell(self, number, text):
        self.told[number] += text
        assert self.open[number].position == len(self.told[number])

    @initialize(number=names, text=texts)
    def begin(self, number, text):
        self.step(number, text)

    @rule(number=names, text=texts)
    def step(self, number, text):
        session = self.session(number)
        position = session.position
        reply = session.step(text, token_log_prob=True)
        self.last[number] = (position, text, reply)
        self.tell(number, text)

    @rule(number=names, pieces=st.lists(texts, min_size=1, max_size=8), size=st.integers(1, 8))
    def stream(self, number, pieces, size):
        replies = list(self.session(number).stream(pieces, chunk=size, token_log_prob=True))
        assert sum(reply.token_count for reply in replies) == sum(map(len, pieces))
        self.last.pop(number, None)
        self.tell(number, b"".join(pieces))

    @rule(data=st.data(), length=st.integers(1, 6))
    def batch(self, data, length):
        told = data.draw(
            st.lists(st.binary(min_size=length, max_size=length), min_size=1, max_size=len(ROWS))
        )
        waiting = dict(zip(ROWS, told, strict=False))
        if new := [row for row in waiting if row not in self.row_told]:
            assert not self.client.open_batch(MODEL, [f"{self.prefix}-{row}" for row in new]).errors
            self.row_told |= dict.fromkeys(new, b"")
        for _ in range(200):
            ids = list(waiting)
            reply = self.client.step_batch(
                MODEL,
                [f"{self.prefix}-{row}" for row in ids],
                b"".join(waiting.values()),
                [len(self.row_told[row]) for row in ids],
                token_log_prob=True,
            )
            assert all(error.retryable for error in reply.errors.values()), reply.errors
            for index, row in enumerate(ids):
                if index not in reply.errors:
                    self.row_told[row] += waiting.pop(row)
                    assert reply.positions[index] == len(self.row_told[row])
            if not waiting:
                return
        raise AssertionError(f"rows are never answered: {reply.errors}")

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def duplicate(self, data):
        """A chunk that comes again is answered as the first time."""
        number = data.draw(st.sampled_from(sorted(self.last)))
        position, text, reply = self.last[number]
        again = self.call(chunk(f"{self.prefix}-{number}", text, position))
        assert (again.replayed, again.position) == (True, reply.position)
        assert again.outputs.token_log_probs == reply.token_log_probs.tolist()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), distance=st.integers(1, 5), text=texts)
    def gap(self, data, distance, text):
        """A chunk out of place is refused."""
        number = data.draw(st.sampled_from(sorted(self.open)))
        length = len(self.told[number])
        with pytest.raises(PositionGap) as caught:
            self.call(chunk(f"{self.prefix}-{number}", text, length + distance))
        assert caught.value.expected_position == length
        if length:
            with pytest.raises(PositionConflict) as caught:
                self.call(chunk(f"{self.prefix}-{number}", b"not what was told", length - 1))
            assert caught.value.expected_position == length

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data):
        number = data.draw(st.sampled_from(sorted(self.open)))
        session = self.open.pop(number)
        self.last.pop(number, None)
        session.delete()
        with pytest.raises(SessionDeleted):
            session.step("x")

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def reopen(self, data):
        """Another writer takes the session up where it stands."""
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.open[number] = session = self.client.open_session(f"{self.prefix}-{number}")
        assert (session.resumed, session.position) == (True, len(self.told[number]))

    # -- what breaks --------------------------------------------------------------------------

    @precondition(lambda self: self.kills < KILLS)
    @rule(number=st.integers(0, 1))
    def kill_server(self, number):
        self.kills += 1
        self.scene.replicas[number].kill()
        self.scene.store_link.heal()  # a server does not start without its store
        self.scene.replicas[number].start()

    @rule(number=st.integers(0, 1), seconds=st.floats(0.05, 0.8))
    def pause_server(self, number, seconds):
        self.scene.replicas[number].pause_for(seconds)

    @rule()
    def kill_store(self):
        """Kills it once its file has what was acknowledged: what it may lose else is another test's."""
        self.scene.store.sync()
        self.scene.store.restart()

    @rule(count=st.integers(0, 3000), is_reply=st.booleans())
    def cut_store(self, count, is_reply):
        link = self.scene.store_link.to_client if is_reply else self.scene.store_link.to_server
        link.reset_after = count

    @rule(number=st.integers(0, 1), count=st.integers(0, 500), is_reply=st.booleans())
    def cut_client(self, number, count, is_reply):
        proxy = self.scene.replicas[number].link
        link = proxy.to_client if is_reply else proxy.to_server
        link.reset_after = count

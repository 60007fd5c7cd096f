"""Sessions for tests of the checker: a toy network, and what clients record of a toy server.

The server can be told to forget, double, swap or mix up; it then either shows its true positions, or those
that the client expects, so that only the outputs can give it away.
"""

import itertools
import random

import numpy as np
from hypothesis import strategies as st

from holdfast.history_digest import INITIAL, run_of
from holdfast.verify.chain import check
from holdfast.verify.findings import FAULTS
from holdfast.verify.session_history import Attempt, Outputs, Reply, SessionHistory, Sight

LIFE = 7


class Toy:
    """h' = 0.7 h + token / 255; the output of a token is h before it, plus the token.

    Args:
        dependence: What its outputs depend on as well, if they do.
    """

    def __init__(self, dependence=None):
        self._dependence = dependence

    def dependence(self, tokens):
        return self._dependence

    def run(self, tokens, initial):
        return ToyRun(tokens, 0.0 if initial is None else float(initial["h"]))


class ToyRun:
    def __init__(self, tokens, h):
        self.outputs, self.states = np.zeros(len(tokens)), [h]
        for index, token in enumerate(tokens):
            self.outputs[index] = h + token
            h = 0.7 * h + token / 255
            self.states.append(h)

    def differences(self, start, outputs):
        expected = self.outputs[start : start + outputs.token_count]
        return float(np.abs(outputs.token_log_probs - expected).max())

    def state_after(self, count):
        return {"h": self.states[count]}


def outputs_after(before, tokens):
    run = ToyRun([*before, *tokens], 0.0)
    return Outputs(len(tokens), token_log_probs=run.outputs[len(before) :].copy())


class Session:
    """What clients record while a server applies chunks to `log`.

    Args:
        digests: Replies show their history digest and no outputs.
    """

    def __init__(self, *, digests=False):
        self.digests = digests
        self.history = SessionHistory()
        self.log = []
        self.time_s = 0.0
        self.shift = 0
        self.history.sights.append(Sight(self.now(), LIFE, 0, is_opening=True))

    def now(self):
        self.time_s += 1.0
        return self.time_s

    def send(self, tokens, position):
        attempt = Attempt(self.now(), np.array(tokens), position, LIFE)
        self.history.attempts.append(attempt)
        return attempt

    def answer(self, attempt, *, before=None, position=None, replayed=False):
        before = self.log[: -len(attempt.tokens)] if before is None else before
        position = len(self.log) + self.shift if position is None else position
        shown = outputs_after(before, attempt.tokens.tolist())
        digest = 0
        if self.digests:
            shown = Outputs(len(attempt.tokens))
            digest = run_of(np.array([*before, *attempt.tokens.tolist()])).after(INITIAL)
        attempt.reply = Reply(self.now(), LIFE, position, replayed, shown, digest)

    def step(self, tokens):
        """One honest step, at the position that the client believes in."""
        attempt = self.send(tokens, self.believed())
        self.log += tokens
        self.answer(attempt)
        return attempt

    def believed(self):
        attempts = self.history.attempts
        return 0 if not attempts else attempts[-1].position + len(attempts[-1].tokens)

    def look(self):
        self.history.sights.append(Sight(self.now(), LIFE, len(self.log) + self.shift))


@st.composite
def chunks(draw):
    """3 to 12 chunks; all tokens of a session differ, so that nothing is wrong and yet looks right."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=12))
    tokens = list(range(1, 256))
    random.Random(draw(st.integers(0, 2**32 - 1))).shuffle(tokens)
    cuts = np.cumsum([0, *sizes])
    return [tokens[start:end] for start, end in itertools.pairwise(cuts)]


def judged(session):
    found = check(session.history, None if session.digests else Toy())
    wrongs = {name: getattr(found, name) for name in FAULTS if getattr(found, name)}
    assert bool(wrongs) == (not found.is_good) == bool(found.notes)
    return wrongs, found


def place_of(data, count):
    """Draws a chunk that others follow."""
    return data.draw(st.integers(0, count - 2))


def step_in(session, incarnation, tokens):
    attempt = Attempt(session.now(), np.array(tokens), len(session.log), incarnation)
    session.history.attempts.append(attempt)
    session.log += tokens
    session.answer(attempt)
    attempt.reply.incarnation = incarnation

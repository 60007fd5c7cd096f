"""What must hold after every run: the laws of `holdfast verify`, and what only a simulation can see."""

from collections import Counter

import numpy as np

from holdfast.verify.chain import check
from holdfast.verify.reading import Histories
from service.store.record import decode
from tests.hash_oracle import hashes_of

ALWAYS = ("twice", "reordered", "wrong", "unexplained", "unopened", "dependent")
"""Of these a store that forgets is no excuse where nobody else wrote meanwhile."""


class HashNetwork:
    """Implements `chain.Network` for the hash of all tokens."""

    def run(self, tokens, initial):
        return HashRun(tokens, 0 if initial is None else int(np.asarray(initial["s"])))

    def dependence(self, tokens):
        return None


class HashRun:
    def __init__(self, tokens, start):
        self._start = start
        self._hashes = hashes_of([int(token) for token in tokens], start)

    def differences(self, start, outputs):
        shown = outputs.tensors.get("hash")
        if shown is None:
            return 0.0
        return float(np.abs(np.asarray(self._hashes[start : start + len(shown)]) - shown).max())

    def state_after(self, count):
        return {"s": np.int64(self._hashes[count - 1] if count else self._start)}


def judge(paths, primary, drivers, key_of):
    """Returns session and words for everything that is wrong.

    Args:
        paths: Histories of the clients.
        primary: The store.
        drivers: Of the replicas, all drained.
        key_of: Gives the store key of a session.
    """
    broken = []
    for session_id, session in Histories(paths).sessions.items():
        key = key_of(session_id)
        found = check(session.history, HashNetwork())
        if not found.is_good and key not in primary.forgotten:
            broken += [(session_id, note) for note in found.notes]
        broken += [(session_id, text) for text in unproven(session.history, primary.written.get(key, ()))]
        broken += [(session_id, text) for text in unequal(session.history)]
    for driver in drivers:
        wrong = Counter(count for count in driver.answers.values() if count != 1)
        broken += [("", f"{many} chunks were answered {count} times") for count, many in wrong.items()]
    return broken


def unproven(history, written):
    """Yields replies that tell of a history, or outputs, which were never stored."""
    states = {}
    for raw in written:
        record = decode(raw)
        state = int(np.frombuffer(record.state, np.int64)[0]) if record.state else None
        states[record.incarnation, record.position, record.digest] = state
        for reply in record.replies:
            states.setdefault((record.incarnation, reply.position, reply.digest), None)
    for attempt in history.attempts:
        reply = attempt.reply
        if reply is None:
            continue
        name = reply.incarnation, reply.position, reply.digest
        shown = reply.outputs.tensors.get("hash")
        if name not in states:
            yield f"the reply to {attempt.position} tells of {name}, which was never stored"
        elif shown is not None and states[name] is not None and int(shown[-1]) != states[name]:
            yield f"the reply to {attempt.position} shows {int(shown[-1])}, stored is {states[name]}"


def unequal(history):
    """Yields chunks that got two different replies for one history."""
    given = {}
    for attempt in history.attempts:
        reply = attempt.reply
        if reply is None or "hash" not in reply.outputs.tensors:
            continue
        name = reply.incarnation, reply.position, reply.digest, attempt.tokens.tobytes()
        shown = reply.outputs.tensors["hash"].tobytes()
        if given.setdefault(name, shown) != shown:
            yield f"the chunk at {attempt.position} got two different replies"

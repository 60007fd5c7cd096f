"""What must hold after every run: the laws of `holdfast verify`, and those that need a look at the store.

- Where the store forgot nothing, no acknowledged token is lost, and none is applied twice; nor where it did
  forget, among what it was said to have replicated.
- A reply comes from a history that was stored, by the tokens of its chunk and nothing else; and from the
  one that the chunk named. What the store had forgotten before the chunk was sent, nobody remembers.
- Two replies to one chunk are equal, and the chunk was answered once each time that it was taken.
- What an error says was not applied was not applied, and what was applied went where its writer stood.
- The cursor beside a record is that of the last chunk of its history that had one.
- A copy begins as its source was, and a generation gives what an uninterrupted one gives: see `copying.py`
  and `talking.py`.
- Every record continues the one that it replaces, or a checkpoint, and a reply is repeated only of what the
  store still has.
- A server that leaves has nothing begin any more that waited to run apart.
- The model fails nobody but whose tokens make it fail, and the server nobody.
"""

import math
from collections import Counter

import numpy as np

from holdfast.errors import InternalFailure
from holdfast.history_digest import run_of
from holdfast.verify.chain import check, origins_of
from holdfast.verify.reading import Histories
from service.store.record import decode
from tests.simulation.copying import miscopied
from tests.simulation.replica import RAISES, STALLS
from tests.simulation.talking import misspoken
from tests.support.hash_oracle import hashes_of


class HashNetwork:
    """Implements `network.Network` for the hash of all tokens."""

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


def judge(
    paths, primary, drivers, answers, not_applied, meant, cursors, copies, talks, key_of, *, can_tell_apart
):
    """Returns session and words for everything that is wrong.

    Args:
        paths: Histories of the clients.
        primary: The store.
        drivers: Of the replicas, all drained.
        answers: Of all clients.
        not_applied: Time, session and chunk, of errors that say so.
        meant: Session, position, history digest and tokens of steps, as their writers meant them.
        cursors: By session, position and digest after the chunk, those that writers gave it.
        copies: Copies, and blobs, that writers got.
        talks: Generations.
        key_of: Gives the store key of a session.
        can_tell_apart: No two writers send the same chunk.
    """
    broken = []
    stored = {}
    sessions = Histories(paths).sessions
    origins = origins_of(session.history for session in sessions.values())
    for session_id, session in sessions.items():
        key, history = key_of(session_id), session.history
        records = stored[session_id] = [decode(raw) for raw in primary.written.get(key, ())]
        if can_tell_apart and key not in primary.forgotten:
            found = check(history, HashNetwork(), origins=origins)
            broken += [] if found.is_good else [(session_id, note) for note in found.notes]
        texts = [*unproven(history, records), *unequal(history), *blameless(history)]
        broken += [(session_id, text) for text in texts]
    broken += [
        ("", f"a record was written over one that it does not continue: {key}") for key in primary.misplaced
    ]
    broken += misled(answers)
    broken += strayed(meant, stored)
    broken += mislaid(cursors, stored, primary, key_of)
    broken += miscopied(copies, primary, key_of)
    broken += misspoken(talks, stored)
    broken += forgotten(answers, primary, key_of)
    taken_back_s = {tuple(place): stays[-1][1] for (_, *place), stays in primary.stays.items()}
    broken += belied(not_applied, stored, taken_back_s, primary.expired_s)
    for driver in drivers:
        wrong = Counter(count for count in driver.answers.values() if count != 1)
        broken += [("", f"{many} chunks were answered {count} times") for count, many in wrong.items()]
        broken += [
            ("", f"a repeated reply rests on what the store forgot: {stale}") for stale in driver.stale
        ]
        if driver.late_count:
            broken.append(
                ("", f"{driver.late_count} runs began beside batches after a server was told to leave")
            )
    return broken


def unproven(history, records):
    """Yields replies that do not come from a stored history by the tokens of their chunk."""
    states = {}
    for record in records:
        if record.state:
            state = int(np.frombuffer(record.state, np.int64)[0])
            if states.setdefault((record.position, record.digest), state) != state:
                yield f"one history has two states at {record.position}"
    by_position = {}
    for (position, digest), state in states.items():
        by_position.setdefault(position, []).append((digest, state))
    stamps = {(record.incarnation, record.position, record.digest) for record in records}
    for attempt in history.attempts:
        reply = attempt.reply
        if reply is None:
            continue
        place = f"the reply to {len(attempt.tokens)} tokens at {attempt.position}"
        if (reply.incarnation, reply.position, reply.digest) not in stamps:
            yield f"{place} tells of a history that was never stored"
        if attempt.position not in (None, reply.position - len(attempt.tokens)):
            yield f"{place} tells of position {reply.position}"
        run = run_of(attempt.tokens)
        before = by_position.get(reply.position - len(attempt.tokens), ())
        starts = [state for digest, state in before if run.after(digest) == reply.digest]
        shown = reply.outputs.tensors.get("hash")
        if not starts:
            yield f"{place} comes from no stored history"
        elif shown is not None and shown.tolist() != hashes_of(attempt.tokens.tolist(), starts[0]):
            yield f"{place} shows what these tokens do not give"


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


def blameless(history):
    """Yields chunks that failed for what others did to the model, or for a bug of the server."""
    for attempt in history.attempts:
        if attempt.reason == InternalFailure.reason:
            yield f"the server failed on the chunk at {attempt.position}"
        if attempt.reason == "MODEL_FAILED" and not np.isin(attempt.tokens, (RAISES, STALLS)).any():
            yield f"the chunk at {attempt.position} failed for the tokens of others"


def misled(answers):
    """Yields answers from another history, or another life, than the one that the chunk named."""
    for answer in answers:
        if answer.digest and run_of(answer.tokens).after(answer.digest) != answer.stamp[2]:
            yield answer.session_id, f"the chunk at {answer.position} was applied to another history"
        if answer.incarnation not in (0, answer.stamp[0]):
            yield answer.session_id, f"the chunk at {answer.position} was applied to another incarnation"


def forgotten(answers, primary, key_of):
    """Yields what was answered though the store had forgotten it, or forgot though it was replicated."""
    for answer in answers:
        stays = primary.stays.get((key_of(answer.session_id), *answer.stamp), ())
        if stays and all(end_s < answer.sent_s for _, end_s in stays):
            yield answer.session_id, f"position {answer.stamp[1]} was forgotten before it was asked for"
        if answer.is_replicated and stays and all(answer.heard_s < end_s < math.inf for _, end_s in stays):
            yield answer.session_id, f"position {answer.stamp[1]} was replicated, and is forgotten"


def strayed(meant, stored):
    """Yields chunks that were applied, but to another history than the one at which their writer stood."""
    places = {}
    for session_id, position, digest, tokens in meant:
        steps = places.setdefault((session_id, position + len(tokens), len(tokens)), {})
        steps.setdefault(tuple(tokens), set()).add(digest)
    for (session_id, end, count), steps in places.items():
        replies = {
            (reply.digest_before, reply.digest)
            for record in stored.get(session_id, ())
            for reply in record.replies
            if (reply.position, reply.token_count) == (end, count)
        }
        for tokens, digests in steps.items():
            run = run_of(np.array(tokens))
            if any(run.after(before) == after and before not in digests for before, after in replies):
                yield session_id, f"the chunk at {end - count} was applied where its writer did not stand"


def mislaid(cursors, stored, primary, key_of):
    """Yields cursors that were stored with another history than the one that their chunk ends."""
    for session_id, records in stored.items():
        before = {}
        for record in records:
            for reply in record.replies:
                places = before.setdefault((reply.position, reply.digest), set())
                places.add((reply.position - reply.token_count, reply.digest_before))
        for record in records:
            place = record.position, record.digest
            found = primary.cursors.get((key_of(session_id), *place), set())
            while (session_id, *place) not in cursors and place in before:
                place = max(before[place])  # the same chunks may have been cut otherwise
            expected = cursors.get((session_id, *place), b"")
            if found - {expected}:
                yield session_id, f"{found} was stored at {record.position}, the last cursor is {expected}"


def belied(not_applied, stored, taken_back_s, expired_s):
    """Yields chunks that were applied, and not lost with more, though an error says that they were not."""
    for told_s, session_id, chunk in not_applied:
        run, count = run_of(chunk.tokens), len(chunk.tokens)
        for record in stored.get(session_id, ()):
            place = record.incarnation, record.position, record.digest
            if (
                min(taken_back_s.get(place, math.inf), expired_s.get(record.incarnation, math.inf))
                <= told_s
            ):
                continue
            if any(
                (reply.position, reply.token_count) == (chunk.position + count, count)
                and run.after(reply.digest_before) == reply.digest
                for reply in record.replies
            ):
                yield session_id, f"the chunk at {chunk.position} was said not to be applied, and was"
                break

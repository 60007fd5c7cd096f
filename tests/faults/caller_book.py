"""The book of one caller: what it was told of every token that it handed over, and what may thus be stored.

A history only grows. What the caller was told of it, by replies and by the positions that an opening names,
are prefixes of one another; a token is in it once. Behind it may come what is in doubt: chunks that the
session object had in `pending` when it was last looked at, each after the history that it was sent to. A
session object that was given up leaves its doubts behind until a takeover fences them. What is stored in
the end is the known history, or goes on by a chain of doubts; all else was not applied.
"""

import time
from collections import Counter

from holdfast.history_digest import INITIAL, digest_after
from tests.support.hash_oracle import hash_of, hashes_of


class Book:
    """What is known of one session.

    Attributes:
        history: Tokens known to be applied, in order; each token of a case is another byte.
        may_be_deleted: The session was, or may yet be, deleted by the caller.
        has_rival: A session object that was given up, or is still used beside another one, may change it.
        was_fenced: A takeover has ended incarnations before it.
        counts: What happened.
        life: How often the session was begun anew.
        script: What the caller did and was told, in words.
        wrong: What must not have happened, in words.
    """

    def __init__(self):
        self.history = b""
        self.may_be_deleted = self.has_rival = self.was_fenced = False
        self.life = 0
        self.counts = Counter()
        self.script = []
        self.wrong = []
        self._began_s = time.monotonic()
        self._doubts = {}  # by session object: (history before, tokens) of each chunk

    def say(self, text):
        """Notes a line of the script."""
        self.script.append(f"{time.monotonic() - self._began_s:6.3f}  {text}")

    def blame(self, text):
        """Notes a violation."""
        self.wrong.append(text)
        self.say(f"!!! {text}")

    def replied(self, tokens, start, reply):
        """Checks a reply to tokens at a position, and has them in the history."""
        self.counts["replies"] += 1
        self.counts["replays"] += reply.replayed
        end = start + len(tokens)
        if reply.position != end or reply.token_count != len(tokens):
            self.blame(f"the reply to {list(tokens)} at {start} is one to position {reply.position}")
            return
        if start > len(self.history):
            self.blame(f"a reply to position {start}, which is beyond the {len(self.history)} tokens known")
            return
        if reply.outputs["hash"].tolist() != hashes_of(tokens, hash_of(self.history[:start])):
            self.blame(f"the reply to {list(tokens)} at {start} was computed from another history")
        if end <= len(self.history):
            if self.history[start:end] != tokens:
                self.blame(f"{list(tokens)} at {start} was replied to, and others before")
        elif start < len(self.history):
            self.blame(f"{list(tokens)} at {start} overlaps what was replied to before")
        else:
            self._grow(tokens)

    def looked(self, number, position, pending):
        """Notes the pending chunks of a session object: from now on these are its doubts, and no others."""
        if position > len(self.history):
            self.blame(f"the session stands at {position}, of which {len(self.history)} are accounted for")
            return
        before, doubts = self.history[:position], []
        for chunk in pending:
            if chunk.position != len(before):
                self.blame(f"pending {pending} do not follow one another from position {position} on")
            doubts.append((before, chunk.tokens))
            before += chunk.tokens
        self._doubts[number] = doubts

    def opened(self, number, position, digest, *, resumed, fences):
        """Checks where a session stands that was opened."""
        is_new = self.may_be_deleted and position == 0 and self.history != b""
        if is_new:
            self.counts["begun anew"] += 1
            self.history, self._doubts = b"", {}
            self.life += 1
        elif not resumed and self.history:
            self.blame("the session was made anew, and nobody has deleted it")
        found = self._find(position, digest)
        if found is None:
            self.blame(f"the session was opened at {position}, with a history that nobody wrote")
        else:
            self._grow(found[len(self.history) :])
        if fences:
            self._doubts, self.was_fenced, self.has_rival = {}, True, False
        self._doubts[number] = []

    def judge(self, position, digest, state):
        """Checks what is stored when nothing is under way any more."""
        found = self._find(position, digest)
        if found is None:
            self.blame(
                f"stored are {position} tokens, known are {len(self.history)}: not what the book allows"
            )
            return
        self._grow(found[len(self.history) :])
        if state != hash_of(found):
            self.blame("the stored state is not that of the stored history")

    def _grow(self, tokens):
        twice = set(tokens) & set(self.history)
        if twice or len(set(tokens)) < len(tokens):
            self.blame(f"{sorted(twice)} of {list(tokens)} were applied twice")
        self.history += tokens

    def _find(self, position, digest):
        """Returns the history of so many tokens that has a digest and may be stored; None if none may."""
        reached = [self.history]
        for history in reached:
            if len(history) == position and digest_after(INITIAL, history) == digest:
                return history
            if len(history) < position:
                reached += [
                    history + tokens
                    for doubts in self._doubts.values()
                    for before, tokens in doubts
                    if before == history
                ]
        return None

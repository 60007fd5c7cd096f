"""The tokens a client could still send again, should the store lose steps it had acknowledged. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from holdfast.history_digest import digest_after
from holdfast.pending import Tokens

JOINED_TOKENS = 512
"""Chunks are joined up to so many tokens. A session then keeps some hundred objects and not one for each
of 65,536 tokens, all of which the garbage collector would look at again and again."""

JOINED_SHARE = 16
"""Joined chunks are let go of together, so they hold at most this part of what is kept."""


class Applied(NamedTuple):
    """Tokens that were applied together.

    Attributes:
        position: Tokens of the session before them.
        history_digest: Of those tokens; 0 is not known.
        tokens: Themselves.
        cursor: Stored with them; b"" is none.
    """

    position: int
    history_digest: int
    tokens: Tokens
    cursor: bytes = b""


class ReplayBuffer:
    """Keeps the last tokens of a session, by position, whatever level they were acknowledged at.

    What is on the primary's disk can be lost with the primary, and what replicas have with all of them; so
    an acknowledgement at a higher level lets nothing go, and costs no more memory than one at a lower.

    Args:
        max_tokens: At least so many of the newest are kept; 0 keeps none.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._most_joined = min(JOINED_TOKENS, max_tokens // JOINED_SHARE)
        self._chunks: deque[Applied] = deque()
        self._token_count = 0
        self._newest: list[Tokens] = []  # of one kind, and not joined yet
        self._newest_count = 0
        self._newest_from = 0, 0  # position and digest before them

    def append(self, position: int, history_digest: int, tokens: Tokens, cursor: bytes = b"") -> None:
        """Adds the tokens applied at a position, given the digest of those before."""
        if not self._max_tokens:
            return
        count, newest = len(tokens), self._newest
        is_full = self._newest_count + count > self._most_joined
        if newest and (cursor or is_full or not _are_alike(newest[0], tokens)):
            self._join()
        if cursor:  # never joined
            self._chunks.append(Applied(position, history_digest, tokens, cursor))
        else:
            if not self._newest_count:
                self._newest_from = position, history_digest
            self._newest.append(tokens)
            self._newest_count += count
        self._token_count += count
        while self._chunks and self._token_count - len(self._chunks[0].tokens) >= self._max_tokens:
            self._token_count -= len(self._chunks.popleft().tokens)

    def cut(self, position: int, history_digest: int) -> None:
        """Lets go of what was applied from a position on; of all, if another history leads there."""
        self._join()
        chunks, self._chunks, self._token_count = self._chunks, deque(), 0
        for chunk in chunks:
            count = min(len(chunk.tokens), position - chunk.position)
            if count > 0:
                is_whole = count == len(chunk.tokens)
                cursor = chunk.cursor if is_whole else b""
                self._chunks.append(chunk._replace(tokens=chunk.tokens[:count], cursor=cursor))
                self._token_count += count
        if not self._chunks:
            return
        last = self._chunks[-1]
        if last.position + len(last.tokens) != position or history_digest not in (
            0, digest_after(last.history_digest, last.tokens),
        ):  # fmt: skip
            self._chunks, self._token_count = deque(), 0

    def reaches(self, position: int) -> bool:
        """Whether everything that was applied from a position on is kept."""
        if self._chunks:
            return self._chunks[0].position <= position
        return self._newest_count > 0 and self._newest_from[0] <= position

    def digest_at(self, position: int) -> int:
        """Returns the history digest at a position that is reached; 0 is not known.

        Raises:
            LookupError: The buffer does not reach it.
        """
        self._check(position)
        self._join()
        chunk = next(chunk for chunk in reversed(self._chunks) if chunk.position <= position)
        return digest_after(chunk.history_digest, chunk.tokens[: position - chunk.position])

    def tokens_at(self, position: int, count: int) -> Tokens:
        """Returns up to so many tokens applied from a position on, as far as they are of one kind.

        Raises:
            LookupError: The buffer does not reach it.
        """
        self._check(position)
        return next((run[:count] for run, _ in self._runs(position)), b"")

    def since(self, position: int, size: int) -> list[Applied]:
        """Returns what was applied from a position on, in order, in pieces of at most `size` tokens.

        Returns:
            The pieces; the same position gives the same ones. What had a cursor is a piece of its own, as
            it was applied, so that a stored cursor is always that of the tokens before it.

        Raises:
            LookupError: The buffer does not reach back so far.
        """
        history_digest = self.digest_at(position)
        pieces: list[Applied] = []
        for run, cursor in self._runs(position, by_cursor=True):
            most = len(run) if cursor else size
            for start in range(0, len(run), most):
                tokens = run[start : start + most]
                pieces.append(Applied(position, history_digest, tokens, cursor))
                position += len(tokens)
                history_digest = digest_after(history_digest, tokens)
        return pieces

    def _join(self) -> None:
        """Makes one chunk of the newest ones."""
        if self._newest:
            self._chunks.append(Applied(*self._newest_from, _joined(self._newest)))
            self._newest, self._newest_count = [], 0

    def _check(self, position: int) -> None:
        if not self.reaches(position):
            raise LookupError(f"tokens at position {position} are no longer kept")

    def _runs(self, position: int, *, by_cursor: bool = False) -> Iterator[tuple[Tokens, bytes]]:
        """Yields the tokens from a position on, joined as far as they are of one kind, and a cursor.

        Args:
            position: That is reached.
            by_cursor: What had a cursor is not joined with others.
        """
        self._join()
        run: list[Tokens] = []
        for start, _, tokens, cursor in self._chunks:
            if start + len(tokens) <= position:
                continue
            is_apart = by_cursor and cursor
            if run and (is_apart or not _are_alike(run[0], tokens)):
                yield _joined(run), b""
                run = []
            left = tokens[max(0, position - start) :]
            if is_apart:
                yield left, cursor
            else:
                run.append(left)
        if run:
            yield _joined(run), b""


def _are_alike(one: Tokens, other: Tokens) -> bool:
    """Whether they can be joined."""
    if isinstance(one, bytes) or isinstance(other, bytes):
        return type(one) is type(other)
    return one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def _joined(run: list[Tokens]) -> Tokens:
    if len(run) == 1:
        return run[0]
    texts = [tokens for tokens in run if isinstance(tokens, bytes)]
    return b"".join(texts) if texts else np.concatenate(run)

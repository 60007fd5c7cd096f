"""The tokens a client could still send again, should the store lose steps it had acknowledged. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from holdfast.history_digest import digest_after
from holdfast.pending import Tokens


class Applied(NamedTuple):
    """Tokens that were applied together.

    Attributes:
        position: Tokens of the session before them.
        history_digest: Of those tokens; 0 is not known.
        tokens: Themselves.
    """

    position: int
    history_digest: int
    tokens: Tokens


class ReplayBuffer:
    """Keeps the last tokens of a session, by position, whatever level they were acknowledged at.

    What is on the primary's disk can be lost with the primary, and what replicas have with all of them; so
    an acknowledgement at a higher level lets nothing go, and costs no more memory than one at a lower.

    Args:
        max_tokens: At least so many of the newest are kept; 0 keeps none.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._chunks: deque[Applied] = deque()
        self._token_count = 0

    def append(self, position: int, history_digest: int, tokens: Tokens) -> None:
        """Adds the tokens applied at a position, given the digest of those before."""
        self._chunks.append(Applied(position, history_digest, tokens))
        self._token_count += len(tokens)
        while self._chunks and self._token_count - len(self._chunks[0].tokens) >= self._max_tokens:
            self._token_count -= len(self._chunks.popleft().tokens)

    def reaches(self, position: int) -> bool:
        """Whether everything that was applied from a position on is kept."""
        return bool(self._chunks) and self._chunks[0].position <= position

    def digest_at(self, position: int) -> int:
        """Returns the history digest at a position that is reached; 0 is not known.

        Raises:
            LookupError: The buffer does not reach it.
        """
        self._check(position)
        chunk = next(chunk for chunk in reversed(self._chunks) if chunk.position <= position)
        return digest_after(chunk.history_digest, chunk.tokens[: position - chunk.position])

    def tokens_at(self, position: int, count: int) -> Tokens:
        """Returns up to so many tokens applied from a position on, as far as they are of one kind.

        Raises:
            LookupError: The buffer does not reach it.
        """
        self._check(position)
        return next((run[:count] for run in self._runs(position)), b"")

    def since(self, position: int, size: int) -> list[Applied]:
        """Returns what was applied from a position on, in order, in pieces of at most `size` tokens.

        Returns:
            The pieces; the same position gives the same ones.

        Raises:
            LookupError: The buffer does not reach back so far.
        """
        history_digest = self.digest_at(position)
        pieces: list[Applied] = []
        for run in self._runs(position):
            for start in range(0, len(run), size):
                tokens = run[start : start + size]
                pieces.append(Applied(position, history_digest, tokens))
                position += len(tokens)
                history_digest = digest_after(history_digest, tokens)
        return pieces

    def _check(self, position: int) -> None:
        if not self.reaches(position):
            raise LookupError(f"tokens at position {position} are no longer kept")

    def _runs(self, position: int) -> Iterator[Tokens]:
        """Yields the tokens from a position on, joined as far as they are of one kind."""
        run: list[Tokens] = []
        for start, _, tokens in self._chunks:
            if start + len(tokens) <= position:
                continue
            if run and _kind(run[0]) != _kind(tokens):
                yield _joined(run)
                run = []
            run.append(tokens[max(0, position - start) :])
        if run:
            yield _joined(run)


def _kind(tokens: Tokens) -> Any:
    return bytes if isinstance(tokens, bytes) else (tokens.dtype, tokens.shape[1:])


def _joined(run: list[Tokens]) -> Tokens:
    texts = [tokens for tokens in run if isinstance(tokens, bytes)]
    return b"".join(texts) if texts else np.concatenate(run)

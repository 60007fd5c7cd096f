"""The tokens a client could still send again, should the store lose steps it had acknowledged. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = bytes | NDArray[Any]


class ReplayBuffer:
    """Keeps the last tokens of a session, by position, whatever level they were acknowledged at.

    What is on the primary's disk can be lost with the primary, and what replicas have with all of them; so
    an acknowledgement at a higher level lets nothing go, and costs no more memory than one at a lower.

    Args:
        max_tokens: At least so many of the newest are kept; 0 keeps none.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._chunks: deque[tuple[int, Tokens]] = deque()
        self._token_count = 0

    def append(self, position: int, tokens: Tokens) -> None:
        """Adds the tokens applied at a position."""
        self._chunks.append((position, tokens))
        self._token_count += len(tokens)
        while self._chunks and self._token_count - len(self._chunks[0][1]) >= self._max_tokens:
            self._token_count -= len(self._chunks.popleft()[1])

    def reaches(self, position: int) -> bool:
        """Whether everything that was applied from a position on is kept."""
        return bool(self._chunks) and self._chunks[0][0] <= position

    def since(self, position: int, size: int) -> list[tuple[int, Tokens]]:
        """Returns what was applied from a position on, in order, in pieces of at most `size` tokens.

        Returns:
            Position and tokens of each piece. The same position gives the same pieces.

        Raises:
            LookupError: The buffer does not reach back so far.
        """
        if not self.reaches(position):
            raise LookupError(f"tokens at position {position} are no longer kept")
        pieces: list[tuple[int, Tokens]] = []
        for run in self._runs(position):
            for start in range(0, len(run), size):
                pieces.append((position, run[start : start + size]))
                position += len(pieces[-1][1])
        return pieces

    def _runs(self, position: int) -> Iterator[Tokens]:
        """Yields the tokens from a position on, joined as far as they are of one kind."""
        run: list[Tokens] = []
        for start, tokens in self._chunks:
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

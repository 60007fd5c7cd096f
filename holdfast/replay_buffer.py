"""The tokens a client could still send again, should the store lose steps it had acknowledged. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

Tokens = bytes | NDArray[Any]


class ReplayBuffer:
    """Keeps the last tokens of a session, by position.

    Args:
        max_tokens: At least so many of the newest are kept.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._chunks: deque[tuple[int, Tokens]] = deque()
        self._token_count = 0

    def append(self, position: int, tokens: Tokens) -> None:
        """Adds the tokens applied at a position."""
        self._chunks.append((position, tokens))
        self._token_count += len(tokens)
        while self._token_count - len(self._chunks[0][1]) >= self._max_tokens:
            self._token_count -= len(self._chunks.popleft()[1])

    def since(self, position: int) -> Iterator[tuple[int, Tokens]]:
        """Yields what was applied from a position on, in order, with the position of each piece.

        Raises:
            LookupError: The buffer does not reach back so far.
        """
        if not self._chunks or self._chunks[0][0] > position:
            raise LookupError(f"tokens at position {position} are no longer kept")
        for start, tokens in list(self._chunks):
            if start + len(tokens) > position:
                skip = max(0, position - start)
                yield start + skip, tokens[skip:]

"""How far each session is answered, among those that have batches under way or have lost some. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence


class Unanswered:
    """The first position of each session whose reply is missing; up to there all replies were had."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._under_way: Counter[str] = Counter()

    def send(self, session_ids: Sequence[str], positions: Sequence[int]) -> list[int]:
        """Notes a chunk of each session, and returns the position up to which each is answered."""
        first, answered = self._first, []
        self._under_way.update(session_ids)
        for session_id, position in zip(session_ids, positions, strict=True):
            at = first.get(session_id)
            if at is None or position < at:
                first[session_id] = at = position
            answered.append(at)
        return answered

    def answer(self, session_ids: Sequence[str], positions: Sequence[int], token_count: int) -> None:
        """Notes that these chunks, as sent, have their replies, be they refusals."""
        first, under_way = self._first, self._under_way
        for session_id, position in zip(session_ids, positions, strict=True):
            self._end(session_id)
            if first.get(session_id) != position:
                continue
            if session_id in under_way:
                first[session_id] = position + token_count
            else:
                del first[session_id]

    def lose(self, session_ids: Iterable[str]) -> None:
        """Notes that the replies to these chunks will not come: they are missing until sent again."""
        for session_id in session_ids:
            self._end(session_id)

    def _end(self, session_id: str) -> None:
        self._under_way[session_id] -= 1
        if self._under_way[session_id] <= 0:
            del self._under_way[session_id]

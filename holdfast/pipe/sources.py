"""What a pipe needs of where events come from."""

from collections.abc import Sequence
from typing import Protocol

from holdfast.pipe.events import Raw


class OthersTurn(Exception):
    """Another pipe reads the source now: what was read here and not begun is left to it."""


class Source(Protocol):
    """Events in an order that stays, each with a place.

    Attributes:
        source_id: Names it in the cursors of sessions.
    """

    source_id: str

    async def read(self, most: int) -> Sequence[Raw] | None:
        """Returns the next events, at most so many, perhaps none for now; None at the end.

        May be cancelled, if nothing is read afterwards.

        Raises:
            OthersTurn: See there. The next call waits until it is this one's turn, and begins with the
                first event that is not done.
            PipeFailed: It cannot be read.
        """

    async def done(self, entries: Sequence[str]) -> None:
        """Notes that the outputs of events are written: they need not come again.

        Raises:
            PipeFailed: That cannot be noted.
        """

    async def behind(self) -> str:
        """Returns how much is left to read, for people; "" if that is not known."""

    async def close(self) -> None:
        """Lets go of the source."""

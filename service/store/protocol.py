"""What the engine needs of a store. Implementations: `redis.RedisStore`, and a fake in the tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from service.errors import ServiceError


class Write(NamedTuple):
    """One record to commit.

    Attributes:
        key: Where.
        expected_stamp: Stamp the stored record must have; "" where none may exist.
        record: The new record, encoded.
    """

    key: bytes
    expected_stamp: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A write was refused because another record is stored.

    Attributes:
        record: What is stored instead, encoded; None if nothing is.
    """

    record: bytes | None


Outcome = None | Found | ServiceError
"""Of one write: None is committed; `Found` and errors have changed nothing."""


class StateStore(Protocol):
    """Keeps one record per key and replaces it atomically."""

    async def load(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Reads records in one round trip; None where nothing is stored.

        Raises:
            StoreUnavailable: No answer in time.
        """
        ...

    async def commit(self, writes: Sequence[Write], ttl_s: float) -> list[Outcome]:
        """Replaces each record that has the expected stamp, in one round trip.

        Check, write and new expiry of a key are one atomic act: of two replicas on one session one
        wins. The writes of a call are independent.

        Args:
            writes: Distinct keys.
            ttl_s: Time to live from now, by the store's clock; 0 is for ever.

        Returns:
            One outcome per write, in order.

        Raises:
            StoreUnavailable: No answer in time; each write may or may not have happened.
        """
        ...

    async def time_to_live_s(self, key: bytes) -> float:
        """Returns the seconds until the record expires; 0 if it never does.

        Raises:
            StoreUnavailable: No answer in time.
        """
        ...

    @property
    def is_available(self) -> bool:
        """Whether the store answered when last asked."""
        ...

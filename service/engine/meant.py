"""Which session a request means, and whether what is stored is that one. Pure."""

from typing import NamedTuple

from holdfast.errors import InvalidRequest, PositionConflict, PositionGap, SessionDeleted, SessionNotFound
from holdfast.history_digest import MAX_NUMBER
from service.engine.rules import check_incarnation, quarantined
from service.store.record import Record


class Meant(NamedTuple):
    """Which session a request means.

    Attributes:
        position: Tokens that it must have consumed; None is any.
        incarnation: In which it must be; 0 is any.
    """

    position: int | None = None
    incarnation: int = 0

    def check(self) -> None:
        """Refuses what no session could be.

        Raises:
            InvalidRequest: A number is out of its range.
        """
        if self.position is not None and not 0 <= self.position <= MAX_NUMBER:
            raise InvalidRequest(f"position is {self.position}, expected 0..2^53 - 1", field="position")
        if not 0 <= self.incarnation <= MAX_NUMBER:
            raise InvalidRequest(
                f"incarnation is {self.incarnation}, expected 1..2^53 - 1, or 0 for any",
                field="incarnation",
            )


def check_nonce(nonce: int) -> None:
    """Refuses a nonce that is none.

    Raises:
        InvalidRequest: It is out of its range.
    """
    if not 0 <= nonce <= MAX_NUMBER:
        raise InvalidRequest(f"nonce is {nonce}, expected 1..2^53 - 1, or 0 for none", field="nonce")


def existing(stored: Record | None) -> Record:
    """Returns the record of a session that exists, held or not.

    Raises:
        SessionNotFound, SessionDeleted: As named.
    """
    if stored is None:
        raise SessionNotFound("no session has this id", field="session_id")
    if stored.deleted:
        raise SessionDeleted(f"the session was deleted at position {stored.position}")
    return stored


def check_live(record: Record, incarnation: int) -> None:
    """Makes sure that a session is in the incarnation that is meant, 0 being any, and is not held.

    Raises:
        SessionDeleted, SessionQuarantined: As named.
    """
    check_incarnation(record, incarnation)
    if record.quarantine_reason:
        raise quarantined(record)


def live(stored: Record | None, meant: Meant, field: str = "") -> Record:
    """Returns the record of the session that a request means, which is not held.

    Args:
        stored: What is stored.
        meant: The session.
        field: Of the request, that an error about the position names.

    Raises:
        SessionNotFound, SessionDeleted, SessionQuarantined, PositionConflict, PositionGap: As named.
    """
    record, position = existing(stored), meant.position
    check_live(record, meant.incarnation)
    if position is not None and position != record.position:
        kind = PositionConflict if position < record.position else PositionGap
        raise kind(
            f"position is {position}, the session stands at {record.position}",
            field=field,
            expected_position=record.position,
        )
    return record

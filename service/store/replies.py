"""What the replies of a server say. Pure."""

from collections.abc import Callable
from typing import Any

import hiredis

from holdfast.errors import ServiceError
from service.store.beside import CheckpointHead, read_head
from service.store.protocol import Found, Loaded, Refusals

Reply = Any
"""As hiredis reads it: bytes, int, list, None or hiredis.ReplyError."""


def is_unknown_script(reply: Any) -> bool:
    """Whether a server that was asked for the script by its hash has lost it, and so executed nothing."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def records_of(reply: Reply, count: int) -> list[Loaded]:
    """Reads what MGET returns for `count` keys.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, list) or len(reply) != count:
        raise ValueError
    if not {bytes, type(None)}.issuperset(map(type, reply)):
        raise ValueError
    return reply


def records_with_cursors_of(
    reply: Reply, count: int, refusal: Callable[[str], ServiceError]
) -> list[tuple[Loaded, bytes]]:
    """Reads what the script returns that reads `count` records with their cursors.

    Args:
        reply: See there.
        count: See there.
        refusal: Says what an error text means.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, list) or len(reply) != 2 * count:
        raise ValueError
    read: list[tuple[Loaded, bytes]] = []
    for record, cursor in zip(reply[::2], reply[1::2], strict=True):
        if isinstance(cursor, hiredis.ReplyError):
            read.append((refusal(str(cursor)), b""))
        elif isinstance(record, bytes | None) and isinstance(cursor, bytes):
            read.append((record, cursor))
        else:
            raise ValueError
    return read


def checkpoints_of(reply: Reply) -> list[CheckpointHead]:
    """Reads what the script returns that lists checkpoints.

    Raises:
        ValueError: It cannot be that.
        RecordCorrupt: One is no checkpoint.
    """
    if not isinstance(reply, list) or len(reply) % 3:
        raise ValueError
    return [_head(*reply[start : start + 3]) for start in range(0, len(reply), 3)]


def saved_of(reply: Reply, field: bytes) -> CheckpointHead | Found | None:
    """Reads what the script returns that saves a checkpoint, of this field; None: there are too many.

    Raises:
        ValueError: It cannot be that.
    """
    match reply:
        case [b"saved", size_bytes, beginning]:
            return _head(field, size_bytes, beginning)
        case [b"full"]:
            return None
        case [b"found", bytes() | None as record]:
            return Found(record)
        case [b"found"]:
            return Found(None)
    raise ValueError


def _head(field: Any, size_bytes: Any, beginning: Any) -> CheckpointHead:
    if not (isinstance(field, bytes) and isinstance(size_bytes, int) and isinstance(beginning, bytes)):
        raise ValueError
    return read_head(field, size_bytes, beginning)


def bytes_of(reply: Reply) -> bytes | None:
    """Reads what GET or HGET returns.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, bytes | None):
        raise ValueError
    return reply


def seconds_of(reply: Reply) -> float:
    """Reads what PTTL returns; 0 where nothing expires.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, int):
        raise ValueError
    return max(reply, 0) / 1000


def scanned_of(reply: Reply) -> tuple[int, list[bytes]]:
    """Reads what SCAN returns: where to go on, 0 at the end, and keys.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, list) or len(reply) != 2:
        raise ValueError
    cursor, keys = reply
    if (
        not isinstance(cursor, bytes)
        or not isinstance(keys, list)
        or not {bytes}.issuperset(map(type, keys))
    ):
        raise ValueError
    return int(cursor), keys


def refusals_of(reply: Reply, count: int, refusal: Callable[[str], ServiceError]) -> Refusals:
    """Reads what the script returns.

    Args:
        reply: To a call for `count` records.
        count: See there.
        refusal: Says what an error text means.

    Returns:
        The records that were not written, by their number from 0.

    Raises:
        ValueError: It cannot be that.
    """
    if not isinstance(reply, list):
        raise ValueError
    refusals: Refusals = {}
    for number, kind, detail in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
        if not (isinstance(number, int) and 1 <= number <= count and isinstance(detail, bytes | None)):
            raise ValueError
        if kind == b"error" and detail:
            refusals[number - 1] = refusal(detail.decode(errors="replace"))
        else:
            refusals[number - 1] = Found(detail)
    return refusals

"""Names of the acknowledgement levels. Pure."""

from typing import Any

from holdfast.v1 import holdfast_pb2 as pb

_NUMBERS: dict[str, Any] = {
    "memory": pb.ACK_LEVEL_MEMORY,
    "fsynced": pb.ACK_LEVEL_FSYNCED,
    "replicated": pb.ACK_LEVEL_REPLICATED,
    "fsynced+replicated": pb.ACK_LEVEL_FSYNCED_AND_REPLICATED,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def to_number(level: str | None) -> Any:
    """Returns the level of the contract; None leaves it to the server.

    Raises:
        ValueError: There is no such level.
    """
    if level is None:
        return pb.ACK_LEVEL_UNSPECIFIED
    if level not in _NUMBERS:
        raise ValueError(f"ack_level is {level!r}, expected one of {', '.join(_NUMBERS)}")
    return _NUMBERS[level]


def to_name(number: int) -> str:
    """Returns the name of a level in a reply."""
    return _NAMES.get(number, "memory")

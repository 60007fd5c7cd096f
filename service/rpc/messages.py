"""Reads the messages of requests."""

from typing import Any

from google.protobuf.message import DecodeError

from holdfast.errors import InvalidRequest


def parse(message_type: Any, raw: bytes) -> Any:
    """Returns a message.

    Args:
        message_type: Its class.
        raw: As received.

    Raises:
        InvalidRequest: The bytes are no such message.
    """
    try:
        return message_type.FromString(raw)
    except DecodeError:
        raise InvalidRequest(f"the bytes are no {message_type.DESCRIPTOR.name}") from None

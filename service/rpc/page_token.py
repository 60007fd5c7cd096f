"""The token of a page: where a list goes on. Pure.

It says nothing to anybody else: its checksum is over the list that it belongs to as well, and over which
servers hold the sessions. It keeps nobody from anything either: the worst that a made-up token gives is
another place in the list of the same caller.
"""

import base64
import binascii
import struct

import xxhash

from holdfast.errors import InvalidRequest
from service.engine.listing import PagePlace, Wanted
from service.store.protocol import ScanPlace

_PLACE = struct.Struct("<hQ")
_CHECKSUM_BYTES = 8
_END = -1
"""Stands for the number of a server where the store was looked through to its end."""


def encode_token(page: PagePlace, wanted: Wanted, layout: bytes) -> str:
    """Returns the token of a page.

    Args:
        page: Where it begins.
        wanted: What is listed.
        layout: As of `ScanPlace`.
    """
    node, cursor = (page.place.node, page.place.cursor) if page.place is not None else (_END, 0)
    body = _PLACE.pack(node, cursor) + "\n".join(page.found).encode()
    return _text(_checksum(body, wanted, layout) + body)


def decode_token(token: str, wanted: Wanted, layout: bytes) -> PagePlace:
    """Returns where a page begins; arguments as of `encode_token`.

    Raises:
        InvalidRequest: It is no token of this list.
    """
    try:
        raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    checksum, body = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    is_right = len(body) >= _PLACE.size and checksum == _checksum(body, wanted, layout)
    if not is_right or _text(raw) != token:
        raise InvalidRequest(
            "page_token belongs to another list, or the store was started anew or has moved keys since: "
            "begin again, without one",
            field="page_token",
        )
    node, cursor = _PLACE.unpack_from(body)
    found = tuple(body[_PLACE.size :].decode().split("\n")) if len(body) > _PLACE.size else ()
    return PagePlace(None if node == _END else ScanPlace(layout, node, cursor), found)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _checksum(body: bytes, wanted: Wanted, layout: bytes) -> bytes:
    return xxhash.xxh3_64_digest(b"\0".join((repr(tuple(wanted)).encode(), layout, body)))

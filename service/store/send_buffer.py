"""How much of a request the kernel takes at once, on a socket in the file system."""

import asyncio
import contextlib
import os
import socket

SEND_BUFFER_BYTES = 1 << 20
"""The usual buffer holds two thirds of a commit of 256 rows; the rest waits until the store has read.
The kernel gives what it allows, by default 416 KiB. TCP sizes its buffers itself."""


def widen(transport: asyncio.BaseTransport) -> None:
    """Has the kernel take a large commit at once; a platform that refuses keeps the usual buffer."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(_descriptor(transport))) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def _descriptor(transport: asyncio.BaseTransport) -> int:
    number: int = transport.get_extra_info("socket").fileno()
    return number

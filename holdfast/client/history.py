"""A history: what a client sent and what came back, as the messages themselves, in a growing file.

`holdfast verify` reads it and proves that no token was lost, applied twice or answered wrongly. Each frame
is one write of its own, so what a client had seen is in the file even when the client is killed.

Layout, little-endian; a frame that is cut off at the end of the file is left out:

    bytes  what
    4      bytes that follow
    1      kind: 0 start, 1 reply, 2 failure, 16 + n a request of the n-th of RPCS, from 0
    8      monotonic seconds, float64
    8      number of the request: of a reply or a failure that which it answers; of some requests there are
           several replies, each a message
    ...    start: JSON; request and reply: the message of the contract; failure: JSON

Histories of one machine share a clock and may be checked together. What is read is a copy of the traffic:
keep a history as safe as the tokens in it.
"""

import json
import os
import secrets
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from holdfast.errors import HoldfastError

FORMAT = 1
RPCS = (
    "OpenSession", "GetSession", "DeleteSession", "Step", "StreamSteps", "StepBatch", "StreamBatches",
    "OpenBatch", "RestoreCheckpoint", "Generate", "DeleteBatch", "ForkSession", "ImportSession",
)  # fmt: skip
"""Numbered by their place, so the list grows at its end only."""

START, REPLY, FAILURE, REQUEST = 0, 1, 2, 16

_SIZE = struct.Struct("<I")
_HEADER = struct.Struct("<BdQ")
_KINDS = {rpc: REQUEST + number for number, rpc in enumerate(RPCS)}


class Message(Protocol):
    """A message of the contract."""

    def SerializeToString(self) -> bytes:  # noqa: N802 -- protobuf's name
        """Returns its bytes."""


class Frame(NamedTuple):
    """One entry of a history.

    Attributes:
        kind: START, REPLY, FAILURE or a request.
        time_s: Monotonic seconds.
        number: Of the request.
        body: Message or JSON.
    """

    kind: int
    time_s: float
    number: int
    body: bytes

    @property
    def rpc(self) -> str:
        """Name of the rpc of a request; "" for other kinds."""
        return RPCS[self.kind - REQUEST] if self.kind >= REQUEST else ""


class Recorder:
    """Appends to a history. May be shared by clients of one process.

    Args:
        path: Made if missing, else appended to.

    Raises:
        OSError: The file cannot be written; also raised by every other method.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._next = secrets.randbits(31) << 32  # so that recorders may share a file
        self._write(START, 0, json.dumps({"format": FORMAT, "process": os.getpid()}).encode())

    def sent(self, rpc: str, request: Message) -> int:
        """Notes a request that is about to leave.

        Returns:
            Its number, for its reply or failure; 0 for rpcs that no history holds.
        """
        kind = _KINDS.get(rpc)
        if kind is None:
            return 0
        self._next += 1
        self._write(kind, self._next, request.SerializeToString())
        return self._next

    def got(self, number: int, reply: Message) -> None:
        """Notes the reply to a request."""
        if number:
            self._write(REPLY, number, reply.SerializeToString())

    def failed(self, number: int, error: BaseException) -> None:
        """Notes that a request failed; other errors than HoldfastError leave its fate open."""
        if not number:
            return
        body: dict[str, Any] = {"reason": type(error).__name__.upper(), "message": str(error)}
        if isinstance(error, HoldfastError):
            body |= {"reason": error.reason, "expected_position": error.expected_position}
        self._write(FAILURE, number, json.dumps(body).encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, kind: int, number: int, body: bytes) -> None:
        header = _HEADER.pack(kind, time.monotonic(), number)
        frame = _SIZE.pack(len(header) + len(body)) + header + body
        written = os.write(self._file, frame)
        if written != len(frame):
            raise OSError(f"the history took {written} of {len(frame)} bytes; is the disk full?")


def read_frames(path: Path) -> Iterator[Frame]:
    """Yields the frames of a history, in the order in which they were written.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a history, or of a format that this version does not know.
    """
    with path.open("rb") as file:
        first = True
        while len(size := file.read(_SIZE.size)) == _SIZE.size:
            content = file.read(_SIZE.unpack(size)[0])
            if first and (len(content) < _HEADER.size or content[0] != START):
                raise ValueError(f"{path} is not a history")
            if len(content) < _SIZE.unpack(size)[0]:
                return
            kind, time_s, number = _HEADER.unpack_from(content)
            frame = Frame(kind, time_s, number, content[_HEADER.size :])
            if frame.kind == START and _format_of(frame.body) != FORMAT:
                raise ValueError(f"{path} has a format that this version does not read")
            first = False
            yield frame


def _format_of(body: bytes) -> Any:
    try:
        return json.loads(body)["format"]
    except (ValueError, KeyError, TypeError):
        return None

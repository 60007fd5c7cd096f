"""What gRPC says of clients: one that goes, or sends what is no call, is no error of this server.

gRPC logs it as an error with a trace, and prints some traces beside the log. What a client alone can bring
about is a line at level debug here; an exception that came through code of ours is an error as ever.
"""

import asyncio
import logging
import types
from pathlib import Path
from types import TracebackType

import grpc.aio
from google.protobuf.message import DecodeError
from grpc._cython import cygrpc

_OURS = str(Path(__file__).parents[1])

_LOGGERS = ("grpc._cython.cygrpc", "asyncio")

_BY_CLIENTS = (UnicodeDecodeError, DecodeError, asyncio.CancelledError)
"""What gRPC raises while it reads a path, metadata or a message, or before a handler has begun."""


class _ByClients(logging.Filter):
    """Lowers lines about clients to level debug."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is said."""
        _, error, trace = record.exc_info or (None, None, None)
        if error is None or not _is_of_client(error, trace):
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def lower_lines_about_clients() -> None:
    """Has gRPC's lines about what clients did lowered, and its prints beside the log left out."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _ByClients) for one in logger.filters):
            logger.addFilter(_ByClients())
    quiet = types.SimpleNamespace(
        print_exc=lambda: None, format_exception=cygrpc.traceback.format_exception
    )
    cygrpc.traceback = quiet  # what it prints it has logged just before


def _is_of_client(error: BaseException, trace: TracebackType | None) -> bool:
    if isinstance(error, grpc.aio.BaseError) and type(error).__name__ == "ExecuteBatchError":
        return True  # an operation on a call that is over
    return isinstance(error, _BY_CLIENTS) and not _is_through_ours(trace)


def _is_through_ours(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(_OURS):
            return True
        trace = trace.tb_next
    return False

"""The two ends of a pipe, as the command line names them.

redis-stream://HOST:PORT/STREAM and rediss-stream://..., file:PATH, and - for standard input and output.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.pipe.file_sink import FileSink, OutSink
from holdfast.pipe.lines import LineSource
from holdfast.pipe.places import check_source_id
from holdfast.pipe.sinks import Sink
from holdfast.pipe.sources import Source

if TYPE_CHECKING:
    from holdfast.pipe.redis_link import StreamAddress

LAYOUTS = ("jsonl", "csv")
_SUFFIXES = {".csv": "csv", ".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_FORMS = "redis-stream://HOST:PORT/STREAM, rediss-stream://HOST:PORT/STREAM, file:PATH or -"


def open_source(
    name: str,
    *,
    source_id: str,
    layout: str,
    group: str,
    consumer: str,
    until_empty: bool,
    say: Callable[[str], None],
) -> Source:
    """Opens a source.

    Args:
        name: As on the command line.
        source_id: Names it in cursors; "" takes the name of the stream, or the path of the file.
        layout: "jsonl" or "csv" of a file; "" looks at its name.
        group: Of a stream.
        consumer: Of a stream.
        until_empty: End when a stream has no more entries.
        say: Prints a line.

    Raises:
        ValueError: There is no such source, or its name is missing.
        OSError: It cannot be opened.
        ModuleNotFoundError: redis is not installed.
    """
    if _is_stream(name):
        from holdfast.pipe.stream_source import StreamSource

        address = _address(name)
        return StreamSource(
            address,
            group=group,
            consumer=consumer,
            source_id=check_source_id(source_id or address.stream),
            until_empty=until_empty,
            say=say,
        )
    if name == "-":
        if not source_id:
            raise ValueError(
                "standard input has no name by which sessions could remember what they have applied of it: "
                "give one by --source-id, the same when the same input is read again"
            )
        return LineSource(0, check_source_id(source_id), layout or "jsonl")
    path = _path(name)
    check_source_id(source_id or str(path.resolve()))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return LineSource(descriptor, source_id or str(path.resolve()), layout or _layout_of(path))


def open_sink(
    name: str,
    *,
    source_id: str,
    layout: str,
    columns: Sequence[str],
    is_synced: bool,
    say: Callable[[str], None],
) -> Sink:
    """Opens a sink.

    Args:
        name: As on the command line.
        source_id: Of the source.
        layout: "jsonl" or "csv" of a file; "" looks at its name.
        columns: Of CSV.
        is_synced: Wait for the disk.
        say: Prints a line.

    Raises:
        ValueError: There is no such sink, or it holds something else.
        OSError: It cannot be opened.
        ModuleNotFoundError: redis is not installed.
    """
    if _is_stream(name):
        from holdfast.pipe.stream_sink import StreamSink

        return StreamSink(_address(name), columns, source_id, say)
    if name == "-":
        return OutSink(layout or "jsonl", columns)
    path = _path(name)
    return FileSink(path, layout or _layout_of(path), columns, source_id, is_synced=is_synced)


def _is_stream(name: str) -> bool:
    return name.startswith(("redis-stream://", "rediss-stream://"))


def _address(name: str) -> "StreamAddress":
    from holdfast.pipe.redis_link import StreamAddress

    return StreamAddress(name)


def _path(name: str) -> Path:
    scheme, colon, path = name.partition(":")
    if scheme != "file" or not colon or not path:
        raise ValueError(f"{name.partition('@')[2] or name!r} is not a source or sink, expected {_FORMS}")
    return Path(path.removeprefix("//")) if path.startswith("///") else Path(path)


def _layout_of(path: Path) -> str:
    layout = _SUFFIXES.get(path.suffix.lower())
    if layout is None:
        raise ValueError(f"{path}: JSON lines or CSV? Name it by --format or --to-format: jsonl or csv")
    return layout

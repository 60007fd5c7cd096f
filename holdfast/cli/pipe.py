"""`holdfast pipe`: steps sessions by the events of a stream or a file, and writes what they gave."""

import argparse
import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

from holdfast.cli.calling import (
    EXIT_CONFIGURATION,
    add_server_options,
    credentials,
    failed,
)
from holdfast.client.aio import AsyncClient
from holdfast.errors import HoldfastError
from holdfast.pipe.ends import LAYOUTS, open_sink, open_source
from holdfast.pipe.events import Fields, fields_of
from holdfast.pipe.failures import PipeFailed
from holdfast.pipe.flow import Pipe, Rules
from holdfast.pipe.progress import Progress
from holdfast.pipe.records import DEAD_LETTER_COLUMNS, Asked, Records, score_of
from holdfast.pipe.sessions import said
from holdfast.v1 import holdfast_pb2 as pb

DRAIN_S = 30.0
"""After SIGTERM what is under way has so long to end; what has not comes again."""

REPLAY_TOKENS = 256
"""Of each session, to heal a store that goes back; a pipe holds many sessions open."""

DEAD_LETTER = "dead-letter:"


def main(arguments: list[str]) -> int:
    """Runs a pipe.

    Returns:
        0 at the end of the source, or after SIGTERM or SIGINT; 1 if it failed; 2 for wrong options.
    """
    options = _parse(arguments)
    progress = Progress(is_quiet=options.quiet)
    try:
        return asyncio.run(_pipe(options, progress))
    except ModuleNotFoundError as error:
        reason = f"streams need {error.name}: pip install 'holdfast[pipe]'"
        return failed("pipe", reason, EXIT_CONFIGURATION)


async def _pipe(options: argparse.Namespace, progress: Progress) -> int:
    async with contextlib.AsyncExitStack() as stack:
        try:
            pipe, source = await _wired(options, progress, stack)
        except HoldfastError as error:
            return failed("pipe", f"{options.target}: {said(error)}")
        except (OSError, ValueError) as error:
            return failed("pipe", error, EXIT_CONFIGURATION)
        running = asyncio.ensure_future(pipe.run())
        showing = asyncio.create_task(progress.show(lambda: pipe.counts, source))
        try:
            with _drained_by_signals(pipe, running):
                await running
        except asyncio.CancelledError:
            if not running.cancelled():
                raise
            return failed("pipe", f"not drained within {DRAIN_S:g} s; what is not written comes again")
        except HoldfastError as error:
            return failed("pipe", f"{options.target}: {said(error)}")
        except PipeFailed as error:
            return failed("pipe", error)
        finally:
            showing.cancel()
            progress.summary(pipe.counts)
    return 0


async def _wired(
    options: argparse.Namespace, progress: Progress, stack: contextlib.AsyncExitStack
) -> tuple[Pipe, Any]:
    """Opens both ends and the client.

    Raises:
        ValueError, OSError: An option is not what it should be.
        HoldfastError: The server does not say what the model is.
    """
    source = open_source(
        options.source,
        source_id=options.source_id,
        layout=options.format,
        group=options.group,
        consumer=options.consumer,
        until_empty=options.until_empty,
        say=progress.say,
    )
    stack.push_async_callback(source.close)
    client = AsyncClient(
        options.target, **credentials(options), replay_tokens=REPLAY_TOKENS, ack_level=options.ack_level
    )
    await stack.enter_async_context(client)
    model = await client.get_model(options.model, options.version)
    records = Records(source.source_id, options.fields.time, _asked(options, model), model)

    def sink_of(name: str, layout: str, columns: tuple[str, ...]) -> Any:
        sink = open_sink(
            name,
            source_id=source.source_id,
            layout=layout,
            columns=columns,
            is_synced=options.fsync,
            say=progress.say,
        )
        stack.push_async_callback(sink.close)
        return sink

    sink = sink_of(options.sink, options.to_format, records.columns)
    dead_letters = None
    if options.on_error.startswith(DEAD_LETTER):
        dead_letters = sink_of(options.on_error.removeprefix(DEAD_LETTER), "", DEAD_LETTER_COLUMNS)
    rules = Rules(
        options.model,
        options.fields,
        options.version,
        options.concurrency,
        stops_at_bad=options.on_error == "stop",
        read_ahead=max(4 * options.concurrency, 1024),
    )
    return Pipe(client, source, sink, dead_letters, records, rules, progress.say), source


def _asked(options: argparse.Namespace, model: pb.Model) -> Asked:
    outputs = tuple(filter(None, options.outputs.split(",")))
    if options.score and (score := score_of(model)) not in outputs:
        outputs = (*outputs, score)
    there = [output.name for output in model.outputs]
    unknown = [name for name in outputs if name not in there]
    if unknown:
        raise ValueError(f"--outputs: {model.name} has no {unknown[0]!r}, it has {', '.join(there)}")
    return Asked(options.top_k, options.token_log_prob, outputs)


@contextlib.contextmanager
def _drained_by_signals(pipe: Pipe, running: "asyncio.Future[None]") -> Iterator[None]:
    """Has SIGTERM and SIGINT drain the pipe; a second one ends it as if nobody cared."""
    loop = asyncio.get_running_loop()

    def drain(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        pipe.leave()
        loop.call_later(DRAIN_S, running.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "holdfast pipe",
        description="Reads events, steps the session of each, and writes a record for each, exactly once. "
        "SOURCE and SINK are redis-stream://[USER:PASSWORD@]HOST:PORT/STREAM, rediss-stream://... for TLS, "
        "file:PATH, or - for standard input and output.",
    )
    _add_ends(parser.add_argument_group("ends"))
    _add_events(parser.add_argument_group("events"))
    _add_steps(parser.add_argument_group("steps"))
    parser.add_argument("--quiet", action="store_true", help="print no progress on standard error")
    add_server_options(parser.add_argument_group("server"))
    options = parser.parse_args(arguments)
    try:
        options.fields = _fields(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _add_ends(ends: Any) -> None:
    ends.add_argument(
        "--from", dest="source", required=True, metavar="SOURCE", help="where events come from"
    )
    ends.add_argument("--to", dest="sink", required=True, metavar="SINK", help="where records go")
    ends.add_argument(
        "--format",
        choices=LAYOUTS,
        default="",
        help="format of a file or standard input (default: by the file's name)",
    )
    ends.add_argument(
        "--to-format",
        choices=LAYOUTS,
        default="",
        help="format of a file or standard output (default: by the file's name)",
    )
    ends.add_argument(
        "--source-id",
        default="",
        metavar="NAME",
        help="name by which sessions know the source (default: the stream's name, or the file's path)",
    )
    ends.add_argument("--group", default="holdfast", help="consumer group of a stream (default: holdfast)")
    ends.add_argument(
        "--consumer",
        default=socket.gethostname(),
        metavar="NAME",
        help="name of this pipe in the group; started again under its name, a pipe continues at once "
        "(default: the name of this machine)",
    )
    ends.add_argument("--until-empty", action="store_true", help="end when a stream has no more entries")
    ends.add_argument(
        "--fsync", action="store_true", help="continue only when the records of a file are on the disk"
    )


def _add_events(events: Any) -> None:
    events.add_argument(
        "--session-field",
        default="session",
        metavar="FIELD",
        help="field with the id of the session (default: session)",
    )
    events.add_argument(
        "--token-field",
        default="text",
        metavar="KIND[:FIELD]",
        help="tokens: text:FIELD, ids:FIELD, or features:FIELD,FIELD,... (default: text)",
    )
    events.add_argument("--time-field", default="", metavar="FIELD", help="field to copy into the record")
    events.add_argument(
        "--on-error",
        default="stop",
        metavar="stop|skip|dead-letter:SINK",
        help="what to do about an event that cannot be applied (default: stop)",
    )


def _add_steps(steps: Any) -> None:
    steps.add_argument("--model", required=True, help="name of the model")
    steps.add_argument("--version", type=int, default=0, help="version of the model (default: the newest)")
    steps.add_argument(
        "--top-k", type=int, metavar="K", help="record the K likeliest next tokens, or classes"
    )
    steps.add_argument(
        "--token-log-prob", action="store_true", help="record the log-probability of each token"
    )
    steps.add_argument(
        "--outputs", default="", metavar="NAME,...", help="record these outputs of the model"
    )
    steps.add_argument("--score", action="store_true", help="record the output with the role score")
    steps.add_argument(
        "--ack-level",
        help="how durable a commit must be: memory, fsynced, replicated, … (default: the server's)",
    )
    steps.add_argument(
        "--concurrency",
        type=int,
        default=256,
        metavar="N",
        help="step at most N sessions at the same time (default: 256)",
    )


def _fields(options: argparse.Namespace) -> Fields:
    if options.concurrency < 1:
        raise ValueError(f"--concurrency is {options.concurrency}, expected at least 1")
    if options.top_k is not None and options.top_k < 0:
        raise ValueError(f"--top-k is {options.top_k}, expected at least 0")
    if options.on_error not in ("stop", "skip") and not options.on_error.startswith(DEAD_LETTER):
        raise ValueError(f"--on-error is {options.on_error!r}, expected stop, skip or dead-letter:SINK")
    return fields_of(options.session_field, options.token_field, options.time_field)

"""`holdfast bench`: loads a running server, prints what it saw, and deletes the sessions it opened."""

import argparse
import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import grpc.aio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from holdfast import AsyncClient, Tls
from holdfast.bench.loads import (
    CHANNEL_OPTIONS,
    ClosedLoop,
    LoadFailed,
    Took,
    batches,
    opening,
    streams,
    unary,
)
from holdfast.bench.payload import Payload
from holdfast.bench.scrape import mean, scrape
from holdfast.cli.calling import EXIT_CONFIGURATION, add_server_options, credentials, failed
from holdfast.client.calls import bearer
from holdfast.client.status import from_rpc
from holdfast.client.tls import channel_credentials
from holdfast.errors import HoldfastError, ModelNotFound
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.settings.schema import MODEL

TIMEOUT_S = 5.0
ROWS = 64
TOKENS_PER_ROW = 16
MESSAGE_BYTES = 256 << 10
"""Batches stay below it: servers refuse messages that are too large."""

_HISTOGRAMS = {
    "batch": ("batch_size", 1.0),
    "run ms": ("run_seconds", 1e3),
    "commit ms": ("commit_seconds", 1e3),
}
"""Column -> histogram of the server, and what its mean is multiplied by."""


class Row(NamedTuple):
    """What one load came to.

    Attributes:
        name: Of the load.
        took: Seen by the client.
        server: Means that the server measured during the load, by column; empty if nobody asked.
    """

    name: str
    took: Took
    server: Mapping[str, float | None]


def main(arguments: list[str]) -> int:
    """Runs the loads.

    Returns:
        0 after all of them, 2 for an unknown model or wrong options, 1 if the server fails.
    """
    options = _parse(arguments)
    try:
        title, rows = asyncio.run(_bench(options))
    except ModelNotFound as error:
        return failed("bench", f"--model {options.model}: {error}", EXIT_CONFIGURATION)
    except grpc.RpcError as error:
        return failed("bench", f"{options.target}: {from_rpc(error)}")
    except (HoldfastError, LoadFailed) as error:
        return failed("bench", f"{options.target}: {error}")
    except OSError as error:
        return failed("bench", f"--http {options.http}: {error}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(_table(title, rows))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="holdfast bench",
        description="Loads a running server and prints what its clients see. Its sessions are its own, and "
        "are deleted afterwards.",
    )
    add_server_options(parser)
    parser.add_argument("--model", default="", help=f"name of the model (default: {MODEL}, or the first)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each load (default: 3)")
    parser.add_argument(
        "--streams",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        help="numbers of concurrent streams (default: 1 8 64)",
    )
    parser.add_argument(
        "--connections",
        type=int,
        default=1,
        help="connections that all callers share; use several for several workers",
    )
    parser.add_argument(
        "--http", metavar="HOST:PORT", help="HTTP address of the server, to show its metrics too"
    )
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or min(*options.streams, options.connections) < 1:
        parser.error("--seconds, --streams and --connections are above 0")
    try:
        options.credentials = credentials(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return options


async def _bench(options: argparse.Namespace) -> tuple[str, list[Row]]:
    client = AsyncClient(options.target, **options.credentials, timeout_s=TIMEOUT_S)
    tls = options.credentials["tls"]
    async with client, _connected(options.target, tls, options.connections) as stubs:
        model = await _find_model(client, options.model)
        loads = _loads(model, bearer(options.credentials["token"]), options.streams)
        rows = []
        async with _closing(client, loads):
            with _progress(len(loads) * options.seconds) as progress:
                for name, loop in loads.items():
                    async with _ticking(progress, name):
                        rows.append(await _measure(stubs, name, loop, options))
    return f"{options.target}, model {model.name} version {model.version}", rows


@contextlib.asynccontextmanager
async def _connected(target: str, tls: bool | Tls, count: int) -> AsyncIterator[list[Any]]:
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_channel(target, tls)) for _ in range(count)]
        yield [StreamingInferenceServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]


def _channel(target: str, tls: bool | Tls) -> grpc.aio.Channel:
    if not tls:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=CHANNEL_OPTIONS)


async def _find_model(client: AsyncClient, name: str) -> pb.Model:
    if not name:
        models = await client.list_models()
        return next((model for model in models if model.name == MODEL), models[0])
    return await client.get_model(name)


def _loads(model: pb.Model, metadata: Any, stream_counts: list[int]) -> dict[str, ClosedLoop]:
    """Returns the loads by name: streams, as many unary callers as the most streams, and batches."""
    payload = Payload(model)
    prefix = f"bench-{secrets.token_hex(4)}"
    opens = opening(payload, metadata)
    loads = {}
    for count in stream_counts:
        loop = ClosedLoop(f"{prefix}-s{count}", count, streams(payload, metadata), opening=opens)
        loads[f"{count} streams" if count > 1 else "1 stream"] = loop
    count = max(stream_counts)
    loop = ClosedLoop(f"{prefix}-u{count}", count, unary(payload, metadata), opening=opens)
    loads[f"{count} unary callers" if count > 1 else "1 unary caller"] = loop
    for tokens in sorted({1, min(TOKENS_PER_ROW, model.max_chunk_tokens)}):
        rows = max(1, min(ROWS, MESSAGE_BYTES // (4 * model.input.width * tokens)))
        open_call = batches(payload, tokens, metadata)
        name = f"batches of {rows} rows x {tokens}"
        loads[name] = ClosedLoop(
            f"{prefix}-c{tokens}", 1, open_call, rows=rows, tokens_per_row=tokens, opening=opens
        )
    return loads


async def _measure(stubs: Sequence[Any], name: str, loop: ClosedLoop, options: argparse.Namespace) -> Row:
    await loop.open(stubs)
    if not options.http:
        return Row(name, await loop.run(stubs, options.seconds), {})
    before = await asyncio.to_thread(scrape, options.http)
    took = await loop.run(stubs, options.seconds)
    after = await asyncio.to_thread(scrape, options.http)
    means = {
        column: None if (value := mean(before, after, f"holdfast_{histogram}")) is None else value * scale
        for column, (histogram, scale) in _HISTOGRAMS.items()
    }
    return Row(name, took, means)


@contextlib.asynccontextmanager
async def _closing(client: AsyncClient, loads: Mapping[str, ClosedLoop]) -> AsyncIterator[None]:
    """Deletes the sessions of the loads afterwards, as far as the server lets it."""
    try:
        yield
    finally:
        ids = (session_id for loop in loads.values() for session_id in loop.session_ids)
        await asyncio.gather(*map(client.delete_session, ids), return_exceptions=True)


@contextlib.contextmanager
def _progress(total_s: float) -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task("", total=total_s)
        yield progress


@contextlib.asynccontextmanager
async def _ticking(progress: Progress, name: str) -> AsyncIterator[None]:
    [task] = progress.task_ids

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.2)
            progress.advance(task, 0.2)

    progress.update(task, description=name)
    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column()
    for heading in ("steps/s", "messages/s", "p50 ms", "p99 ms", "p99.9 ms", *rows[0].server):
        table.add_column(heading, justify="right")
    for name, took, server in rows:
        figures = [f"{took.steps_per_s:,.0f}", f"{len(took.latencies_s) / took.elapsed_s:,.0f}"]
        figures += [f"{value:.2f}" for value in took.percentiles_ms()]
        figures += ["" if value is None else f"{value:.2f}" for value in server.values()]
        table.add_row(name, *figures)
    return table

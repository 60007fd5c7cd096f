"""The process of `holdfast serve`: a share in the embedded store, HTTP, signals, the ready line.

What serves is a `Server` in this process or a `Supervisor` of several. A supervisor needs no onnxruntime,
so what serves is imported when it is chosen.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from service.common.collector import sparing_imports
from service.common.listen_address import ListenAddress
from service.common.ports import bind_error, open_port, try_address
from service.common.start_errors import ConfigurationError, StartError
from service.process.http_pages import Answer, Paced, Page
from service.process.http_server import HttpServer
from service.process.signals import stop_requested
from service.process.standard_streams import say
from service.settings.descriptors import provide_descriptors
from service.settings.exposure import check_edge
from service.settings.schema import EMBEDDED, Settings
from service.store.address import password_in
from service.store.data_folder import EmbeddedStoreError
from service.store.embedded import Abandoned, EmbeddedStore
from service.store.keeper import kept
from service.telemetry.logs import obey_level_signals
from service.telemetry.metrics import CONTENT_TYPE, Metrics
from service.telemetry.process_stats import memory_bytes

_log = logging.getLogger(__name__)


class Serving(Protocol):
    """What serves. `start` raises StartError; `stop` drains."""

    @property
    def grpc_port(self) -> int:
        """Port of gRPC, once started."""

    async def start(self, store_url: str) -> None:
        """Serves when it returns."""

    async def stop(self) -> None:
        """Answers chunks under way and ends."""

    def scrape(self) -> bytes:
        """Returns the metrics in the text format; called in a thread, as are the next two."""

    def why_not_live(self) -> str | None:
        """Returns what is stuck, if anything is."""

    def why_not_ready(self) -> str | None:
        """Returns why requests should go elsewhere, if they should."""


async def serve(settings: Settings) -> None:
    """Serves until one of STOP_SIGNALS, then drains; one that comes while it starts ends the start.

    Raises:
        StartError: It cannot start.
    """
    check_edge(settings)
    provide_descriptors(settings)
    _log.info("settings: %s", settings.redacted())
    _check_grpc_address(settings.grpc_address)
    _check_password_file(settings.store_password_file)
    _check_memory(settings.hot_state_bytes)
    stopping = stop_requested()
    obey_level_signals(settings.log_level)
    serving = _create(settings)
    has_started = asyncio.Event()
    serves = asyncio.create_task(_serve(settings, serving, stopping, has_started))
    stops = asyncio.create_task(stopping.wait())
    await asyncio.wait({serves, stops}, return_when=asyncio.FIRST_COMPLETED)
    stops.cancel()
    if not has_started.is_set() and serves.cancel():
        await asyncio.wait({serves})
        if serves.cancelled():
            _log.info("told to stop while it started")
            return
    await serves


async def _serve(
    settings: Settings, serving: Serving, stopping: asyncio.Event, has_started: asyncio.Event
) -> None:
    """Serves until `stopping`, then drains; sets `has_started` once it may no longer be cancelled."""
    async with _http(settings.http_address, serving) as http, _store(settings) as store_url:
        await serving.start(store_url)
        has_started.set()
        grpc_address = ListenAddress.parse(settings.grpc_address).at(serving.grpc_port)
        http_address = ListenAddress.parse(settings.http_address).at(http.port)
        say(f"ready grpc={grpc_address} http={http_address}")
        await stopping.wait()
        _log.info("draining")
        await serving.stop()


def _check_grpc_address(address: str) -> None:
    """Finds out before anything is started what gRPC would say last, and not clearly."""
    try:
        try_address(ListenAddress.parse(address))
    except OSError as error:
        raise bind_error("--grpc-address", address, error) from None


def _check_password_file(path: Path | None) -> None:
    try:
        if path is not None:
            password_in(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"--store-password-file {path}: {reason}; name a file that can be read") from None


def _check_memory(hot_state_bytes: int) -> None:
    """Room for hot states is taken in one piece, which a system refuses that does not have so much."""
    if hot_state_bytes > (most_bytes := memory_bytes()):
        raise ConfigurationError(
            f"--hot-state-bytes {hot_state_bytes}: expected the memory of this machine or container at "
            f"most, {most_bytes}"
        )


def _create(settings: Settings) -> Serving:
    if settings.workers == 1:
        with sparing_imports():
            from service.app import Server

        return Server(settings, Metrics())
    from service.process.supervisor import Supervisor

    return Supervisor(settings)


@contextlib.asynccontextmanager
async def _http(address: str, serving: Serving) -> AsyncIterator[HttpServer]:
    pages: dict[str, Page] = {
        "/metrics": Paced(lambda: Answer(200, serving.scrape(), CONTENT_TYPE.encode())),
        "/livez": _page(serving.why_not_live),
        "/readyz": _page(serving.why_not_ready),
    }
    try:
        http = HttpServer(open_port(ListenAddress.parse(address)), pages)
    except OSError as error:
        raise bind_error("--http-address", address, error) from None
    try:
        yield http
    finally:
        await asyncio.to_thread(http.close)


def _page(why_not: Callable[[], str | None]) -> Page:
    async def answer() -> Answer:
        reason = why_not()
        return Answer(200, b"ok\n") if reason is None else Answer(503, f"{reason}\n".encode())

    return answer


@contextlib.asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[str]:
    """Has a share in the embedded store, if that is the store, and keeps it running; gives the URL."""
    if settings.store != EMBEDDED:
        yield settings.store
        return
    try:
        embedded = EmbeddedStore(settings.data_dir, syncs_always="fsynced" in settings.ack_level)
    except EmbeddedStoreError as error:
        raise StartError(str(error)) from None
    try:
        await _open(embedded)
        async with kept(embedded):
            yield embedded.url
    finally:
        try:
            await asyncio.to_thread(embedded.release)
        except EmbeddedStoreError as error:
            _log.error("%s", error)


async def _open(embedded: EmbeddedStore) -> None:
    opening = asyncio.create_task(asyncio.to_thread(embedded.open))
    try:
        await asyncio.shield(opening)
    except EmbeddedStoreError as error:
        raise StartError(str(error)) from None
    except asyncio.CancelledError:
        embedded.abandon()
        with contextlib.suppress(Abandoned, EmbeddedStoreError):
            await opening
        raise

"""The composition root: the only place that wires the parts. Start, serve, drain."""

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service.config import EMBEDDED, Settings
from service.engine.engine import Engine, EngineLimits
from service.engine.sessions import Sessions
from service.errors import ServiceError
from service.http_server import TEXT, HttpServer
from service.metrics import CONTENT_TYPE, Metrics
from service.model.repository import ModelRepository
from service.rpc.codec import encode_outputs
from service.rpc.reflection import add_reflection
from service.rpc.servicer import SERVICE_NAME, Servicer
from service.store.embedded import EmbeddedStore
from service.store.redis import RedisStore, UnsafeStore

_log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
STALLED_AFTER_S = 10.0
"""A loop that has not turned for so long is stuck; /livez says so."""


class StartError(Exception):
    """The server cannot start; the message is one line for its operator."""


class Server:
    """A running server. Made by `serving`.

    Attributes:
        grpc_port: Port of gRPC.
        http_port: Port of HTTP.
    """

    def __init__(self, settings: Settings, models: ModelRepository) -> None:
        self._settings = settings
        self._models = models
        self._metrics = Metrics()
        self._health = health.aio.HealthServicer()
        self._is_draining = False
        self._last_beat_s = time.monotonic()
        self.grpc_port = 0
        self.http_port = 0

    async def start(self, store_url: str) -> None:
        """Connects, then listens.

        Raises:
            StartError: The store is not reachable or not safe, or an address cannot be used.
        """
        self._store = await self._open_store(store_url)
        settings = self._settings
        limits = EngineLimits(
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            hot_state_bytes=settings.hot_state_bytes,
            session_ttl_s=settings.session_ttl_s,
        )
        self._engine = Engine(self._models, self._store, encode_outputs, self._metrics, limits)
        self._engine.start()
        await self._listen_grpc()
        self._listen_http()
        self._heart = asyncio.create_task(self._beat())
        await self._update_health()

    async def stop(self) -> None:
        """Drains: readiness off, chunks under way answered, streams ended, all within the limit."""
        self._is_draining = True
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._engine.drain()
        await self._grpc.stop(grace=0.5)
        await self._engine.stop()
        self._heart.cancel()
        await asyncio.gather(self._heart, return_exceptions=True)
        await self._store.close()
        await asyncio.to_thread(self._http.close)

    async def _open_store(self, url: str) -> RedisStore:
        try:
            store = RedisStore(url, timeout_s=self._settings.store_timeout_s, on_change=self._on_store)
            await store.open()
            if not self._settings.allow_volatile_store:
                await store.check_safe()
        except (ServiceError, UnsafeStore) as error:
            raise StartError(str(error)) from None
        except ValueError as error:
            raise StartError(f"--store {url}: {error}") from None
        return store

    async def _listen_grpc(self) -> None:
        settings = self._settings
        options = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_concurrent_streams", 100_000),
        ]
        self._grpc = grpc.aio.server(options=options)
        sessions = Sessions(self._models, self._store, self._engine, ttl_s=settings.session_ttl_s)
        servicer = Servicer(
            self._engine, sessions, self._models, max_chunk_tokens=settings.max_chunk_tokens
        )
        self._grpc.add_generic_rpc_handlers((servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if settings.reflection:
            add_reflection(self._grpc, [SERVICE_NAME, health.SERVICE_NAME])
        try:
            self.grpc_port = self._grpc.add_insecure_port(settings.grpc_address)
        except RuntimeError as error:
            raise StartError(f"--grpc-address {settings.grpc_address}: {error}") from None
        await self._grpc.start()

    def _listen_http(self) -> None:
        host, _, port = self._settings.http_address.rpartition(":")
        pages = {"/metrics": self._scrape, "/livez": self._live, "/readyz": self._ready}
        try:
            self._http = HttpServer(host, int(port), pages)
        except OSError as error:
            raise StartError(f"--http-address {self._settings.http_address}: {error}") from None
        self.http_port = self._http.port

    async def _beat(self) -> None:
        """Shows that the loop turns, and notices a store that has gone silent."""
        while True:
            self._last_beat_s = time.monotonic()
            with contextlib.suppress(ServiceError):
                await self._store.ping()
            await self._update_health()
            await asyncio.sleep(HEARTBEAT_S)

    def _on_store(self, is_up: bool) -> None:
        self._metrics.store_up.set(is_up)

    async def _update_health(self) -> None:
        status = health_pb2.HealthCheckResponse.NOT_SERVING
        if self._is_ready():
            status = health_pb2.HealthCheckResponse.SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)

    def _is_ready(self) -> bool:
        return self._store.is_available and not self._is_draining

    def _scrape(self) -> tuple[int, str, bytes]:
        return 200, CONTENT_TYPE, self._metrics.scrape()

    def _live(self) -> tuple[int, str, bytes]:
        silent_s = time.monotonic() - self._last_beat_s
        if silent_s > STALLED_AFTER_S:
            return 503, TEXT, f"the event loop has not turned for {silent_s:.0f} s\n".encode()
        return 200, TEXT, b"ok\n"

    def _ready(self) -> tuple[int, str, bytes]:
        if self._is_draining:
            return 503, TEXT, b"draining\n"
        if not self._store.is_available:
            return 503, TEXT, b"the store does not answer\n"
        return 200, TEXT, b"ok\n"


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Server]:
    """Runs a server for the time of the context.

    Raises:
        StartError, ModelFileError, EmbeddedStoreError: It cannot start.
    """
    models = ModelRepository(settings.models)
    async with contextlib.AsyncExitStack() as stack:
        url = settings.store
        if url == EMBEDDED:
            embedded = await asyncio.to_thread(EmbeddedStore.start, settings.data_dir)
            stack.push_async_callback(asyncio.to_thread, embedded.release)
            url = embedded.url
        server = Server(settings, models)
        await server.start(url)
        stack.push_async_callback(server.stop)
        yield server


def _relieve_collector() -> None:
    """Keeps the garbage collector from what start-up made, and lets a few batches pass between its runs.

    Chunks and records hold no cycles, so reference counts free them; the collector only looks at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        StartError, ModelFileError, EmbeddedStoreError: It cannot start.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with serving(settings) as server:
        _relieve_collector()
        grpc_host = settings.grpc_address.rpartition(":")[0]
        http_host = settings.http_address.rpartition(":")[0]
        print(f"ready grpc={grpc_host}:{server.grpc_port} http={http_host}:{server.http_port}", flush=True)
        await stopping.wait()
        _log.info("draining")

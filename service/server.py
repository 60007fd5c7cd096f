"""The composition root of a process that serves: the only place that wires the parts. Start, drain."""

import asyncio
import contextlib
import logging

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service.collector import relieve_collector
from service.config import Settings
from service.engine.engine import Engine, EngineLimits
from service.engine.sessions import Sessions
from service.errors import ServiceError, StartError
from service.metrics import STALLED_AFTER_S, Metrics
from service.model.repository import ModelRepository
from service.model.step_graph import ModelFileError
from service.rpc.codec import encode_outputs
from service.rpc.reflection import add_reflection
from service.rpc.servicer import SERVICE_NAME, Servicer
from service.store.address import redacted
from service.store.opening import create_store
from service.store.protocol import Store, UnsafeStore
from service.store.safety import Allowances

_log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25

STORE_CHECK_S = 2.0
"""Settings of the store can change, and its disk can fill up, while it serves."""


class Server:
    """Serves gRPC in this process.

    Args:
        settings: See there.
        metrics: Where it counts.
        shares_port: Other processes listen on the same port.

    Attributes:
        grpc_port: Port of gRPC.

    Raises:
        StartError: A model cannot be served.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, shares_port: bool = False) -> None:
        self._settings = settings
        self._metrics = metrics
        self._shares_port = shares_port
        self._health = health.aio.HealthServicer()
        self._is_draining = False
        self._store_danger = ""
        self.grpc_port = 0
        try:
            self._models = ModelRepository(settings.models)
        except ModelFileError as error:
            raise StartError(str(error)) from None

    async def start(self, store_url: str) -> None:
        """Connects, then listens.

        Raises:
            StartError: The store is not reachable or not safe, or the address cannot be used.
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
        await self._listen()
        self._metrics.beat()
        self._metrics.workers.set(1)
        self._hearts = [
            asyncio.create_task(work())
            for work in (self._beat, self._listen_to_store, self._watch_store_settings)
        ]
        await self._update_health()
        relieve_collector()

    async def stop(self) -> None:
        """Drains: readiness off, chunks under way answered, streams ended, all within the limit."""
        self._is_draining = True
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._engine.drain()
        await self._grpc.stop(grace=0.5)
        await self._engine.stop()
        for heart in self._hearts:
            heart.cancel()
        await asyncio.gather(*self._hearts, return_exceptions=True)
        await self._store.close()

    def scrape(self) -> bytes:
        """Returns the metrics in the text format."""
        return self._metrics.scrape()

    def why_not_live(self) -> str | None:
        """Returns what is stuck, if anything is."""
        silent_s = self._metrics.silent_s()
        if self._metrics.workers.value and silent_s > STALLED_AFTER_S:
            return f"the event loop has not turned for {silent_s:.0f} s"
        return None

    def why_not_ready(self) -> str | None:
        """Returns why requests should go elsewhere, if they should."""
        if self._is_draining:
            return "draining"
        if not self._metrics.workers.value:
            return "starting"
        if not self._metrics.store_up.value:
            return "the store does not answer"
        return self._store_danger or None

    async def _open_store(self, url: str) -> Store:
        settings = self._settings
        allowances = Allowances(volatile=settings.allow_volatile_store, old=settings.trusts_store_version)
        try:
            store = create_store(
                url,
                timeout_s=settings.store_timeout_s,
                password_file=settings.store_password_file,
                allowances=allowances,
                on_change=self._on_store,
            )
        except ValueError as error:
            raise StartError(f"--store {redacted(url)}: {error}") from None
        try:
            await store.open()
            await store.check_safe()
            _log.info("%s", await store.describe())
        except (ServiceError, UnsafeStore) as error:
            await store.close()
            raise StartError(str(error)) from None
        self._metrics.store_safe.set(1)
        return store

    async def _listen(self) -> None:
        settings = self._settings
        options = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", int(self._shares_port)),
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

    async def _beat(self) -> None:
        """Shows that the loop turns, whatever the store does."""
        while True:
            self._metrics.beat()
            await self._update_health()
            await asyncio.sleep(HEARTBEAT_S)

    async def _listen_to_store(self) -> None:
        """Notices a store that has gone silent: a ping without an answer ends the connection."""
        while True:
            with contextlib.suppress(ServiceError):
                await self._store.ping()
            await asyncio.sleep(HEARTBEAT_S)

    async def _watch_store_settings(self) -> None:
        """Turns readiness off while the store could lose sessions; commits go on."""
        while True:
            await asyncio.sleep(STORE_CHECK_S)
            try:
                await self._store.check_safe()
            except UnsafeStore as error:
                self._note_danger(str(error))
            except ServiceError as error:
                _log.debug("the store could not be checked: %s", error)
            else:
                self._note_danger("")

    def _note_danger(self, danger: str) -> None:
        if danger != self._store_danger:
            _log.warning("%s", danger or "the store keeps sessions again")
        self._store_danger = danger
        self._metrics.store_safe.set(not danger)

    def _on_store(self, is_up: bool) -> None:
        self._metrics.store_up.set(is_up)

    async def _update_health(self) -> None:
        status = health_pb2.HealthCheckResponse.NOT_SERVING
        if self.why_not_ready() is None:
            status = health_pb2.HealthCheckResponse.SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)

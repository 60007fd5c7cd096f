"""The composition root of a process that serves: the only place that wires the parts. Start, drain."""

import asyncio
import contextlib
import itertools
import os

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service import failpoints
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
from service.store.confirmation import AckSettings
from service.store.protocol import AckLevel
from service.store.redis import RedisStore, UnsafeStore

HEARTBEAT_S = 0.25
TASKS_EVERY = 8
"""Heartbeats between counts of the tasks, which take a microsecond for every four of them."""


class Server:
    """Serves gRPC in this process.

    Args:
        settings: See there.
        metrics: Where it counts.
        shares_port: Other processes listen on the same port.

    Attributes:
        grpc_port: Port of gRPC.

    Raises:
        StartError: A model cannot be served, or failpoints are asked for and not allowed.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, shares_port: bool = False) -> None:
        self._settings = settings
        self._metrics = metrics
        self._shares_port = shares_port
        self._health = health.aio.HealthServicer()
        self._is_draining = False
        self.grpc_port = 0
        failpoints.arm(os.environ, is_allowed=settings.allow_failpoints)
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
            ack_level=AckLevel.parse(settings.ack_level),
            run_timeout_s=settings.run_timeout_s,
            quarantine_after=settings.quarantine_after,
        )
        self._engine = Engine(self._models, self._store, encode_outputs, self._metrics, limits)
        self._engine.start()
        await self._listen()
        self._metrics.beat()
        self._metrics.workers.set(1)
        self._heart = asyncio.create_task(self._beat())
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
        self._heart.cancel()
        await asyncio.gather(self._heart, return_exceptions=True)
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
        return None

    async def _open_store(self, url: str) -> RedisStore:
        try:
            settings = self._settings
            acks = AckSettings(
                level=AckLevel.parse(settings.ack_level),
                replicas_required=settings.replicas_required,
                timeout_s=settings.ack_timeout_s,
            )
            store = RedisStore(url, timeout_s=settings.store_timeout_s, on_change=self._on_store, acks=acks)
            await store.open()
            if not settings.allow_volatile_store:
                await store.check_safe()
            await store.check_acks()
        except (ServiceError, UnsafeStore) as error:
            raise StartError(str(error)) from None
        except ValueError as error:
            raise StartError(f"--store {url}: {error}") from None
        return store

    async def _listen(self) -> None:
        settings = self._settings
        options = [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", int(self._shares_port)),
            ("grpc.http2.max_concurrent_streams", 100_000),
        ]
        self._grpc = grpc.aio.server(options=options)
        sessions = Sessions(
            self._models,
            self._store,
            self._engine,
            ttl_s=settings.session_ttl_s,
            ack_level=AckLevel.parse(settings.ack_level),
        )
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
        """Shows that the loop turns, and notices a store that has gone silent or refuses to write."""
        for number in itertools.count():
            self._metrics.beat()
            if number % TASKS_EVERY == 0:
                self._metrics.tasks.set(len(asyncio.all_tasks()))
            try:
                await self._store.ping()  # refused, as writes are, while the store cannot write its file
            except ServiceError:
                self._on_store(False)
            else:
                self._on_store(True)
            await self._update_health()
            await asyncio.sleep(HEARTBEAT_S)

    def _on_store(self, is_up: bool) -> None:
        self._metrics.store_up.set(is_up)

    async def _update_health(self) -> None:
        status = health_pb2.HealthCheckResponse.NOT_SERVING
        if self.why_not_ready() is None:
            status = health_pb2.HealthCheckResponse.SERVING
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)

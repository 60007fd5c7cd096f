"""The composition root of a process that serves: the only place that wires the parts. Start, drain."""

import asyncio
import contextlib
import logging
import os
import time

from holdfast.errors import ServiceError
from service.common import failpoints
from service.common.background import keep_going
from service.common.collector import relieve_collector
from service.common.ports import socket_mode
from service.common.redaction import mask_url
from service.common.start_errors import StartError
from service.engine.admission import Admission, Bounds
from service.engine.driver import Driver
from service.engine.limits import EngineLimits
from service.engine.sessions import Sessions
from service.model.apart import parse_apart
from service.model.files import ModelFileError
from service.model.providers import parse_providers
from service.model.reloading import ModelReloading
from service.model.repository import ModelRepository
from service.model.step_graph import check_available
from service.rpc.access import Access
from service.rpc.connections import connection_options, reading_places, request_bound
from service.rpc.credentials import CredentialsError
from service.rpc.functions import build_functions
from service.rpc.gate import Gate
from service.rpc.grpc_log import lower_lines_about_clients
from service.rpc.grpc_server import GrpcServer
from service.rpc.health import NAME as HEALTH_NAME
from service.rpc.health import Health, Status
from service.rpc.memory_guard import MemoryGuard, limit_bytes
from service.rpc.oip.service import NAME as OPEN_INFERENCE_NAME
from service.rpc.oip.service import OpenInference, open_inference_rpcs
from service.rpc.open_calls import OpenCalls
from service.rpc.reflection import V1_NAME, V1ALPHA_NAME, reflection_rpcs
from service.rpc.rpcs import SERVICE_NAME, build_rpcs
from service.rpc.server_tls import ServerTls, TlsFilesError
from service.rpc.watching import Watching
from service.settings.descriptors import most_connections
from service.settings.schema import Settings
from service.store.confirmation import AckSettings
from service.store.opening import create_store, refused_store
from service.store.protocol import AckLevel, UnsafeStore
from service.store.safety import Allowances, StoreUsage
from service.store.store import Store
from service.telemetry.metrics import STALLED_AFTER_S, Metrics, ServedModel
from service.telemetry.opening import open_tracing

_log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
LOOK_S = 2.0
"""Between counts of tasks and descriptors, which take up to a microsecond for each."""

STORE_CHECK_S = 2.0
"""Settings of the store can change, and its disk can fill up, while it serves. What is in danger is looked
at with every heartbeat, so that readiness comes back at once."""

REFRESH_S = 1.0
"""Between looks at the files of TLS and tokens."""

END_S = 1.0
"""What a drain keeps of its time, a quarter at most, for ending what has not ended by itself."""


class Server:
    """Serves gRPC in this process.

    Args:
        settings: See there.
        metrics: Where it counts.
        shares_port: Other processes listen on the same port.
        checked: Fingerprints of model files that have passed their check already.

    Attributes:
        grpc_port: Port of gRPC.

    Raises:
        StartError: A model cannot be served, or failpoints are asked for and not allowed.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        shares_port: bool = False,
        checked: frozenset[bytes] = frozenset(),
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._shares_port = shares_port
        self._health = Health(
            metrics.refused, max_call_s=settings.max_call_s, max_stall_s=settings.max_stall_s
        )
        self._is_draining = False
        self._tracing = open_tracing(settings.traces)
        self._store_danger = self._store_refusal = self._store_suspicion = ""
        self.grpc_port = 0
        failpoints.arm(os.environ, is_allowed=settings.allow_failpoints)
        try:
            check_available(parse_providers(settings.providers))
        except ValueError as error:
            raise StartError(f"--providers {error}") from None
        try:
            self._models = ModelRepository(
                settings.models,
                max_bytes=settings.max_model_bytes,
                checked=checked,
                apart=parse_apart(settings.apart),
                providers=parse_providers(settings.providers),
                # a worker may take the place of one that served
                skips_refused=shares_port or not settings.strict_models,
            )
            self._tls, self._access = self._open_edge()
        except ModelFileError as error:
            raise StartError(f"--models {error}") from None
        except (TlsFilesError, CredentialsError) as error:
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
        self._engine = Driver(self._models, self._store, self._metrics.count, limits)
        self._engine.is_traced = self._tracing is not None
        self._engine.start()
        bounds = Bounds(
            streams=settings.max_streams,
            chunks=settings.max_waiting,
            size_bytes=settings.max_waiting_bytes,
            share=settings.tenant_share,
        )
        self._calls = OpenCalls(
            Admission(bounds, self._metrics.refused),
            max_call_s=settings.max_call_s,
            max_stall_s=settings.max_stall_s,
            max_age_s=settings.max_connection_age_s,
            places=reading_places(settings, [model.contract for model in self._models]),
        )
        self._memory = MemoryGuard(limit_bytes(settings.max_memory_bytes, settings.workers), self._calls)
        self._reloading = self._open_reloading()
        await self._listen()
        self._metrics.waiting_limit.set(settings.max_waiting)
        self._metrics.hot_limit_bytes.set(settings.hot_state_bytes)
        self._metrics.beat()
        self._metrics.workers.set(1)
        self._hearts = [
            asyncio.create_task(keep_going(name, turn))
            for name, turn in (
                ("heartbeat", self._beat),
                ("process_usage", self._look_at_process),
                ("store_ping", self._ping_store),
                ("store_settings", self._check_store_settings),
                ("credentials", self._refresh),
                *self._watching.turns,
                *((("models", self._reloading.watch),) if settings.model_refresh_s else ()),
            )
        ]
        self._update_health()
        relieve_collector()

    async def stop(self) -> None:
        """Drains: readiness off, a pause, streams end with all they had sent answered; within the limit.

        What a store or a model still holds at the end of it is given up, as if this process had died.
        """
        self._is_draining = True
        limit_s = self._settings.drain_timeout_s
        end_s = min(END_S, limit_s / 4)
        deadline_s = asyncio.get_running_loop().time() + limit_s
        self._health.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline_s - end_s):
                await asyncio.sleep(self._settings.drain_pause_s)
                await self._calls.drain()
                await self._engine.drain()
        await self._grpc.stop(grace=end_s / 2)
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._engine.stop()
        except TimeoutError:
            _log.warning("chunks were under way after %g s of draining; they are given up", limit_s)
        for heart in self._hearts:
            heart.cancel()
        await asyncio.gather(*self._hearts, return_exceptions=True)
        self._watching.close()
        if self._tracing is not None:
            await self._tracing.close()
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
        if self._memory.shortage:
            return self._memory.shortage
        if self._store_danger:
            return self._store_danger
        if not self._metrics.store_up.value:
            return self._store_refusal or "the store does not answer"
        return None

    def _open_edge(self) -> tuple[ServerTls | None, Access]:
        settings = self._settings
        access = Access(settings.tokens_file, asks_certificates=settings.tls_client_ca is not None)
        if settings.tls_cert is None or settings.tls_key is None:
            return None, access
        return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca), access

    async def _open_store(self, url: str) -> Store:
        settings = self._settings
        allowances = Allowances(volatile=settings.allow_volatile_store, old=settings.trusts_store_version)
        acks = AckSettings(
            level=AckLevel.parse(settings.ack_level),
            replicas_required=settings.replicas_required,
            timeout_s=settings.ack_timeout_s,
        )
        try:
            store = create_store(
                url,
                timeout_s=settings.store_timeout_s,
                password_file=settings.store_password_file,
                allowances=allowances,
                acks=acks,
                key_prefix=settings.key_prefix,
                on_change=self._metrics.store_changed,
            )
        except ValueError as error:
            raise StartError(f"--store {mask_url(url)}: {error}") from None
        try:
            await store.open()
            self._note_usage(await store.check_safe())
            await store.check_acks()
            _log.info("%s", await store.describe())
        except (ServiceError, UnsafeStore) as error:
            await store.close()
            raise refused_store(error, settings.ack_level) from None
        self._metrics.store_safe.set(1)
        return store

    def _open_reloading(self) -> ModelReloading:
        settings = self._settings
        return ModelReloading(
            settings.models,
            self._models,
            max_bytes=settings.max_model_bytes,
            why_not=request_bound(settings, [model.contract for model in self._models]),
            observer=self._metrics.model_loads,
            refresh_s=settings.model_refresh_s,
            is_alone=not self._shares_port,
            apart=parse_apart(settings.apart),
            providers=parse_providers(settings.providers),
        )

    async def _listen(self) -> None:
        settings = self._settings
        options = [
            *connection_options(settings, [model.contract for model in self._models]),
            ("grpc.so_reuseport", int(self._shares_port)),
            ("grpc.max_allowed_incoming_connections", most_connections(settings)),
        ]
        lower_lines_about_clients()
        on_event = self._metrics.session_event
        sessions = Sessions(
            self._models,
            self._store,
            self._engine,
            on_event=on_event,
            ttl_s=settings.session_ttl_s,
            ack_level=AckLevel.parse(settings.ack_level),
        )
        self._watching = Watching(
            self._engine, sessions, self._models, self._calls, self._store, settings.store_timeout_s
        )
        parts = self._engine, self._store, self._models, sessions, self._calls
        functions = build_functions(*parts, self._reloading, on_event, settings)
        functions |= self._watching.rpcs()
        stock = OpenInference(
            self._engine, sessions, self._models, self._calls, self.why_not_ready, settings
        ).functions()
        around = self._calls, self._access, self._metrics.rpc, self._tracing
        gate = Gate(self._metrics.refused)
        gate.add(SERVICE_NAME, build_rpcs(functions, *around), self._access)
        gate.add(OPEN_INFERENCE_NAME, open_inference_rpcs(stock, *around), self._access)
        gate.add(HEALTH_NAME, self._health.rpcs(), Access(None, asks_certificates=False))
        if settings.reflection:
            for name in (V1_NAME, V1ALPHA_NAME):
                rpcs = reflection_rpcs([SERVICE_NAME, HEALTH_NAME], self._access, self._calls.admission)
                gate.add(name, rpcs, self._access)
        self._grpc = GrpcServer(options, gate)
        try:
            with socket_mode():
                if self._tls is None:
                    self.grpc_port = self._grpc.add_insecure_port(settings.grpc_address)
                else:
                    credentials = self._tls.credentials()
                    self.grpc_port = self._grpc.add_secure_port(settings.grpc_address, credentials)
        except RuntimeError as error:
            raise StartError(f"--grpc-address {settings.grpc_address}: {error}") from None
        await self._grpc.start()

    def _show_models(self) -> None:
        served = {ServedModel(one.name, str(one.version), one.fingerprint.hex()) for one in self._models}
        if served != set(self._metrics.models()):
            self._metrics.serves(served)

    async def _beat(self) -> None:
        """Shows that the loop turns, whatever the store does, and what the process holds."""
        metrics = self._metrics
        metrics.beat()
        self._calls.sweep(time.monotonic())
        self._health.sweep(time.monotonic())
        self._memory.look(time.monotonic())
        metrics.holds(self._calls.admission.held)
        metrics.keeps_hot(*self._engine.hot_usage())
        self._update_health()
        due_s = time.monotonic() + HEARTBEAT_S
        await asyncio.sleep(HEARTBEAT_S)
        metrics.loop_lag_s.observe(max(0.0, time.monotonic() - due_s))

    async def _look_at_process(self) -> None:
        """Shows what the process uses and serves; it takes descriptors, of which there may be none."""
        self._metrics.tasks.set(len(asyncio.all_tasks()))
        self._grpc.give_up_unread(time.monotonic())
        self._show_models()
        self._metrics.look_at_process()
        await asyncio.sleep(LOOK_S)

    async def _ping_store(self) -> None:
        """Notices a store that is silent, which ends the connection, or that refuses to write."""
        try:
            await self._store.ping()  # refused, as writes are, while the store cannot write its file
        except ServiceError as error:
            self._store_refusal = error.message
            self._metrics.store_up.set(False)
        else:
            self._store_refusal = ""
            self._metrics.store_up.set(self._store.is_available)
        await asyncio.sleep(HEARTBEAT_S)

    async def _check_store_settings(self) -> None:
        """Turns readiness off while the store could lose sessions; commits go on."""
        await asyncio.sleep(HEARTBEAT_S if self._store_danger else STORE_CHECK_S)
        try:
            self._note_usage(await self._store.check_safe())
        except UnsafeStore as error:
            self._metrics.store_uses(error.usage)
            self._note_danger(str(error))
        except ServiceError as error:
            _log.debug("the store could not be checked: %s", error)
        else:
            self._note_danger("")

    def _note_usage(self, usage: StoreUsage) -> None:
        if usage.suspicion and usage.suspicion != self._store_suspicion:
            _log.warning("--store: %s", usage.suspicion)
        self._store_suspicion = usage.suspicion
        self._metrics.store_uses(usage)

    def _note_danger(self, danger: str) -> None:
        if danger != self._store_danger:
            _log.warning("%s", danger or "the store keeps sessions again")
        self._store_danger = danger
        self._metrics.store_safe.set(not danger)

    async def _refresh(self) -> None:
        """Uses replaced files of TLS and tokens as soon as they are seen."""
        await asyncio.sleep(REFRESH_S)
        await self._access.refresh()  # first, since it revokes
        if self._tls is not None:
            await asyncio.to_thread(self._tls.refresh)

    def _update_health(self) -> None:
        status = Status.NOT_SERVING if self.why_not_ready() else Status.SERVING
        for service in ("", SERVICE_NAME, OPEN_INFERENCE_NAME):
            self._health.set(service, status)

"""The rpcs of `inference.GRPCInferenceService`, which the server offers beside its own on the same port."""

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc

from holdfast.oip.v2 import oip_pb2 as oip
from service.engine.driver import Driver
from service.engine.sessions import Sessions
from service.model.repository import ModelRepository
from service.rpc.access import Access
from service.rpc.call import Call
from service.rpc.codec import CHUNK_BYTES
from service.rpc.credentials import Scope
from service.rpc.gate import Identify, Rpc
from service.rpc.oip.descriptions import EXTENSIONS, config_message, metadata_message
from service.rpc.oip.inference import Inference, read_version
from service.rpc.oip.sequence import read_sequence
from service.rpc.oip.statistics import Statistics
from service.rpc.oip.stream import InferStream
from service.rpc.open_calls import OpenCalls
from service.rpc.rpcs import READS, Functions, Service, build_rpcs
from service.settings.schema import Settings
from service.telemetry.rpc_metrics import OPEN_INFERENCE_NAME, RpcMetrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

NAME = OPEN_INFERENCE_NAME

_SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_ANY_SCOPE: tuple[Scope, ...] = (*READS, "admin")
_SCOPES: dict[str, tuple[Scope, ...]] = {
    **dict.fromkeys(_SERVICE.methods_by_name, _ANY_SCOPE),
    "ModelInfer": ("step",),
    "ModelStreamInfer": ("step",),
}
OPEN_INFERENCE = Service(_SERVICE, oip, _SCOPES)

NOT_SERVED = {
    "RepositoryModelLoad": "models come from the folder of --models; see ReloadModels of holdfast.v1",
    "RepositoryModelUnload": "a model that is served stays, since sessions run on it",
    "SystemSharedMemoryStatus": "requests carry their tensors; shared memory is not read",
    "SystemSharedMemoryRegister": "requests carry their tensors; shared memory is not read",
    "SystemSharedMemoryUnregister": "requests carry their tensors; shared memory is not read",
    "CudaSharedMemoryStatus": "requests carry their tensors; shared memory is not read",
    "CudaSharedMemoryRegister": "requests carry their tensors; shared memory is not read",
    "CudaSharedMemoryUnregister": "requests carry their tensors; shared memory is not read",
    "TraceSetting": "traces are set by --traces when the server starts",
    "LogSettings": "logs are set when the server starts",
}
"""Rpcs of Triton that are answered UNIMPLEMENTED, and what there is instead."""


class OpenInference:
    """Serves the rpcs.

    Args:
        engine: Applies chunks.
        sessions: Opens and deletes sessions.
        models: The models served.
        calls: Knows the calls under way.
        why_not_ready: Says why requests should go elsewhere; None if they should not.
        settings: Of the server.
    """

    def __init__(
        self,
        engine: Driver,
        sessions: Sessions,
        models: ModelRepository,
        calls: OpenCalls,
        why_not_ready: Callable[[], str | None],
        settings: Settings,
    ) -> None:
        self._engine = engine
        self._models = models
        self._calls = calls
        self._why_not_ready = why_not_ready
        self._ttl_s = settings.session_ttl_s
        self._max_tokens = settings.max_chunk_tokens
        self._statistics = Statistics()
        self._version = version("holdfast")
        self._inference = Inference(engine, sessions, models, self._statistics, self._max_tokens)

    def functions(self) -> Functions:
        """Returns what serves each rpc, by name."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "ModelInfer": self.model_infer,
            "ModelStreamInfer": self.model_stream_infer,
        }

    async def server_live(self, *_: Any) -> oip.ServerLiveResponse:
        """Says that the server runs, which it does if it can."""
        return oip.ServerLiveResponse(live=True)

    async def server_ready(self, *_: Any) -> oip.ServerReadyResponse:
        """Says whether requests should come here."""
        return oip.ServerReadyResponse(ready=self._why_not_ready() is None)

    async def model_ready(self, request: oip.ModelReadyRequest, _: Call) -> oip.ModelReadyResponse:
        """Says whether a model is served, and requests should come here."""
        number = read_version(request.version, "version")
        is_served = any(
            model.name == request.name and number in (0, model.version) for model in self._models
        )
        return oip.ModelReadyResponse(ready=is_served and self._why_not_ready() is None)

    async def server_metadata(self, *_: Any) -> oip.ServerMetadataResponse:
        """Names the server."""
        return oip.ServerMetadataResponse(name="holdfast", version=self._version, extensions=EXTENSIONS)

    async def model_metadata(self, request: oip.ModelMetadataRequest, _: Call) -> oip.ModelMetadataResponse:
        """Describes a model's inputs and outputs."""
        model = self._models.find(request.name, read_version(request.version, "version"))
        versions = [other.version for other in self._models if other.name == model.name]
        return metadata_message(model, versions)

    async def model_config(self, request: oip.ModelConfigRequest, _: Call) -> oip.ModelConfigResponse:
        """Describes a model as a config.pbtxt would."""
        model = self._models.find(request.name, read_version(request.version, "version"))
        return oip.ModelConfigResponse(config=config_message(model, self._ttl_s))

    async def model_statistics(
        self, request: oip.ModelStatisticsRequest, _: Call
    ) -> oip.ModelStatisticsResponse:
        """Gives the counts of a model, of one version or all, or of all models."""
        number = read_version(request.version, "version")
        if request.name:
            self._models.find(request.name, number)  # refuses what is not served
        chosen = [
            model
            for model in self._models
            if request.name in ("", model.name) and number in (0, model.version)
        ]
        return oip.ModelStatisticsResponse(model_stats=map(self._statistics.message, chosen))

    async def repository_index(self, *_: Any) -> oip.RepositoryIndexResponse:
        """Lists the models, all of which are ready."""
        index = oip.RepositoryIndexResponse.ModelIndex
        return oip.RepositoryIndexResponse(
            models=[index(name=one.name, version=str(one.version), state="READY") for one in self._models]
        )

    async def model_infer(self, request: oip.ModelInferRequest, call: Call) -> oip.ModelInferResponse:
        """Applies one request."""
        sequence = read_sequence(request.model_name, request.parameters)
        call.session_id = sequence.session_id
        call.share.take(0, CHUNK_BYTES)
        return await self._inference.infer(request, sequence, call.caller, call.deadline_s)

    async def model_stream_infer(self, call: Call, metrics: RpcMetrics) -> None:
        """Applies requests as they come."""
        await InferStream(
            self._inference, self._engine, call, self._calls, metrics, max_tokens=self._max_tokens
        ).serve()


def open_inference_rpcs(
    functions: Mapping[str, Callable[..., Awaitable[Any]]],
    calls: OpenCalls,
    access: Access,
    metrics_of: Callable[[str], RpcMetrics],
    tracing: "Tracing | None" = None,
) -> dict[str, Rpc]:
    """Returns the rpcs by name, also those that are not served.

    Args:
        functions: What serves each.
        calls: Knows the calls under way.
        access: Ends calls whose credential is revoked.
        metrics_of: Gives what counts an rpc.
        tracing: Makes spans of the calls, if they are traced.
    """
    refused = {name: Rpc(_ANY_SCOPE, _refused(name, instead)) for name, instead in NOT_SERVED.items()}
    return refused | build_rpcs(functions, calls, access, metrics_of, tracing, OPEN_INFERENCE)


def _refused(name: str, instead: str) -> "Callable[[Identify], grpc.RpcMethodHandler[Any, Any]]":
    """Returns what refuses the calls of an rpc, unread."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not served: {instead}")

    return lambda _: grpc.stream_stream_rpc_method_handler(refuse)

"""Rpcs: who may call each, those of holdfast.v1 here, and the handler around what serves it."""

from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor

from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.access import Access
from service.rpc.credentials import Scope
from service.rpc.gate import Rpc
from service.rpc.handler import Handler
from service.rpc.open_calls import OpenCalls
from service.telemetry.rpc_metrics import RpcMetrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing


class Service(NamedTuple):
    """A service of gRPC.

    Attributes:
        descriptor: Of the service.
        messages: The module with its messages.
        scopes: Who may call an rpc: one of them is enough.
    """

    descriptor: ServiceDescriptor
    messages: ModuleType
    scopes: Mapping[str, tuple[Scope, ...]]


_SERVICE = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
SERVICE_NAME: str = _SERVICE.full_name

Functions = dict[str, Callable[..., Awaitable[Any]]]
"""What serves each rpc, by its name; see `Handler`."""

READS: tuple[Scope, ...] = ("step", "read-state")
"""Positions and models, which those who step need as well as those who look."""

RPC_SCOPES: dict[str, tuple[Scope, ...]] = {
    "OpenSession": ("step",),
    "OpenBatch": ("step",),
    "GetSession": READS,
    "DeleteSession": ("step",),
    "DeleteBatch": ("step",),
    "ListSessions": READS,
    "ForkSession": ("step",),
    "SaveCheckpoint": ("step",),
    "ListCheckpoints": READS,
    "DeleteCheckpoint": ("step",),
    "RestoreCheckpoint": ("step",),
    "ExportSession": ("read-state",),
    "ImportSession": ("step",),
    "WatchSession": ("read-state",),
    "ReleaseSession": ("admin",),
    "Step": ("step",),
    "StreamSteps": ("step",),
    "StepBatch": ("step",),
    "StreamBatches": ("step",),
    "Generate": ("step",),
    "ListModels": (*READS, "admin"),
    "GetModel": (*READS, "admin"),
    "ReloadModels": ("admin",),
}
"""Who may call what: one of the scopes is enough. An rpc that shows the state on request asks further."""

HOLDFAST = Service(_SERVICE, pb, RPC_SCOPES)


def build_rpcs(
    functions: Mapping[str, Callable[..., Awaitable[Any]]],
    calls: OpenCalls,
    access: Access,
    metrics_of: Callable[[str], RpcMetrics],
    tracing: "Tracing | None" = None,
    service: Service = HOLDFAST,
) -> dict[str, Rpc]:
    """Returns rpcs of a service, by name.

    Args:
        functions: What serves each.
        calls: Knows the calls under way.
        access: Ends calls whose credential is revoked.
        metrics_of: Gives what counts an rpc.
        tracing: Makes spans of the calls, if they are traced.
        service: Whose rpcs they are.
    """
    rpcs = {}
    for name, function in functions.items():
        method, metrics = service.descriptor.methods_by_name[name], metrics_of(name)
        is_stream = method.client_streaming or method.server_streaming
        message_type = None if is_stream else getattr(service.messages, method.input_type.name)
        handler = Handler(name, message_type, function, calls, access, metrics, tracing)
        rpcs[name] = Rpc(service.scopes[name], handler.build, metrics)
    return rpcs

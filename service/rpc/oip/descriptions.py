"""Models and the server, as the Open Inference Protocol describes them. Pure."""

from typing import Any

from holdfast.oip.v2 import oip_pb2 as oip
from service.model.contract import Contract
from service.model.protocol import Model
from service.rpc.oip.mapping import session_inputs, token_inputs
from service.rpc.oip.tensors import DATATYPES

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
ANY = -1

EXTENSIONS = (
    "sequence",
    "sequence(string_id)",
    "parameters",
    "statistics",
    "model_configuration",
    "model_repository",
)

_Tensors = list[tuple[str, str, tuple[int, ...]]]


def metadata_message(model: Model, versions: list[int]) -> oip.ModelMetadataResponse:
    """Returns the inputs and outputs of a model.

    Args:
        model: The model.
        versions: All of its name.
    """
    inputs, outputs = _inputs(model.contract), _outputs(model.contract)
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[_metadata(*tensor) for tensor in inputs],
        outputs=[_metadata(*tensor) for tensor in outputs],
    )


def config_message(model: Model, ttl_s: float) -> oip.ModelConfig:
    """Returns what a config.pbtxt would say of a model.

    Args:
        model: The model.
        ttl_s: A sequence that is idle for longer expires; 0 is never.
    """
    optional = {spec.input: not spec.is_required for spec in session_inputs(model.contract)}
    return oip.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=1,
        input=[
            oip.ModelInput(
                name=name, data_type=_number(datatype), dims=dims, optional=optional.get(name, False)
            )
            for name, datatype, dims in _inputs(model.contract)
        ],
        output=[
            oip.ModelOutput(name=name, data_type=_number(datatype), dims=dims)
            for name, datatype, dims in _outputs(model.contract)
        ],
        sequence_batching=oip.ModelSequenceBatching(max_sequence_idle_microseconds=round(ttl_s * 1e6)),
    )


def _inputs(contract: Contract) -> _Tensors:
    """Returns name, datatype and extents without the batch axis of each input.

    A graph without an axis of time is described as it is called for one token: without one.
    """
    found = [
        (spec.name, spec.datatype, _with_tokens(spec.shape, contract)) for spec in token_inputs(contract)
    ]
    found += [
        (spec.input, DATATYPES[spec.dtype.name], spec.shape or (1,)) for spec in session_inputs(contract)
    ]
    return found


def _outputs(contract: Contract) -> _Tensors:
    return [
        (spec.name, DATATYPES[spec.dtype.name], _with_tokens(spec.shape, contract))
        for spec in contract.outputs
    ]


def _with_tokens(shape: tuple[int, ...], contract: Contract) -> tuple[int, ...]:
    if contract.input.has_time_axis or contract.input.kind == "token_id":
        return (ANY, *shape)
    return shape or (1,)


def _metadata(name: str, datatype: str, dims: tuple[int, ...]) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=[ANY, *dims])


def _number(datatype: str) -> Any:
    return oip.DataType.Value(f"TYPE_{datatype}")

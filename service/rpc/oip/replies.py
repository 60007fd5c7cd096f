"""What a chunk gave, as a reply of the Open Inference Protocol. Pure."""

from collections.abc import Sequence
from typing import Any

from holdfast.errors import InvalidRequest
from holdfast.oip.v2 import oip_pb2 as oip
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.asked import Selection
from service.engine.checks import ALL_TENSORS
from service.engine.rows import Reply
from service.rpc.codec import MAX_TENSORS
from service.rpc.oip.sequence import INCARNATION, POSITION, REPLAYED
from service.rpc.oip.tensors import DATATYPE_OF_NUMBER


def wanted_outputs(request: oip.ModelInferRequest) -> tuple[str, ...]:
    """Returns the names of the outputs that a request asks for; none is all of them.

    Raises:
        InvalidRequest: It asks for one twice, or in a form that this server does not give.
    """
    if len(request.outputs) > MAX_TENSORS:
        raise InvalidRequest(
            f"the request names {len(request.outputs)} outputs, expected at most {MAX_TENSORS}",
            field="outputs",
        )
    names: dict[str, None] = {}
    for output in request.outputs:
        field = f"outputs[{output.name}]"
        if output.name in names or output.name == ALL_TENSORS:
            raise InvalidRequest(
                f"outputs has {output.name!r}, expected each name once, and none for all", field=field
            )
        for name in output.parameters:
            if name == "classification" or name.startswith("shared_memory"):
                raise InvalidRequest(
                    f"output {output.name!r} is asked for with {name}, which this server does not support; "
                    "ask for its contents",
                    field=field,
                )
        names[output.name] = None
    return tuple(names)


def selection_of(wanted: tuple[str, ...]) -> Selection:
    """Returns what the chunk of a request selects."""
    return Selection(tensors=wanted or (ALL_TENSORS,))


def infer_response(
    request_id: str, model_name: str, wanted: Sequence[str], reply: Reply, leading: tuple[int, ...]
) -> oip.ModelInferResponse:
    """Writes a reply.

    Args:
        request_id: Echoed.
        model_name: Of the session's model.
        wanted: Outputs asked for, in this order; none is all.
        reply: What the chunk gave.
        leading: Axes of batch and tokens that the request has.

    Raises:
        InvalidRequest: The request was applied before with other outputs, which are what is kept.
    """
    tensors = {named.name: named.tensor for named in pb.Outputs.FromString(reply.outputs).tensors}
    message = oip.ModelInferResponse(
        model_name=model_name, model_version=str(reply.model_version), id=request_id
    )
    for name in wanted or tensors:
        if name not in tensors:
            raise InvalidRequest(
                f"the request was applied when it came first, without output {name!r}; its reply has "
                f"{', '.join(tensors) or 'no output'}",
                field=f"outputs[{name}]",
            )
        tensor = tensors[name]
        message.outputs.add(
            name=name, datatype=DATATYPE_OF_NUMBER[tensor.dtype], shape=_shape(tensor, leading)
        )
        message.raw_output_contents.append(tensor.data)
    message.parameters[POSITION].int64_param = reply.position
    message.parameters[INCARNATION].int64_param = reply.incarnation
    message.parameters[REPLAYED].bool_param = reply.replayed
    return message


def _shape(tensor: Any, leading: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes of the request before those of the output, which may be of the last token only."""
    count, *own = tensor.shape
    if count == 1:
        return (*(1 for _ in leading), *own)
    return (*leading, *own)

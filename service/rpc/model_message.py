"""What a contract says, as the message that describes a model. Pure."""

from typing import Any

from holdfast.v1 import holdfast_pb2 as pb
from service.model.contract import Contract
from service.rpc import codec

_STATE_KINDS: dict[str, Any] = {
    "state": pb.STATE_KIND_RECURRENT,
    "session_input": pb.STATE_KIND_SESSION_INPUT,
    "context": pb.STATE_KIND_CONTEXT,
}


def contract_message(contract: Contract) -> pb.Model:
    """Returns what a contract says as the fields of a model's message."""
    message = pb.Model(
        input=pb.InputSpec(
            name=contract.input.name,
            dtype=codec.dtype_number(contract.input.dtype),
            width=contract.input.width,
            is_token_id=contract.input.kind == "token_id",
            units=contract.input.units,
            description=contract.input.description,
        ),
        states=[
            pb.StateSpec(
                name=spec.name,
                dtype=codec.dtype_number(spec.dtype),
                shape=spec.shape,
                kind=_STATE_KINDS[spec.kind],
                is_required=spec.is_required,
                units=spec.units,
                description=spec.description,
            )
            for spec in contract.states
        ],
        state_bytes=contract.state_bytes,
        outputs=[
            pb.OutputSpec(
                name=spec.name,
                dtype=codec.dtype_number(spec.dtype),
                shape=spec.shape,
                role=spec.role,
                labels=spec.labels,
                is_last=spec.is_last,
                units=spec.units,
                description=spec.description,
            )
            for spec in contract.outputs
        ],
        description=contract.description,
        feedback="" if contract.feedback is None else contract.feedback.name,
        has_token_log_prob=contract.token_log_prob is not None,
        facts=dict(contract.facts),
        apart=sorted(contract.apart),
    )
    if contract.vocabulary is not None:
        message.vocabulary.size = contract.vocabulary.size
        message.vocabulary.is_bytes = contract.vocabulary.kind == "bytes"
    return message

"""What a session that comes from elsewhere must be before it is stored. Pure.

Kept replies are given to clients, and joined with those of other sessions, without another look, so they
are looked at here: each leads to the next, the last one to where the session stands, and their bytes are
outputs.
"""

import math

import numpy as np
from google.protobuf.message import DecodeError

from holdfast.errors import InvalidRequest, ModelMismatch, StateNotFinite
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.rules import MAX_KEPT_REPLIES, MAX_KEPT_REPLY_BYTES
from service.engine.sampling import NOTHING
from service.model.contract import DTYPES, Contract, OutputSpec
from service.model.protocol import Model, Models
from service.store.beside import MAX_CURSOR_BYTES
from service.store.blob import Exported
from service.store.outputs import DTYPE_NUMBERS
from service.store.record import Record

_ITEM_BYTES = {DTYPE_NUMBERS[name]: dtype.itemsize for name, dtype in DTYPES.items()}


def check_imported(exported: Exported, models: Models) -> Model:
    """Returns the model of a session that is to be imported.

    Args:
        exported: As it was decoded.
        models: The models served.

    Raises:
        ModelMismatch: It is not served here.
        StateNotFinite: A float of the state is NaN or infinite.
        InvalidRequest: No server exports such a session.
    """
    record = exported.record
    model = models.find_fingerprint(record.fingerprint)
    if model is None:
        raise ModelMismatch(
            f"the session runs on {exported.model_name!r:.80} version {exported.model_version}, with "
            f"fingerprint {record.fingerprint.hex()}, which this server does not have",
            field="blob",
        )
    if len(record.state) != model.contract.state_bytes:
        raise _wrong(
            f"it holds {len(record.state)} bytes of state, {model.name} version {model.version} has "
            f"{model.contract.state_bytes}"
        )
    if record.deleted or record.quarantine_reason or not record.digest:
        raise _wrong("its session is deleted, in quarantine, or without a history digest")
    if len(exported.cursor) > MAX_CURSOR_BYTES:
        raise _wrong(f"its cursor has {len(exported.cursor)} bytes, expected at most {MAX_CURSOR_BYTES}")
    _check_finite(record.state, model.contract)
    _check_replies(record, model.contract)
    return model


def _check_finite(state: bytes, contract: Contract) -> None:
    offset = 0
    for spec in contract.states:
        values = np.frombuffer(state, spec.dtype, spec.size_bytes // spec.dtype.itemsize, offset)
        if spec.dtype.kind == "f" and not np.isfinite(values).all():
            raise StateNotFinite(f"state {spec.name!r} of the blob holds NaN or infinity", field="blob")
        offset += spec.size_bytes


def _check_replies(record: Record, contract: Contract) -> None:
    size_bytes = sum(len(reply.outputs) for reply in record.replies)
    if len(record.replies) > MAX_KEPT_REPLIES or size_bytes > MAX_KEPT_REPLY_BYTES:
        raise _wrong(
            f"it keeps {len(record.replies)} replies of {size_bytes} bytes, expected at most "
            f"{MAX_KEPT_REPLIES} of {MAX_KEPT_REPLY_BYTES}"
        )
    position, digest = record.position, record.digest
    for reply in reversed(record.replies):
        if (reply.position, reply.digest) != (position, digest) or not 1 <= reply.token_count <= position:
            raise _wrong(
                f"it keeps a reply to position {reply.position} that does not lead to where its session "
                f"stands, position {record.position}"
            )
        if not _are_outputs(reply.outputs, reply.token_count, contract):
            raise _wrong(f"it keeps a reply to position {reply.position} that this server cannot read")
        position, digest = position - reply.token_count, reply.digest_before


def _are_outputs(data: bytes, token_count: int, contract: Contract) -> bool:
    """Whether bytes are outputs of so many tokens, written as `store.outputs` writes them.

    What a generation goes on from must be something that the model takes.
    """
    try:
        outputs = pb.Outputs.FromString(data)
    except DecodeError:
        return False
    outputs.DiscardUnknownFields()
    ranked = len(outputs.top_ids)
    return (
        outputs.SerializeToString() == data
        and outputs.token_count == token_count
        and ranked == len(outputs.top_log_probs)
        and ranked in (outputs.top_k, outputs.top_k * token_count)
        and len(outputs.token_log_probs) in (0, token_count)
        and len(outputs.sampled_ids) == len(outputs.sampled_log_probs) <= 1
        and all(number in _drawable(contract) for number in outputs.sampled_ids)
        and all(_is_tensor(named.tensor, (1, token_count)) for named in outputs.tensors)
        and all(_is_feedback(named, contract.feedback) for named in outputs.tensors)
        and all(_is_tensor(named.tensor) for named in outputs.state)
    )


def _drawable(contract: Contract) -> range:
    """Returns what may be sampled, `NOTHING` included."""
    return range(NOTHING, 0 if contract.ranked is None else math.prod(contract.ranked.shape))


def _is_feedback(named: pb.NamedTensor, feedback: OutputSpec | None) -> bool:
    """Whether a tensor, if it is the output that is the next input, is what that is."""
    if feedback is None or named.name != feedback.name:
        return True
    kind = (named.tensor.dtype, tuple(named.tensor.shape[1:]))
    return kind == (DTYPE_NUMBERS[feedback.dtype.name], feedback.shape)


def _is_tensor(tensor: pb.Tensor, lengths: tuple[int, ...] = ()) -> bool:
    """Whether a tensor has as many bytes as it says, and along axis 0 one of some lengths."""
    shape, item_bytes = tuple(tensor.shape), _ITEM_BYTES.get(tensor.dtype, 0)
    is_long = not lengths or shape[:1] in [(length,) for length in lengths]
    return is_long and min(shape, default=1) > 0 and len(tensor.data) == item_bytes * math.prod(shape) > 0


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(f"the blob is not an exported session: {why}", field="blob")

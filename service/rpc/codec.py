"""Between messages and the engine's values. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from holdfast.errors import InvalidRequest, ServiceError
from holdfast.v1 import holdfast_pb2 as pb
from service.common.names import control_character
from service.engine.asked import Asked, Selection, TokenKind
from service.engine.rows import TOKEN_DTYPES, Chunk, Reply
from service.model.contract import DTYPES, Contract
from service.rpc.credentials import Caller
from service.store.beside import MAX_CURSOR_BYTES
from service.store.keys import session_key, session_keys
from service.store.outputs import DTYPE_NUMBERS, varint
from service.store.protocol import AckLevel

MAX_ID_CHARS = 128
MAX_AXES = 8
MAX_INT32 = (1 << 31) - 1

MAX_TENSORS = 1024
"""Of a state, and names of outputs in a selection: a name has few bytes on the wire and many here."""

CHUNK_BYTES = 1024
"""What a chunk takes beside its tokens, about: its message, ids, and what the engine makes of it."""

_NUMPY_OF = {DTYPE_NUMBERS[name]: dtype for name, dtype in DTYPES.items()}

_ACK_LEVELS: dict[int, AckLevel | None] = {
    pb.ACK_LEVEL_UNSPECIFIED: None,
    pb.ACK_LEVEL_MEMORY: AckLevel.MEMORY,
    pb.ACK_LEVEL_FSYNCED: AckLevel.FSYNCED,
    pb.ACK_LEVEL_REPLICATED: AckLevel.REPLICATED,
    pb.ACK_LEVEL_FSYNCED_AND_REPLICATED: AckLevel.FSYNCED | AckLevel.REPLICATED,
}
_ACK_NUMBERS: dict[AckLevel, Any] = {
    level: number for number, level in _ACK_LEVELS.items() if level is not None
}


def parse(message_type: Any, raw: bytes) -> Any:
    """Returns a message.

    Args:
        message_type: Its class.
        raw: As received.

    Raises:
        InvalidRequest: The bytes are no such message.
    """
    try:
        return message_type.FromString(raw)
    except DecodeError:
        raise InvalidRequest(f"the bytes are not a {message_type.DESCRIPTOR.name}") from None


def key_of(tenant: str, session_id: str, field: str = "session_id") -> bytes:
    """Returns the store key of a tenant's session.

    Raises:
        InvalidRequest: The id is empty, too long, or has a control character.
    """
    return session_key(tenant, check_id(session_id, field))


def check_id(text: str, field: str) -> str:
    """Returns a session's id, or the name of a checkpoint, if it is one.

    Raises:
        InvalidRequest: It is empty, too long, or has a control character.
    """
    if not 1 <= len(text) <= MAX_ID_CHARS:
        raise InvalidRequest(f"{field} has {len(text)} characters, expected 1..{MAX_ID_CHARS}", field=field)
    is_plain = text.isascii() and text.isprintable()  # most are, and this is the faster look
    control = None if is_plain else control_character(text)
    if control is not None:
        raise InvalidRequest(f"{field} has {control}, expected no control character", field=field)
    return text


def keys_of(tenant: str, session_ids: list[str]) -> list[bytes]:
    """Returns `key_of` of many sessions, at least one; plain ids are looked at together.

    Raises:
        InvalidRequest: One of the ids is wrong.
    """
    joined, lengths = "".join(session_ids), set(map(len, session_ids))
    if joined.isascii() and joined.isprintable() and min(lengths) > 0 and max(lengths) <= MAX_ID_CHARS:
        return session_keys(tenant, session_ids)
    return [key_of(tenant, session_id) for session_id in session_ids]


def to_chunk(
    message: pb.Chunk,
    reply: Callable[[Chunk, Reply | ServiceError], None],
    caller: Caller,
    *,
    max_tokens: int,
    deadline_s: float = math.inf,
) -> Chunk:
    """Turns a chunk into what the engine takes.

    Args:
        message: As received.
        reply: Gets what becomes of it.
        caller: Who sends it.
        max_tokens: Most tokens a chunk may have.
        deadline_s: Monotonic time after which the caller no longer waits.

    Raises:
        InvalidRequest: The chunk is wrong whatever its session is.
        PermissionDenied: It asks for the state, and the caller may not see states.
    """
    key = key_of(caller.tenant, message.session_id, "chunk.session_id")
    level = check_model_and_level(message, "chunk")
    kind, tokens, count, width = to_tokens(message.tokens, "chunk.tokens")
    if not 1 <= count <= max_tokens:
        raise InvalidRequest(
            f"the chunk has {count} tokens, expected 1..{max_tokens}", field="chunk.tokens"
        )
    model = message.model
    selection = to_selection(message)
    if selection is not None and selection.state:
        caller.need("read-state", field="chunk.outputs.state")
    return Chunk(
        key,
        Asked(kind, count, width, model.name, model.version, selection, level),
        tokens if isinstance(tokens, bytes) else tokens.tobytes(),
        reply,
        position=message.position if message.HasField("position") else None,
        acknowledged=message.acknowledged_position if message.HasField("acknowledged_position") else None,
        incarnation=message.incarnation,
        digest=message.history_digest,
        cursor=check_cursor(message.cursor, "chunk.cursor") if message.cursor else None,
        deadline_s=deadline_s,
    )


def check_cursor(given: bytes, field: str) -> bytes:
    """Returns a cursor, if it is one.

    Raises:
        InvalidRequest: It is too long.
    """
    if len(given) > MAX_CURSOR_BYTES:
        raise InvalidRequest(
            f"the cursor has {len(given)} bytes, expected at most {MAX_CURSOR_BYTES}", field=field
        )
    return given


def size_of(chunk: Chunk) -> int:
    """Returns about how much memory a chunk takes until it is answered."""
    return CHUNK_BYTES + len(chunk.tokens)


def check_model_and_level(asked: pb.Chunk | pb.Batch | pb.GenerateRequest, field: str) -> AckLevel | None:
    """Checks what chunks, batches and generations have in common; `field` has them, "" is the request.

    Returns:
        The acknowledgement level; None leaves it to the server.

    Raises:
        InvalidRequest: A number is not one of those that it may be.
    """
    version = asked.model.version
    prefix = f"{field}." if field else ""
    if version < 0:
        raise InvalidRequest(f"model.version is {version}, expected >= 0", field=f"{prefix}model.version")
    try:
        return _ACK_LEVELS[asked.ack_level]
    except KeyError:
        raise InvalidRequest(f"{asked.ack_level} is not a level", field=f"{prefix}ack_level") from None


def ack_number(level: AckLevel) -> Any:
    """Returns the `AckLevel` of the contract."""
    return _ACK_NUMBERS[level]


def to_selection(message: pb.Chunk | pb.Batch) -> Selection | None:
    """Reads what a reply should hold; None leaves it to the model.

    Raises:
        InvalidRequest: It names more outputs than any model has.
    """
    if not message.HasField("outputs"):
        return None
    asked = message.outputs
    if len(asked.tensors) > MAX_TENSORS:
        raise InvalidRequest(
            f"outputs.tensors has {len(asked.tensors)} names, expected at most {MAX_TENSORS}",
            field="outputs.tensors",
        )
    return Selection(asked.top_k, asked.token_log_prob, tuple(asked.tensors), asked.state)


def to_tokens(tokens: pb.Tokens, field: str) -> tuple[TokenKind, bytes | NDArray[Any], int, int]:
    """Returns kind, tokens, how many they are, and features per token.

    Raises:
        InvalidRequest: They are none, or no tensor of features.
    """
    kind = tokens.WhichOneof("kind")
    if kind == "text":
        text = tokens.text
        return "text", text, len(text), 1
    if kind == "ids":
        ids = np.array(tokens.ids.values, TOKEN_DTYPES["ids"])
        return "ids", ids, len(ids), 1
    if kind == "features":
        features = _features(tokens.features, f"{field}.features")
        return "features", features, *features.shape
    raise InvalidRequest(f"{field} has no tokens, expected text, ids or features", field=field)


def _features(tensor: pb.Tensor, field: str) -> NDArray[Any]:
    if tensor.dtype != pb.DATA_TYPE_FLOAT32:
        raise InvalidRequest(
            f"features have dtype {tensor.dtype}, expected {pb.DATA_TYPE_FLOAT32} (float32)",
            field=f"{field}.dtype",
        )
    if len(tensor.shape) != 2:
        raise InvalidRequest(
            f"features have {len(tensor.shape)} axes, expected 2: (tokens, width)",
            field=f"{field}.shape",
        )
    return to_array(tensor, field)


def to_array(tensor: pb.Tensor, field: str) -> NDArray[Any]:
    """Reads a tensor.

    Raises:
        InvalidRequest: The dtype is not known, or the bytes are not what shape and dtype say.
    """
    dtype = _NUMPY_OF.get(tensor.dtype)
    if dtype is None:
        raise InvalidRequest(f"dtype {tensor.dtype} is not known", field=f"{field}.dtype")
    if len(tensor.shape) > MAX_AXES:
        raise InvalidRequest(
            f"shape has {len(tensor.shape)} axes, expected at most {MAX_AXES}", field=f"{field}.shape"
        )
    if any(extent < 1 for extent in tensor.shape):
        raise InvalidRequest(f"shape {list(tensor.shape)} has an extent below 1", field=f"{field}.shape")
    expected_bytes = dtype.itemsize
    for extent in tensor.shape:
        expected_bytes *= extent
    if len(tensor.data) != expected_bytes:
        raise InvalidRequest(
            f"shape {list(tensor.shape)} of {dtype.name} needs {expected_bytes} bytes, "
            f"data has {len(tensor.data)}",
            field=f"{field}.data",
        )
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))


def to_tensor(name: str, array: NDArray[Any]) -> pb.NamedTensor:
    """Writes a tensor."""
    tensor = pb.Tensor(dtype=DTYPE_NUMBERS[array.dtype.name], shape=array.shape, data=array.tobytes())
    return pb.NamedTensor(name=name, tensor=tensor)


def to_arrays(tensors: Sequence[pb.NamedTensor], field: str) -> dict[str, NDArray[Any]]:
    """Reads tensors given by a client, by name.

    Raises:
        InvalidRequest: One is no tensor, or there are more than any model could need.
    """
    if len(tensors) > MAX_TENSORS:
        raise InvalidRequest(
            f"{field} has {len(tensors)} tensors, expected at most {MAX_TENSORS}", field=field
        )
    return {named.name: to_array(named.tensor, field) for named in tensors}


def to_raw_state(given: Mapping[str, NDArray[Any]], contract: Contract, field: str) -> bytes:
    """Returns a state given by a client as the raw bytes of a record; b"" if none is given.

    Where one tensor that the graph makes anew is given, all of them must be. Contexts may be left out, and
    inputs of the session that have a default.

    Raises:
        InvalidRequest: A tensor is missing, unknown, not finite, or has another shape or dtype.
    """
    if not given:
        return b""
    known = {spec.name for spec in contract.states}
    made = {spec.name for spec in contract.states if spec.kind == "state"}
    needed = {*contract.required_at_opening, *(made if made & given.keys() else ())}
    if not needed <= given.keys() <= known:
        raise InvalidRequest(
            f"state has tensors {sorted(given)}, the model has {sorted(known)}", field=field
        )
    arrays = {
        spec.name: spec.taken(given[spec.name]) if spec.name in given else spec.initial_array
        for spec in contract.states
    }
    for spec in contract.states:
        array = arrays[spec.name]
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise InvalidRequest(
                f"state {spec.name!r} is {array.dtype.name} {array.shape}, the model has "
                f"{spec.dtype.name} {spec.shape}",
                field=field,
            )
        if not np.isfinite(array).all():
            raise InvalidRequest(f"state {spec.name!r} holds NaN or infinity", field=field)
    return b"".join(array.tobytes() for array in arrays.values())


def from_raw_state(state: bytes, contract: Contract) -> list[pb.NamedTensor]:
    """Writes the raw state of a record as tensors."""
    tensors = []
    offset = 0
    for spec in contract.states:
        part = np.frombuffer(state, spec.dtype, spec.size_bytes // spec.dtype.itemsize, offset)
        tensors.append(to_tensor(spec.name, part.reshape(spec.shape)))
        offset += spec.size_bytes
    return tensors


_OUTPUTS_TAG = b"\x42"  # of ChunkResult and BatchResult
_RESULT_TAG = b"\x0a"  # of the responses to steps and batches, streamed or not


class Named(NamedTuple):
    """What a reply says of the chunk that it answers, so that the chunk itself need not be kept.

    Attributes:
        tag: The caller's number.
        session_id: As sent.
    """

    tag: int
    session_id: str


def encode_reply(chunk: Named, reply: Reply, caller: Caller) -> bytes:
    """Returns the serialised StepResponse, which is also the serialised StreamStepsResponse.

    The outputs are stored bytes and are spliced in as they are. But a kept reply may hold the state, and
    who asks again need not be one who may see it.
    """
    header = pb.ChunkResult(
        tag=chunk.tag,
        session_id=chunk.session_id,
        incarnation=reply.incarnation,
        position=reply.position,
        history_digest=reply.digest,
        replayed=reply.replayed,
        ack_level=_ACK_NUMBERS[reply.ack_level],
        model_version=reply.model_version,
    ).SerializeToString()
    outputs = reply.outputs
    if reply.replayed and not caller.sees_state:
        outputs = _without_state(outputs)
    return splice_outputs(header, outputs)


def _without_state(outputs: bytes) -> bytes:
    message = pb.Outputs.FromString(outputs)
    message.ClearField("state")
    return message.SerializeToString()


def splice_outputs(header: bytes, outputs: bytes) -> bytes:
    """Returns a serialised reply.

    Args:
        header: Serialised ChunkResult or BatchResult without outputs.
        outputs: Serialised Outputs.
    """
    result = b"".join((header, _OUTPUTS_TAG, varint(len(outputs)), outputs))
    return b"".join((_RESULT_TAG, varint(len(result)), result))


def delimited(number: int, payload: bytes) -> bytes:
    """Returns a serialised field of bytes."""
    return b"".join((varint(number << 3 | 2), varint(len(payload)), payload))


def dtype_number(dtype: np.dtype[Any]) -> Any:
    """Returns the `DataType` of a numpy dtype."""
    return DTYPE_NUMBERS[dtype.name]

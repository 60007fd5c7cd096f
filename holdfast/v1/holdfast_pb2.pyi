from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AckLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_LEVEL_UNSPECIFIED: _ClassVar[AckLevel]
    ACK_LEVEL_MEMORY: _ClassVar[AckLevel]
    ACK_LEVEL_FSYNCED: _ClassVar[AckLevel]
    ACK_LEVEL_REPLICATED: _ClassVar[AckLevel]
    ACK_LEVEL_FSYNCED_AND_REPLICATED: _ClassVar[AckLevel]

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_MAX_TOKENS: _ClassVar[FinishReason]
    FINISH_REASON_PAUSED: _ClassVar[FinishReason]

class StateKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_KIND_UNSPECIFIED: _ClassVar[StateKind]
    STATE_KIND_RECURRENT: _ClassVar[StateKind]
    STATE_KIND_SESSION_INPUT: _ClassVar[StateKind]
    STATE_KIND_CONTEXT: _ClassVar[StateKind]
ACK_LEVEL_UNSPECIFIED: AckLevel
ACK_LEVEL_MEMORY: AckLevel
ACK_LEVEL_FSYNCED: AckLevel
ACK_LEVEL_REPLICATED: AckLevel
ACK_LEVEL_FSYNCED_AND_REPLICATED: AckLevel
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_FLOAT64: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_UINT8: DataType
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_MAX_TOKENS: FinishReason
FINISH_REASON_PAUSED: FinishReason
STATE_KIND_UNSPECIFIED: StateKind
STATE_KIND_RECURRENT: StateKind
STATE_KIND_SESSION_INPUT: StateKind
STATE_KIND_CONTEXT: StateKind

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "tensor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensor: Tensor
    def __init__(self, name: _Optional[str] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("text", "ids", "features")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    ids: TokenIds
    features: Tensor
    def __init__(self, text: _Optional[bytes] = ..., ids: _Optional[_Union[TokenIds, _Mapping]] = ..., features: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class OutputSelection(_message.Message):
    __slots__ = ("top_k", "token_log_prob", "tensors", "state")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    token_log_prob: bool
    tensors: _containers.RepeatedScalarFieldContainer[str]
    state: bool
    def __init__(self, top_k: _Optional[int] = ..., token_log_prob: bool = ..., tensors: _Optional[_Iterable[str]] = ..., state: bool = ...) -> None: ...

class Outputs(_message.Message):
    __slots__ = ("token_count", "top_k", "top_ids", "top_log_probs", "token_log_probs", "tensors", "state", "sampled_ids", "sampled_log_probs")
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOG_PROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_LOG_PROBS_FIELD_NUMBER: _ClassVar[int]
    token_count: int
    top_k: int
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_log_probs: _containers.RepeatedScalarFieldContainer[float]
    token_log_probs: _containers.RepeatedScalarFieldContainer[float]
    tensors: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    state: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    sampled_ids: _containers.RepeatedScalarFieldContainer[int]
    sampled_log_probs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_count: _Optional[int] = ..., top_k: _Optional[int] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_log_probs: _Optional[_Iterable[float]] = ..., token_log_probs: _Optional[_Iterable[float]] = ..., tensors: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., sampled_ids: _Optional[_Iterable[int]] = ..., sampled_log_probs: _Optional[_Iterable[float]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("session_id", "model", "tokens", "position", "acknowledged_position", "incarnation", "outputs", "ack_level", "tag", "history_digest", "cursor")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_POSITION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ACK_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: ModelRef
    tokens: Tokens
    position: int
    acknowledged_position: int
    incarnation: int
    outputs: OutputSelection
    ack_level: AckLevel
    tag: int
    history_digest: int
    cursor: bytes
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., position: _Optional[int] = ..., acknowledged_position: _Optional[int] = ..., incarnation: _Optional[int] = ..., outputs: _Optional[_Union[OutputSelection, _Mapping]] = ..., ack_level: _Optional[_Union[AckLevel, str]] = ..., tag: _Optional[int] = ..., history_digest: _Optional[int] = ..., cursor: _Optional[bytes] = ...) -> None: ...

class ChunkResult(_message.Message):
    __slots__ = ("tag", "session_id", "incarnation", "position", "replayed", "ack_level", "model_version", "outputs", "history_digest")
    TAG_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    ACK_LEVEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    tag: int
    session_id: str
    incarnation: int
    position: int
    replayed: bool
    ack_level: AckLevel
    model_version: int
    outputs: Outputs
    history_digest: int
    def __init__(self, tag: _Optional[int] = ..., session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., replayed: bool = ..., ack_level: _Optional[_Union[AckLevel, str]] = ..., model_version: _Optional[int] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., history_digest: _Optional[int] = ...) -> None: ...

class ChunkError(_message.Message):
    __slots__ = ("tag", "session_id", "status")
    TAG_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    tag: int
    session_id: str
    status: _status_pb2.Status
    def __init__(self, tag: _Optional[int] = ..., session_id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: ChunkResult
    def __init__(self, result: _Optional[_Union[ChunkResult, _Mapping]] = ...) -> None: ...

class StreamStepsRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class StreamStepsResponse(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: ChunkResult
    error: ChunkError
    def __init__(self, result: _Optional[_Union[ChunkResult, _Mapping]] = ..., error: _Optional[_Union[ChunkError, _Mapping]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("model", "session_ids", "positions", "acknowledged_positions", "incarnations", "tokens_per_row", "text", "ids", "features", "outputs", "ack_level", "tag", "history_digests", "in_parts", "timeout_s", "cursors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_ROW_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ACK_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    IN_PARTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    positions: _containers.RepeatedScalarFieldContainer[int]
    acknowledged_positions: _containers.RepeatedScalarFieldContainer[int]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    tokens_per_row: int
    text: bytes
    ids: TokenIds
    features: bytes
    outputs: OutputSelection
    ack_level: AckLevel
    tag: int
    history_digests: _containers.RepeatedScalarFieldContainer[int]
    in_parts: bool
    timeout_s: float
    cursors: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., session_ids: _Optional[_Iterable[str]] = ..., positions: _Optional[_Iterable[int]] = ..., acknowledged_positions: _Optional[_Iterable[int]] = ..., incarnations: _Optional[_Iterable[int]] = ..., tokens_per_row: _Optional[int] = ..., text: _Optional[bytes] = ..., ids: _Optional[_Union[TokenIds, _Mapping]] = ..., features: _Optional[bytes] = ..., outputs: _Optional[_Union[OutputSelection, _Mapping]] = ..., ack_level: _Optional[_Union[AckLevel, str]] = ..., tag: _Optional[int] = ..., history_digests: _Optional[_Iterable[int]] = ..., in_parts: bool = ..., timeout_s: _Optional[float] = ..., cursors: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BatchResult(_message.Message):
    __slots__ = ("tag", "positions", "incarnations", "replayed_rows", "errors", "ack_level", "model_version", "outputs", "history_digests", "separate_rows", "rows")
    TAG_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    ACK_LEVEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SEPARATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    tag: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    replayed_rows: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    ack_level: AckLevel
    model_version: int
    outputs: Outputs
    history_digests: _containers.RepeatedScalarFieldContainer[int]
    separate_rows: _containers.RepeatedCompositeFieldContainer[SeparateRow]
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tag: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., incarnations: _Optional[_Iterable[int]] = ..., replayed_rows: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., ack_level: _Optional[_Union[AckLevel, str]] = ..., model_version: _Optional[int] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., history_digests: _Optional[_Iterable[int]] = ..., separate_rows: _Optional[_Iterable[_Union[SeparateRow, _Mapping]]] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

class SeparateRow(_message.Message):
    __slots__ = ("row", "model_version", "outputs")
    ROW_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    row: int
    model_version: int
    outputs: Outputs
    def __init__(self, row: _Optional[int] = ..., model_version: _Optional[int] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ...) -> None: ...

class RowError(_message.Message):
    __slots__ = ("row", "status")
    ROW_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    row: int
    status: _status_pb2.Status
    def __init__(self, row: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StepBatchRequest(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class StepBatchResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: BatchResult
    def __init__(self, result: _Optional[_Union[BatchResult, _Mapping]] = ...) -> None: ...

class StreamBatchesRequest(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class StreamBatchesResponse(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: BatchResult
    error: ChunkError
    def __init__(self, result: _Optional[_Union[BatchResult, _Mapping]] = ..., error: _Optional[_Union[ChunkError, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "incarnation", "position", "model", "fingerprint", "expires_in_s", "history_digest", "quarantine_reason", "cursor", "idle_s")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_REASON_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    position: int
    model: ModelRef
    fingerprint: str
    expires_in_s: float
    history_digest: int
    quarantine_reason: str
    cursor: bytes
    idle_s: float
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., position: _Optional[int] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., fingerprint: _Optional[str] = ..., expires_in_s: _Optional[float] = ..., history_digest: _Optional[int] = ..., quarantine_reason: _Optional[str] = ..., cursor: _Optional[bytes] = ..., idle_s: _Optional[float] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "seed", "said_ids")
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAID_IDS_FIELD_NUMBER: _ClassVar[int]
    repetition_penalty: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    said_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, repetition_penalty: _Optional[float] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., said_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("session_id", "model", "prompt", "position", "incarnation", "history_digest", "max_tokens", "min_tokens", "sampling", "stop_ids", "stop_texts", "top_k", "ack_level", "emitted_tokens", "emitted_text", "pause_after", "may_join")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    STOP_TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ACK_LEVEL_FIELD_NUMBER: _ClassVar[int]
    EMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_TEXT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_AFTER_FIELD_NUMBER: _ClassVar[int]
    MAY_JOIN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: ModelRef
    prompt: Tokens
    position: int
    incarnation: int
    history_digest: int
    max_tokens: int
    min_tokens: int
    sampling: Sampling
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    stop_texts: _containers.RepeatedScalarFieldContainer[bytes]
    top_k: int
    ack_level: AckLevel
    emitted_tokens: int
    emitted_text: bytes
    pause_after: int
    may_join: bool
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., prompt: _Optional[_Union[Tokens, _Mapping]] = ..., position: _Optional[int] = ..., incarnation: _Optional[int] = ..., history_digest: _Optional[int] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stop_ids: _Optional[_Iterable[int]] = ..., stop_texts: _Optional[_Iterable[bytes]] = ..., top_k: _Optional[int] = ..., ack_level: _Optional[_Union[AckLevel, str]] = ..., emitted_tokens: _Optional[int] = ..., emitted_text: _Optional[bytes] = ..., pause_after: _Optional[int] = ..., may_join: bool = ...) -> None: ...

class GeneratedToken(_message.Message):
    __slots__ = ("id", "text", "features", "log_prob", "top_ids", "top_log_probs", "position", "history_digest", "replayed", "ack_level")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOG_PROBS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    ACK_LEVEL_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: bytes
    features: Tensor
    log_prob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_log_probs: _containers.RepeatedScalarFieldContainer[float]
    position: int
    history_digest: int
    replayed: bool
    ack_level: AckLevel
    def __init__(self, id: _Optional[int] = ..., text: _Optional[bytes] = ..., features: _Optional[_Union[Tensor, _Mapping]] = ..., log_prob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_log_probs: _Optional[_Iterable[float]] = ..., position: _Optional[int] = ..., history_digest: _Optional[int] = ..., replayed: bool = ..., ack_level: _Optional[_Union[AckLevel, str]] = ...) -> None: ...

class GenerateStart(_message.Message):
    __slots__ = ("position", "history_digest", "incarnation", "model_version", "replayed", "said_ids")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    SAID_IDS_FIELD_NUMBER: _ClassVar[int]
    position: int
    history_digest: int
    incarnation: int
    model_version: int
    replayed: bool
    said_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, position: _Optional[int] = ..., history_digest: _Optional[int] = ..., incarnation: _Optional[int] = ..., model_version: _Optional[int] = ..., replayed: bool = ..., said_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateEnd(_message.Message):
    __slots__ = ("finish_reason", "stop_id")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_ID_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    stop_id: int
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., stop_id: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("start", "token", "end", "more")
    START_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    start: GenerateStart
    token: GeneratedToken
    end: GenerateEnd
    more: _containers.RepeatedCompositeFieldContainer[GenerateResponse]
    def __init__(self, start: _Optional[_Union[GenerateStart, _Mapping]] = ..., token: _Optional[_Union[GeneratedToken, _Mapping]] = ..., end: _Optional[_Union[GenerateEnd, _Mapping]] = ..., more: _Optional[_Iterable[_Union[GenerateResponse, _Mapping]]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("prefix", "model", "min_idle_s", "page_size", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MIN_IDLE_S_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    model: ModelRef
    min_idle_s: float
    page_size: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., min_idle_s: _Optional[float] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteBatchRequest(_message.Message):
    __slots__ = ("session_ids", "incarnations")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ..., incarnations: _Optional[_Iterable[int]] = ...) -> None: ...

class DeleteBatchResponse(_message.Message):
    __slots__ = ("positions", "errors")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    def __init__(self, positions: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id", "position", "incarnation", "new_session_ids", "nonce")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    position: int
    incarnation: int
    new_session_ids: _containers.RepeatedScalarFieldContainer[str]
    nonce: int
    def __init__(self, session_id: _Optional[str] = ..., position: _Optional[int] = ..., incarnation: _Optional[int] = ..., new_session_ids: _Optional[_Iterable[str]] = ..., nonce: _Optional[int] = ...) -> None: ...

class ForkSessionResponse(_message.Message):
    __slots__ = ("position", "history_digest", "model", "new_session_ids", "incarnations", "errors")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    position: int
    history_digest: int
    model: ModelRef
    new_session_ids: _containers.RepeatedScalarFieldContainer[str]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    def __init__(self, position: _Optional[int] = ..., history_digest: _Optional[int] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., new_session_ids: _Optional[_Iterable[str]] = ..., incarnations: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("name", "position", "history_digest", "saved_unix_s", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SAVED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    position: int
    history_digest: int
    saved_unix_s: float
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., position: _Optional[int] = ..., history_digest: _Optional[int] = ..., saved_unix_s: _Optional[float] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class SaveCheckpointRequest(_message.Message):
    __slots__ = ("session_id", "name", "position", "incarnation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    position: int
    incarnation: int
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., position: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class SaveCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ...) -> None: ...

class DeleteCheckpointRequest(_message.Message):
    __slots__ = ("session_id", "name")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DeleteCheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RestoreCheckpointRequest(_message.Message):
    __slots__ = ("session_id", "name", "incarnation", "nonce")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    incarnation: int
    nonce: int
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., incarnation: _Optional[int] = ..., nonce: _Optional[int] = ...) -> None: ...

class RestoreCheckpointResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ExportSessionRequest(_message.Message):
    __slots__ = ("session_id", "position", "incarnation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    position: int
    incarnation: int
    def __init__(self, session_id: _Optional[str] = ..., position: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class ExportSessionResponse(_message.Message):
    __slots__ = ("blob", "position")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    blob: bytes
    position: int
    def __init__(self, blob: _Optional[bytes] = ..., position: _Optional[int] = ...) -> None: ...

class ImportSessionRequest(_message.Message):
    __slots__ = ("session_id", "blob", "nonce")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    blob: bytes
    nonce: int
    def __init__(self, session_id: _Optional[str] = ..., blob: _Optional[bytes] = ..., nonce: _Optional[int] = ...) -> None: ...

class ImportSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class WatchSessionRequest(_message.Message):
    __slots__ = ("session_id", "max_rate_hz", "top_k", "token_log_prob", "include_state")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STATE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    max_rate_hz: float
    top_k: int
    token_log_prob: bool
    include_state: bool
    def __init__(self, session_id: _Optional[str] = ..., max_rate_hz: _Optional[float] = ..., top_k: _Optional[int] = ..., token_log_prob: bool = ..., include_state: bool = ...) -> None: ...

class WatchSessionResponse(_message.Message):
    __slots__ = ("position", "history_digest", "incarnation", "model_version", "tokens", "outputs", "replayed", "committed_unix_s", "replica", "skipped_tokens", "ended")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    position: int
    history_digest: int
    incarnation: int
    model_version: int
    tokens: Tokens
    outputs: Outputs
    replayed: bool
    committed_unix_s: float
    replica: str
    skipped_tokens: int
    ended: bool
    def __init__(self, position: _Optional[int] = ..., history_digest: _Optional[int] = ..., incarnation: _Optional[int] = ..., model_version: _Optional[int] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., replayed: bool = ..., committed_unix_s: _Optional[float] = ..., replica: _Optional[str] = ..., skipped_tokens: _Optional[int] = ..., ended: bool = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("session_id", "model", "must_be_new", "initial_state", "take_over", "nonce")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MUST_BE_NEW_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    TAKE_OVER_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: ModelRef
    must_be_new: bool
    initial_state: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    take_over: bool
    nonce: int
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., must_be_new: bool = ..., initial_state: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., take_over: bool = ..., nonce: _Optional[int] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session", "resumed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    session: Session
    resumed: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., resumed: bool = ...) -> None: ...

class OpenBatchRequest(_message.Message):
    __slots__ = ("model", "session_ids", "must_be_new", "nonce", "initial_state")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    MUST_BE_NEW_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    must_be_new: bool
    nonce: int
    initial_state: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., session_ids: _Optional[_Iterable[str]] = ..., must_be_new: bool = ..., nonce: _Optional[int] = ..., initial_state: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class OpenBatchResponse(_message.Message):
    __slots__ = ("positions", "incarnations", "history_digests", "model_versions", "resumed_rows", "errors", "cursors")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    history_digests: _containers.RepeatedScalarFieldContainer[int]
    model_versions: _containers.RepeatedScalarFieldContainer[int]
    resumed_rows: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    cursors: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, positions: _Optional[_Iterable[int]] = ..., incarnations: _Optional[_Iterable[int]] = ..., history_digests: _Optional[_Iterable[int]] = ..., model_versions: _Optional[_Iterable[int]] = ..., resumed_rows: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., cursors: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id", "include_state")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STATE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    include_state: bool
    def __init__(self, session_id: _Optional[str] = ..., include_state: bool = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session", "state")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    session: Session
    state: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., state: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session_id", "incarnation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    incarnation: int
    def __init__(self, session_id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class ReleaseSessionRequest(_message.Message):
    __slots__ = ("session_id", "discard")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    discard: bool
    def __init__(self, session_id: _Optional[str] = ..., discard: bool = ...) -> None: ...

class ReleaseSessionResponse(_message.Message):
    __slots__ = ("reason", "position")
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    position: int
    def __init__(self, reason: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("name", "dtype", "width", "is_token_id", "units", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    IS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    width: int
    is_token_id: bool
    units: str
    description: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., width: _Optional[int] = ..., is_token_id: bool = ..., units: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class StateSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "kind", "is_required", "units", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    kind: StateKind
    is_required: bool
    units: str
    description: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., kind: _Optional[_Union[StateKind, str]] = ..., is_required: bool = ..., units: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class OutputSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "role", "labels", "is_last", "units", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    role: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    is_last: bool
    units: str
    description: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., role: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., is_last: bool = ..., units: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Vocabulary(_message.Message):
    __slots__ = ("size", "is_bytes")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    IS_BYTES_FIELD_NUMBER: _ClassVar[int]
    size: int
    is_bytes: bool
    def __init__(self, size: _Optional[int] = ..., is_bytes: bool = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "is_newest", "input", "states", "state_bytes", "outputs", "vocabulary", "has_token_log_prob", "facts", "max_chunk_tokens", "apart", "description", "feedback")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    IS_NEWEST_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    HAS_TOKEN_LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    APART_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    fingerprint: str
    is_newest: bool
    input: InputSpec
    states: _containers.RepeatedCompositeFieldContainer[StateSpec]
    state_bytes: int
    outputs: _containers.RepeatedCompositeFieldContainer[OutputSpec]
    vocabulary: Vocabulary
    has_token_log_prob: bool
    facts: _containers.ScalarMap[str, str]
    max_chunk_tokens: int
    apart: _containers.RepeatedScalarFieldContainer[str]
    description: str
    feedback: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint: _Optional[str] = ..., is_newest: bool = ..., input: _Optional[_Union[InputSpec, _Mapping]] = ..., states: _Optional[_Iterable[_Union[StateSpec, _Mapping]]] = ..., state_bytes: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[OutputSpec, _Mapping]]] = ..., vocabulary: _Optional[_Union[Vocabulary, _Mapping]] = ..., has_token_log_prob: bool = ..., facts: _Optional[_Mapping[str, str]] = ..., max_chunk_tokens: _Optional[int] = ..., apart: _Optional[_Iterable[str]] = ..., description: _Optional[str] = ..., feedback: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ReloadModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadModelsResponse(_message.Message):
    __slots__ = ("models", "refused")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelRef]
    refused: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelRef, _Mapping]]] = ..., refused: _Optional[_Iterable[str]] = ...) -> None: ...

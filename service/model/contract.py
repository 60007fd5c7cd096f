"""What a step graph promises about its tensors: all that the service knows of a network. Pure.

A step graph takes tokens and the state of sessions and gives outputs and the next state. Here tensors have
the service's axes, time and batch first: tokens (T, B, ...), outputs (T, B, ...), states (B, ...); where
the graph has them is in the `Layout` of each. `service.model.contract_reader` makes a contract of what
contract.toml, or the file's metadata, says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}

Role = Literal["logits", "probs", "log_probs", "token_log_prob", "score", "raw"]
RANKED: tuple[Role, ...] = ("logits", "probs", "log_probs")
"""Roles of outputs that weigh one class against the others."""


class ContractError(Exception):
    """A graph does not say, or not rightly, what its tensors are; the message names the place.

    Attributes:
        proposal: A contract.toml to begin with; "" if nothing can be proposed.
    """

    def __init__(self, message: str, proposal: str = "") -> None:
        super().__init__(message)
        self.proposal = proposal


class Layout(NamedTuple):
    """Where the axes of time and batch stand in a graph's tensor; None where it has none."""

    time: int | None
    batch: int | None


ONE_TOKEN = Layout(time=None, batch=0)


@dataclass(frozen=True)
class Context:
    """What a window keeps of the tokens before.

    Attributes:
        state: Name of the state that has it.
        axis: Of a token's own axes, the one along which windows go on.
        extent: So much of that axis is kept.
    """

    state: str
    axis: int
    extent: int


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph that takes tokens, or columns of them.

    Attributes:
        name: In the graph.
        dtype: In the graph; tokens are cast.
        shape: Extents per token, without time and batch axis, and without context.
        layout: Where the graph has time and batch.
        columns: First of its columns of the features, and the one after its last.
        id_count: Ids are 0 .. id_count - 1, where they are columns of features; 0: no ids.
        context: What is put before every token.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    layout: Layout
    columns: tuple[int, int]
    id_count: int = 0
    context: Context | None = None


@dataclass(frozen=True)
class InputSpec:
    """The token, as clients send it.

    Attributes:
        name: Graph input, or inputs.
        kind: Ids of a vocabulary, shape (T, B), or features, shape (T, B, width).
        dtype: int64 for ids, float32 for features.
        width: Features per token; 1 for ids.
        has_time_axis: The graph takes several tokens of each session in one run.
        units: Of the features, for people.
        description: For people.
    """

    name: str
    kind: Literal["token_id", "features"]
    dtype: np.dtype[Any]
    width: int
    has_time_axis: bool = False
    units: str = ""
    description: str = ""


@dataclass(frozen=True)
class StateSpec:
    """One tensor of a session's record.

    Attributes:
        name: What clients call it.
        input: Graph input that takes it; that of the token where it is context.
        output: Graph output that gives its successor; "" where no output does.
        dtype: Element type.
        shape: Extents without the batch axis.
        batch_axis: Where the batch axis goes in the graph's tensors; None where they have none.
        initial: Bytes of the value that a session begins with; b"" for zeros.
        kind: What the graph makes anew with every token; what is given when a session is opened, and stays;
            or what a window keeps of the tokens before.
        is_required: An opening must give it.
        units: For people.
        description: For people.
    """

    name: str
    input: str
    output: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batch_axis: int | None
    initial: bytes = b""
    kind: Literal["state", "session_input", "context"] = "state"
    is_required: bool = False
    units: str = ""
    description: str = ""

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one session's tensor."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def initial_array(self) -> NDArray[Any]:
        """What a session begins with, of its dtype and shape; read-only."""
        data = self.initial or bytes(self.size_bytes)
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def taken(self, given: NDArray[Any]) -> NDArray[Any]:
        """Returns what it begins with where an opening gives it this.

        An input of the session is cast within its kind as tokens are, floats to floats and integers to
        integers that are the same; what a network has made itself has to come back as it was.
        """
        kinds = "f" if given.dtype.kind == "f" else "iu" if given.dtype.kind in "iu" else ""
        if self.kind != "session_input" or self.dtype.kind not in kinds:
            return given
        with np.errstate(all="ignore"):
            cast = given.astype(self.dtype)
        return cast if self.dtype.kind == "f" or np.array_equal(cast, given) else given


@dataclass(frozen=True)
class OutputSpec:
    """One output tensor.

    Attributes:
        name: Graph output.
        dtype: Element type.
        shape: Extents per token, without time and batch axis.
        role: `logits`, `probs` or `log_probs` over the vocabulary or over labels; `token_log_prob` of the
            arriving token; `score`; or `raw`.
        switch: Input that spares the graph this output when it is false; None without one.
        layout: Where the graph has time and batch.
        is_last: The graph gives it once a run: a reply has it for the last token of its chunk.
        labels: Names of the classes; empty if they are those of the vocabulary, or none.
        units: For people.
        description: For people.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    role: Role
    switch: str | None = None
    layout: Layout = ONE_TOKEN
    is_last: bool = False
    labels: tuple[str, ...] = ()
    units: str = ""
    description: str = ""

    @cached_property
    def size_bytes(self) -> int:
        """Bytes per token."""
        return self.dtype.itemsize * math.prod(self.shape)


class TokenizerFile(NamedTuple):
    """What a contract says of the tokenizer of a network over subwords.

    Attributes:
        name: Of the file beside contract.toml.
        sha256: Of its content, hexadecimal.
        start: Id that stands before every text; None without one.
    """

    name: str
    sha256: str
    start: int | None


@dataclass(frozen=True)
class Vocabulary:
    """The ids a model knows: 0 .. size - 1.

    Attributes:
        kind: With `bytes` an id is a byte's value; with `tokenizer` the server makes them of text.
        size: How many there are.
        tokenizer: Of the latter kind.
    """

    kind: Literal["bytes", "ids", "tokenizer"]
    size: int
    tokenizer: TokenizerFile | None = None


@dataclass(frozen=True, eq=False)
class Contract:
    """All that the service knows of a graph. Equal to itself only, so that it can be a key.

    Attributes:
        input: The token.
        states: The tensors of its record, one at least.
        outputs: What it gives.
        vocabulary: Of ids; None for features.
        feedback: The output that is the next input where the model runs on by itself; None if none can be.
        texts: What each class stands for that the ranked output weighs, where these are subwords and tokens
            are bytes; empty where classes are tokens, or cannot be written as tokens. b"" is no text.
        graph_inputs: Where tokens go.
        constants: Inputs of the graph that are always the same.
        rows_per_run: Most rows of a run of the graph, which would mix more of them or takes no more; None:
            any number.
        tokens_per_run: Most tokens of a row in a run, likewise.
        description: For people.
        facts: For people, by topic.
        text_bytes: Size of the texts it was read from.
    """

    input: InputSpec
    states: tuple[StateSpec, ...]
    outputs: tuple[OutputSpec, ...]
    vocabulary: Vocabulary | None = None
    feedback: OutputSpec | None = None
    texts: tuple[bytes, ...] = ()
    graph_inputs: tuple[GraphInput, ...] = ()
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    rows_per_run: int | None = None
    tokens_per_run: int | None = None
    description: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    text_bytes: int = 0

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of one session's state: all tensors one after the other."""
        return sum(state.size_bytes for state in self.states)

    @cached_property
    def initial_state(self) -> bytes:
        """The state that a session begins with, state_bytes long."""
        return b"".join(state.initial or bytes(state.size_bytes) for state in self.states)

    @cached_property
    def required_at_opening(self) -> tuple[str, ...]:
        """Names of the session inputs that an opening must give."""
        return tuple(state.name for state in self.states if state.is_required)

    @property
    def apart(self) -> frozenset[str]:
        """What runs one at a time: `rows`, `tokens`."""
        limits = {"rows": self.rows_per_run, "tokens": self.tokens_per_run}
        return frozenset(part for part, limit in limits.items() if limit == 1)

    @cached_property
    def outputs_by_name(self) -> dict[str, OutputSpec]:
        """The outputs, in their order."""
        return {output.name: output for output in self.outputs}

    @cached_property
    def ranked(self) -> OutputSpec | None:
        """The output by which classes, mostly next tokens, are ranked."""
        return next((output for output in self.outputs if output.role in RANKED), None)

    @cached_property
    def token_log_prob(self) -> OutputSpec | None:
        """The output that gives the log-probability of the arriving token."""
        return next((output for output in self.outputs if output.role == "token_log_prob"), None)

    @cached_property
    def id_columns(self) -> tuple[tuple[int, int], ...]:
        """Columns of features that hold ids, with how many ids there are."""
        return tuple((part.columns[0], part.id_count) for part in self.graph_inputs if part.id_count)


def opening_rows(contract: Contract, row_count: int) -> dict[str, NDArray[Any]]:
    """Returns the states that sessions begin with, (B, ...) by name."""
    return {
        spec.name: np.repeat(spec.initial_array[np.newaxis], row_count, axis=0) for spec in contract.states
    }


@dataclass(frozen=True)
class GraphTensor:
    """A tensor as the graph declares it: an extent is an int, the name of an axis, or None."""

    dtype: str
    shape: tuple[int | str | None, ...]

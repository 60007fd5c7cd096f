"""What the inputs of a whole-sequence graph are: tokens, first states, lengths, weights; and where time is.

Where time and batch are follows from what reads them, so each reading is tried, the likeliest by the names
of axes first.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from model_export.surgery.axes import BATCH, ONE, TIME, Axis, axis_of
from model_export.surgery.cells import FIRST_START, LENGTHS, PEEPHOLES, STATE_NAMES
from model_export.surgery.translation import attribute
from model_export.surgery.value import Refused

_MOVES = frozenset(
    {
        "Identity",
        "Slice",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Reshape",
        "Transpose",
        "Cast",
        "Expand",
    }
)
_TIME_WORDS = ("time", "seq", "len", "frame", "steps", "tokens")
_TIME_NAMES = frozenset({"t", "s", "l"})
_BATCH_WORDS = ("batch", "rows")
_BATCH_NAMES = frozenset({"b", "n"})


@dataclass(frozen=True)
class GraphInputs:
    """The inputs by what they are for.

    Attributes:
        tokens: What comes with each token, or with each session.
        starts: First values of states.
        lengths: How long each row is.
    """

    tokens: tuple[onnx.ValueInfoProto, ...]
    starts: tuple[onnx.ValueInfoProto, ...]
    lengths: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """Where time and batch are in the tokens.

    Attributes:
        time: Axis.
        batch: Axis; None if there is none, or one row is one run.
        per_session: Inputs that have no time axis.
    """

    time: int
    batch: int | None
    per_session: frozenset[str] = frozenset()


def sort_inputs(graph: onnx.GraphProto) -> GraphInputs:
    """Sorts the inputs that are left when constants are given.

    Raises:
        Refused: One is a weight that nobody has given, or no tensor.
    """
    held = {weight.name for weight in graph.initializer}
    free = {info.name: info for info in graph.input if info.name not in held}
    for name, info in free.items():
        if info.type.WhichOneof("value") != "tensor_type":
            raise Refused(
                f"input {name!r} is not a tensor but a {info.type.WhichOneof('value')}, which no token is"
            )
    weights, starts, lengths = _slots(graph)
    for name, node in weights.items():
        if name in free:
            raise Refused(
                f"input {name!r} is a weight of {node}; give it as a constant: --constant {name}={name}.npy"
            )
    begun = {name for start in starts for name in _sources(graph, start)} & set(free)
    measured = lengths & set(free)
    tokens = tuple(info for name, info in free.items() if name not in begun | measured)
    return GraphInputs(tokens, tuple(free[name] for name in free if name in begun), tuple(sorted(measured)))


def _slots(graph: onnx.GraphProto) -> tuple[dict[str, str], list[str], set[str]]:
    """Returns tensors in places of weights (with the operator), of first states, and of lengths."""
    weights: dict[str, str] = {}
    starts: list[str] = []
    lengths: set[str] = set()
    for node in graph.node:
        names = dict(enumerate(node.input))
        if node.op_type in STATE_NAMES:
            weights |= {names[at]: node.op_type for at in (1, 2, 3, PEEPHOLES) if names.get(at)}
            starts += [names[at] for at in (FIRST_START, FIRST_START + 1) if names.get(at)]
            lengths |= {names[LENGTHS]} if names.get(LENGTHS) else set()
        elif node.op_type == "Scan":
            starts += [name for name in list(node.input)[: -attribute(node, "num_scan_inputs")] if name]
        elif node.op_type == "Loop":
            starts += list(node.input)[2:]
    return weights, starts, lengths


def _sources(graph: onnx.GraphProto, name: str) -> set[str]:
    """Returns the tensors that a tensor is moved from, without computing."""
    makers = {output: node for node in graph.node for output in node.output}
    found, open_ = set(), [name]
    while open_:
        one = open_.pop()
        maker = makers.get(one)
        if one in found:
            continue
        found.add(one)
        if maker is not None and maker.op_type in _MOVES:
            open_.append(maker.input[0])
        elif maker is not None and maker.op_type == "Concat":
            open_ += list(maker.input)
    return found


def dims_of(info: onnx.ValueInfoProto) -> list[int | str]:
    """Returns the extents of an input: numbers, or names of axes, empty where there is none.

    Raises:
        Refused: Its rank is not declared.
    """
    if not info.type.tensor_type.HasField("shape"):
        raise Refused(f"input {info.name!r} has no shape; declare at least how many axes it has")
    dims = info.type.tensor_type.shape.dim
    return [dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param for dim in dims]


def readings(inputs: GraphInputs) -> Iterator[Reading]:
    """Yields where time and batch may be, the likeliest first.

    Raises:
        Refused: There are no tokens.
    """
    if not inputs.tokens:
        raise Refused("the graph has no input for tokens, so nothing can be streamed into it")
    ranks = {info.name: len(dims_of(info)) for info in inputs.tokens}
    main = max(inputs.tokens, key=lambda info: ranks[info.name])
    rank = ranks[main.name]
    if rank == 0:
        raise Refused(
            f"input {main.name!r} is a single number without a time axis; nothing is known of tokens"
        )
    dims = dims_of(main)
    is_whole = main.type.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)
    pairs: list[tuple[int, int | None]] = [
        (time, batch) for time in range(rank) for batch in (*range(rank), None) if time != batch
    ]
    pairs.sort(key=lambda pair: -_likelihood(dims, pair[0], pair[1], is_whole))
    lower = frozenset(name for name, one in ranks.items() if one < rank)
    for per_session in dict.fromkeys((frozenset(), lower)):
        for time, batch in pairs:
            most = max(time, -1 if batch is None else batch)
            if all(ranks[name] > most for name in ranks if name not in per_session):
                yield Reading(time, batch, per_session)


def _likelihood(dims: list[int | str], time: int, batch: int | None, is_whole: bool) -> int:
    score = _named(dims[time], _TIME_WORDS, _TIME_NAMES) - _named(dims[time], _BATCH_WORDS, _BATCH_NAMES)
    last = len(dims) - 1
    if time == last and not is_whole and last:
        score -= 3
    if batch is None:
        return score - (1 if len(dims) > 2 or is_whole else 0)
    score += _named(dims[batch], _BATCH_WORDS, _BATCH_NAMES) - _named(dims[batch], _TIME_WORDS, _TIME_NAMES)
    if batch == last and not is_whole and not _named(dims[batch], _BATCH_WORDS, _BATCH_NAMES):
        score -= 6
    return score - (1 if max(batch, time) > 1 else 0)


def _named(dim: int | str, words: tuple[str, ...], names: Collection[str]) -> int:
    if isinstance(dim, int):
        return 0
    lowered = dim.lower()
    return 4 if lowered in names or any(word in lowered for word in words) else 0


def axes_in(info: onnx.ValueInfoProto, reading: Reading) -> tuple[Axis, ...]:
    """Returns the axes of a token input under a reading.

    Raises:
        Refused: A further axis has no extent.
    """
    axes: list[Axis] = []
    has_time = info.name not in reading.per_session
    for place, dim in enumerate(dims_of(info)):
        if has_time and place == reading.time:
            axes.append((TIME,))
        elif place == (reading.batch if has_time else 0) and reading.batch is not None:
            axes.append((BATCH,))
        elif isinstance(dim, int) and dim > 0:
            axes.append(axis_of(dim))
        elif has_time and reading.batch is None and dim and _named(dim, _BATCH_WORDS, _BATCH_NAMES):
            axes.append(ONE)
        else:
            raise Refused(
                f"input {info.name!r}: axis {place} is neither time nor batch and has no extent; "
                "export it with one"
            )
    return tuple(axes)


def start_axes(info: onnx.ValueInfoProto, frozen_batch: int | None) -> list[tuple[Axis, ...]]:
    """Returns what the axes of a first state may stand for, the likeliest first."""
    dims = dims_of(info)
    named = [at for at, dim in enumerate(dims) if not isinstance(dim, int)]
    fixed = tuple(axis_of(dim) if isinstance(dim, int) else ONE for dim in dims)
    if len(named) == 1:
        return [_with_batch(fixed, named[0])]
    fitting = [at for at, dim in enumerate(dims) if dim == frozen_batch]
    middle = [at for at in fitting if at == len(dims) - 2]
    ways = [_with_batch(fixed, at) for at in (*middle, *(at for at in fitting if at not in middle))]
    return [*ways, fixed]


def _with_batch(axes: tuple[Axis, ...], place: int) -> tuple[Axis, ...]:
    return (*axes[:place], (BATCH,), *axes[place + 1 :])

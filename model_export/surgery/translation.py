"""The step graph in the making: what is known of each tensor, and the nodes, weights and states so far.

A body of a loop is a translation of its own that sees the tensors around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from model_export.surgery.axes import Axis, Frozen, is_fixed, number_of
from model_export.surgery.value import Reach, Refused, Value

Rule = Callable[["Translation", onnx.NodeProto, Sequence[Value | None]], list[Value]]
"""Adds the nodes that stand for a node; returns what is known of its outputs."""

_FOLDED = 1 << 16
_NOT_FOLDED = frozenset({"RNN", "GRU", "LSTM", "Scan", "Loop", "If", "DequantizeLinear"})


@dataclass(frozen=True)
class StatePair:
    """A state that the step graph takes and gives.

    Attributes:
        input: Graph input.
        output: Graph output.
        axes: Of both.
        dtype: ONNX element type.
        start: Name of the tensor of the whole-sequence graph that holds the first value; "" for zeros.
        is_turned: The first value has its batch axis before the layers (layout 1).
    """

    input: str
    output: str
    axes: tuple[Axis, ...]
    dtype: int
    start: str = ""
    is_turned: bool = False


@dataclass
class Translation:
    """Nodes so far.

    Attributes:
        frozen: Extents of time and batch as exported.
        opset: Version of ONNX's operators.
        dtypes: ONNX element type by tensor of the whole-sequence graph, as far as known.
        taken: Every name in use.
        counted: A token input and where its time and batch axes are, for counts at run time.
        parent: Around this body; None at the top.
        values: What is known, by tensor.
        nodes: Of the step graph.
        weights: Further ones.
        states: Of the step graph.
        vocabularies: Rows of the table that an input of ids looks up, by input.
        done_count: Nodes that a rule let pass.
        inner_count: The same within the body of a loop, at most.
    """

    frozen: Frozen
    opset: int
    dtypes: dict[str, int]
    taken: set[str]
    counted: tuple[str, dict[str, int]]
    parent: "Translation | None" = None
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    states: list[StatePair] = field(default_factory=list)
    vocabularies: dict[str, int] = field(default_factory=dict)
    done_count: int = 0
    inner_count: int = 0

    def value(self, name: str) -> Value | None:
        """Returns what is known of a tensor; None for an input that is left out.

        Raises:
            Refused: A body reads something around it that differs from token to token.
        """
        if not name:
            return None
        found = self.values.get(name)
        if found is not None:
            return found
        if self.parent is None:
            raise Refused(f"nothing gives the tensor {name!r}: the graph is cyclic, or cut off")
        return self.parent.value(name)

    def here(self, name: str) -> Value:
        """Returns what is known of a tensor that must be there."""
        value = self.value(name)
        assert value is not None, "bug: an input that is left out"
        return value

    def keep(self, node: onnx.NodeProto) -> None:
        """Takes a node over as it is."""
        self.nodes.append(node)

    def add(self, op: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        name = self.fresh(hint)
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def replace(self, node: onnx.NodeProto, inputs: dict[int, str], **attributes: Any) -> None:
        """Takes a node over with other inputs or attributes; an attribute of None goes."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in inputs.items():
            while len(copy.input) <= place:
                copy.input.append("")
            copy.input[place] = name
        kept = [attribute for attribute in copy.attribute if attribute.name not in attributes]
        del copy.attribute[:]
        copy.attribute.extend(kept)
        copy.attribute.extend(
            helper.make_attribute(key, value) for key, value in attributes.items() if value is not None
        )
        self.nodes.append(copy)

    def fresh(self, hint: str) -> str:
        """Returns a name that nothing has."""
        name, number = hint, 1
        while name in self.taken:
            number += 1
            name = f"{hint}_{number}"
        self.taken.add(name)
        return name

    def weight(self, array: NDArray[Any], hint: str) -> str:
        """Adds a constant; returns its name."""
        name = self.fresh(hint)
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.values[name] = constant(array)
        return name

    def integers(self, numbers: Sequence[int], hint: str) -> str:
        """Adds a list of whole numbers."""
        return self.weight(np.array(numbers, np.int64), hint)

    def count(self, symbol: str) -> str:
        """Returns the name of a tensor (1,) that holds the number of tokens, or of rows, of a run."""
        source, places = self.counted
        place = self.integers([places[symbol]], f"{symbol}_axis")
        return self.add(
            "Gather", [self.add("Shape", [source], f"{source}_shape"), place], f"{symbol}_count"
        )

    def folded(self, node: onnx.NodeProto) -> list[Value] | None:
        """Computes a node of small constants now; None if it is none."""
        if node.op_type in _NOT_FOLDED or not node.input or node.domain not in ("", "ai.onnx"):
            return None
        given = [self.value(name) for name in node.input if name]
        if any(value is None or value.data is None or value.data.size > _FOLDED for value in given):
            return None
        graph = helper.make_graph(
            [node],
            "folded",
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        feed = {name: self.here(name).data for name in node.input if name}
        try:
            results = ReferenceEvaluator(model).run(None, feed)
        except Exception:  # noqa: BLE001 -- whatever the reference lacks, the rule for the operator knows
            return None
        if not isinstance(results, list) or not all(
            isinstance(one, np.ndarray | np.generic) for one in results
        ):
            return None
        self.keep(node)
        filled = iter(results)
        return [constant(np.asarray(next(filled))) if name else Value(()) for name in node.output]


def constant(array: NDArray[Any]) -> Value:
    """Returns what is known of a constant."""
    return Value(tuple((extent,) if extent != 1 else () for extent in array.shape), data=array)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Returns an attribute of a node; text as str."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def label(node: onnx.NodeProto) -> str:
    """Returns how messages name a node."""
    return f"{node.op_type} {(node.name or next(iter(node.output), ''))!r}"


def join_reach(node: onnx.NodeProto, values: Sequence[Value | None]) -> Reach:
    """Returns which tokens something computed from all of these depends on.

    Raises:
        Refused: It would depend on tokens to come, or on how many there are.
    """
    reaches = {value.reach for value in values if value is not None} - {"constant"}
    if not reaches:
        return "constant"
    if len(reaches) == 1:
        return reaches.pop()
    if "size" in reaches:
        raise Refused(
            f"{label(node)} computes with the number of tokens or rows, which depends on how a stream is "
            "cut into chunks; keep a counter as a state"
        )
    if reaches == {"each", "last"}:
        raise Refused(
            f"{label(node)} puts what is known after the last token beside every token, so earlier tokens "
            "see later ones; use the state of the same token"
        )
    raise Refused(
        f"{label(node)} reads, within a loop, a tensor of all tokens; hand it to the loop token by token"
    )


def check_plain(node: onnx.NodeProto, values: Sequence[Value | None]) -> None:
    """Refuses entries beside the tokens that were put there for a convolution."""
    for value in values:
        if value is not None and (value.before or value.after):
            raise Refused(
                f"{label(node)} reads a time axis with padding; only a convolution may, and what is behind "
                "the last token has to be cut off"
            )


def uniform(value: Value, place: int) -> NDArray[Any] | None:
    """Returns a constant with one axis shrunk to 1, if all its entries there are the same."""
    data = value.data
    if data is None or not is_fixed(value.axes[place]) or number_of(value.axes[place]) < 1:
        return None
    first = np.take(data, [0], place)
    return first if np.array_equal(np.broadcast_to(first, data.shape), data) else None

"""Where a file may use a sequence of tensors: into constant pieces, and by constant positions. Pure.

onnxruntime takes the first value of a position without looking whether it has one, and ends the process if
not. So a sequence is the output of a SplitToSequence and is read by SequenceAt alone, both in the main
graph, and what they are told is in the file: numbers that neither another part of it nor a caller can
replace. What is left to a step is whether the pieces add up to the tensor, which onnxruntime looks at.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from service.model.operators import MOST, ONNX_DOMAIN, Operator

SPLIT, AT = Operator(ONNX_DOMAIN, b"SplitToSequence"), Operator(ONNX_DOMAIN, b"SequenceAt")


class Node(NamedTuple):
    """A node and the names of its values.

    Attributes:
        operator: What it names.
        inputs: Names, empty where one is left out.
        outputs: The same.
        is_in_main_graph: Neither in a sub-graph nor in a function.
    """

    operator: Operator
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    is_in_main_graph: bool


class Numbers(NamedTuple):
    """The whole numbers of a constant.

    Attributes:
        rank: How many axes it has.
        values: Its numbers; of one axis as many as this is long, without axes one.
    """

    rank: int
    values: tuple[int, ...]


class Wiring:
    """Which names a file has for values, gathered while it is read.

    Attributes:
        nodes: All of the file.
        defined: Name -> how often graphs give it to an input, an initializer or a node's output.
        results: Names of the outputs of every graph.
        has_functions: The file defines functions, whose values onnxruntime names once more.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.defined: Counter[bytes] = Counter()
        self.results: set[bytes] = set()
        self.has_functions = False

    def told(self) -> set[bytes]:
        """Returns the names of the positions and extents of sequences, which have to be constants."""
        return {node.inputs[1] for node in self._sequence_nodes() if len(node.inputs) == 2}

    def refusal(self, constants: Mapping[bytes, Numbers]) -> str | None:
        """Says what is wrong with the sequences of a file.

        Args:
            constants: Initializers and Constant nodes of the main graph that are int64, among `told`.

        Returns:
            What is wrong, and what would be right; None if nothing is.
        """
        lengths: dict[bytes, int] = {}
        nodes = sorted(self._sequence_nodes(), key=lambda node: node.operator != SPLIT)
        if nodes and self.has_functions:
            return "it has sequences of tensors beside functions; have the functions inlined"
        for node in nodes:
            name = node.operator.name.decode()
            if not node.is_in_main_graph:
                return f"{name} is in a sub-graph; it is allowed in the main graph only"
            if len(node.inputs) != 2 or len(node.outputs) != 1 or not node.inputs[0]:
                return f"{name} has {len(node.inputs)} inputs and {len(node.outputs)} outputs; use 2 and 1"
            told = constants.get(node.inputs[1])
            if told is None or self.defined[node.inputs[1]] != 1:
                return (
                    f"what {name} is told is no constant; expected an initializer or a Constant of "
                    "int64, no input of the graph, with a name that nothing else in the file has"
                )
            if node.operator == SPLIT:
                if told.rank != 1 or not told.values or min(told.values) < 0 or sum(told.values) > MOST:
                    return f"{name} has no list of extents, from 0 on and of at most {MOST} together"
                if self.defined[node.outputs[0]] != 1:
                    return "the name of a sequence is there twice, which no ONNX tool writes"
                lengths[node.outputs[0]] = len(told.values)
            elif node.inputs[0] not in lengths:
                return f"{name} takes from what is no output of a SplitToSequence"
            else:
                length = lengths[node.inputs[0]]
                if len(told.values) != 1 or not -length <= told.values[0] < length:
                    return f"{name} has a position that is not in {-length}..{length - 1}"
        return self._other_use(set(lengths))

    def _other_use(self, sequences: AbstractSet[bytes]) -> str | None:
        for node in self.nodes:
            taken = node.inputs[1:] if node.operator == AT else node.inputs
            if not sequences.isdisjoint(taken):
                return "a sequence of tensors is read by something else than SequenceAt"
        return (
            None if sequences.isdisjoint(self.results) else "a sequence of tensors is an output of a graph"
        )

    def _sequence_nodes(self) -> Iterator[Node]:
        return (node for node in self.nodes if node.operator in (SPLIT, AT))

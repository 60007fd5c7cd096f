"""Sequences of tensors are let through where constants tell them, and every way around that is refused."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from service.model.onnx_wire import check_file
from service.model.wire_format import UnsafeGraph
from tests.fuzz.stepping import ending_of
from tests.support.hostile_models import INFO, function_named, step_graph

NOTHING = np.zeros(0, np.int64)
SPLIT = ("SplitToSequence", ["x", "extents"], ["pieces"])
AT = ("SequenceAt", ["pieces", "place"], ["piece"])
SUM = helper.make_node("ReduceSum", ["piece"], ["value"], keepdims=0)
LAST = ("Add", ["h_next", "value"], ["y"])


def number(name, value, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


EXTENTS, PLACE = number("extents", [1, 1]), number("place", 1)


def sequence_graph(*nodes, split=SPLIT, at=AT, initializers=(EXTENTS, PLACE), **changes):
    """Returns a step graph that adds the second column of x, taken from a sequence, to what it gives."""
    split, at = (node if hasattr(node, "op_type") else helper.make_node(*node) for node in (split, at))
    if not any(attribute.name == "axis" for attribute in split.attribute):
        split.attribute.append(helper.make_attribute("axis", 1))
    return step_graph(*nodes, split, at, SUM, initializers=initializers, last=LAST, **changes)


def constant(name, tensor=None, **attributes):
    return helper.make_node("Constant", [], [name], **({"value": tensor} if tensor else attributes))


def with_constant(*attributes):
    """Returns the graph whose position is a Constant node of these attributes."""
    node = helper.make_node("Constant", [], ["place"])
    node.attribute.extend(attributes)
    return sequence_graph(node, initializers=[EXTENTS])


def tensor(**fields):
    return TensorProto(name="place", **fields)


def with_place(place):
    return sequence_graph(initializers=[EXTENTS, place])


def changed(change):
    model = sequence_graph()
    change(model.graph)
    return model


def branch(*nodes, gives="inner", inputs=(), initializers=()):
    """Returns an If with these nodes in its branches."""
    graph = helper.make_graph(
        list(nodes), "branch", inputs, [INFO(gives, TensorProto.FLOAT, None)], initializers
    )
    return helper.make_node("If", ["c"], ["chosen"], then_branch=graph, else_branch=graph)


def merged_tensor():
    """Returns bytes with the tensor of a Constant twice: a parser merges them, and finds no number."""
    full = number("", 1).SerializeToString()
    empty = TensorProto(dims=[0]).SerializeToString() + b"\x4a\x00"
    attribute = AttributeProto(name="value", type=AttributeProto.TENSOR).SerializeToString()
    for part in (full, empty):
        attribute += b"\x2a" + bytes([len(part)]) + part
    node = helper.make_node("Constant", [], ["place"]).SerializeToString()
    node += b"\x2a" + bytes([len(attribute)]) + attribute
    graph = b"\x0a" + bytes([len(node)]) + node
    data = sequence_graph(initializers=[EXTENTS]).SerializeToString()
    data += b"\x3a" + bytes([len(graph)]) + graph
    [merged] = [n for n in ModelProto.FromString(data).graph.node if n.op_type == "Constant"]
    assert list(merged.attribute[0].t.dims) == [0]
    assert merged.attribute[0].t.raw_data == b""
    return data


def in_two_graphs():
    """Returns bytes with a second graph, which a parser adds to the first, with another position."""
    second = ModelProto()
    second.graph.initializer.append(number("place", NOTHING))
    return sequence_graph().SerializeToString() + second.SerializeToString()


NO_CONSTANT = "is not a constant"
INT64, INT32 = TensorProto.INT64, TensorProto.INT32
VALUE = helper.make_attribute("value", PLACE)
BEYOND = "position that is not in -2..1"
EXTENT = "no list of extents"
OTHER_USE = "read by something else"
SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("place", INT64, [1], [1]), helper.make_tensor("", INT64, [1], [0]), [1]
)


def untyped(attribute):
    copy = AttributeProto.FromString(attribute.SerializeToString())
    copy.ClearField("type")
    return copy


REFUSED = {
    # -- what is told ----------------------------------------------------------------------------
    "no position": (with_place(number("place", NOTHING)), BEYOND),
    "no position, of two axes": (with_place(number("place", np.zeros((0, 3)))), BEYOND),
    "several positions": (with_place(number("place", [0, 1])), BEYOND),
    "a position beyond the pieces": (with_place(number("place", 2)), BEYOND),
    "a position before them": (with_place(number("place", -3)), BEYOND),
    "a position of int32": (with_place(number("place", 1, np.int32)), NO_CONSTANT),
    "no extents": (sequence_graph(initializers=[number("extents", NOTHING), PLACE]), EXTENT),
    "one extent for all": (sequence_graph(initializers=[number("extents", 1), PLACE]), EXTENT),
    "a negative extent": (sequence_graph(initializers=[number("extents", [3, -1]), PLACE]), EXTENT),
    "extents that run over": (
        sequence_graph(initializers=[number("extents", [2**62, 2**62, 2**62, 2**62, 2]), PLACE]),
        EXTENT,
    ),
    "extents left out": (sequence_graph(split=("SplitToSequence", ["x"], ["pieces"])), "1 inputs"),
    "extents of an empty name": (
        sequence_graph(split=("SplitToSequence", ["x", ""], ["pieces"])),
        NO_CONSTANT,
    ),
    "nothing to split": (sequence_graph(split=("SplitToSequence", ["", "extents"], ["pieces"])), "inputs"),
    "a position that is computed": (
        sequence_graph(
            ("Identity", ["place"], ["moved"]), at=("SequenceAt", ["pieces", "moved"], ["piece"])
        ),
        NO_CONSTANT,
    ),
    "a position of nowhere": (sequence_graph(initializers=[EXTENTS]), NO_CONSTANT),
    # -- bytes of a constant ---------------------------------------------------------------------
    "empty extents beside data": (
        with_place(tensor(dims=[0], data_type=INT64, raw_data=bytes(8))),
        NO_CONSTANT,
    ),
    "less data than it says": (with_place(tensor(dims=[1], data_type=INT64, raw_data=b"")), NO_CONSTANT),
    "half a number": (with_place(tensor(dims=[1], data_type=INT64, raw_data=bytes(4))), NO_CONSTANT),
    "no data at all": (with_place(tensor(dims=[1], data_type=INT64)), NO_CONSTANT),
    "data in two places": (
        with_place(tensor(dims=[1], data_type=INT64, raw_data=bytes(8), int64_data=[1])),
        NO_CONSTANT,
    ),
    "data of a segment": (
        with_place(
            tensor(dims=[], data_type=INT64, raw_data=bytes(8), segment=TensorProto.Segment(begin=0, end=0))
        ),
        NO_CONSTANT,
    ),
    "data of another type": (with_place(tensor(data_type=INT64, int32_data=[1])), NO_CONSTANT),
    "negative extents of its own": (
        with_place(tensor(dims=[-1, -1], data_type=INT64, int64_data=[1])),
        NO_CONSTANT,
    ),
    "outside": (
        with_place(tensor(data_type=INT64, data_location=TensorProto.EXTERNAL)),
        "external data",
    ),
    # -- Constant nodes --------------------------------------------------------------------------
    "an empty Constant": (
        sequence_graph(constant("place", number("", NOTHING)), initializers=[EXTENTS]),
        BEYOND,
    ),
    "a Constant by another attribute": (
        sequence_graph(constant("place", value_int=1), initializers=[EXTENTS]),
        NO_CONSTANT,
    ),
    "a Constant of two attributes": (
        with_constant(VALUE, helper.make_attribute("value_ints", [0, 0])),
        NO_CONSTANT,
    ),
    "a Constant whose attribute says no type": (with_constant(untyped(VALUE)), NO_CONSTANT),
    "a Constant whose attribute is of another type": (
        with_constant(AttributeProto(name="value", type=AttributeProto.INTS, t=PLACE)),
        NO_CONSTANT,
    ),
    "a Constant whose value is a parameter": (
        with_constant(
            AttributeProto(name="value", type=AttributeProto.TENSOR, t=PLACE, ref_attr_name="elsewhere")
        ),
        NO_CONSTANT,
    ),
    "a Constant of a domain of the file": (
        sequence_graph(
            helper.make_node("Constant", [], ["place"], domain="mine", value=PLACE),
            initializers=[EXTENTS],
            functions=[function_named("mine", "Constant")],
        ),
        "beside functions",
    ),
    "a Constant in a sub-graph": (
        sequence_graph(branch(constant("place", PLACE), gives="place"), initializers=[EXTENTS]),
        NO_CONSTANT,
    ),
    # -- names -----------------------------------------------------------------------------------
    "an initializer that a caller may replace": (
        changed(lambda graph: graph.input.append(INFO("place", INT64, None))),
        NO_CONSTANT,
    ),
    "an initializer twice": (
        sequence_graph(initializers=[EXTENTS, PLACE, number("place", NOTHING)]),
        NO_CONSTANT,
    ),
    "an initializer twice, the empty one first": (
        sequence_graph(initializers=[EXTENTS, number("place", NOTHING), PLACE]),
        NO_CONSTANT,
    ),
    "extents twice": (sequence_graph(initializers=[EXTENTS, PLACE, number("extents", [2])]), NO_CONSTANT),
    "a sparse initializer of the same name": (
        changed(lambda graph: graph.sparse_initializer.append(SPARSE)),
        NO_CONSTANT,
    ),
    "an initializer and a Constant": (sequence_graph(constant("place", number("", NOTHING))), NO_CONSTANT),
    "an initializer and another node's output": (
        sequence_graph(helper.make_node("NonZero", ["x"], ["place"])),
        NO_CONSTANT,
    ),
    "an initializer of a sub-graph of the same name": (
        sequence_graph(branch(initializers=[number("place", NOTHING)])),
        NO_CONSTANT,
    ),
    "an input of a sub-graph of the same name": (
        sequence_graph(branch(inputs=[INFO("place", INT64, None)])),
        NO_CONSTANT,
    ),
    "two sequences of one name": (sequence_graph(SPLIT), "there twice"),
    "a sequence named as an input": (
        sequence_graph(
            split=("SplitToSequence", ["x", "extents"], ["h"]), at=("SequenceAt", ["h", "place"], ["piece"])
        ),
        "there twice",
    ),
    # -- other uses ------------------------------------------------------------------------------
    "a sequence that is an input": (
        changed(
            lambda graph: (
                graph.node.remove(graph.node[0]),
                graph.input.append(
                    helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None)
                ),
            )
        ),
        "not an output of SplitToSequence",
    ),
    "a sequence that goes through Identity": (
        sequence_graph(
            SPLIT,
            ("Identity", ["pieces"], ["same"]),
            split=("SplitToSequence", ["x", "extents"], ["more"]),
            at=("SequenceAt", ["same", "place"], ["piece"]),
        ),
        "not an output of SplitToSequence",
    ),
    "a sequence that goes to Identity": (sequence_graph(("Identity", ["pieces"], ["same"])), OTHER_USE),
    "a sequence as a position": (
        sequence_graph(("SequenceAt", ["pieces", "pieces"], ["other"])),
        NO_CONSTANT,
    ),
    "a sequence that is an output": (
        changed(
            lambda graph: graph.output.append(
                helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None)
            )
        ),
        "an output of a graph",
    ),
    "a sequence that a sub-graph reads": (
        sequence_graph(branch(helper.make_node("Identity", ["pieces"], ["inner"]))),
        OTHER_USE,
    ),
    "a sequence that a sub-graph takes from": (
        sequence_graph(branch(helper.make_node("SequenceAt", ["pieces", "place"], ["inner"]))),
        "is in a sub-graph",
    ),
    "a sequence that a sub-graph gives": (sequence_graph(branch(gives="pieces")), "an output of a graph"),
    "a sequence of a sub-graph": (
        step_graph(
            branch(
                helper.make_node(*SPLIT), helper.make_node("SequenceAt", ["pieces", "place"], ["inner"])
            ),
            initializers=[EXTENTS, PLACE],
        ),
        "is in a sub-graph",
    ),
    "a sequence in a function": (
        step_graph(functions=[function_named("mine", "f", helper.make_node(*SPLIT))]),
        "beside functions",
    ),
    "a sequence that a function is given": (
        sequence_graph(
            helper.make_node("f", ["pieces"], ["same"], domain="mine"),
            functions=[function_named("mine", "f")],
        ),
        "beside functions",
    ),
    "two outputs": (
        sequence_graph(split=("SplitToSequence", ["x", "extents"], ["pieces", "more"])),
        "2 outputs",
    ),
    # -- operators of the same kind that stay out ------------------------------------------------
    **{
        name: (step_graph((name, ["x"], ["w"])), f"'{name}' of domain ''")
        for name in (
            "ConcatFromSequence",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SequenceMap",
            "Optional",
        )
    },
}


@pytest.mark.parametrize(("model", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_sequence_that_something_else_may_tell_is_refused(model, reason):
    with pytest.raises(UnsafeGraph, match=reason):
        check_file(model.SerializeToString())


def test_bytes_that_a_parser_merges_are_refused():
    for data in (merged_tensor(), in_two_graphs()):
        with pytest.raises(UnsafeGraph, match=NO_CONSTANT):
            check_file(data)


ALLOWED = {
    "raw data": sequence_graph(),
    "a list of numbers": with_place(helper.make_tensor("place", INT64, [], [1])),
    "a position from the end": with_place(helper.make_tensor("place", INT64, [1], [-1])),
    "Constant nodes": sequence_graph(
        constant("extents", number("", [1, 1])), constant("place", number("", 1)), initializers=[]
    ),
    "a piece of nothing": sequence_graph(initializers=[number("extents", [0, 1, 1]), number("place", 2)]),
    "by the other name of the domain": sequence_graph(
        at=helper.make_node("SequenceAt", ["pieces", "place"], ["piece"], domain="ai.onnx")
    ),
}


@pytest.mark.parametrize("model", ALLOWED.values(), ids=ALLOWED.keys())
def test_a_sequence_that_constants_tell_is_let_through_and_runs(model):
    data = model.SerializeToString()
    check_file(data)
    session = ort.InferenceSession(data)
    x, h = np.array([[2, 3]], np.float32), np.array([[10, 20]], np.float32)
    assert session.run(["y"], {"x": x, "h": h})[0].tolist() == [[15, 26]]


@pytest.mark.process
def test_a_position_without_a_value_would_end_the_process():
    """Why they are refused: if onnxruntime has come to survive this, the rules may go."""
    data = with_place(number("place", NOTHING)).SerializeToString()
    _, signalled = ending_of(data)
    assert signalled

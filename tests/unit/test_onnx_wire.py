"""What an ONNX file must not hold is found wherever it hides, and nothing else is refused."""

import onnx
import pytest
from onnx import TensorProto, helper

from service.model.onnx_wire import UnsafeGraph, check_file
from tests.hostile_models import (
    MEMORY_ADDRESS,
    endless,
    external_tensor,
    function_with,
    greedy,
    step_graph,
    subgraph_with,
)
from tests.models import CONTRACT
from tests.oracle import MODELS

ANYWHERE = external_tensor("w.bin")


def sparse_of(tensor):
    return helper.make_sparse_tensor(tensor, helper.make_tensor("", TensorProto.INT64, [2], [0, 1]), [2])


def unset_location(tensor):
    """Gives a tensor external data without the location that says so."""
    changed = TensorProto.FromString(tensor.SerializeToString())
    changed.ClearField("data_location")
    return changed


def with_training_graph():
    model = step_graph()
    model.training_info.add().algorithm.name = "sgd"
    return model


CALLS = helper.make_node("weights", [], ["w"], domain="mine")
EXTERNAL = "external data"
REFUSED = {
    "an initializer in a file": (step_graph(initializers=[ANYWHERE]), EXTERNAL),
    "outside the folder": (step_graph(initializers=[external_tensor("../../etc/passwd")]), EXTERNAL),
    "an address in memory": (step_graph(initializers=[external_tensor(MEMORY_ADDRESS)]), EXTERNAL),
    "without a location": (step_graph(initializers=[unset_location(ANYWHERE)]), EXTERNAL),
    "an attribute": (step_graph(helper.make_node("Constant", [], ["w"], value=ANYWHERE)), EXTERNAL),
    "a list in an attribute": (
        step_graph(helper.make_node("Constant", [], ["w"], values=[ANYWHERE])),
        EXTERNAL,
    ),
    "a sparse attribute": (
        step_graph(helper.make_node("Constant", [], ["w"], sparse_value=sparse_of(ANYWHERE))),
        EXTERNAL,
    ),
    "a subgraph": (step_graph(subgraph_with(ANYWHERE)), EXTERNAL),
    "a subgraph of a subgraph": (step_graph(subgraph_with(ANYWHERE)), EXTERNAL),
    "a function": (step_graph(CALLS, functions=[function_with(ANYWHERE)]), EXTERNAL),
    "a custom operator": (step_graph(helper.make_node("Shell", ["x"], ["w"], domain="evil")), "'evil'"),
    "a custom operator in a subgraph": (
        step_graph(
            helper.make_node(
                "If",
                ["c"],
                ["w"],
                then_branch=helper.make_graph(
                    [helper.make_node("Shell", ["x"], ["w"], domain="evil")], "branch", [], []
                ),
            )
        ),
        "'evil'",
    ),
    "an operator of onnxruntime that is not listed": (
        step_graph(helper.make_node("EPContext", ["x"], ["w"], domain="com.microsoft")),
        "'EPContext'",
    ),
    "a function that is not in the file": (step_graph(CALLS), "'weights' of domain 'mine'"),
    "settings of onnxruntime": (step_graph(metadata={**CONTRACT, "ort_config": "{}"}), "ort_config"),
    "a training graph": (with_training_graph(), "training"),
}


@pytest.mark.parametrize(("model", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_server_must_not_load_is_found(model, reason):
    with pytest.raises(UnsafeGraph, match=reason):
        check_file(model.SerializeToString())


ALLOWED = {
    "plain": step_graph(),
    "quantised": step_graph(
        helper.make_node("DynamicQuantizeLSTM", ["x"], ["w"], domain="com.microsoft"),
    ),
    "a function of the file": step_graph(
        CALLS, functions=[function_with(helper.make_tensor("", 1, [2], [1, 2]))]
    ),
    "a loop": endless(),
    "a large one": greedy(1 << 40),
}


@pytest.mark.parametrize("model", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_lies_in_the_file_alone_is_let_through(model):
    check_file(model.SerializeToString())


def test_the_shipped_models_are_let_through():
    paths = sorted(MODELS.glob("*/*/model.onnx"))
    assert len(paths) == 3
    for path in paths:
        check_file(path.read_bytes())


@pytest.mark.parametrize("size", [1, 3, 10, 100, 150])
def test_a_truncated_file_is_no_onnx_file(size):
    with pytest.raises(UnsafeGraph, match="not a loadable ONNX graph"):
        check_file(step_graph().SerializeToString()[:size])


def test_a_name_given_twice_is_refused():
    """A parser takes the last one; a reader that took the first would be deceived."""
    node = (
        helper.make_node("Add", ["h", "x"], ["w"], domain="").SerializeToString() + b"\x3a\x00\x3a\x04evil"
    )
    graph = b"\x0a" + bytes([len(node)]) + node
    data = b"\x3a" + bytes([len(graph)]) + graph
    assert onnx.ModelProto.FromString(data).graph.node[0].domain == "evil"
    with pytest.raises(UnsafeGraph, match="twice"):
        check_file(data)


def test_nesting_has_an_end():
    graph = b""
    for _ in range(60):
        attribute = b"\x32" + varint(len(graph)) + graph
        node = b"\x2a" + varint(len(attribute)) + attribute
        graph = b"\x0a" + varint(len(node)) + node
    with pytest.raises(UnsafeGraph, match="deep"):
        check_file(b"\x3a" + varint(len(graph)) + graph)


def varint(value):
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])

"""What an ONNX file must not hold is found wherever it hides, and nothing else is refused."""

import onnx
import pytest
from onnx import TensorProto, helper

from service.model.onnx_wire import check_file
from service.model.wire_format import UnsafeGraph
from tests.support.hostile_models import (
    MEMORY_ADDRESS,
    endless,
    external_tensor,
    function_named,
    function_with,
    greedy,
    shadowing,
    step_graph,
    subgraph_with,
)
from tests.support.models import CONTRACT
from tests.support.oracle import MODELS

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


def grouped_by_its_caller():
    node = helper.make_node("Conv", ["value", "value"], ["w"], group=1)
    node.attribute[0].ClearField("i")
    node.attribute[0].ref_attr_name = "groups"
    return node


def without_opset():
    model = step_graph()
    del model.opset_import[:]
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
    "a function in the name of a kernel, called at token 7": (shadowing(), "'Inverse' in the domain"),
    "a function in the name of a kernel of ONNX's domain": (
        step_graph(
            helper.make_node("MemcpyToHost", ["x"], ["w"]), functions=[function_named("", "MemcpyToHost")]
        ),
        "'MemcpyToHost' in the domain ''",
    ),
    "the same by the other name of the domain": (
        step_graph(functions=[function_named("ai.onnx", "MemcpyToHost")]),
        "'MemcpyToHost' in the domain ''",
    ),
    **{
        f"a function in {domain}": (
            step_graph(functions=[function_named(domain, "Mine")]),
            "a domain of yours",
        )
        for domain in (
            "ai.onnx.ml",
            "ai.onnx.preview.training",
            "com.microsoft.nchwc",
            "com.ms.internal.nhwc",
            "org.pytorch.aten",
        )
    },
    "an operator that onnxruntime has in ONNX's domain": (
        step_graph(helper.make_node("MemcpyToHost", ["x"], ["w"])),
        "'MemcpyToHost' of domain ''",
    ),
    "an operator that does not stand what it may be given": (
        step_graph(helper.make_node("DFT", ["x"], ["w"], domain="ai.onnx")),
        "'DFT' of domain ''",
    ),
    "an operator in a function that nothing calls": (
        step_graph(functions=[function_named("mine", "unused", helper.make_node("DFT", ["value"], ["w"]))]),
        "'DFT'",
    ),
    "a function with another overload": (
        step_graph(
            helper.make_node("f", ["x"], ["w"], domain="mine", overload="a"),
            functions=[function_named("mine", "f", overload="b")],
        ),
        "'f' of domain 'mine'",
    ),
    "an overload of a listed operator": (
        step_graph(helper.make_node("Relu", ["x"], ["w"], overload="a")),
        "has an overload",
    ),
    "a function that calls itself": (
        step_graph(
            functions=[function_named("mine", "f", helper.make_node("f", ["value"], ["w"], domain="mine"))]
        ),
        "'f' calls itself",
    ),
    "functions that call each other": (
        step_graph(
            functions=[
                function_named("mine", "f", helper.make_node("g", ["value"], ["w"], domain="mine")),
                function_named("mine", "g", helper.make_node("f", ["value"], ["w"], domain="mine")),
            ]
        ),
        "'f' calls itself, or another one that does",
    ),
    "a function that is there twice": (
        step_graph(functions=[function_named("mine", "f"), function_named("mine", "f")]),
        "'f' twice",
    ),
    "a space in a name": (step_graph(helper.make_node("Relu x", ["x"], ["w"])), "a space"),
    "operators of an old version in a function": (
        step_graph(functions=[function_named("mine", "f", opset=6)]),
        "version 6 of ONNX's operators",
    ),
    "no version of operators": (without_opset(), "does not say which version of ONNX's operators"),
    "no groups": (
        step_graph(helper.make_node("Conv", ["x", "x"], ["w"], group=0)),
        "'group' is not in 1..2147483647",
    ),
    "no groups of a convolution with its activation": (
        step_graph(helper.make_node("FusedConv", ["x", "x"], ["w"], domain="com.microsoft", group=0)),
        "'group' is not in 1..2147483647",
    ),
    "means that are learnt while it runs": (
        step_graph(helper.make_node("BatchNormalization", ["x"] * 5, ["w"], training_mode=1)),
        "'training_mode' is not in 0..0",
    ),
    "a number of groups that a caller gives": (
        step_graph(functions=[function_named("mine", "f", grouped_by_its_caller())]),
        "'group' is a parameter",
    ),
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
    "a convolution with its activation": step_graph(
        helper.make_node("FusedConv", ["x", "x"], ["w"], domain="com.microsoft", activation="Relu"),
    ),
    "means that were learnt": step_graph(helper.make_node("BatchNormalization", ["x"] * 5, ["w"])),
    "a function of the file": step_graph(
        CALLS, functions=[function_with(helper.make_tensor("", 1, [2], [1, 2]))]
    ),
    "functions as torch writes them": step_graph(
        helper.make_node("block", ["x"], ["w"], domain="pkg.torch.2.6.0", overload="1"),
        functions=[
            function_named("pkg.onnxscript.torch_lib", "aten_relu"),
            function_named(
                "pkg.torch.2.6.0",
                "block",
                helper.make_node("aten_relu", ["value"], ["w"], domain="pkg.onnxscript.torch_lib"),
                overload="1",
            ),
        ],
    ),
    "a loop": endless(),
    "a large one": greedy(1 << 40),
}


@pytest.mark.parametrize("model", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_lies_in_the_file_alone_is_let_through(model):
    check_file(model.SerializeToString())


def test_the_shipped_models_are_let_through():
    paths = sorted(MODELS.glob("*/*/model.onnx"))
    assert len(paths) == 7
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


def test_a_name_of_another_wire_type_is_refused():
    """A parser skips it, and takes this node for ONNX's own DFT, not for a function of `mydomain`."""
    node = helper.make_node("DFT", ["x"], ["w"]).SerializeToString() + b"\x39mydomain"
    graph = b"\x0a" + bytes([len(node)]) + node
    model = step_graph(functions=[function_named("mydomain", "DFT")]).SerializeToString()
    data = model + b"\x3a" + bytes([len(graph)]) + graph
    assert [n.domain for n in onnx.ModelProto.FromString(data).graph.node if n.op_type == "DFT"] == [""]
    with pytest.raises(UnsafeGraph, match=r"field 7 of a node at byte \d+ is of wire type 1"):
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

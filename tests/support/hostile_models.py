"""ONNX files that a server must not load, or would not survive; each is a step graph otherwise."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import CONTRACT

INFO = helper.make_tensor_value_info
STEP = ("Add", ["h", "x"], ["h_next"])
MEMORY_ADDRESS = "*/_ORT_MEM_ADDR_/*"
"""Location by which onnxruntime means an address in its own process instead of a file."""


def step_graph(
    *nodes, initializers=(), functions=(), metadata=CONTRACT, last=("Identity", ["h_next"], ["y"])
):
    """Returns the model h_next = h + x, y = h_next, with further nodes before it."""
    made = [node if hasattr(node, "op_type") else helper.make_node(*node) for node in (*nodes, STEP, last)]
    graph = helper.make_graph(
        made,
        "sum",
        [INFO("x", TensorProto.FLOAT, ["batch", 2]), INFO("h", TensorProto.FLOAT, ["batch", 2])],
        [INFO("y", TensorProto.FLOAT, ["batch", 2]), INFO("h_next", TensorProto.FLOAT, ["batch", 2])],
        initializers,
    )
    domains = {node.domain for node in made} | {function.domain for function in functions} | {""}
    opsets = [
        helper.make_opsetid(domain, 20 if domain in ("", "ai.onnx") else 1) for domain in sorted(domains)
    ]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    helper.set_model_props(model, metadata)
    return model


def external_tensor(location, *, offset=0, name="w"):
    """Returns two floats whose data lie elsewhere."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", str(offset)), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def subgraph_with(tensor):
    """Returns an If whose branches hold a tensor."""
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["v"], value=tensor)],
        "branch",
        [],
        [INFO("v", TensorProto.FLOAT, [2])],
    )
    return helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)


def function_with(tensor):
    """Returns a function of the file that holds a tensor."""
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    return helper.make_function("mine", "weights", [], ["w"], [constant], [helper.make_opsetid("", 20)])


def function_named(domain, name, *nodes, overload="", opset=20):
    """Returns a function of one value that gives it back, with further nodes before that."""
    gives = helper.make_node("Identity", ["value"], ["same"])
    opsets = [
        helper.make_opsetid(domain, opset) for domain in sorted({node.domain for node in nodes} | {""})
    ]
    made = helper.make_function(domain, name, ["value"], ["same"], [*nodes, gives], opsets)
    made.overload = overload
    return made


def shadowing():
    """Returns a graph that defines Inverse of onnxruntime, and crashes its kernel once tokens sum up to 7.

    The kernel writes past the end of a matrix that is not square.
    """
    constants = {
        "seven": np.float32(7),
        "square": np.array([2, 2], np.int64),
        "wide": np.array([2, 100_000], np.int64),
        "nothing": np.float32(0),
    }
    return step_graph(
        ("Add", ["h", "x"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["most"], keepdims=0),
        ("GreaterOrEqual", ["most", "seven"], ["late"]),
        ("Where", ["late", "wide", "square"], ["extents"]),
        ("ConstantOfShape", ["extents"], ["matrix"]),
        helper.make_node("Inverse", ["matrix"], ["inverse"], domain="com.microsoft"),
        helper.make_node("ReduceMax", ["inverse"], ["value"], keepdims=0),
        ("Mul", ["value", "nothing"], ["zero"]),
        initializers=[
            numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
        ],
        functions=[function_named("com.microsoft", "Inverse")],
        last=("Add", ["h_next", "zero"], ["y"]),
    )


def endless():
    """Returns a graph whose step never ends."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Identity", ["value"], ["same"]),
        ],
        "body",
        [
            INFO("count", TensorProto.INT64, []),
            INFO("going", TensorProto.BOOL, []),
            INFO("value", TensorProto.FLOAT, None),
        ],
        [INFO("goes_on", TensorProto.BOOL, []), INFO("same", TensorProto.FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["", "for_ever", "h_next"], ["y"], body=body)
    return step_graph(
        initializers=[numpy_helper.from_array(np.array(True), "for_ever")],
        last=loop,
    )


def greedy(size_bytes):
    """Returns a graph that needs so much memory for a step."""
    return step_graph(
        ("ConstantOfShape", ["extents"], ["large"]),
        ("ReduceMax", ["large"], ["most"]),
        ("Add", ["x", "most"], ["sum"]),
        initializers=[numpy_helper.from_array(np.array([size_bytes // 4], np.int64), "extents")],
        last=("Add", ["h_next", "most"], ["y"]),
    )


def lying():
    """Returns a graph that says y has a row per session, and gives the first one only."""
    return step_graph(
        initializers=[numpy_helper.from_array(np.array([True]), "first")],
        last=helper.make_node("Compress", ["h_next", "first"], ["y"], axis=0),
    )

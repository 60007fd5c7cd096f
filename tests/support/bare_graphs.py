"""Step graphs as others export them: no contract in the file, and names and axes of any kind."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


def graph(nodes, inputs, outputs, weights=()):
    """Returns a file.

    Args:
        nodes: (operator, inputs, outputs, attributes) each.
        inputs: Name -> axes, or (dtype, axes).
        outputs: Likewise.
        weights: Name -> array.
    """

    def declared(tensors):
        for name, value in tensors.items():
            dtype, axes = value if isinstance(value, tuple) else ("float32", value)
            yield helper.make_tensor_value_info(name, DTYPES[dtype], axes)

    made = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "net",
        list(declared(inputs)),
        list(declared(outputs)),
        [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def elman(*, before="h", after="hn", hides_width=False, mixes=False):
    """Returns h_next = tanh(W x + U h), y = V h_next, of 3, 4 and 2 values.

    Args:
        before: Name of the state.
        after: Name of the next one.
        hides_width: No reader of the graph can tell how wide y is.
        mixes: y loses the mean of the batch.
    """
    rng = np.random.default_rng(1)
    weights = {
        "W": rng.standard_normal((3, 4)).astype(np.float32),
        "U": 0.5 * rng.standard_normal((4, 4)).astype(np.float32),
        "V": rng.standard_normal((4, 2)).astype(np.float32),
        "both": np.array([True, True]),
        "zero": np.array([0], np.int64),
    }
    nodes = [
        ("MatMul", ["x", "W"], ["a"], {}),
        ("MatMul", [before, "U"], ["b"], {}),
        ("Add", ["a", "b"], ["c"], {}),
        ("Tanh", ["c"], [after], {}),
        ("MatMul", [after, "V"], ["d"], {}),
    ]
    if mixes:
        nodes += [("ReduceMean", ["d", "zero"], ["e"], {"keepdims": 1}), ("Sub", ["d", "e"], ["y"], {})]
    elif hides_width:
        nodes.append(("Compress", ["d", "both"], ["y"], {"axis": 1}))
    else:
        nodes.append(("Identity", ["d"], ["y"], {}))
    return graph(
        nodes,
        {"x": ["batch", 3], before: ["batch", 4]},
        {"y": ["batch", "unk__3" if hides_width else 2], after: ["batch", 4]},
        {name: array for name, array in weights.items() if any(name in node[1] for node in nodes)},
    )


def scaled(scale="gain"):
    """Returns a running sum of the token times a constant that is an input."""
    return graph(
        [
            ("Mul", ["x", scale], ["a"], {}),
            ("Add", ["a", "s"], ["s_new"], {}),
            ("Identity", ["s_new"], ["y"], {}),
        ],
        {"x": ["N", 2], "s": ["N", 2], scale: []},
        {"y": ["N", 2], "s_new": ["N", 2]},
    )

"""Small step graphs for tests, built node by node."""

import json

from onnx import TensorProto, helper

STATE = {
    "name": "h", "input": "h", "output": "h_next", "dtype": "float32", "shape": [2],
    "batch_axis": 0, "initial": "zeros",
}  # fmt: skip
CONTRACT = {
    "holdfast.contract_version": "1",
    "holdfast.input": json.dumps({"name": "x", "kind": "features", "dtype": "float32", "width": 2}),
    "holdfast.states": json.dumps([STATE]),
    "holdfast.outputs": json.dumps([{"name": "y", "dtype": "float32", "shape": [2], "role": "raw"}]),
}


def write_features_model(path, *, batch="batch", metadata=None):
    """Writes h_next = h + x, y = h_next over two features."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["h", "x"], ["h_next"]),
            helper.make_node("Identity", ["h_next"], ["y"]),
        ],
        "sum",
        [info("x", TensorProto.FLOAT, [batch, 2]), info("h", TensorProto.FLOAT, [batch, 2])],
        [info("y", TensorProto.FLOAT, [batch, 2]), info("h_next", TensorProto.FLOAT, [batch, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, CONTRACT if metadata is None else metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())

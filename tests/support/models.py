"""Models for tests: small step graphs, built node by node, and shipped ones under other names."""

import json
import shutil

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.hash_oracle import FACTOR, MODULUS
from tests.support.oracle import MODELS

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


def put_shipped(folder, shipped, name, version=1):
    """Puts the file of a shipped model where one is served, by a rename, as a deployment tool would."""
    path = folder / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    shutil.copyfile(MODELS / shipped / "1" / "model.onnx", fresh)
    fresh.replace(path)


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
    _write(graph, CONTRACT if metadata is None else metadata, path)


def _write(graph, metadata, path):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


STALLS, RAISES, CHANGES_SHAPE, SPOILS_STATE, SPOILS_LOGITS, RULES_OUT_ALL = range(200, 206)
"""What tokens of the poison model do; any other is added to the state."""

POISON_CONTRACT = {
    "holdfast.contract_version": "1",
    "holdfast.input": json.dumps({"name": "token", "kind": "token_id", "dtype": "int64", "width": 1}),
    "holdfast.states": json.dumps([STATE]),
    "holdfast.outputs": json.dumps(
        [
            {"name": "logits", "dtype": "float32", "shape": [256], "role": "logits"},
            {"name": "y", "dtype": "float32", "shape": [2], "role": "raw"},
        ]
    ),
    "holdfast.vocabulary": json.dumps({"kind": "bytes", "size": 256}),
}


def write_poison_model(path):
    """Writes h_next = h + token, logits = h_next * id / 256, y = h_next, unless a token is poison.

    A token that stalls, raises or changes the shape of y does so for the whole batch; one that spoils the
    state or the logits, by NaN, or rules out all next tokens, by -inf, does so for its row.
    """
    nodes, constants = [], []

    def add(operator, *inputs, **attributes):
        name = f"{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(value, dtype):
        name = f"constant_{len(constants)}"
        constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def is_row(token):
        return add("Unsqueeze", add("Equal", "token", constant(token, np.int64)), constant([1], np.int64))

    def occurs(token):
        equal = add("Cast", add("Equal", "token", constant(token, np.int64)), to=TensorProto.INT64)
        return add("ReduceMax", equal, keepdims=0)

    turns = add("Mul", occurs(STALLS), constant(2**62, np.int64))
    zero = add("Loop", turns, "", constant(0, np.float32), body=_endless_body())
    index = add("Mul", occurs(RAISES), constant(7, np.int64))  # there is one element
    one = add("Gather", constant([1], np.float32), index)
    added = add("Cast", add("Unsqueeze", "token", constant([1], np.int64)), to=TensorProto.FLOAT)
    total = add("Add", "h", add("Mul", add("Add", added, zero), one))
    after = add("Where", is_row(SPOILS_STATE), constant(np.nan, np.float32), total)
    width = add("Sub", constant(2, np.int64), occurs(CHANGES_SHAPE))
    ends = add("Unsqueeze", width, constant([0], np.int64))
    first = add("Slice", total, *(constant([value], np.int64) for value in (0, 1, 1)))
    logits = add("Mul", first, constant(np.arange(256) / 256, np.float32))
    logits = add("Where", is_row(SPOILS_LOGITS), constant(np.nan, np.float32), logits)
    logits = add("Where", is_row(RULES_OUT_ALL), constant(-np.inf, np.float32), logits)
    axes = constant([1], np.int64)
    nodes.append(helper.make_node("Slice", [total, constant([0], np.int64), ends, axes], ["y"]))
    nodes.append(helper.make_node("Identity", [after], ["h_next"]))
    nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "poison",
        [info("token", TensorProto.INT64, ["batch"]), info("h", TensorProto.FLOAT, ["batch", 2])],
        [
            info("logits", TensorProto.FLOAT, ["batch", 256]),
            info("y", TensorProto.FLOAT, ["batch", 2]),
            info("h_next", TensorProto.FLOAT, ["batch", 2]),
        ],
        constants,
    )
    _write(graph, POISON_CONTRACT, path)


def _endless_body():
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Sin", ["value_in"], ["value_out"]),
        ],
        "turn",
        [
            info("turn", TensorProto.INT64, []),
            info("condition_in", TensorProto.BOOL, []),
            info("value_in", TensorProto.FLOAT, []),
        ],
        [info("condition_out", TensorProto.BOOL, []), info("value_out", TensorProto.FLOAT, [])],
    )


HASH_STATE = {
    "name": "s", "input": "s", "output": "s_next", "dtype": "int64", "shape": [],
    "batch_axis": 0, "initial": "zeros",
}  # fmt: skip


def write_hash_model(path, *, has_time_axis=False):
    """Writes s_next = (s * 1000003 + token + 1) mod 2147483647 in int64, its output `hash` being s_next.

    `tests.support.hash_oracle` says what comes out. No product reaches 2^63. With a time axis a chunk is
    one run.
    """
    named = {"factor": FACTOR, "one": 1, "modulus": MODULUS}
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in named.items()]
    step = [
        helper.make_node("Mul", ["s", "factor"], ["product"]),
        helper.make_node("Add", ["product", "token"], ["with_token"]),
        helper.make_node("Add", ["with_token", "one"], ["sum"]),
        helper.make_node("Mod", ["sum", "modulus"], ["s_next"]),
        helper.make_node("Identity", ["s_next"], ["hash"]),
    ]

    def info(name, *axes):
        return helper.make_tensor_value_info(name, TensorProto.INT64, list(axes))

    state, after = info("s", "batch"), info("s_next", "batch")
    if has_time_axis:
        body = helper.make_graph(
            step, "step", [state, info("token", "batch")], [after, info("hash", "batch")], constants
        )
        scan = helper.make_node("Scan", ["s", "tokens"], ["s_next", "hash"], body=body, num_scan_inputs=1)
        tokens, hashes = info("tokens", "time", "batch"), info("hash", "time", "batch")
        graph = helper.make_graph([scan], "hash", [tokens, state], [hashes, after])
    else:
        token, hashes = info("token", "batch"), info("hash", "batch")
        graph = helper.make_graph(step, "hash", [token, state], [hashes, after], constants)
    token_input = {"name": graph.input[0].name, "kind": "token_id", "dtype": "int64", "width": 1}
    contract = {
        "holdfast.contract_version": "1",
        "holdfast.input": json.dumps({**token_input, "time_axis": has_time_axis}),
        "holdfast.states": json.dumps([HASH_STATE]),
        "holdfast.outputs": json.dumps([{"name": "hash", "dtype": "int64", "shape": [], "role": "raw"}]),
        "holdfast.vocabulary": json.dumps({"kind": "bytes", "size": 256}),
    }
    _write(graph, contract, path)

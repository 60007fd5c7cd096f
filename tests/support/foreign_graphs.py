"""Graphs as other people export them, each with a contract.toml and with what it computes in numpy.

Every one is a decaying sum, written in another form: h = h / 2 + f(x), y = g(h). What differs is where axes
stand, what is fixed, and what a server has to keep, give or cut for it.
"""

import io
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from service.model.bundle import Bundle, pack

F32, F16, F64, I64, I32, U8, BOOL = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32,
    TensorProto.UINT8, TensorProto.BOOL,
)  # fmt: skip
info = helper.make_tensor_value_info


@dataclass
class Foreign:
    """A network.

    Attributes:
        nodes: As `(operator, inputs, outputs, attributes)`.
        inputs: Name, element type, extents.
        outputs: Likewise.
        contract: contract.toml.
        step: Takes a token (width,), or an id, and the state, which it changes; returns outputs by name.
        start: The state at first.
        weights: Name -> array.
        files: Beside contract.toml.
        width: Of features; 0 for ids.
        ids: So many ids.
        opening: Session inputs to give.
    """

    nodes: list
    inputs: list
    outputs: list
    contract: str
    step: object
    start: dict
    weights: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    width: int = 4
    ids: int = 0
    opening: dict = field(default_factory=dict)

    def graph(self):
        nodes = [helper.make_node(op, ins, outs, **dict(*more)) for op, ins, outs, *more in self.nodes]
        graph = helper.make_graph(
            nodes,
            "net",
            [info(*one) for one in self.inputs],
            [info(*one) for one in self.outputs],
            [numpy_helper.from_array(np.array(value), name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return model.SerializeToString()

    def bundle(self):
        return pack(Bundle(self.graph(), self.contract.encode(), self.files))

    def write(self, folder):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(self.graph())
        (folder / "contract.toml").write_text(self.contract)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def tokens(self, count, seed):
        rng = np.random.default_rng(seed)
        if self.ids:
            return rng.integers(0, self.ids, count)
        drawn = rng.standard_normal((count, self.width)).astype(np.float32)
        return self.prepare(drawn, rng) if self.prepare else drawn

    prepare: object = None

    def expected(self, tokens, opening=None):
        """Returns outputs (k, ...) by name, one token after the other."""
        state = {name: np.array(value) for name, value in {**self.start, **(opening or {})}.items()}
        given = [self.step(token, state) for token in tokens]
        return {name: np.stack([one[name] for one in given]) for name in given[0]}, state


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def decaying(state, name, added):
    state[name] = (state[name] * np.array(0.5, state[name].dtype) + added).astype(state[name].dtype)
    return state[name]


HALF = {"half": np.float32(0.5)}
KEPT = [("Mul", ["h", "half"], ["kept"])]
SUM = [*KEPT, ("Add", ["kept", "x"], ["hn"])]


def plain(x, state):
    return {"y": decaying(state, "h", x)}


def _network(axes, graph_axes, *, state_axes=None, state_graph_axes=None, width=4, shape=(4,)):
    """x and h of the same axes, wherever these are; y is h."""
    state_axes, state_graph_axes = state_axes or axes, state_graph_axes or graph_axes
    return Foreign(
        [*SUM, ("Identity", ["hn"], ["y"])],
        [("x", F32, graph_axes), ("h", F32, state_graph_axes)],
        [("y", F32, graph_axes), ("hn", F32, state_graph_axes)],
        f'[input]\nname = "x"\naxes = {axes}\n[[state]]\ninput = "h"\noutput = "hn"\naxes = {state_axes}\n'
        f'[[output]]\nname = "y"\naxes = {axes}\n'.replace("'", '"'),
        lambda x, state: plain(x.reshape(shape), state),
        {"h": np.zeros(shape, np.float32)},
        HALF,
        width=width,
    )


def _with_dtype(onnx_dtype, dtype, contract_extra=""):
    dtype = np.dtype(dtype)
    return Foreign(
        [("Cast", ["h"], ["wide"], {"to": F32}), ("Cast", ["x"], ["wide_x"], {"to": F32}),
         ("Mul", ["wide", "half"], ["kept"]), ("Add", ["kept", "wide_x"], ["sum"]),
         ("Round", ["sum"], ["rounded"]) if dtype.kind in "iu" else ("Identity", ["sum"], ["rounded"]),
         ("Clip", ["rounded", "least", "most"], ["clipped"]),
         ("Cast", ["clipped"], ["hn"], {"to": onnx_dtype}), ("Cast", ["hn"], ["y"], {"to": F32})],
        [("x", F32, ["batch", 4]), ("h", onnx_dtype, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", onnx_dtype, ["batch", 4])],
        PLAIN_CONTRACT,
        lambda x, state: {"y": _narrowed(state, x, dtype)},
        {"h": np.zeros(4, dtype)},
        {**HALF, "least": np.float32(0 if dtype.kind == "u" else -100), "most": np.float32(100)},
    )  # fmt: skip


def _narrowed(state, x, dtype):
    total = state["h"].astype(np.float32) * np.float32(0.5) + x
    if dtype.kind in "iu":
        total = np.round(total)
    state["h"] = np.clip(total, 0 if dtype.kind == "u" else -100, 100).astype(dtype)
    return state["h"].astype(np.float32)


PLAIN_CONTRACT = """
[input]
name = "x"
axes = ["batch", 4]
[[state]]
input = "h"
output = "hn"
axes = ["batch", 4]
[[output]]
name = "y"
axes = ["batch", 4]
"""


def _window(x, state, name, kept):
    """Returns a window, and keeps its end."""
    window = np.concatenate([state[name], x])
    state[name] = window[len(window) - kept :]
    return window


def _windowed(token, context, *, has_state):
    size = token + context
    nodes = [("ReduceMean", ["x", "axes"], ["mean"], {"keepdims": 1})]
    if has_state:
        nodes += [
            ("Mul", ["h", "half"], ["kept"]),
            ("Add", ["kept", "mean"], ["hn"]),
            ("Identity", ["hn"], ["y"]),
        ]
    else:
        nodes += [("Identity", ["mean"], ["y"])]

    def step(x, state):
        mean = _window(x, state, "x.context", context).mean(keepdims=True).astype(np.float32)
        return {"y": decaying(state, "h", mean) if has_state else mean}

    state = '[[state]]\ninput = "h"\noutput = "hn"\naxes = ["batch", 1]\n' if has_state else ""
    h = {"h": np.zeros(1, np.float32)} if has_state else {}
    return Foreign(
        nodes,
        [("x", F32, [None, None]), *([("h", F32, [None, 1])] if has_state else [])],
        [("y", F32, [None, 1]), *([("hn", F32, ["Add_4_dim_0", 1])] if has_state else [])],
        f'[input]\nname = "x"\naxes = ["batch", {size}]\ntoken = {token}\ncontext = {context}\n'
        f'{state}[[output]]\nname = "y"\naxes = ["batch", 1]\nrole = "score"\nunits = "mean"\n',
        step,
        {**h, "x.context": np.zeros(context, np.float32)},
        {**HALF, "axes": np.array([1])},
        width=token,
    )


def _caches(count):
    """Many states by a pattern, every third with its batch axis at another place."""
    nodes, inputs, outputs, total = [], [("x", F32, ["batch", 4])], [], "x"
    for number in range(count):
        nodes += [("Mul", [f"in_cache{number}", "half"], [f"kept{number}"]),
                  ("Add", [f"kept{number}", "x"], [f"out_cache{number}"]),
                  ("Add", [total, f"out_cache{number}"], [f"total{number}"])]  # fmt: skip
        total = f"total{number}"
        inputs.append((f"in_cache{number}", F32, ["batch", 4]))
        outputs.append((f"out_cache{number}", F32, ["batch", 4]))
    nodes.append(("Identity", [total], ["y"]))

    def step(x, state):
        y = x.copy()
        for number in range(count):
            y = y + decaying(state, f"in_cache{number}", x)
        return {"y": y}

    return Foreign(
        nodes, inputs, [("y", F32, ["batch", 4]), *outputs],
        f'[input]\nname = "x"\naxes = ["batch", 4]\n[[output]]\nname = "y"\naxes = ["batch", 4]\n'
        f'[[state]]\ninput = "in_cache{{0..{count - 1}}}"\noutput = "out_cache{{0..{count - 1}}}"\n'
        'axes = ["batch", 4]\n',
        step, {f"in_cache{number}": np.zeros(4, np.float32) for number in range(count)}, HALF,
    )  # fmt: skip


def _scan(outputs, contract_outputs):
    """With a time axis, dynamic: h of each step, and of the last one."""
    body = helper.make_graph(
        [helper.make_node("Mul", ["h_in", "half"], ["kept"]),
         helper.make_node("Add", ["kept", "x_t"], ["h_out"]),
         helper.make_node("Identity", ["h_out"], ["each"])],
        "step", [info("h_in", F32, ["batch", 4]), info("x_t", F32, ["batch", 4])],
        [info("h_out", F32, ["batch", 4]), info("each", F32, ["batch", 4])],
    )  # fmt: skip
    return Foreign(
        [("Transpose", ["x"], ["xs"], {"perm": [1, 0, 2]}),
         ("Scan", ["h", "xs"], ["hn", "all"], {"body": body, "num_scan_inputs": 1}),
         ("Transpose", ["all"], ["every"], {"perm": [1, 0, 2]}),
         ("Identity", ["hn"], ["last"])],
        [("x", F32, ["batch", "time", 4]), ("h", F32, ["batch", 4])],
        [*outputs, ("hn", F32, ["batch", 4])],
        '[input]\nname = "x"\naxes = ["batch", "time", 4]\n[[state]]\ninput = "h"\noutput = "hn"\n'
        f'axes = ["batch", 4]\n{contract_outputs}',
        lambda x, state: dict.fromkeys([name for name, *_ in outputs], decaying(state, "h", x)),
        {"h": np.zeros(4, np.float32)}, HALF,
    )  # fmt: skip


def _columns(drawn, rng):
    drawn[:, 0] = rng.integers(0, 5, len(drawn))
    return drawn


TABLE = np.arange(20, dtype=np.float32).reshape(5, 4)

NETWORKS = {
    "batch first": _network(["batch", 4], ["N", 4]),
    "unnamed axes": _network(["batch", 4], [None, None]),
    "time fixed at 1": _network(
        ["time", "batch", 4], [1, "b", 4],
        state_axes=[1, "batch", 4], state_graph_axes=[1, "b", 4], shape=(1, 4),
    ),
    "batch and time fixed at 1": _network(
        ["batch", "time", 4], [1, 1, 4],
        state_axes=["batch", 1, 4], state_graph_axes=[1, 1, 4], shape=(1, 4),
    ),
    "rank 4": _network(["batch", 1, 2, 3], [1, 1, 2, 3], width=6, shape=(1, 2, 3)),
    "batch in the middle": _network([2, "batch", 3], [2, "n", 3], width=6, shape=(2, 3)),
    "batch last": _network([3, "batch"], [3, "n"], width=3, shape=(3,)),
    "no batch": _network([4], [4]),
    "float16": _with_dtype(F16, "<f2"),
    "float64": _with_dtype(F64, "<f8"),
    "int64": _with_dtype(I64, "<i8"),
    "int32": _with_dtype(I32, "<i4"),
    "int8": _with_dtype(TensorProto.INT8, "i1"),
    "uint8": _with_dtype(U8, "u1"),
    "window": _windowed(8, 3, has_state=True),
    "window without state": _windowed(4, 6, has_state=False),
    "ten caches": _caches(10),
    "every token of a run": _scan(
        [("every", F32, ["batch", "time", 4])],
        '[[output]]\nname = "every"\naxes = ["batch", "time", 4]\n',
    ),
    "last token of a run": _scan(
        [("last", F32, ["batch", 4])],
        '[[output]]\nname = "last"\naxes = ["batch", 4]\nrole = "logits"\nlabels = ["a", "b", "c", "d"]\n',
    ),
    "initial number": Foreign(
        [*SUM, ("Identity", ["hn"], ["y"])],
        [("x", F32, ["batch", 4]), ("h", F32, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT.replace('output = "hn"\n', 'output = "hn"\ninitial = -8\n'),
        plain, {"h": np.full(4, -8, np.float32)}, HALF,
    ),
    "initial list": Foreign(
        [*SUM, ("Identity", ["hn"], ["y"])],
        [("x", F32, ["batch", 4]), ("h", F32, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT.replace('output = "hn"\n', 'output = "hn"\ninitial = [1, 2.5, 3, 4]\n'),
        plain, {"h": np.array([1, 2.5, 3, 4], np.float32)}, HALF,
    ),
    "initial file and constants": Foreign(
        [("Mul", ["h", "rate"], ["kept"]), ("Add", ["kept", "x"], ["sum"]),
         ("Add", ["sum", "bias"], ["hn"]),
         ("Identity", ["hn"], ["y"])],
        [("x", F32, ["batch", 4]), ("h", F32, ["batch", 4]), ("rate", F32, [1]), ("bias", F32, [4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT.replace('output = "hn"\n', 'output = "hn"\ninitial = "start.npy"\n')
        + '[constants]\nrate = 0.5\nbias = "bias.npy"\n',
        lambda x, state: plain(x + np.array([0, 1, 2, 3], np.float32), state),
        {"h": np.array([4, 3, 2, 1], np.float32)},
        files={
            "start.npy": npy(np.array([4, 3, 2, 1], np.float64)),
            "bias.npy": npy(np.arange(4, dtype=np.float32)),
        },
    ),
    "input of the session": Foreign(
        [("Add", ["x", "speaker"], ["both"]), *KEPT, ("Add", ["kept", "both"], ["hn"]),
         ("Identity", ["hn"], ["y"])],
        [("x", F32, ["batch", 4]), ("h", F32, ["batch", 4]), ("speaker", F32, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT + '[[session_input]]\nname = "speaker"\naxes = ["batch", 4]\n',
        lambda x, state: plain(x + state["speaker"], state),
        {"h": np.zeros(4, np.float32)}, HALF,
        opening={"speaker": np.array([1, -1, 2, -2], np.float32)},
    ),
    "input of the session in other types": Foreign(
        [("Cast", ["speaker"], ["narrow"], {"to": F32}), ("Cast", ["room"], ["size"], {"to": F32}),
         ("Add", ["x", "narrow"], ["spoken"]), ("Add", ["spoken", "size"], ["both"]), *KEPT,
         ("Add", ["kept", "both"], ["hn"]), ("Identity", ["hn"], ["y"])],
        [("x", F32, ["batch", 4]), ("h", F32, ["batch", 4]), ("speaker", F64, ["batch", 4]),
         ("room", I32, ["batch", 1])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT + '[[session_input]]\nname = "speaker"\naxes = ["batch", 4]\n'
        '[[session_input]]\nname = "room"\naxes = ["batch", 1]\n',
        lambda x, state: plain(x + state["speaker"].astype(np.float32) + state["room"], state),
        {"h": np.zeros(4, np.float32)}, HALF,
        opening={"speaker": np.array([1, -1, 2, -2], np.float64), "room": np.array([3], np.int32)},
    ),
    "id and features": Foreign(
        [("Gather", ["table", "word"], ["row"]), ("Add", ["row", "x"], ["both"]), *KEPT,
         ("Add", ["kept", "both"], ["hn"]), ("Identity", ["hn"], ["y"])],
        [("word", I64, ["batch"]), ("x", F32, ["batch", 4]), ("h", F32, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        '[[input]]\nname = "word"\naxes = ["batch"]\nsize = 5\n'
        + PLAIN_CONTRACT.replace("[input]", "[[input]]"),
        lambda x, state: plain(TABLE[int(x[0])] + x[1:], state),
        {"h": np.zeros(4, np.float32)}, {**HALF, "table": TABLE}, width=5, prepare=_columns,
    ),
    "int32 ids": Foreign(
        [("Gather", ["table", "x"], ["row"]), *KEPT, ("Add", ["kept", "row"], ["hn"]),
         ("Identity", ["hn"], ["y"])],
        [("x", I32, ["batch"]), ("h", F32, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT.replace('["batch", 4]', '["batch"]', 1) + '[vocabulary]\nkind = "ids"\nsize = 5\n',
        lambda x, state: plain(TABLE[int(x)], state),
        {"h": np.zeros(4, np.float32)}, {**HALF, "table": TABLE}, ids=5,
    ),
    "float64 features": Foreign(
        [("Cast", ["x"], ["narrow"], {"to": F32}), *KEPT, ("Add", ["kept", "narrow"], ["hn"]),
         ("Cast", ["hn"], ["y"], {"to": F64})],
        [("x", F64, ["batch", 4]), ("h", F32, ["batch", 4])],
        [("y", F64, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT,
        lambda x, state: {"y": plain(x, state)["y"].astype(np.float64)},
        {"h": np.zeros(4, np.float32)}, HALF,
    ),
    "probabilities": Foreign(
        [*SUM, ("Softmax", ["hn"], ["y"])],
        [("x", F32, ["batch", 4]), ("h", F32, ["batch", 4])],
        [("y", F32, ["batch", 4]), ("hn", F32, ["batch", 4])],
        PLAIN_CONTRACT + 'role = "probs"\nlabels = ["n", "e", "s", "w"]\n',
        lambda x, state: {"y": _softmax(plain(x, state)["y"])},
        {"h": np.zeros(4, np.float32)}, HALF,
    ),
}  # fmt: skip


def _softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()

"""Bad model files: each is refused in one line that says what is wrong, where, and what would be right."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.model.bundle import Bundle, pack
from service.model.check import check_model
from service.model.contract_text import to_toml
from service.model.document import from_toml
from service.model.files import ModelFileError
from tests.support.foreign_graphs import PLAIN_CONTRACT
from tests.support.mixing_graphs import beside, less_mean
from tests.support.step_graphs import recurrent

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("forked_checks")]

F32 = TensorProto.FLOAT
info = helper.make_tensor_value_info
CONTRACT = PLAIN_CONTRACT
KEPT = ("Mul", ["h", "half"], ["k"])
SUM = ("Add", ["k", "x"], ["hn"])
Y = ("Identity", ["hn"], ["y"])
LABELS = 'labels = ["a", "b", "c", "d"]\n'


def graph(
    *nodes, x=("b", 4), h=("b", 4), y=("b", 4), hn=("b", 4), h_type=F32, hn_type=F32, weights=None, more=()
):
    """Returns the file of h = h / 2 + x, y = h, changed; an empty contract has it completed."""
    made = helper.make_graph(
        [helper.make_node(*node[:3], **dict(*node[3:])) for node in nodes or (KEPT, SUM, Y)],
        "net",
        [info("x", F32, x), info("h", h_type, h)],
        [info("y", F32, y), info("hn", hn_type, hn), *more],
        [
            numpy_helper.from_array(np.array(value), name)
            for name, value in {"half": np.float32(0.5), **(weights or {})}.items()
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def changed(old, new):
    assert old in CONTRACT
    return CONTRACT.replace(old, new)


def with_weights(value):
    weights = {"W": np.where(np.eye(4) > 0, value, 0).astype(np.float32)}
    return graph(("MatMul", ["h", "W"], ["k"]), SUM, Y, weights=weights)


PASSED_ON = [("Identity", ["h"], ["hn"]), ("Identity", ["x"], ["y"])]
GOOD = graph()
BAD = {
    "truncated": (GOOD[:100], CONTRACT, "not a loadable ONNX graph: cut off at byte 100"),
    "empty": (b"", CONTRACT, "not a loadable ONNX graph: the file is empty"),
    "text": (b"no model at all", CONTRACT, "not a loadable ONNX graph"),
    "cyclic": (
        graph(("Add", ["hn", "x"], ["y"]), ("Add", ["y", "h"], ["hn"])),
        CONTRACT,
        "the graph is not acyclic",
    ),
    "a name that is made twice": (graph(KEPT, SUM, Y, Y), CONTRACT, r"Duplicate definition of name \(y\)"),
    "an output that is there twice": (
        graph(more=[info("y", F32, ["b", 4])]),
        CONTRACT,
        "the graph has two outputs named 'y'",
    ),
    "a state whose successor is of another type": (
        graph(("Cast", ["h"], ["k"], {"to": F32}), SUM, Y, h_type=TensorProto.DOUBLE),
        CONTRACT,
        "input 'h' is float64, output 'hn' is float32; a state follows itself",
    ),
    "a state whose successor is of another shape": (
        graph(("Add", ["h", "x"], ["y"]), ("Concat", ["y", "y"], ["hn"], {"axis": 1}), hn=("b", 8)),
        CONTRACT,
        "state 'h': output 'hn': axis 1 is 8, the contract says 4",
    ),
    "a state that grows": (
        graph(
            ("Concat", ["h", "x"], ["hn"], {"axis": 0}),
            PASSED_ON[1],
            x=(1, 4),
            y=(1, 4),
            h=("p", 4),
            hn=("q", 4),
        ),
        changed('"hn"\naxes = ["batch", 4]', '"hn"\naxes = [16, 4]'),
        "export it as a ring buffer of fixed length, with a counter",
    ),
    "texts": (
        graph(*PASSED_ON, h_type=TensorProto.STRING, hn_type=TensorProto.STRING),
        CONTRACT,
        "input 'h' is string, expected one of float32",
    ),
    "complex numbers": (
        graph(*PASSED_ON, h_type=TensorProto.COMPLEX64, hn_type=TensorProto.COMPLEX64),
        CONTRACT,
        "complex64",
    ),
    "bfloat16": (
        graph(*PASSED_ON, h_type=TensorProto.BFLOAT16, hn_type=TensorProto.BFLOAT16),
        CONTRACT,
        "input 'h' is bfloat16, expected one of float32",
    ),
    "a weight that is NaN": (with_weights(np.nan), CONTRACT, "tensor 'W' holds NaN or infinity"),
    "a weight that is infinite": (with_weights(np.inf), CONTRACT, "tensor 'W' holds NaN or infinity"),
    "nothing but NaN": (
        graph(("Sub", ["x", "x"], ["z"]), ("Div", ["z", "z"], ["k"]), ("Add", ["k", "h"], ["hn"]), Y),
        CONTRACT,
        "output 'y' is not finite, whatever the token",
    ),
    "a batch fixed at 4": (
        graph(x=(4, 4), h=(4, 4), y=(4, 4), hn=(4, 4)),
        CONTRACT,
        "input 'x': the batch axis 0 is fixed at 4; export it with a dynamic axis, or with 1",
    ),
    "rows that are mixed": (beside(less_mean), "", "the others of its batch: .* ReduceMean across rows"),
    "two directions": (
        recurrent("LSTM", direction="bidirectional"),
        "",
        "how its tokens are divided: .* cannot be streamed; .* recurrence, which reads ahead",
    ),
    "random numbers": (
        graph(KEPT, ("RandomNormalLike", ["x"], ["r"]), ("Add", ["k", "r"], ["hn"]), Y),
        CONTRACT,
        "operator 'RandomNormalLike' of domain '' is not allowed",
    ),
    "a softmax said to be logits": (
        graph(KEPT, SUM, ("Softmax", ["hn"], ["y"])),
        CONTRACT + 'role = "logits"\n' + LABELS,
        'declared as logits, .* set its role to "probs"',
    ),
    "logits said to be probabilities": (
        GOOD,
        CONTRACT + 'role = "probs"\n' + LABELS,
        'set its role to "logits"',
    ),
    "logits said to be logarithms": (
        GOOD,
        CONTRACT + 'role = "log_probs"\n' + LABELS,
        'set its role to "logits"',
    ),
    "an extent that is another one": (
        GOOD,
        changed('["batch", 4]', '["batch", 5]'),
        "axis 1 is 4, the contract says 5",
    ),
    "axes that are more": (
        GOOD,
        changed('["batch", 4]', '["batch", 2, 2]'),
        r"has 2 axes, \[b, 4\]; the contract says",
    ),
    "a tensor that is not there": (GOOD, changed('"hn"', '"hm"'), "'hm'"),
    "a state that is named twice": (
        GOOD,
        CONTRACT + '[[state]]\nname = "i"\ninput = "h"\noutput = "hn"\naxes = ["batch", 4]\n',
        "'h'.* twice",
    ),
    "a key that is not known": (
        GOOD,
        CONTRACT + 'rolle = "raw"\n',
        "output 1: 'rolle' is not known; did you mean 'role'",
    ),
    "a table that is not known": (
        GOOD,
        CONTRACT + "[[states]]\n",
        "'states' is not known; did you mean 'state'",
    ),
    "no TOML": (GOOD, CONTRACT + "[[[", "contract.toml cannot be read: "),
    "no text": (GOOD, b"\xff\xfe", "contract.toml cannot be read: "),
    "a contract that is too long": (GOOD, CONTRACT + "#" * (1 << 16), "expected at most 65536"),
    "another version": (
        GOOD,
        "contract_version = 2\n" + CONTRACT,
        "contract_version is 2, this server reads '1'",
    ),
    "a context that does not fit": (
        GOOD,
        changed("4]\n[[state]]", "4]\ntoken = 3\ncontext = 2\n[[state]]"),
        r"token 3 and context 2 make 5, no axis of \[4\] has that",
    ),
    "a context without a token": (
        GOOD,
        changed("4]\n[[state]]", "4]\ncontext = 2\n[[state]]"),
        "it has context but no token",
    ),
    "a window that may go on along two axes": (
        graph(
            ("ReduceMean", ["x", "axis"], ["m"], {"keepdims": 0}),
            KEPT,
            ("Add", ["k", "m"], ["hn"]),
            Y,
            x=("b", 4, 4),
            weights={"axis": np.array([1])},
        ),
        changed('["batch", 4]\n[[state]]', '["batch", 4, 4]\ntoken = 3\ncontext = 1\n[[state]]'),
        r"axes \[0, 1\] of a token \[4, 4\] have 4 values each",
    ),
    "an initial value of another shape": (
        GOOD,
        changed('"hn"\naxes', '"hn"\ninitial = [1, 2]\naxes'),
        r"initial has shape \(2,\), expected \(4,\)",
    ),
    "an initial value that is no number": (
        GOOD,
        changed('"hn"\naxes', '"hn"\ninitial = [nan, 0, 0, 0]\naxes'),
        "initial holds NaN or infinity",
    ),
    "a file that is not there": (
        GOOD,
        changed('"hn"\naxes', '"hn"\ninitial = "no.npy"\naxes'),
        "the file 'no.npy' is not there; expected beside contract.toml",
    ),
    "labels that are too few": (GOOD, CONTRACT + 'labels = ["a"]\n', "has 4 values per token and 1 labels"),
    "a role that is none": (
        GOOD,
        CONTRACT + 'role = "loss"\n',
        "role is 'loss', expected one of logits",
    ),
    "rows per run below 1": (
        GOOD,
        "rows_per_run = 0\n" + CONTRACT,
        "rows_per_run is 0, expected a number >= 1",
    ),
    "an axis that is none": (GOOD, changed('["batch", 4]', '["rows", 4]'), "the axis 'rows' is none"),
    "a state with time": (
        GOOD,
        changed('"hn"\naxes = ["batch", 4]', '"hn"\naxes = ["time", 4]'),
        'axis "time"',
    ),
}


@pytest.mark.parametrize(("data", "contract", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_model_is_refused_in_one_line(data, contract, reason):
    contract = contract.encode() if isinstance(contract, str) else contract
    with pytest.raises(ModelFileError, match=reason) as caught:
        check_model(Path("net/1/model.onnx"), pack(Bundle(data, contract or None, {})))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_contract_may_begin_with_a_mark_and_have_dates():
    text = "\ufeff" + CONTRACT + "[facts]\ntrained = 2026-11-26\n"
    check_model(Path("net/1/model.onnx"), pack(Bundle(GOOD, text.encode(), {})))
    assert "2026-11-26" in to_toml(from_toml(text.encode()))


def test_the_good_one_passes():
    check_model(Path("net/1/model.onnx"), pack(Bundle(GOOD, CONTRACT.encode(), {})))

import json

import numpy as np
import pytest

from model_export.contract import byte_network_contract
from service.model.contract import ContractError, GraphTensor
from service.model.contract_reader import Graph
from service.model.contract_reader import read_contract as read

METADATA = byte_network_contract(8, ["h", "c"], training={"seed": 1}, parity={})
INPUTS = {"token": GraphTensor("int64", ("time", "batch"))}
OUTPUTS = {
    "logits": GraphTensor("float32", ("time", "batch", 256)),
    "token_log_prob": GraphTensor("float32", ("time", "batch")),
}
SWITCHES = {"token_log_prob_wanted": GraphTensor("bool", ())}
for name in ("h", "c"):
    INPUTS[name] = GraphTensor("float32", ("batch", 8))
    OUTPUTS[f"{name}_next"] = GraphTensor("float32", ("batch", 8))


def read_contract(metadata, inputs, outputs, switches=None):
    return read(metadata, Graph(inputs, outputs, switches or {}))


def test_what_the_exporter_writes_the_server_reads():
    contract = read_contract(METADATA, INPUTS, OUTPUTS, SWITCHES)
    assert [state.name for state in contract.states] == ["h", "c"]
    assert contract.state_bytes == 2 * 8 * 4
    assert contract.vocabulary.size == 256
    assert contract.ranked.name == "logits"
    assert contract.token_log_prob.dtype == np.float32
    assert json.loads(contract.facts["training"]) == {"seed": 1}


@pytest.mark.parametrize("apart", [[], ["tokens"], ["rows", "tokens"]])
def test_what_is_to_run_apart_is_read(apart):
    written = byte_network_contract(8, ["h", "c"], training={}, parity={}, apart=apart)
    contract = read_contract(written, INPUTS, OUTPUTS, SWITCHES)
    assert contract.apart == set(apart)
    assert "apart" not in contract.facts


def test_other_metadata_may_be_long():
    """Exporters leave whole programs there; nobody is told of them."""
    assert read_contract({**METADATA, "pkg.torch.program": "x" * (1 << 20)}, INPUTS, OUTPUTS, SWITCHES)


def changed(topic, **values):
    entry = json.loads(METADATA[f"holdfast.{topic}"])
    target = entry[0] if isinstance(entry, list) else entry
    target.update(values)
    return {**METADATA, f"holdfast.{topic}": json.dumps(entry)}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"how many ids 'token' takes: \[vocabulary\] size"),
        ({**METADATA, "holdfast.contract_version": "2"}, "'2'"),
        ({**METADATA, "holdfast.input": "{"}, "cannot be read"),
        (
            {key: value for key, value in METADATA.items() if "vocabulary" not in key},
            r"how many ids 'token' takes: \[vocabulary\] size",
        ),
        (changed("input", dtype="int32"), "input 'token' is int64, the contract says int32"),
        (
            changed("states", dtype="flaot32"),
            "is float32; its dtype in the contract: 'flaot32' is not known; did you mean 'float32'",
        ),
        (changed("input", dtype="quux"), "'quux' is not known; known are bool, float16, float32, float64"),
        (changed("input", dtype=["int64"]), "is not known; did you mean 'int64'"),
        (
            changed("input", time_axis=False),
            r"input 'token' has 2 axes, \[time, batch\]; the contract says \['batch'\]",
        ),
        (changed("input", time_axis="yes"), "time_axis is 'yes', expected true or false"),
        (changed("states", input="nobody"), "'nobody'"),
        (changed("states", shape=[9]), "axis 1 is 8"),
        (changed("states", shape=[0]), "below 1"),
        (changed("states", dtype="float64"), "is float32"),
        (changed("states", batch_axis=5), "out of range"),
        (changed("states", initial="ones"), "'ones'"),
        (changed("vocabulary", size=300), "one value per token id"),
        (changed("vocabulary", size=100), "size 100 of kind 'bytes', expected >= 256"),
        (changed("states", name="c"), "state 'c' is named twice"),
        (changed("states", input="c"), "input 'c' is named twice"),
        (changed("states", name=["h"]), "is not a valid name"),
        (changed("states", shape=[1e999]), "cannot be read"),
        ({**METADATA, "holdfast.states": '{"a": 1}'}, "cannot be read"),
        ({**METADATA, "holdfast.input": "[" * 20_000}, "cannot be read"),
        ({**METADATA, "holdfast.apart": '"rows"'}, "expected a list of rows and tokens"),
        ({**METADATA, "holdfast.apart": '["columns"]'}, "expected a list of rows and tokens"),
        (
            {**METADATA, "holdfast.notes": "x" * (6 << 20)},
            "bytes, expected at most 65536; keep long facts",
        ),
        ({**METADATA, **{f"holdfast.{n}": "x" for n in range(6000)}}, "expected at most 65536"),
        ({**METADATA, "holdfast.\x1b[2J": "x"}, "is not a valid name"),
    ],
)
def test_a_wrong_contract_is_refused_with_the_place(metadata, message):
    with pytest.raises(ContractError, match=message):
        read_contract(metadata, INPUTS, OUTPUTS, SWITCHES)


def test_an_input_that_nobody_feeds_is_refused():
    with pytest.raises(ContractError, match="'extra'"):
        read_contract(METADATA, {**INPUTS, "extra": GraphTensor("float32", ("batch",))}, OUTPUTS, SWITCHES)


def test_a_time_axis_is_dynamic_or_1():
    fixed = {**INPUTS, "token": GraphTensor("int64", (5, "batch"))}
    with pytest.raises(ContractError, match="the time axis 0 is fixed at 5"):
        read_contract(METADATA, fixed, OUTPUTS)
    single = {**INPUTS, "token": GraphTensor("int64", (1, "batch"))}
    contract = read_contract(METADATA, single, OUTPUTS, SWITCHES)
    assert (contract.tokens_per_run, contract.rows_per_run) == (1, None)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({}, "switch 'token_log_prob_wanted' is not in the graph"),
        ({"token_log_prob_wanted": GraphTensor("int64", ())}, "is int64, the contract says bool"),
        ({"token_log_prob_wanted": GraphTensor("bool", (1,))}, "has shape"),
    ],
)
def test_a_switch_is_an_optional_bool_of_the_graph(switches, message):
    with pytest.raises(ContractError, match=message):
        read_contract(METADATA, INPUTS, OUTPUTS, switches)


def test_what_clients_are_told_counts_by_its_bytes():
    plain = read_contract(METADATA, INPUTS, OUTPUTS, SWITCHES).text_bytes
    noted = read_contract({**METADATA, "holdfast.note": "\u2713" * 100}, INPUTS, OUTPUTS, SWITCHES)
    assert noted.text_bytes == plain + len("holdfast.note") + 300


FED_BACK = {
    "holdfast.contract_version": "1",
    "holdfast.input": json.dumps({"name": "x", "kind": "features", "dtype": "float32", "width": 2}),
    "holdfast.states": json.dumps(
        [
            {
                "name": "h",
                "input": "h",
                "output": "h_next",
                "dtype": "float32",
                "shape": [2],
                "initial": "zeros",
            }
        ]
    ),
    "holdfast.outputs": json.dumps(
        [
            {"name": "y", "dtype": "float32", "shape": [2], "role": "raw"},
            {"name": "score", "dtype": "float32", "shape": [], "role": "score"},
            {"name": "count", "dtype": "int64", "shape": [2], "role": "raw"},
        ]
    ),
}
FED_BACK_INPUTS = {"x": GraphTensor("float32", ("batch", 2)), "h": GraphTensor("float32", ("batch", 2))}
FED_BACK_OUTPUTS = {
    "y": GraphTensor("float32", ("batch", 2)),
    "score": GraphTensor("float32", ("batch",)),
    "count": GraphTensor("int64", ("batch", 2)),
    "h_next": GraphTensor("float32", ("batch", 2)),
}


def test_an_output_may_be_the_next_input():
    read_back = {**FED_BACK, "holdfast.feedback": json.dumps("y")}
    assert read_contract(read_back, FED_BACK_INPUTS, FED_BACK_OUTPUTS).feedback.name == "y"
    assert read_contract(FED_BACK, FED_BACK_INPUTS, FED_BACK_OUTPUTS).feedback is None


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ("z", "expected the name of an output: y, score, count"),
        (3, "not a valid name"),
        ("score", r"float32 \(\), expected floats, as many as a token has features: 2"),
        ("count", r"int64 \(2,\), expected floats"),
    ],
)
def test_what_cannot_be_the_next_input_is_refused(feedback, message):
    metadata = {**FED_BACK, "holdfast.feedback": json.dumps(feedback)}
    with pytest.raises(ContractError, match=message):
        read_contract(metadata, FED_BACK_INPUTS, FED_BACK_OUTPUTS)


def test_ids_are_not_fed_back():
    with pytest.raises(ContractError, match="tokens are ids, which are drawn"):
        read_contract({**METADATA, "holdfast.feedback": json.dumps("logits")}, INPUTS, OUTPUTS, SWITCHES)

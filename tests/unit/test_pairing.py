"""Contracts completed from what graphs declare: pairs, axes, what is refused, and contract.toml as text."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model.axis_roles import named_role
from service.model.bundle import unpack
from service.model.contract import ContractError, GraphTensor
from service.model.document import from_toml
from service.model.name_stems import pair_names
from service.model.pairing import MAX_TENSORS, complete, to_toml
from service.model.step_graph import BareGraph
from tests.support.foreign_graphs import NETWORKS


def tensors(**shapes):
    """Reads `h=[2, "batch", 8]`, or `h=("float16", [...])`; a dot in a name is written as `__`."""
    made = {}
    for name, value in shapes.items():
        dtype, shape = value if isinstance(value, tuple) else ("float32", value)
        made[name.replace("__", ".")] = GraphTensor(dtype, tuple(shape))
    return made


def completed(inputs, outputs, document=None):
    return complete(document or {}, inputs, outputs, {})


def refused(inputs, outputs, document=None):
    with pytest.raises(ContractError) as caught:
        completed(inputs, outputs, document)
    return caught.value


def pairs(document):
    return {state["input"]: state["output"] for state in document["state"]}


def axes(document):
    """Returns the axes of every tensor by name; of a state, by its input."""
    found = {entry["name"]: entry["axes"] for entry in (*document["input"], *document["output"])}
    return found | {state["input"]: state["axes"] for state in document.get("state", [])}


# -- names ----------------------------------------------------------------------------------------

FAMILIES = {
    "in and out": ("h_in", "h_out"),
    "nothing and n": ("h c", "hn cn"),
    "nothing and N": ("state", "stateN"),
    "0 and n": ("h0 c0", "hn cn"),
    "0 and n apart": ("h_0 c_0", "h_n c_n"),
    "x and y": ("hx cx", "hy cy"),
    "icefall": ("cached_key_0 cached_key_1 embed_states processed_lens",
                "new_cached_key_0 new_cached_key_1 new_embed_states new_processed_lens"),
    "NeMo": ("cache_last_channel cache_last_time cache_last_channel_len",
             "cache_last_channel_next cache_last_time_next cache_last_channel_next_len"),
    "RWKV": ("state0_in state1_in state10_in", "state0_out state1_out state10_out"),
    "past and present": ("past_h past_c", "present_h present_c"),
    "past and present, transformers": ("past_key_values.0.key past_key_values.1.key",
                                       "present.0.key present.1.key"),
    "next behind": ("X", "X_next"),
    "next before": ("X", "next_X"),
    "new behind": ("s", "s_new"),
    "prev and nothing": ("prev_state", "state"),
    "prev behind": ("h_prev", "h"),
    "t and t plus 1": ("h_t", "h_tp1"),
    "t minus 1 and t": ("h_tm1", "h_t"),
    "traced": ("enc_buf dec_buf out_buf", "enc_buf.1 dec_buf.3 out_buf.7"),
    "camel": ("hiddenIn cellIn", "hiddenOut cellOut"),
    "glued": ("hin cin", "hout cout"),
    "ONNX's own": ("initial_h initial_c", "Y_h Y_c"),
    "numbers inside": ("in_cache0 in_cache1 in_cache2", "out_cache0 out_cache1 out_cache2"),
    "scopes": ("conv1.cache conv2.cache", "conv1.cache.out conv2.cache.out"),
    "TensorFlow's signatures": ("serving_default_state_in:0", "state_out:0"),
    "initial and final": ("initial_state", "final_state"),
    "long and short": ("state_h state_c", "new_state_h new_state_c"),
    "numbers on both sides": ("h0 h1 h2", "h0_n h1_n h2_n"),
    "o": ("buf0 buf1", "buf0_o buf1_o"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_a_state_and_its_successor_belong_together(family):
    before, after = (text.split() for text in FAMILIES[family])
    expected = dict(zip(before, after, strict=True))
    assert pair_names([*before, "tokens"], [*reversed(after), "logits"], lambda *_: True) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h c", "getitem_1 getitem_2"),
        ("input_2 input_3", "activation_2 tf_op_layer_stack_2"),
        ("input_1 input_2", "output_1 output_2"),
        ("audio_in", "audio_out"),  # of a filter
        ("x", "x_out"),
        ("x", "y"),
        ("h", "h_out h_o"),  # either
        ("a_h b_h", "h_n"),
        ("Identity Identity_1", "Identity_2 Identity_3"),
        ("serving_default_h:0", "StatefulPartitionedCall:1"),
        ("h", "h"),  # an input that is given back
    ],
)
def test_names_that_say_nothing_are_not_paired(before, after):
    assert pair_names(before.split(), after.split(), lambda *_: True) == {}


@pytest.mark.parametrize(
    ("name", "role"),
    [(name, "batch") for name in ("batch", "batch_size", "N", "B", "bs", "BatchSize", "dyn_batch")]
    + [
        (name, "time")
        for name in ("time", "T", "seq", "seq_len", "sequence", "sequence_length", "n_frames")
    ]
    + [(name, None) for name in ("Slice_12_dim_2", "s77", "unk__5", "width", "past_len", "hidden", "")],
)
def test_names_of_axes(name, role):
    assert named_role(name) == role


# -- whole graphs ---------------------------------------------------------------------------------


def test_a_long_short_term_memory_with_time():
    document = completed(
        tensors(x=["time", "batch", 8], h_in=[2, "batch", 16], c_in=[2, "batch", 16]),
        tensors(y=["time", "batch", 5], h_out=[2, "batch", 16], c_out=[2, "batch", 16]),
    )
    assert document == {
        "input": [{"name": "x", "axes": ["time", "batch", 8]}],
        "state": [
            {"input": "h_in", "output": "h_out", "axes": [2, "batch", 16]},
            {"input": "c_in", "output": "c_out", "axes": [2, "batch", 16]},
        ],
        "output": [{"name": "y", "role": "raw", "axes": ["time", "batch", 5]}],
    }


AXES = {
    "batch first": (
        tensors(x=["N", "T", 8], h=[1, "N", 16]),
        tensors(y=["N", "T", 5], hn=[1, "N", 16]),
        {"x": ["batch", "time", 8], "y": ["batch", "time", 5], "h": [1, "batch", 16]},
    ),
    "drawn names": (  # of torch.export: which is which follows from the state
        tensors(x=["s0", "s77", 8], h=[1, "s77", 16]),
        tensors(y=["s0", "s77", 5], hn=[1, "s77", 16]),
        {"x": ["time", "batch", 8], "y": ["time", "batch", 5], "h": [1, "batch", 16]},
    ),
    "names drawn for successors": (
        tensors(x=["batch", 8], buffer=["batch", 4, 3]),
        tensors(y=["batch", 5], buffer_next=["batch", "Slice_12_dim_1", "Slice_12_dim_2"]),
        {"x": ["batch", 8], "y": ["batch", 5], "buffer": ["batch", 4, 3]},
    ),
    "no names": (
        tensors(x=[None, 8], h=[2, None, 16]),
        tensors(y=[None, 5], hn=[None, None, None]),
        {"x": ["batch", 8], "y": ["batch", 5], "h": [2, "batch", 16]},
    ),
    "many to one": (
        tensors(x=["batch", "time", 8], h=[1, "batch", 16]),
        tensors(y=["batch", 3], hn=[1, "batch", 16]),
        {"x": ["batch", "time", 8], "y": ["batch", 3], "h": [1, "batch", 16]},
    ),
    "one row, one token": (
        tensors(x=[1, 1, 257], h=[1, 2, 128, 2]),
        tensors(y=[1, 1, 257], hn=[1, 2, 128, 2]),
        {"x": ["batch", "time", 257], "y": ["batch", "time", 257], "h": ["batch", 2, 128, 2]},
    ),
    "one row in the middle": (
        tensors(x=[1, 576], state=[2, 1, 128]),
        tensors(y=[1, 1], stateN=[2, 1, 128]),
        {"x": ["batch", 576], "y": ["batch", 1], "state": [2, "batch", 128]},
    ),
    "one token of many rows": (
        tensors(x=["batch", 1, 257], h=["batch", 64]),
        tensors(y=["batch", 1, 257], hn=["batch", 64]),
        {"x": ["batch", "time", 257], "y": ["batch", "time", 257], "h": ["batch", 64]},
    ),
    "rows fixed on one side": (
        tensors(x=[1, 1, 512], h=[1, 2, 128]),
        tensors(y=["N", 1, 512], hn=["N", 2, 128]),
        {"x": ["batch", "time", 512], "y": ["batch", "time", 512], "h": ["batch", 2, 128]},
    ),
    "no rows": (
        tensors(x=["sequence_length", 576], h=[1, 1, 128]),
        tensors(probability=["sequence_length"], hn=[1, "LSTMhn_dim_1", 128]),
        {"x": ["time", 576], "probability": ["time"], "h": [1, "batch", 128]},
    ),
    "no rows at all": (
        tensors(x=[8], h=[16]),
        tensors(y=[5], hn=[16]),
        {"x": [8], "y": [5], "h": [16]},
    ),
    "rank 4, batch in the middle": (
        tensors(x=[2, "batch", "time", 40], conv=[3, 4, "batch", 40]),
        tensors(y=["batch", "time", 7], conv_next=[3, 4, "batch", 40]),
        {"x": [2, "batch", "time", 40], "y": ["batch", "time", 7], "conv": [3, 4, "batch", 40]},
    ),
    "a counter beside": (
        tensors(x=["N", 45, 80], key=[128, "N", 64], seen=("int64", ["N"])),
        tensors(y=["N", 16, 512], new_key=[128, "N", 64], new_seen=("int64", ["N"])),
        {"x": ["batch", 45, 80], "y": ["batch", 16, 512], "key": [128, "batch", 64], "seen": ["batch"]},
    ),
    "single values over time": (
        tensors(x=["batch", "time"], h=["batch", 8]),
        tensors(y=["batch", "time"], hn=["batch", 8]),
        {"x": ["batch", "time"], "y": ["batch", "time"], "h": ["batch", 8]},
    ),
    "a chunk of fixed length": (
        tensors(x=[10, 1, 80], h=[1, 1, 64]),
        tensors(y=[10, 1, 5], hn=[1, 1, 64]),
        {"x": [10, "batch", 80], "y": [10, "batch", 5], "h": ["batch", 1, 64]},
    ),
    "no shape on an output": (
        tensors(x=["batch", 8], h=["batch", 16]),
        tensors(y=["batch", 5], hn=[]),
        {"x": ["batch", 8], "y": ["batch", 5], "h": ["batch", 16]},
    ),
}


@pytest.mark.parametrize("graph", AXES)
def test_axes_follow_from_names_and_places(graph):
    inputs, outputs, expected = AXES[graph]
    assert axes(completed(inputs, outputs)) == expected


def test_ids_need_the_size_of_their_vocabulary():
    graph = (
        tensors(token=("int64", ["time", "batch"]), h=["batch", 16]),
        tensors(logits=["time", "batch", 300], hn=["batch", 16]),
    )
    error = refused(*graph)
    assert "how many ids 'token' takes" in str(error)
    assert tomllib.loads(error.proposal)["vocabulary"] == {"kind": "ids", "size": 300}
    document = completed(*graph, {"vocabulary": {"kind": "ids", "size": 300}})
    assert document["input"] == [{"name": "token", "axes": ["time", "batch"]}]


def test_one_id_in_a_second_axis_of_1_is_one_token():
    document = completed(
        tensors(token=("int32", ["batch", 1]), h=["batch", 16]),
        tensors(logits=["batch", 1, 256], hn=["batch", 16]),
        {"vocabulary": {"kind": "bytes", "size": 256}},
    )
    assert axes(document) == {
        "token": ["batch", "time"],
        "logits": ["batch", "time", 256],
        "h": ["batch", 16],
    }


def test_several_inputs_with_time_are_all_of_the_token():
    document = completed(
        tensors(x=["batch", "time", 8], volume=["batch", "time"], h=["batch", 16]),
        tensors(y=["batch", "time", 5], hn=["batch", 16]),
    )
    assert [entry["name"] for entry in document["input"]] == ["x", "volume"]
    assert document["input"][1]["axes"] == ["batch", "time"]


def test_ninety_eight_states_are_paired_and_written_as_few():
    inputs = {"x": GraphTensor("float32", ("N", 39, 80))}
    outputs = {"y": GraphTensor("float32", ("N", 16, 512))}
    for layer in range(49):
        for kind, shape in (("key", (128, "N", 64)), ("conv", ("N", 32, 15))):
            inputs[f"cached_{kind}_{layer}"] = GraphTensor("float32", shape)
            outputs[f"new_cached_{kind}_{layer}"] = GraphTensor("float32", shape)
    document = completed(inputs, dict(reversed(outputs.items())))
    assert len(pairs(document)) == 98
    assert all(output == f"new_{name}" for name, output in pairs(document).items())
    text = to_toml(document)
    assert 'input = "cached_key_{0..48}"\noutput = "new_cached_key_{0..48}"\n' in text
    assert len(tomllib.loads(text)["state"]) == 2
    again = completed(inputs, outputs, from_toml(text.encode()))
    assert pairs(again) == pairs(document)
    assert axes(again) == axes(document)


# -- what the contract says comes first -----------------------------------------------------------

SILERO = (
    tensors(input=[None, None], state=[2, None, 128], sr=("int64", [])),
    tensors(output=[None, 1], stateN=[None, None, None]),
)
SILERO_CONTRACT = """
[input]
name = "input"
axes = ["batch", 576]
token = 512
context = 64
[constants]
sr = 16000
"""


def test_a_contract_of_the_input_and_a_constant_is_enough_where_the_rest_follows():
    document = completed(*SILERO, tomllib.loads(SILERO_CONTRACT))
    assert document["state"] == [{"input": "state", "output": "stateN", "axes": [2, "batch", 128]}]
    assert document["output"] == [{"name": "output", "role": "raw", "axes": ["batch", 1]}]
    assert document["input"][0]["context"] == 64
    assert document["constants"] == {"sr": 16000}


def test_a_proposal_asks_for_the_sample_rate_and_the_window():
    error = refused(*SILERO)
    assert "'sr' (int64 [])" in str(error)
    assert "axes 0, 1 of 'input'" in str(error)
    assert "\n" not in str(error)
    assert "sr = 16000  # ?" in error.proposal
    assert 'axes = ["batch", "?"]  # ?' in error.proposal
    assert tomllib.loads(error.proposal)["state"][0]["output"] == "stateN"


def test_a_sequence_of_samples_is_not_taken_for_time():
    graph = (
        tensors(input=["batch", "sequence"], h=[2, "batch", 64], c=[2, "batch", 64]),
        tensors(output=["batch", 1], hn=[2, "batch", 64], cn=[2, "batch", 64]),
    )
    assert "axis 1 of 'input'" in str(refused(*graph))
    document = completed(*graph, {"input": {"axes": ["batch", 512]}})
    assert document["input"] == [{"axes": ["batch", 512], "name": "input"}]
    assert pairs(document) == {"h": "hn", "c": "cn"}
    assert document["output"][0]["axes"] == ["batch", 1]


def test_what_the_contract_says_stays():
    given = {
        "description": "mine",
        "rows_per_run": 1,
        "state": [{"name": "memory", "input": "h", "output": "z", "initial": 1.5}],
        "output": [{"name": "y", "role": "score", "units": "dB"}],
        "facts": {"note": "x"},
    }
    document = completed(
        tensors(x=["batch", 8], h=["batch", 16], speaker=["batch", 4]),
        tensors(y=["batch"], z=["batch", 16], hn=["batch", 16]),
        {**given, "session_input": [{"name": "speaker"}]},
    )
    assert document["state"] == [{**given["state"][0], "axes": ["batch", 16]}]
    assert document["output"] == [{**given["output"][0], "axes": ["batch"]}]
    assert document["session_input"] == [{"name": "speaker", "axes": ["batch", 4]}]
    assert document["facts"] == {"note": "x"}
    assert document["rows_per_run"] == 1


def test_the_other_half_of_a_state_is_found():
    graph = (tensors(x=["batch", 8], h=["batch", 4]), tensors(y=["batch", 5], h_new=["batch", 4]))
    expected = {"h": "h_new"}
    assert pairs(completed(*graph, {"state": [{"input": "h"}]})) == expected
    assert pairs(completed(*graph, {"state": [{"output": "h_new"}]})) == expected
    assert pairs(completed(*graph, {"state": [{"name": "h", "initial": 1}]})) == expected


def test_axes_of_the_contract_give_names_their_meaning():
    document = completed(
        tensors(x=["a", "b", 8], h=["b", 16, "width"]),
        tensors(y=["a", "b", 5], hn=["b", 16, "width"]),
        {
            "input": {"name": "x", "axes": ["time", "batch", 8]},
            "state": [{"input": "h", "axes": ["batch", 16, 4]}],
        },
    )
    assert axes(document) == {
        "x": ["time", "batch", 8],
        "y": ["time", "batch", 5],
        "h": ["batch", 16, 4],
    }


def test_a_context_needs_no_state():
    document = completed(
        tensors(x=["batch", 80]),
        tensors(y=["batch", 2]),
        {"input": {"name": "x", "token": 64, "context": 16}},
    )
    assert document["input"][0]["axes"] == ["batch", 80]
    assert "state" not in document


FOLLOWS = """
batch first; time fixed at 1; batch and time fixed at 1; batch in the middle; batch last; no batch;
float16; float64; int64; int32; int8; uint8; ten caches; every token of a run; last token of a run;
initial number; initial list; float64 features; probabilities
"""
"""Networks of other forms whose contract follows from the graph; of the rest it does not."""


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_forms(name):
    bundle = unpack(NETWORKS[name].bundle())
    graph = BareGraph(bundle.graph).declared
    if name == "rank 4":
        return  # an axis of 1 may be time, or not: either is right
    if name not in map(str.strip, FOLLOWS.split(";")):
        with pytest.raises(ContractError):
            complete({}, *graph)
        return
    assert axes(complete({}, *graph)) == axes(from_toml(bundle.contract))


# -- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "names that a tool has drawn": (
        tensors(x=["batch", 8], h=[1, "batch", 16], c=[1, "batch", 16]),
        tensors(linear=["batch", 5], getitem_1=[1, "batch", 16], getitem_2=[1, "batch", 16]),
        "'h' (float32 [1, batch, 16]), 'c' (float32 [1, batch, 16])",
    ),
    "one pair without a name": (
        tensors(x=["batch", 8], h=["batch", 16]),
        tensors(linear=["batch", 5], add_3=["batch", 16]),
        "what 'x' (float32 [batch, 8]), 'h' (float32 [batch, 16]) are",
    ),
    "converted from TensorFlow": (
        tensors(input_2=[1, 1, 257], input_3=[1, 2, 128, 2]),
        tensors(activation_2=[1, 1, 257], tf_op_layer_stack_2=[1, 2, 128, 2]),
        "'input_2' (float32 [1, 1, 257])",
    ),
    "an embedding of a speaker": (
        tensors(x=["batch", "time", 8], h=["batch", 16], speaker=["batch", 32]),
        tensors(y=["batch", "time", 5], hn=["batch", 16]),
        "'speaker' (float32 [batch, 32])",
    ),
    "a constant": (
        tensors(x=["batch", 8], h=["batch", 16], sr=("int64", [])),
        tensors(y=["batch", 5], hn=["batch", 16]),
        "what 'sr' (int64 []) is",
    ),
    "weights as an input": (
        tensors(x=["batch", 8], h=["batch", 16], W=[8, 16]),
        tensors(y=["batch", 5], hn=["batch", 16]),
        "'W' (float32 [8, 16])",
    ),
    "no state": (
        tensors(x=["batch", 8]),
        tensors(y=["batch", 8]),
        "which output is the next state of which input",
    ),
    "no token": (
        tensors(h=["batch", 8]),
        tensors(hn=["batch", 8]),
        "which input takes the tokens",
    ),
    "a state that grows": (
        tensors(x=["batch", 8], past_key=["batch", 4, "past_len", 64]),
        tensors(y=["batch", 5], present_key=["batch", 4, "total_len", 64]),
        "axis 2 of 'past_key' (float32 [batch, 4, past_len, 64]) is (if the state grows: keep the last",
    ),
    "a pair that does not match": (
        tensors(x=["batch", 8], h=[2, "batch", 64]),
        tensors(y=["batch", 5], hn=[2, "batch", 32]),
        "'h' is float32 [2, batch, 64], but 'hn', which should follow it, is float32 [2, batch, 32]",
    ),
    "a pair of two types": (
        tensors(x=["batch", 8], h=["batch", 64]),
        tensors(y=["batch", 5], hn=("float16", ["batch", 64])),
        "is float16 [batch, 64]",
    ),
    "axes without names": (
        tensors(x=[None, None, 8], h=[1, None, 16]),
        tensors(y=[None, None, 5], hn=[1, None, 16]),
        "axes 0, 1 of 'x' (float32 [?, ?, 8])",
    ),
    "an output of unknown width": (
        tensors(x=["batch", 8], h=["batch", 16]),
        tensors(y=["batch", "Slice_12_dim_1"], hn=["batch", 16]),
        "axis 1 of 'y' (float32 [batch, Slice_12_dim_1])",
    ),
    "time that only the output has": (
        tensors(x=["N", 45, 80], h=["N", 16]),
        tensors(y=["N", "T", 512], hn=["N", 16]),
        "axis 1 of 'y' (float32 [N, T, 512])",
    ),
    "two that could follow": (
        tensors(x=["batch", 8], h=["batch", 16]),
        tensors(h_out=["batch", 16], h_o=["batch", 16]),
        "'h' (float32 [batch, 16])",
    ),
}


@pytest.mark.parametrize("graph", REFUSED)
def test_what_is_not_clear_is_refused_with_a_proposal(graph):
    inputs, outputs, reason = REFUSED[graph]
    error = refused(inputs, outputs)
    assert reason in str(error)
    assert "\n" not in str(error)
    assert tomllib.loads(error.proposal)


def test_a_proposal_marks_what_is_a_guess():
    inputs, outputs, _ = REFUSED["names that a tool has drawn"]
    proposal = refused(inputs, outputs).proposal
    guessed = [line for line in proposal.splitlines() if line.startswith("output = ")]
    assert [line.partition("  # ?")[1] for line in guessed] == ["  # ?", "  # ?"]
    document = completed(inputs, outputs, tomllib.loads(proposal))
    assert pairs(document) == {"h": "getitem_1", "c": "getitem_2"}


def test_states_that_only_shapes_tell_are_guessed_behind_the_output_and_all_of_it_is_marked():
    alike = ["batch", 4]
    inputs, outputs = tensors(foo=alike, bar=alike, baz=alike), tensors(q0=alike, q1=alike, q2=alike)
    proposal = refused(inputs, outputs).proposal
    assert pairs(tomllib.loads(proposal)) == {"bar": "q1", "baz": "q2"}
    assert 'name = "foo"  # ?' in proposal
    assert 'output = "q1"  # ?' in proposal
    assert 'output = "q2"  # ?' in proposal
    assert 'name = "q0"  # ? what a reply has; or what follows a state' in proposal


def test_a_proposal_asks_for_a_context_where_there_is_no_state():
    error = refused(tensors(x=["batch", 80]), tensors(y=["batch", 2]))
    assert 'context = "?"  # ? how many kept from before it' in error.proposal


def test_an_input_that_pairs_with_nothing_beside_states_that_do_is_not_guessed_to_be_one():
    inputs, outputs, _ = REFUSED["an embedding of a speaker"]
    proposal = tomllib.loads(refused(inputs, outputs).proposal)
    assert proposal["session_input"] == [{"name": "speaker", "axes": ["batch", 32]}]
    assert len(proposal["state"]) == 1


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"input": {"name": "inptu"}}, "'inptu', which the graph has not; did you mean 'input'?"),
        ({"output": [{"name": "logits"}]}, "the output 'logits', which the graph has not"),
        ({"state": [{"input": "state", "output": "stateM"}]}, "did you mean 'stateN'?"),
        ({"constants": {"rate": 1}}, "the constant 'rate'"),
        ({"state": [{"initial": 0}]}, "a state lacks its input and output"),
        ({"state": 3}, "state is not a table"),
        ({"constants": 3}, "constants is not a table"),
    ],
)
def test_a_contract_that_contradicts_the_graph_is_refused(document, reason):
    assert reason in str(refused(*SILERO, document))


def test_more_tensors_than_any_network_has_are_refused_before_they_are_looked_through():
    many = {f"h{number}": GraphTensor("float32", ("batch", 4)) for number in range(MAX_TENSORS + 1)}
    assert "it has 2001 inputs, expected at most 2000" in str(refused(many, {}))
    assert "it has 2001 outputs" in str(refused({}, many))


def test_a_stem_that_all_outputs_have_pairs_nothing():
    inputs = tensors(x=["batch", 3], h__1=["batch", 4])
    outputs = {f"h.{number}": GraphTensor("float32", ("batch", 4)) for number in range(2, 40)}
    assert "'h.1'" in str(refused(inputs, outputs))


# -- the text -------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_meant():
    document = {
        "contract_version": 1,
        "description": 'says "so"\nand so; \x7f \\ ü',
        "input": [{"name": "a b", "axes": ["batch", 3]}, {"name": "c", "axes": ["batch"], "size": 4}],
        "state": [
            {"input": "h", "output": "hn", "axes": [2, "batch"], "initial": [[1.5, -1e30], [0.0, 1.0]]}
        ],
        "output": [{"name": "y", "role": "probs", "labels": ["speech", "noise"], "axes": ["batch", 2]}],
        "session_input": [{"name": "s", "axes": ["batch", 4], "initial": "s.npy"}],
        "constants": {"sr": 16000, "a.b": [1.0, float("inf")], "on": True},
        "vocabulary": {"kind": "ids", "size": 4},
        "facts": {"note": "…"},
    }
    assert tomllib.loads(to_toml(document)) == document
    assert to_toml(document) == to_toml(dict(reversed(document.items())))


def test_what_a_terminal_would_obey_is_written_as_an_escape():
    name = "a\x9b31m\u202e\ud800\x00"
    text = to_toml({"input": [{"name": name}], "constants": {name: 1}})
    assert text.replace("\n", "").isprintable()
    assert tomllib.loads(text)["input"]["name"] == name.replace("\ud800", "?")


def test_remarks_cannot_leave_their_line():
    text = to_toml({"input": {"name": "x"}}, {("input", "x", ""): "a\nb = 1\r\x00"})
    assert tomllib.loads(text) == {"input": {"name": "x"}}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (range(4), ["s{0..3}"]),
        (range(3), ["s0", "s1", "s2"]),
        ([0, 1, 2, 3, 7, 8, 9, 10], ["s{0..3}", "s{7..10}"]),
        ([0, 2, 4, 6, 8], ["s0", "s2", "s4", "s6", "s8"]),
    ],
)
def test_states_that_run_on_are_written_as_one(numbers, expected):
    states = [{"input": f"s{at}", "output": f"n{at}", "axes": ["batch", 2]} for at in numbers]
    assert [state["input"] for state in tomllib.loads(to_toml({"state": states}))["state"]] == expected


def test_states_run_on_by_any_number_of_their_names_and_only_if_they_are_alike():
    def state(name, width):
        return {"input": f"{name}_in", "output": f"{name}_out", "axes": ["batch", width]}

    states = [state(f"layer{at}.conv1", 8) for at in range(5)]
    states += [state(f"layer{at}.conv2", 8 if at < 4 else 9) for at in range(5)]
    written = [entry["input"] for entry in tomllib.loads(to_toml({"state": states}))["state"]]
    assert written == ["layer{0..4}.conv1_in", "layer{0..3}.conv2_in", "layer4.conv2_in"]


# -- any graph ------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "x",
        "h",
        "c",
        "hn",
        "cn",
        "h_in",
        "h_out",
        "s0",
        "s1",
        "new_s0",
        "new_s1",
        "y",
        "sr",
        "a.1",
        "ü",
        "",
        "{0..3}",
    ]
)
EXTENTS = st.sampled_from([1, 1, 2, 8, "batch", "N", "time", "seq", "T", "s7", None, "past_len", ""])
GRAPHS = st.dictionaries(
    NAMES,
    st.builds(
        lambda dtype, shape: GraphTensor(dtype, tuple(shape)),
        st.sampled_from(["float32", "float32", "int64", "bool", "tensor(string)"]),
        st.lists(EXTENTS, max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(GRAPHS, GRAPHS)
def test_any_graph_is_completed_for_good_or_refused_with_a_contract_to_look_over(inputs, outputs):
    try:
        document = complete({}, inputs, outputs, {})
    except ContractError as error:
        tomllib.loads(error.proposal)  # raises if it is none
        return
    fed = [entry["name"] for entry in document["input"]] + [state["input"] for state in document["state"]]
    given_back = [entry["name"] for entry in document.get("output", [])]
    given_back += [state["output"] for state in document["state"]]
    assert sorted(fed) == sorted(inputs)
    assert sorted(given_back) == sorted(outputs)
    for entry in (*document["input"], *document["state"], *document.get("output", [])):
        roles = [axis for axis in entry["axes"] if not isinstance(axis, int)]
        assert sorted(set(roles)) == sorted(roles)
        assert set(roles) <= {"batch", "time"}
    assert complete(document, inputs, outputs, {}) == document


def test_a_batch_fixed_at_1_is_not_the_open_axis_of_an_output():
    inputs = {
        "speech": GraphTensor("float32", (1, "feats_length", 8)),
        "cache": GraphTensor("float32", (1, 4)),
    }
    outputs = {
        "logits": GraphTensor("float32", (1, "logits_length", 5)),
        "cache_next": GraphTensor("float32", (1, 4)),
    }
    found = complete({}, inputs, outputs, {})
    assert found["input"][0]["axes"] == ["batch", "time", 8]
    assert found["output"][0]["axes"] == ["batch", "time", 5]

"""Any network of PyTorch becomes a model; run where torch is installed (`make train` installs it).

What the graphs compute is held against PyTorch by the gate itself, and over gRPC by tests/matrix.
"""

import tomllib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from model_export import closed_loop, exporter, plain_cells  # noqa: E402
from model_export.export_error import ExportError  # noqa: E402
from model_export.exporter import export_step  # noqa: E402
from tests.support.user_networks import (  # noqa: E402
    HIDDEN,
    NETWORKS,
    WIDTH,
    Ring,
    RingConvolution,
    Tagger,
    build,
    zeros,
)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # of torch, on its own way


@pytest.fixture(autouse=True)
def short_gate(monkeypatch):
    monkeypatch.setattr(closed_loop, "STEPS", 66)
    monkeypatch.setattr(closed_loop, "BATCHES", (1, 7))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mine" / "1"


def contract(out):
    read = tomllib.loads((out / "contract.toml").read_text())
    return read | {"input": read["input"] if isinstance(read["input"], list) else [read["input"]]}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_are_exported(name, out):
    done = export_step(*build(name, 1), out=out)
    assert done.measured.max_difference <= 1e-5
    assert contract(out) == done.contract
    expected = (
        "all tokens together" if done.contract["input"][0]["axes"] != ["time", "batch", WIDTH] else None
    )
    assert done.route in (expected, "all tokens together", "token by token")


def test_recurrent_layers_take_a_chunk_in_one_scan(out):
    assert export_step(*build("lstm-projection", 2), out=out).route == "all tokens together"
    operators = [node.op_type for node in onnx.load(out / "model.onnx").graph.node]
    assert operators.count("Scan") == 2


def test_a_graph_is_one_file_without_names_that_were_generated(out):
    export_step(*build("causal-convolution", 1), out=out)
    assert {path.name for path in out.iterdir()} == {"model.onnx", "contract.toml"}
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    assert not any(tensor.external_data for tensor in graph.initializer)
    axes = {
        dim.dim_param for info in (*graph.input, *graph.output) for dim in info.type.tensor_type.shape.dim
    }
    assert axes == {"", "batch", "time"}


def tagger(**options):
    state = (zeros(1, 2, HIDDEN), zeros(1, 2, HIDDEN))
    return Tagger(**options), (torch.randint(0, 50, (2, 5)), state)


def test_ids_take_their_number_from_the_embedding(out):
    made = export_step(*tagger(), out=out, role="logits").contract
    assert made["input"] == [{"name": "x", "axes": ["batch", "time"], "kind": "token_id"}]
    assert made["vocabulary"] == {"kind": "ids", "size": 50}
    assert made["output"] == [{"name": "logits", "axes": ["batch", "time", 50], "role": "logits"}]
    assert [state["name"] for state in made["state"]] == ["h", "c"]


def test_an_output_of_the_last_token_has_no_time(out):
    labels = [f"kind {number}" for number in range(50)]
    made = export_step(*tagger(is_last_only=True), out=out, role="logits", labels=labels).contract
    assert made["output"] == [{"name": "logits", "axes": ["batch", 50], "role": "logits", "labels": labels}]


class Forecaster(nn.Module):
    """Its output is as wide as its input."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 3)

    def forward(self, x, h):
        h = self.cell(x, h)
        return self.readout(h), h


def test_an_output_may_be_fed_back(out):
    example = torch.zeros(2, 3), torch.zeros(2, HIDDEN)
    made = export_step(Forecaster(), example, out=out, feedback="y").contract
    assert made["feedback"] == "y"
    assert contract(out)["feedback"] == "y"
    with pytest.raises(ExportError, match="feedback is 'z', the network has the outputs y"):
        export_step(Forecaster(), example, out=out, feedback="z", overwrite=True)


def test_an_example_with_one_row_and_one_token_says_as_much(out):
    module, (ids, state) = tagger()
    example = ids[:1, :1], tuple(part[:, :1] for part in state)
    made = export_step(module, example, out=out, role="logits").contract
    assert made["input"][0]["axes"] == ["batch", "time"]
    assert made["state"][0]["axes"] == [1, "batch", HIDDEN]


def test_nested_states_are_named_as_they_are_nested(out):
    state = Ring(zeros(2, 5, WIDTH), torch.zeros(2, dtype=torch.int64))
    made = export_step(RingConvolution(WIDTH, HIDDEN), (torch.randn(2, WIDTH), state), out=out).contract
    assert [(state["name"], state["axes"]) for state in made["state"]] == [
        ("values", ["batch", 5, WIDTH]), ("place", ["batch"])
    ]  # fmt: skip


def test_a_loop_in_python_is_served_token_by_token(out):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, HIDDEN)

        def forward(self, x, h):
            every = []
            for token in x:
                h = self.cell(token, h)
                every.append(h)
            return torch.stack(every), h

    done = export_step(Loop(), (torch.randn(5, 2, WIDTH), zeros(2, HIDDEN)), out=out)
    assert done.route == "token by token"
    assert done.contract["input"][0]["axes"] == ["time", "batch", WIDTH]


class Speaker(nn.Module):
    """Takes a speaker's vector once a session, and two inputs a token."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 3)
        self.cell = nn.GRUCell(3 + WIDTH + 5, HIDDEN)

    def forward(self, x, state, speaker):
        given = torch.cat([self.table(x["key"]), x["frame"], speaker], dim=1)
        h = self.cell(given, state["h"])
        return {"level": h[:, :1], "all": h}, {"h": h}


def speaker():
    x = {"key": torch.randint(0, 9, (2,)), "frame": torch.randn(2, WIDTH)}
    return Speaker(), {"x": x, "state": {"h": zeros(2, HIDDEN)}, "session": {"speaker": torch.randn(2, 5)}}


def test_several_inputs_and_outputs_and_what_a_session_gives(out):
    made = export_step(*speaker(), out=out, role={"level": "score"}).contract
    assert made["input"] == [
        {"name": "key", "axes": ["time", "batch"], "kind": "token_id", "size": 9},
        {"name": "frame", "axes": ["time", "batch", WIDTH], "kind": "features"},
    ]
    assert made["session_input"] == [{"name": "speaker", "axes": ["batch", 5]}]
    assert [(entry["name"], entry["role"]) for entry in made["output"]] == [
        ("level", "score"),
        ("all", "raw"),
    ]
    assert "vocabulary" not in made


def test_windows_that_overlap_have_a_context(out):
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(12, HIDDEN)

        def forward(self, x, state):
            state = self.cell(x, state)
            return state[0].mean(dim=1, keepdim=True), state

    example = torch.randn(2, 12), (zeros(2, HIDDEN), zeros(2, HIDDEN))
    (entry,) = export_step(Window(), example, out=out, context=4).contract["input"]
    assert (entry["token"], entry["context"], entry["axes"]) == (8, 4, ["time", "batch", 12])
    with pytest.raises(ExportError, match="longer than the context"):
        export_step(Window(), example, out=out, context=12, overwrite=True)


def test_states_start_where_the_example_says_or_the_caller(out):
    made = export_step(*build("rwkv", 1), out=out).contract
    assert {state["name"]: state["initial"] for state in made["state"]} == {
        "before": 0, "numerator": 0, "denominator": 0, "greatest": float(np.float32(-1e30))
    }  # fmt: skip
    random = torch.randn(5, 2, WIDTH), torch.randn(1, 2, HIDDEN)
    with pytest.raises(ExportError, match=r"rows of state 'h' differ in the example.*--initial 0"):
        export_step(nn.GRU(WIDTH, HIDDEN), random, out=out, overwrite=True)
    made = export_step(nn.GRU(WIDTH, HIDDEN), random, out=out, initial=0, overwrite=True).contract
    assert made["state"][0]["initial"] == 0
    made = export_step(
        nn.GRU(WIDTH, HIDDEN), random, out=out, initial={"h": np.arange(HIDDEN)}, overwrite=True
    ).contract
    assert made["state"][0]["initial"] == [[float(number) for number in range(HIDDEN)]]


def test_a_long_initial_state_lies_in_a_file_beside(out):
    start = torch.randn(1, 1, 100).repeat(1, 2, 1)
    export_step(nn.GRU(WIDTH, 100), (torch.randn(5, 2, WIDTH), start), out=out)
    assert contract(out)["state"][0]["initial"] == "h.npy"
    np.testing.assert_array_equal(np.load(out / "h.npy"), start[:, 0].numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_features_of_other_types(dtype, out):
    class Typed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, HIDDEN)

        def forward(self, x, h):
            h = self.cell(x.float(), h)
            return h.to(x.dtype), h

    export_step(Typed(), (torch.randn(2, WIDTH).to(dtype), zeros(2, HIDDEN)), out=out)
    given = onnx.load(out / "model.onnx").graph.input[0].type.tensor_type.elem_type
    assert onnx.helper.tensor_dtype_to_np_dtype(given) == str(dtype).removeprefix("torch.")


def test_weights_of_half_length_are_refused(out):
    with pytest.raises(ExportError, match=r"weight_ih is float16.*export network.float\(\)"):
        export_step(
            nn.GRUCell(WIDTH, HIDDEN).half(), (torch.randn(2, WIDTH).half(), zeros(2, HIDDEN)), out=out
        )


def test_an_example_without_a_state_takes_the_zeros_of_the_network(out):
    made = export_step(nn.LSTM(WIDTH, HIDDEN), (torch.randn(5, 2, WIDTH), None), out=out).contract
    assert [(state["name"], state["initial"]) for state in made["state"]] == [("h", 0), ("c", 0)]

    class Ones(nn.GRU):
        def forward(self, x, h):
            return super().forward(x, torch.ones(1, x.shape[1], HIDDEN) if h is None else h)

    with pytest.raises(ExportError, match="begins with another one than zeros"):
        export_step(Ones(WIDTH, HIDDEN), (torch.randn(5, 2, WIDTH), None), out=out, overwrite=True)


def test_a_recurrence_within_a_token_stays_one(out):
    class Bands(nn.Module):
        def __init__(self):
            super().__init__()
            self.across, self.along = nn.GRU(3, 6, batch_first=True), nn.GRUCell(6, HIDDEN)

        def forward(self, x, h):
            h = self.along(self.across(x)[0][:, -1], h)
            return h, h

    example = torch.randn(2, 4, 3), zeros(2, HIDDEN)
    with pytest.raises(ExportError, match=r"axis 1 of x.*if x is one token.*--one-token"):
        export_step(Bands(), example, out=out)
    done = export_step(Bands(), example, out=out, one_token=True)
    assert done.contract["input"][0]["axes"] == ["time", "batch", 4, 3]


def test_a_state_that_is_written_over_and_one_that_counts(out):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, HIDDEN)

        def forward(self, x, state):
            h, count, loud = state
            h.copy_(self.cell(x, h))
            y = h * (count % 3 == 0)[:, None] * loud[:, None]
            return y, (h, count + 1, x[:, 0] > 0)

    state = (zeros(2, HIDDEN), zeros(2).to(torch.int32), zeros(2).to(torch.bool))
    made = export_step(Counts(), (torch.randn(2, WIDTH), state), out=out).contract
    assert [entry["initial"] for entry in made["state"]] == [0, 0, False]


def test_a_function_is_no_network(out):
    with pytest.raises(ExportError, match=r"expected a torch.nn.Module"):
        export_step(lambda x, h: (x, h), (torch.randn(2, WIDTH), zeros(2, HIDDEN)), out=out)


def test_a_network_of_one_session_a_call(out):
    example = torch.randn(5, WIDTH), zeros(1, HIDDEN)
    made = export_step(nn.GRU(WIDTH, HIDDEN), example, out=out, batched=False).contract
    assert made["input"][0]["axes"] == ["time", WIDTH]
    assert made["state"][0]["axes"] == [1, HIDDEN]


def test_a_module_is_left_as_it_was(out):
    module, example = tagger(layers=1)
    module.train()
    kinds = [type(part) for part in module.modules()]
    export_step(module, example, out=out)
    assert module.training
    assert [type(part) for part in module.modules()] == kinds


class Broken(nn.Module):
    """A cell that is wrong in one way."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.cell = nn.GRUCell(WIDTH, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN, track_running_stats=how != "batch norm")
        self.register_buffer("kept", torch.zeros(2, HIDDEN))
        self.hidden = torch.zeros(2, HIDDEN)

    def forward(self, x, h):
        match self.how:
            case "mixed":
                x = x - x.mean(0)
            case "random":
                x = nn.functional.dropout(x, 0.5)
            case "buffer":
                self.kept += 1
            case "attribute":
                self.hidden = self.cell(x, self.hidden)
                return self.hidden + h, h
            case "ignored":
                h = torch.zeros_like(h)
            case "frozen batch":
                x = x.reshape(2, WIDTH)
            case "grows":
                return self.cell(x, h[:, :HIDDEN]), torch.cat([h, h[:, :1]], 1)
            case "other type":
                return self.cell(x, h), h.double()
            case "other structure":
                return self.cell(x, h), (h, h)
            case "no state":
                return self.cell(x, h)
            case "number":
                return self.cell(x, h), {"h": h, "count": 3}
            case "not finite":
                return torch.log(-x.abs()), self.cell(x, h)
        h = self.cell(x, h)
        return self.norm(h), h


REFUSED = {
    "mixed": "mixes the rows of a batch",
    "random": "draws random numbers",
    "buffer": "kept of the network changes while it runs.*part of `state`",
    "attribute": "keeps a state in itself",
    "ignored": "ignores state 'h'",
    "frozen batch": "takes the example's batch only: with 3 rows",
    "batch norm": r"norm \(BatchNorm1d\) has track_running_stats=False",
    "grows": "ring buffer",
    "other type": r"float32 and float64 after a step",
    "other structure": "expected the same structure",
    "no state": r"expected \(y, state\)",
    "number": "count is int 3",
    "not finite": "not a number for the example",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_right_is_refused_with_the_reason(how, out):
    with pytest.raises(ExportError, match=REFUSED[how]):
        export_step(Broken(how), (torch.randn(2, WIDTH), zeros(2, HIDDEN)), out=out)
    assert not list(out.parent.glob("*"))


def test_what_looks_ahead_is_refused(out):
    class Ahead(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how = how
            self.layer = nn.GRU(WIDTH, HIDDEN, batch_first=True)
            self.convolution = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1)

        def forward(self, x, h):
            y, h = self.layer(x, h)
            return (y - y.mean(1, keepdim=True) if self.how == "mean" else self.ahead(y)), h

        def ahead(self, y):
            return self.convolution(y.transpose(1, 2)).transpose(1, 2)

    for how in ("mean", "convolution"):
        with pytest.raises(ExportError, match=r"how tokens are divided.*not look ahead"):
            export_step(Ahead(how), (torch.randn(2, 5, WIDTH), zeros(1, 2, HIDDEN)), out=out)
    module = nn.LSTM(WIDTH, HIDDEN, bidirectional=True)
    state = (zeros(2, 2, HIDDEN), zeros(2, 2, HIDDEN))
    with pytest.raises(ExportError, match="is bidirectional: it reads a stream from its end"):
        export_step(module, (torch.randn(5, 2, WIDTH), state), out=out)


def test_a_number_of_tokens_that_is_fixed_is_refused(out):
    class Fixed(Tagger):
        def forward(self, ids, state):
            return super().forward(ids.reshape(2, 5), state)

    with pytest.raises(ExportError, match=r"takes the example's batch only|takes 5 tokens a call only"):
        export_step(Fixed(), tagger()[1], out=out)


def test_weights_that_are_not_finite_are_refused(out):
    module, example = tagger()
    with torch.no_grad():
        module.readout.bias[3] = float("nan")
    with pytest.raises(
        ExportError, match=r"weight readout.bias has 1 values that are not finite \(of 50\)"
    ):
        export_step(module, example, out=out)


def test_a_graph_that_computes_something_else_leaves_no_file(out, monkeypatch):
    monkeypatch.setattr(exporter, "ROUTES", ("token by token",))
    step = plain_cells.plain_step
    monkeypatch.setattr(
        plain_cells,
        "plain_step",
        lambda layer, x, states: tuple(part * 1.001 for part in step(layer, x, states)),
    )
    with pytest.raises(ExportError, match=r"token by token: .*at most 1e-05 is let through"):
        export_step(*build("gru-cell", 1), out=out)
    assert not list(out.parent.glob("*"))


def test_a_graph_is_made_smaller_if_it_drifts_little(out):
    module, state = nn.GRU(WIDTH, 64), zeros(1, 2, 64)
    done = export_step(module, (torch.randn(5, 2, WIDTH), state), out=out, int8=True, float16_state=True)
    assert done.contract["facts"]["drift"].startswith("peak ")
    graph = onnx.load(out / "model.onnx").graph
    assert onnx.TensorProto.INT8 in {weight.data_type for weight in graph.initializer}
    assert graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    with pytest.raises(ExportError, match="drift"):
        export_step(
            module, (torch.randn(5, 2, WIDTH), state), out=out, int8=True, max_drift=1e-9, overwrite=True
        )


def test_a_version_that_is_there_is_not_written_over(out):
    export_step(*build("tanh", 1), out=out)
    with pytest.raises(ExportError, match="write the next number"):
        export_step(*build("tanh", 1), out=out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"role": "logit"}, "expected one of logits"),
        ({"role": {"z": "logits"}}, "role is for 'z', the network has y"),
        ({"labels": ["a"]}, "has 50 values and 1 labels"),
        ({"vocabulary": "words"}, "expected 'bytes' or a number"),
        ({"initial": {"q": 0}}, "initial is for 'q', the network has h, c"),
    ],
)
def test_wrong_options_are_refused(options, words, out):
    with pytest.raises(ExportError, match=words):
        export_step(*tagger(), out=out, **options)

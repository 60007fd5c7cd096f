"""The trial of a graph: what gives a session only what its own tokens say passes, anything else is refused
with a figure and the likely cause, and passes with rows or tokens apart."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from service.model.check import MAX_REASON_CHARS, check_model
from service.model.files import ModelFileError
from service.model.step_graph import StepGraph
from service.model.trial import NotIndependent, try_out
from service.model.trial_inputs import MAX_BYTES, draw, fits
from service.model.trial_runs import TrialFailed
from tests.support import models
from tests.support.mixing_graphs import (
    AHEAD,
    RARE,
    ROWS,
    TOKENS,
    UNREPEATABLE,
    beside,
    in_time,
    less_mean,
    mixed,
    noisy,
    quantised,
    when_rare,
)
from tests.support.oracle import MODELS
from tests.support.proper_graphs import GOOD, plain, switched
from tests.support.step_graphs import WIDTH, Builder

BOTH = frozenset({"rows", "tokens"})


def load(data, apart=frozenset()):
    return StepGraph(Path(), name="net", version=1, data=data, apart=frozenset(apart))


def refusal(data, **options):
    with pytest.raises(NotIndependent) as found:
        try_out(load(data), data, **options)
    assert len(str(found.value)) <= MAX_REASON_CHARS
    return str(found.value)


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_a_proper_network_passes(make):
    try_out(load(make()))


@pytest.mark.parametrize(("change", "cause"), ROWS.values(), ids=ROWS.keys())
def test_a_network_that_mixes_rows_is_refused_and_passes_with_rows_apart(change, cause):
    said = refusal(beside(change))
    assert re.search(r"depends on the others of its batch: \w+ '\w' (differs by \d|is not finite)", said), (
        said
    )
    assert "set rows_per_run = 1 in contract.toml or --apart NAME=rows:" in said
    assert cause in said
    data = beside(change, apart=["rows"])
    try_out(load(data), data)
    assert_rows_are_as_alone(load(data), np.array([1, 1e3, 1, 1e30] * 12, np.float32))


def assert_rows_are_as_alone(graph, sizes):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, len(sizes), WIDTH)) * sizes[:, None]).astype(np.float32)
    states = {"h": rng.uniform(-1, 1, (len(sizes), WIDTH)).astype(np.float32)}
    outputs, after = graph.run(x, states)
    for row in range(len(sizes)):
        part = slice(row, row + 1)
        alone, alone_after = graph.run(x[:, part], {"h": states["h"][part]})
        np.testing.assert_array_equal(outputs["y"][:, part], alone["y"])
        np.testing.assert_array_equal(after["h"][part], alone_after["h"])


@pytest.mark.parametrize(("make", "cause"), TOKENS.values(), ids=TOKENS.keys())
def test_a_network_that_mixes_tokens_is_refused_and_passes_with_tokens_apart(make, cause):
    said = refusal(make())
    assert re.search(r"depends on how its tokens are divided: \w+ '\w' differs by \d", said), said
    assert "set tokens_per_run = 1 in contract.toml or --apart NAME=tokens" in said
    assert cause in said
    assert_tokens_are_as_alone(make(apart=["tokens"]))


@pytest.mark.parametrize(("make", "cause"), AHEAD.values(), ids=AHEAD.keys())
def test_a_network_that_looks_ahead_is_refused_without_a_setting_that_would_serve_it(make, cause):
    said = refusal(make())
    assert re.search(r"depends on how its tokens are divided: \w+ '\w' differs by \d", said), said
    assert "a network that looks ahead cannot be streamed; train and export one that reads forward" in said
    assert "tokens_per_run" not in said
    assert "--apart" not in said
    assert cause in said
    assert_tokens_are_as_alone(make(apart=["tokens"]))


def test_a_network_that_looks_ahead_and_mixes_rows_is_told_the_former_alone():
    data = in_time(lambda net, x: less_mean(net, net.add("CumSum", x, net.const(1, np.int64))))
    said = refusal(data)
    assert "cannot be streamed" in said
    assert "rows_per_run" not in said
    with pytest.raises(NotIndependent) as found:
        try_out(load(data), data)
    assert found.value.apart == ()


def test_what_is_said_of_names_of_any_length_fits_a_line():
    long = "y" * 100
    model = onnx.ModelProto.FromString(in_time(less_mean))
    node = next(node for node in model.graph.node if node.output[0] == "y")
    model.graph.output[-1].name = node.output[0] = long
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"name": "y"', f'"name": "{long}"')
    said = refusal(model.SerializeToString())
    assert "yyy..." in said
    assert said.endswith("the likely cause is ReduceMean across tokens")


def assert_tokens_are_as_alone(data):
    graph = load(data)
    try_out(graph)
    tokens, states, *_ = draw(graph)
    whole, after = graph.run(tokens, states)
    is_last = graph.contract.outputs[0].is_last
    for step in range(len(tokens)):
        single, states = graph.run(tokens[step : step + 1], states)
        if not is_last:
            np.testing.assert_array_equal(whole["y"][step], single["y"][0])
    np.testing.assert_array_equal(whole["y"][-1], single["y"][0])
    assert all(np.array_equal(after[name], states[name]) for name in after)


def test_a_network_that_mixes_both_is_told_so_and_passes_with_both_apart():
    data = in_time(quantised)
    said = refusal(data)
    assert "the others of its batch" in said
    assert "how its tokens are divided" in said
    assert "set rows_per_run = 1, tokens_per_run = 1 in contract.toml or --apart NAME=rows,tokens" in said
    for part in BOTH:
        with pytest.raises(NotIndependent):
            try_out(load(data, {part}))
    try_out(load(data, BOTH))


def test_rows_and_tokens_that_change_places_are_found_where_there_are_several_of_both():
    assert "differs by" in refusal(mixed())
    try_out(load(mixed(), {"rows"}))


@pytest.mark.parametrize("op", UNREPEATABLE)
def test_a_network_that_does_not_repeat_itself_is_refused_whatever_runs_apart(op):
    said = refusal(noisy(op))
    assert "differs in two runs on the same tokens and state" in said
    assert f"the likely cause is {op}" in said
    with pytest.raises(NotIndependent, match="two runs"):
        try_out(load(noisy(op), BOTH))


def test_a_switch_that_switches_off_more_is_refused():
    assert "when no output is asked for" in refusal(switched(honest=False))


@pytest.mark.process
@pytest.mark.filterwarnings("default")
def test_a_shipped_network_in_int8_is_refused_and_passes_with_both_apart(tmp_path):
    path = tmp_path / "int8.onnx"
    quantize_dynamic(MODELS / "python-source" / "1" / "model.onnx", path, weight_type=QuantType.QInt8)
    data = path.read_bytes()
    with pytest.raises(ModelFileError, match=r"--apart NAME=rows,tokens.* DynamicQuantizeLinear"):
        check_model(path, data)
    check_model(path, data, apart=BOTH)


def test_it_is_tried_on_tokens_that_are_given():
    data = when_rare()
    try_out(load(data), data)
    assert "the others of its batch" in refusal(data, given=np.array([5, RARE, 6, RARE, RARE + 1]))


def test_what_fails_on_a_token_of_its_vocabulary_is_refused():
    net = Builder(vocabulary=100)
    h = net.state("h", 4)
    after = net.add("Add", h, net.add("Gather", net.normal(99, 4), "x"))  # one row is missing
    net.follows("h", after)
    net.output(after, 4)
    with pytest.raises(TrialFailed, match="a step of drawn tokens fails"):
        try_out(load(net.bytes()))


def test_small_cases_are_tried_when_there_is_no_time_left():
    assert "3 rows" not in refusal(beside(ROWS["from 3 rows on"][0]), is_time_left=lambda: False)
    try_out(load(beside(ROWS["from 40 rows on"][0])), is_time_left=lambda: False)


def test_a_large_state_is_tried_with_few_rows():
    net = Builder()
    h = net.state("h", 1 << 19)  # 2 MiB
    net.follows("h", h)
    net.output("x", WIDTH)
    graph = load(net.bytes())
    sample = draw(graph)
    assert sum(array.nbytes for array in sample.states.values()) <= MAX_BYTES
    assert fits(graph.contract, 3, 2)
    assert not fits(graph.contract, 64, 1)
    try_out(graph)


def test_the_poison_of_other_tests_is_not_drawn(tmp_path):
    models.write_poison_model(tmp_path / "model.onnx")
    sample = draw(StepGraph(tmp_path / "model.onnx", name="poison", version=1))
    assert not set(range(models.STALLS, models.RULES_OUT_ALL + 1)) & set(sample.tokens.ravel().tolist())


@pytest.mark.process
def test_a_trial_loads_nothing(tmp_path):
    """Where files are checked, none can be opened any more; parts of numpy load when they are called."""
    for name, data in (("good", plain()), ("bad", in_time(quantised)), ("random", noisy("Dropout"))):
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from service.model.check_process import TrialFailed, try_out\n"
        "from service.model.step_graph import StepGraph\n"
        "graphs = [StepGraph(path, name='', version=1) for path in Path(sys.argv[1]).iterdir()]\n"
        "before = set(sys.modules)\n"
        "for graph in graphs:\n"
        "    try:\n"
        "        try_out(graph)\n"
        "    except TrialFailed:\n"
        "        pass\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

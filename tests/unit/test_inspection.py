"""Model files looked at by a confined process: what is said of them, and how little it is believed."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from service.model.adding import place_of, put
from service.model.bundle import Bundle, pack, unpack
from service.model.check import CheckLimits, check_model
from service.model.files import ModelFileError, read_model
from service.model.inspection import inspect_completed, inspect_model
from tests.support.bare_graphs import elman, scaled
from tests.support.hostile_models import endless, external_tensor, step_graph
from tests.support.models import write_features_model

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("forked_checks")]

PATH = Path("model.onnx")


def with_contract(graph, text, **files):
    return pack(Bundle(graph, text.encode(), files))


def test_a_bare_file_that_is_clear_is_served_as_it_is():
    found = inspect_model(PATH, elman())
    assert found.refusal == ""
    assert found.operators == {"MatMul": 3, "Add": 1, "Tanh": 1, "Identity": 1}
    assert found.declared.inputs["h"].shape == ("batch", 4)
    assert found.state_bytes == 16
    assert list(found.step_s) == [1, 8, 64]
    assert all(seconds > 0 for seconds in found.step_s.values())
    assert found.differences["rows"] < 1e-5
    assert tomllib.loads(found.contract)["state"] == [{"input": "h", "output": "hn", "axes": ["batch", 4]}]
    check_model(PATH, elman())  # the server's check agrees


def test_what_a_state_begins_with_is_said_where_nothing_else_does():
    head = "[[state]]  # float32 [batch, 4]"
    zeros = f"{head}; begins at zeros, unless initial = says otherwise\n"
    assert zeros in inspect_model(PATH, elman()).contract
    assert zeros in inspect_model(PATH, elman(mixes=True)).contract
    data, _ = inspect_completed(PATH, elman(hides_width=True))
    assert zeros.encode() in unpack(data).contract
    given = with_contract(elman(), '[[state]]\ninput = "h"\ninitial = -1e38')
    assert f"{head}\n" in inspect_model(PATH, given).contract


def test_a_file_with_its_contract_inside_keeps_it(tmp_path):
    write_features_model(tmp_path / "model.onnx")
    found = inspect_model(PATH, read_model(tmp_path / "model.onnx"))
    assert found.refusal == ""
    assert tomllib.loads(found.contract)["state"][0]["output"] == "h_next"


def test_extents_that_the_graph_does_not_declare_are_measured():
    graph = elman(hides_width=True)
    found = inspect_model(PATH, graph)
    assert "axis 1 of 'y'" in found.refusal
    assert found.is_measured
    data, completed = inspect_completed(PATH, graph)
    assert completed.refusal == ""
    assert data != graph
    assert tomllib.loads(completed.contract)["output"] == [
        {"name": "y", "axes": ["batch", 2], "role": "raw"}
    ]
    check_model(PATH, data)


def test_what_is_not_clear_is_proposed():
    found = inspect_model(PATH, scaled())
    assert "'gain' (float32 [])" in found.refusal
    assert not found.is_measured
    assert 'gain = "?"  # ?' in found.contract
    answered = found.contract.replace('"?"', "0.5")
    assert inspect_model(PATH, with_contract(scaled(), answered)).refusal == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no model at all", "not a loadable ONNX graph"),
        (b"", "not a loadable ONNX graph"),
        (step_graph(initializers=[external_tensor("/etc/passwd")]).SerializeToString(), "external data"),
        (elman(mixes=True), "depends on the others of its batch"),
        (with_contract(elman(), "[input]\nnmae = 3"), "did you mean 'name'?"),
        (with_contract(elman(), '[[state]]\ninput = "h"\noutput = "hnn"'), "did you mean 'hn'?"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(data, reason):
    found = inspect_model(PATH, data)
    assert reason in found.refusal
    assert found.step_s == {}


def test_a_graph_that_mixes_rows_is_proposed_one_at_a_time():
    proposal = inspect_model(PATH, elman(mixes=True)).contract
    assert proposal.startswith("rows_per_run = 1  # ?")
    assert inspect_model(PATH, with_contract(elman(mixes=True), proposal)).refusal == ""


def test_a_file_that_never_ends_does_not_keep_anybody():
    found = inspect_model(PATH, endless().SerializeToString(), CheckLimits(cpu_s=1, wall_s=20.0))
    assert "took too much CPU time" in found.refusal
    assert found.declared is None


@pytest.mark.parametrize(
    "said",
    [
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"switches": 3, "inputs": [1], "outputs": {"y": 3, "z": [], "w": [1, 2, 3]}, "refusal": 7}',
        '{"switches": {}, "inputs": {"x": ["float32", [null, "a", 1.5, {}]]}, "measured": {"y": ["a"]}}',
        '{"operators": {"Add": "many"}, "step_s": {"1": null, "x": 2}, "state_bytes": "?"}',
        json.dumps({"refusal": "\x1b[2J\n" * 1000}),
    ],
)
def test_whatever_the_process_says_is_taken_for_what_it_is(said, monkeypatch, tmp_path):
    """A file may have taken the process over."""
    (tmp_path / "liar.py").write_text(f"print({said!r})")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    monkeypatch.setattr("service.model.inspection.PROCESS", "liar")
    found = inspect_model(PATH, elman())
    assert found.refusal.isprintable()
    assert len(found.refusal) < 500
    assert found.step_s == {}
    assert found.state_bytes == 0


# -- where it is put ------------------------------------------------------------------------------


def test_a_model_comes_with_all_that_belongs_to_it_or_not_at_all(tmp_path):
    place = place_of(tmp_path, "mine", None, PATH)
    assert place == tmp_path / "mine" / "1"
    put(Bundle(b"graph", b"text", {"h.npy": b"h"}), place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "model.onnx": b"graph",
        "contract.toml": b"text",
        "h.npy": b"h",
    }
    assert place_of(tmp_path, "mine", None, PATH) == tmp_path / "mine" / "2"
    with pytest.raises(OSError, match="not empty"):
        put(Bundle(b"other", None, {}), place)
    with pytest.raises(OSError, match="No such file"):
        put(Bundle(b"other", None, {"a/b.npy": b""}), tmp_path / "other" / "1")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("a/b", 1, "not a valid folder name"),
        ("", 1, "not a valid folder name"),
        (".hidden", 1, "begins with a dot"),
        ("a\nb", 1, "U+000A"),
        ("x" * 200, 1, "200 characters"),
        ("a", 0, "not a number >= 1"),
        ("a", 1 << 31, "not a number >= 1"),
        ("there", 3, "is there already"),
    ],
)
def test_a_place_that_cannot_be_is_refused(name, version, reason, tmp_path):
    (tmp_path / "there" / "3").mkdir(parents=True)
    with pytest.raises(ModelFileError) as caught:
        place_of(tmp_path, name, version, PATH)
    assert reason in str(caught.value)


def test_a_config_of_triton_counts_beside_the_file_and_beside_its_versions(tmp_path):
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(elman())
    (folder / "other.onnx").write_bytes(elman())
    (tmp_path / "net" / "config.pbtxt").write_text("max_batch_size: 3")
    assert unpack(read_model(folder / "model.onnx")).contract == b"rows_per_run = 3\n"
    assert unpack(read_model(folder / "other.onnx")).contract is None
    (folder / "config.pbtxt").write_text("max_batch_size: 4")
    assert unpack(read_model(folder / "model.onnx")).contract == b"rows_per_run = 4\n"
    (folder / "contract.toml").write_text("rows_per_run = 5")
    assert unpack(read_model(folder / "model.onnx")).contract == b"rows_per_run = 5"
    (folder / "contract.toml").unlink()
    (folder / "config.pbtxt").write_text("max_batch_size {")
    with pytest.raises(ModelFileError, match=r"config\.pbtxt: line 1"):
        read_model(folder / "model.onnx")


def test_initial_values_from_a_file_are_part_of_the_model(tmp_path):
    np.save(tmp_path / "h0.npy", np.ones(4, np.float32))
    (tmp_path / "model.onnx").write_bytes(elman())
    (tmp_path / "contract.toml").write_text('[[state]]\ninput = "h"\ninitial = "h0.npy"\n')
    assert inspect_model(PATH, read_model(tmp_path / "model.onnx")).refusal == ""

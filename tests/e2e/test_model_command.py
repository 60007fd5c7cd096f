"""`holdfast model inspect`, `check` and `add`: from a file of somebody else's to a stream."""

import json
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest

import holdfast
from holdfast.cli.model_files import main
from tests.support.bare_graphs import elman, scaled
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

CONFIG = """
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
sequence_batching { state [ {
  input_name: "memory" output_name: "getitem_1" data_type: TYPE_FP32 dims: [ 4 ]
  initial_state { data_type: TYPE_FP32 dims: [ 4 ] data_file: "first" name: "first" }
} ] }
""".replace("dims: [ 2 ] } ]\noutput", "dims: [ 3 ] } ]\noutput")


@pytest.fixture
def models(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder; returns its exit code, what it printed, and what it complained."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_inspect_prints_what_a_file_is_and_a_contract_for_it(models, tmp_path):
    (tmp_path / "net.onnx").write_bytes(elman())
    done = models("inspect", "net.onnx")
    assert done.code == 0, done.err
    for part in ("net.onnx: ", "x  float32 [batch, 3]", "MatMul 3", "16 bytes a session", "ms for 64 rows",
                 "served as it is"):  # fmt: skip
        assert part in done.out
    assert tomllib.loads(done.out)["state"] == [{"input": "h", "output": "hn", "axes": ["batch", 4]}]
    (tmp_path / "contract.toml").write_text(done.out)  # all of it may be kept
    assert models("check", "net.onnx").code == 0


def test_the_command_of_models_finds_its_subcommands(tmp_path):
    line = [sys.executable, "-c", "from service.command import main; main()", "model"]
    done = subprocess.run([*line, "check", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"holdfast model: {tmp_path}: no .onnx file in this folder\n"


def test_a_client_that_is_no_server_is_told_what_to_install(models, monkeypatch):
    monkeypatch.setattr("holdfast.cli.model_files.find_spec", lambda name: None)
    done = models("check", ".")
    assert done.code == 2
    assert done.err == "holdfast model needs onnxruntime: pip install 'holdfast[server]'\n"


def test_inspect_of_what_is_no_model_fails_in_a_line(models, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    done = models("inspect", "net.onnx")
    assert done.code == 1
    assert "not a loadable ONNX graph" in done.out
    missing = models("inspect", "none.onnx")
    assert missing.code == 1
    assert missing.err == "holdfast model: none.onnx: No such file or directory\n"


def test_check_says_of_each_file_below_a_folder_whether_it_is_served(models, tmp_path):
    for name, data in {"good/1": elman(), "mixes/1": elman(mixes=True), "open/1": scaled()}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.onnx").write_bytes(data)
    (tmp_path / "copy" / "1").mkdir(parents=True)
    (tmp_path / "copy" / "1" / "model.onnx").write_bytes(elman())
    (tmp_path / "good" / "latest").mkdir()
    (tmp_path / "good" / "latest" / "model.onnx").write_bytes(elman())
    done = models("check", ".", "--json")
    assert done.code == 1
    found = {line["path"]: line for line in map(json.loads, done.out.splitlines())}
    assert {path: line["served"] for path, line in found.items()} == {
        "copy/1/model.onnx": True,
        "good/1/model.onnx": False,
        "good/latest/model.onnx": False,
        "mixes/1/model.onnx": False,
        "open/1/model.onnx": False,
    }
    assert found["copy/1/model.onnx"]["state_bytes"] == 16
    assert found["good/1/model.onnx"]["reason"] == "it is a copy of copy/1/model.onnx"
    assert "version 'latest' is not a number" in found["good/latest/model.onnx"]["reason"]
    assert "depends on the others of its batch" in found["mixes/1/model.onnx"]["reason"]
    assert "'gain'" in found["open/1/model.onnx"]["reason"]
    alone = models("check", "copy")
    assert alone.code == 0
    assert alone.out.startswith("served   copy/1/model.onnx: 16 bytes a session; a step takes ")
    (tmp_path / "empty").mkdir()
    assert models("check", "empty").code == 1


def test_a_refused_file_leaves_nothing_behind_and_its_proposal_is_accepted_once_answered(models, tmp_path):
    (tmp_path / "net.onnx").write_bytes(scaled())
    refused = models("add", "net.onnx", "--name", "mine")
    assert refused.code == 1
    assert "what 'gain' (float32 []) is" in refused.err
    assert files_below(tmp_path) == ["net.onnx"]
    assert not (tmp_path / "models").exists()
    kept = models("add", "net.onnx", "--name", "mine", "--proposal", "mine.toml")
    assert kept.out == ""
    assert (tmp_path / "mine.toml").read_text() == refused.out
    still = models("add", "net.onnx", "--name", "mine", "--contract", "mine.toml")
    assert still.code == 1
    (tmp_path / "mine.toml").write_text(refused.out.replace('"?"', "2"))
    added = models("add", "net.onnx", "--name", "mine", "--contract", "mine.toml")
    assert added.code == 0, added.err
    assert added.out.startswith("added models/mine/1: 8 bytes a session")
    again = models("add", "net.onnx", "--name", "mine", "--version", "1", "--contract", "mine.toml")
    assert again.code == 1
    assert "models/mine/1 is there already" in again.err
    assert files_below(tmp_path / "models") == ["mine/1/contract.toml", "mine/1/model.onnx"]


def test_what_is_added_streams(models, tmp_path):
    """A bare file, one whose contract is measured, and one from Triton, through a server."""
    (tmp_path / "bare.onnx").write_bytes(elman())
    (tmp_path / "wide.onnx").write_bytes(elman(hides_width=True))
    triton = tmp_path / "triton"
    (triton / "1").mkdir(parents=True)
    (triton / "initial_state").mkdir()
    (triton / "1" / "model.onnx").write_bytes(elman(before="memory", after="getitem_1"))
    (triton / "config.pbtxt").write_text(CONFIG)
    (triton / "initial_state" / "first").write_bytes(np.ones(4, "<f4").tobytes())
    for name, file in {"bare": "bare.onnx", "wide": "wide.onnx", "theirs": triton / "1/model.onnx"}.items():
        done = models("add", file, "--name", name)
        assert done.code == 0, done.err
    assert files_below(tmp_path / "models") == [
        "bare/1/model.onnx",
        "theirs/1/contract.toml",
        "theirs/1/initial_state_0.npy",
        "theirs/1/model.onnx",
        "wide/1/contract.toml",
        "wide/1/model.onnx",
    ]
    tokens = np.random.default_rng(2).standard_normal((5, 3)).astype(np.float32)
    with (
        ServerProcess(tmp_path / "data", "--models", str(tmp_path / "models")) as server,
        holdfast.Client(server.address) as client,
    ):
        given = {
            name: client.open_session(name, model=name).step(tokens).outputs["y"]
            for name in ("bare", "wide", "theirs")
        }
    rng = np.random.default_rng(1)
    w, u, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 4), (4, 2)))
    for name, first in (("bare", 0.0), ("wide", 0.0), ("theirs", 1.0)):
        h, expected = np.full(4, first, np.float32), []
        for token in tokens:
            h = np.tanh(token @ w + h @ (0.5 * u))
            expected.append(h @ v)
        assert np.allclose(given[name], expected, atol=1e-5), name

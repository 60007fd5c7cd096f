"""`holdfast models inspect`, `check` and `add`: from a file of somebody else's to a stream."""

import json
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import holdfast
from service.demo.processes import ServerProcess
from tests.bare_graphs import elman, scaled

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


def models(folder, *words):
    """Runs the command in a folder."""
    line = [sys.executable, "-c", "from service.cli import main; main()", "models", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=folder)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_inspect_prints_what_a_file_is_and_a_contract_for_it(tmp_path):
    (tmp_path / "net.onnx").write_bytes(elman())
    done = models(tmp_path, "inspect", "net.onnx")
    assert done.returncode == 0, done.stderr
    for part in ("net.onnx: ", "x  float32 [batch, 3]", "MatMul 3", "16 bytes a session", "ms for 64 rows",
                 "served as it is"):  # fmt: skip
        assert part in done.stdout
    assert tomllib.loads(done.stdout)["state"] == [{"input": "h", "output": "hn", "axes": ["batch", 4]}]
    (tmp_path / "contract.toml").write_text(done.stdout)  # all of it may be kept
    assert models(tmp_path, "check", "net.onnx").returncode == 0


def test_inspect_of_what_is_no_model_fails_in_a_line(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    done = models(tmp_path, "inspect", "net.onnx")
    assert done.returncode == 1
    assert "not a loadable ONNX graph" in done.stdout
    missing = models(tmp_path, "inspect", "none.onnx")
    assert missing.returncode == 1
    assert missing.stderr == "holdfast models: none.onnx: No such file or directory\n"


def test_check_says_of_each_file_below_a_folder_whether_it_is_served(tmp_path):
    for name, data in {"good/1": elman(), "mixes/1": elman(mixes=True), "open/1": scaled()}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.onnx").write_bytes(data)
    (tmp_path / "copy" / "1").mkdir(parents=True)
    (tmp_path / "copy" / "1" / "model.onnx").write_bytes(elman())
    (tmp_path / "good" / "latest").mkdir()
    (tmp_path / "good" / "latest" / "model.onnx").write_bytes(elman())
    done = models(tmp_path, "check", ".", "--json")
    assert done.returncode == 1
    found = {line["path"]: line for line in map(json.loads, done.stdout.splitlines())}
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
    alone = models(tmp_path, "check", "copy")
    assert alone.returncode == 0
    assert alone.stdout.startswith("served   copy/1/model.onnx: 16 bytes a session; a step takes ")
    (tmp_path / "empty").mkdir()
    assert models(tmp_path, "check", "empty").returncode == 1


def test_a_refused_file_leaves_nothing_behind_and_its_proposal_is_accepted_once_answered(tmp_path):
    (tmp_path / "net.onnx").write_bytes(scaled())
    refused = models(tmp_path, "add", "net.onnx", "--name", "mine")
    assert refused.returncode == 1
    assert "what 'gain' (float32 []) is" in refused.stderr
    assert files_below(tmp_path) == ["net.onnx"]
    assert not (tmp_path / "models").exists()
    kept = models(tmp_path, "add", "net.onnx", "--name", "mine", "--proposal", "mine.toml")
    assert kept.stdout == ""
    assert (tmp_path / "mine.toml").read_text() == refused.stdout
    still = models(tmp_path, "add", "net.onnx", "--name", "mine", "--contract", "mine.toml")
    assert still.returncode == 1
    (tmp_path / "mine.toml").write_text(refused.stdout.replace('"?"', "2"))
    added = models(tmp_path, "add", "net.onnx", "--name", "mine", "--contract", "mine.toml")
    assert added.returncode == 0, added.stderr
    assert added.stdout.startswith("added models/mine/1: 8 bytes a session")
    again = models(
        tmp_path, "add", "net.onnx", "--name", "mine", "--version", "1", "--contract", "mine.toml"
    )
    assert again.returncode == 1
    assert "models/mine/1 is there already" in again.stderr
    assert files_below(tmp_path / "models") == ["mine/1/contract.toml", "mine/1/model.onnx"]


def test_what_is_added_streams(tmp_path):
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
        done = models(tmp_path, "add", file, "--name", name)
        assert done.returncode == 0, done.stderr
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
            name: client.session(name, model=name).step(tokens).outputs["y"]
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

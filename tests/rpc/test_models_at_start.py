"""A model file that cannot be served ends `holdfast serve` with the file and the reason."""

import subprocess
import sys

import pytest

from tests.models import CONTRACT, write_features_model


def write_truncated(path):
    write_features_model(path)
    path.write_bytes(path.read_bytes()[:150])


BROKEN = {
    "truncated": (write_truncated, "not a loadable ONNX graph"),
    "no contract": (lambda path: write_features_model(path, metadata={}), "contract_version"),
    "no state pair": (
        lambda path: write_features_model(path, metadata={**CONTRACT, "holdfast.states": "[]"}),
        "at least one state pair",
    ),
    "unnamed axis": (lambda path: write_features_model(path, batch=None), "neither a name nor an extent"),
    "fixed batch": (lambda path: write_features_model(path, batch=4), "must be dynamic"),
}


@pytest.mark.parametrize(("write", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_model_is_refused_at_start(tmp_path, write, reason):
    path = tmp_path / "models" / "broken" / "1" / "model.onnx"
    write(path)
    result = serve("--models", str(tmp_path / "models"), "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 1
    assert str(path) in result.stderr
    assert reason in result.stderr


def test_a_folder_without_models_is_refused(tmp_path):
    result = serve("--models", str(tmp_path), "--data-dir", str(tmp_path / "data"))
    assert (result.returncode, "model.onnx" in result.stderr) == (1, True)


@pytest.mark.parametrize("flags", [["--max-batch", "0"], ["--no-such-flag"], ["--grpc-address", "nowhere"]])
def test_wrong_settings_end_with_code_2(flags):
    assert serve(*flags).returncode == 2


def serve(*flags):
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)

"""A model file that cannot be served ends `holdfast serve` with the file and the reason."""

import pytest
from onnx import helper

import holdfast
from holdfast.demo import processes
from tests.support.command_line import call
from tests.support.hostile_models import external_tensor, lying, step_graph
from tests.support.mixing_graphs import beside, less_mean
from tests.support.models import CONTRACT, write_features_model
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for


def write_truncated(path):
    write_features_model(path)
    path.write_bytes(path.read_bytes()[:150])


def write(model):
    def write_to(path):
        path.parent.mkdir(parents=True)
        path.write_bytes(model.SerializeToString())

    return write_to


BROKEN = {
    "external data": (write(step_graph(initializers=[external_tensor("w.bin")])), "external data"),
    "custom operator": (
        write(step_graph(helper.make_node("Shell", ["x"], ["w"], domain="evil"))),
        "'evil'",
    ),
    "mixes rows": (
        lambda path: (path.parent.mkdir(parents=True), path.write_bytes(beside(less_mean))),
        "the likely cause is ReduceMean across rows",
    ),
    "other shapes": (write(lying()), "a step gives output 'y'"),
    "truncated": (write_truncated, "not a loadable ONNX graph"),
    "fixed batch": (lambda path: write_features_model(path, batch=4), "the batch axis 0 is fixed at 4"),
}


@pytest.mark.parametrize(("write", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_model_is_refused_at_start(tmp_path, write, reason, starts):
    path = tmp_path / "models" / "broken" / "1" / "model.onnx"
    write(path)
    result = starts.call(
        "serve", "--models", str(tmp_path / "models"), "--data-dir", str(tmp_path / "data")
    )
    assert result.code == 1
    assert str(path) in result.err
    assert reason in result.err
    settings, _ = result.err.splitlines()
    assert "settings: " in settings


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_broken_model_keeps_no_other_from_being_served_unless_it_shall(tmp_path, workers, starts):
    write_features_model(tmp_path / "models" / "good" / "1" / "model.onnx")
    broken = tmp_path / "models" / "broken" / "1" / "model.onnx"
    write_truncated(broken)
    flags = ("--models", str(tmp_path / "models"), "--workers", workers)
    with ServerProcess(tmp_path / "data", *flags) as server, holdfast.Client(server.address) as client:
        assert [model.name for model in client.list_models()] == ["good"]
        assert f"{broken}: not a loadable ONNX graph" in server.log_path.read_text()
    result = starts.call("serve", *flags, "--strict-models", "--data-dir", str(tmp_path / "data"))
    assert (result.code, str(broken) in result.err) == (1, True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_over_the_limit_is_refused_at_start(tmp_path, workers, starts):
    path = tmp_path / "models" / "large" / "1" / "model.onnx"
    write_features_model(path, metadata={**CONTRACT, "holdfast.filling": "x" * 2000})
    flags = ["--models", str(tmp_path / "models"), "--data-dir", str(tmp_path / "data")]
    result = starts.call("serve", *flags, "--max-model-bytes", "1024", "--workers", workers)
    assert (result.code, result.err.count("Traceback")) == (1, 0)
    assert f"{path}: more than 1024 bytes, the limit of --max-model-bytes" in result.err


@pytest.mark.parametrize("flags", [["--max-batch", "0"], ["--no-such-flag"], ["--grpc-address", "nowhere"]])
def test_wrong_settings_end_with_code_2(flags):
    assert call("serve", *flags).code == 2


def test_a_shipped_model_whose_package_is_not_installed_is_left_out_and_nothing_is_wrong(
    tmp_path, monkeypatch
):
    (tmp_path / "tokenizers.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        processes.ServerProcess(tmp_path / "data", "--strict-models", "--model-refresh-s", "0.2") as server,
        holdfast.Client(server.address) as client,
    ):
        assert "docstring-words" not in [model.name for model in client.list_models()]
        log = server.log_path.read_text()
        assert "pip install 'holdfast[tokenizer]'" in log
        assert '"level": "error"' not in log
        wait_for(lambda: "holdfast_models_refused 0.0" in get(server, "/metrics")[1])

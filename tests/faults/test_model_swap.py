"""The file of a model is replaced while it is served."""

import contextlib
import shutil
import threading

import pytest

import holdfast
from holdfast.errors import ModelMismatch
from service.demo.processes import ServerProcess
from tests.faults.verdict import MODEL, assert_held
from tests.oracle import MODELS

TEXT = b"for line in open(path):\n    print(line, end='')\n" * 4

pytestmark = pytest.mark.faults


def put(folder, model):
    """Puts a shipped model's file where the served one lies, as a deployment tool would."""
    path = folder / MODEL / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    shutil.copyfile(MODELS / model / "1" / "model.onnx", fresh)
    fresh.replace(path)


@contextlib.contextmanager
def served(data, flags, history):
    """A server, and a client of it that records."""
    with ServerProcess(data, *flags) as server, holdfast.Client(server.address, history=history) as client:
        yield client


def test_a_model_file_replaced_under_load_is_not_mixed_with_what_runs(tmp_path):
    models, data = tmp_path / "models", tmp_path / "data"
    put(models, MODEL)
    shutil.copytree(models, tmp_path / "first")
    flags = ("--models", str(models))
    with served(data, flags, tmp_path / "before") as client:
        swapping = threading.Timer(0.2, put, (models, "python-source-elman"))
        swapping.start()
        old = client.session("old", model=MODEL)
        for start in range(0, len(TEXT), 2):
            old.step(TEXT[start : start + 2], token_log_prob=True)
        swapping.join()
        old.step(TEXT, token_log_prob=True)  # the server keeps what it loaded
        client.session("as old", model=MODEL).step("abc", token_log_prob=True)
    with served(data, flags, tmp_path / "after") as client:
        for name in ("old", "as old"):
            with pytest.raises(ModelMismatch):
                client.session(name, model=MODEL)
        client.session("new", model=MODEL).step(TEXT, token_log_prob=True)
    put(models, MODEL)  # rolled back
    with served(data, flags, tmp_path / "before") as client:
        session = client.session("old")
        assert session.position == 2 * len(TEXT)
        session.step(b"and on", token_log_prob=True)
    assert_held(tmp_path / "before", models=tmp_path / "first")
    put(models, "python-source-elman")
    assert_held(tmp_path / "after", models=models)

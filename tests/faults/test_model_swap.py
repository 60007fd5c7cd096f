"""The file of a model is replaced while it is served."""

import contextlib
import os
import shutil
import signal
import threading

import pytest

import holdfast
from holdfast.errors import ModelMismatch
from tests.faults.test_workers import workers_of
from tests.faults.verdict import MODEL, assert_held
from tests.support.models import put_shipped
from tests.support.server import ServerProcess, value
from tests.support.waiting import wait_for

OTHER = "python-source-elman"
TEXT = b"for line in open(path):\n    print(line, end='')\n" * 4

pytestmark = pytest.mark.faults


@contextlib.contextmanager
def served(data, flags, history):
    """A server, and a client of it that records."""
    with ServerProcess(data, *flags) as server, holdfast.Client(server.address, history=history) as client:
        yield client


def test_a_model_file_replaced_under_load_is_not_mixed_with_what_runs(tmp_path):
    models, data = tmp_path / "models", tmp_path / "data"
    put_shipped(models, MODEL, MODEL)
    shutil.copytree(models, tmp_path / "first")
    flags = ("--models", str(models))
    with served(data, flags, tmp_path / "before") as client:
        swapping = threading.Timer(0.2, put_shipped, (models, OTHER, MODEL))
        swapping.start()
        old = client.open_session("old", model=MODEL)
        for start in range(0, len(TEXT), 2):
            old.step(TEXT[start : start + 2], token_log_prob=True)
        swapping.join()
        old.step(TEXT, token_log_prob=True)  # the server keeps what it loaded
        client.open_session("as old", model=MODEL).step("abc", token_log_prob=True)
    with served(data, flags, tmp_path / "after") as client:
        for name in ("old", "as old"):
            with pytest.raises(ModelMismatch):
                client.open_session(name, model=MODEL)
        client.open_session("new", model=MODEL).step(TEXT, token_log_prob=True)
    put_shipped(models, MODEL, MODEL)  # rolled back
    with served(data, flags, tmp_path / "before") as client:
        session = client.open_session("old")
        assert session.position == 2 * len(TEXT)
        session.step(b"and on", token_log_prob=True)
    assert_held(tmp_path / "before", models=tmp_path / "first")
    put_shipped(models, OTHER, MODEL)
    assert_held(tmp_path / "after", models=models)


def test_a_bad_file_keeps_no_worker_from_taking_the_place_of_one_that_died(tmp_path):
    models, data = tmp_path / "models", tmp_path / "data"
    put_shipped(models, MODEL, MODEL)
    with ServerProcess(data, "--models", str(models), "--workers", "2") as server:
        bad = models / MODEL / "2" / "model.onnx"
        bad.parent.mkdir()
        bad.write_bytes(b"no model")
        before = workers_of(server)
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: value(server, "holdfast_worker_restarts_total") == 1)
        wait_for(lambda: value(server, "holdfast_workers") == 2)
        assert str(bad) in (data / "server.log").read_text()
        for _ in range(16):  # both workers, but for once in 2 ** 15 runs
            with holdfast.Client(server.address) as client:
                assert client.open_session(model=MODEL).step("abc").model_version == 1

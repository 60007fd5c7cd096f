"""A model file is tried by a process of its own: what breaks there is a reason here, and no more."""

import os
import signal

import numpy as np
import onnxruntime as ort
import pytest

from service.model import check
from service.model.check import CheckLimits, check_folder, check_model
from service.model.files import ModelFileError, fingerprint_of, read_file
from service.model.repository import ModelRepository
from tests.support.hostile_models import (
    MEMORY_ADDRESS,
    endless,
    external_tensor,
    greedy,
    lying,
    shadowing,
    step_graph,
)
from tests.support.mixing_graphs import beside, less_mean
from tests.support.models import write_features_model

pytestmark = pytest.mark.process

GIB = 1 << 30


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sum" / "1" / "model.onnx"


def refuse(path, data, limits=check.LIMITS):
    with pytest.raises(ModelFileError) as refusal:
        check_model(path, data, limits)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in refusal.value.reason
    return refusal.value.reason


def test_a_step_graph_passes(path):
    check_model(path, step_graph().SerializeToString())


def test_a_graph_that_never_ends_is_refused(path):
    assert "CPU time" in refuse(path, endless().SerializeToString(), CheckLimits(cpu_s=1, wall_s=20))


def test_a_check_that_hangs_without_using_the_cpu_is_refused(path, monkeypatch):
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.hangs")
    assert "took more than 0.5 s" in refuse(path, b"", CheckLimits(wall_s=0.5))


def test_a_graph_that_takes_all_memory_is_refused(path):
    reason = refuse(path, greedy(2 * GIB).SerializeToString(), CheckLimits(memory_bytes=GIB))
    assert "memory" in reason or "alloc" in reason


def test_a_crash_of_the_check_is_a_reason(path, monkeypatch):
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.crashes")
    assert signal.Signals.SIGABRT.name in refuse(path, b"")


def test_a_signal_without_a_name_is_a_reason(path, monkeypatch):
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.ends_by_number")
    assert "ended with signal 40" in refuse(path, b"")


def test_what_a_check_says_is_short_and_printable(path, monkeypatch):
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.raves")
    reason = refuse(path, b"")
    assert reason.isprintable()
    assert len(reason) <= check.MAX_REASON_CHARS + 3


def test_a_graph_that_gives_other_shapes_than_it_says_is_refused(path):
    assert "a step gives output 'y' as float32 (1, 1, 2)" in refuse(
        path, lying().SerializeToString()
    ).replace("(2, 1, 2)", "(1, 1, 2)")


def test_external_data_is_refused_before_onnxruntime_sees_it(path):
    model = step_graph(initializers=[external_tensor("w.bin")])
    assert "external data" in refuse(path, model.SerializeToString())


def test_a_kernel_behind_a_function_of_its_name_is_refused(path):
    """The check alone would pass it, since its kernel breaks at a later token only."""
    assert "'Inverse'" in refuse(path, shadowing().SerializeToString())


def test_a_check_can_open_no_file_and_no_socket_and_write_nothing(path, monkeypatch):
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.reaches_out")
    assert refuse(path, b"") == "open: EMFILE socket: EMFILE write: EFBIG"


def test_a_check_knows_no_secrets(path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_STORE", "redis://:secret@store")
    monkeypatch.setattr(check, "PROCESS", "tests.support.processes.says_its_environment")
    assert "secret" not in refuse(path, b"")


# -- what is checked is what is loaded -----------------------------------------------------------


def test_a_file_replaced_after_its_check_is_not_what_is_loaded(path, monkeypatch):
    write_features_model(path)
    checked = path.read_bytes()

    def replace_file(*_, **__):
        path.write_bytes(step_graph(initializers=[external_tensor("w.bin")]).SerializeToString())

    monkeypatch.setattr("service.model.repository.check_model", replace_file)
    model = ModelRepository(path.parent.parent.parent).find("sum")
    assert model.fingerprint == fingerprint_of(checked)
    assert path.read_bytes() != checked


def test_a_file_whose_check_was_made_is_not_checked_again(path, monkeypatch):
    folder = path.parent.parent.parent
    write_features_model(path)
    checked = check_folder(folder, 1 << 20)
    monkeypatch.setattr(
        "service.model.repository.check_model", lambda *_, **__: pytest.fail("checked again")
    )
    assert ModelRepository(folder, checked=checked).find("sum").fingerprint in checked


def test_a_model_that_mixes_rows_passes_and_is_loaded_only_with_rows_apart(path, caplog):
    folder = path.parent.parent.parent
    path.parent.mkdir(parents=True)
    path.write_bytes(beside(less_mean))
    with pytest.raises(ModelFileError, match="depends on the others of its batch"):
        check_folder(folder, 1 << 20)
    with pytest.raises(ModelFileError, match="depends on the others of its batch"):
        ModelRepository(folder)
    apart = {"sum": frozenset({"rows"}), "other": frozenset({"rows"})}
    checked = check_folder(folder, 1 << 20, apart)
    assert ModelRepository(folder, checked=checked, apart=apart).find("sum").contract.apart == {"rows"}
    assert "--apart names 'other'; so far no model has this name" in caplog.text


def test_a_file_that_changed_since_is_checked_again(path):
    folder = path.parent.parent.parent
    write_features_model(path)
    checked = check_folder(folder, 1 << 20)
    path.write_bytes(step_graph(initializers=[external_tensor("w.bin")]).SerializeToString())
    with pytest.raises(ModelFileError, match="external data"):
        ModelRepository(folder, checked=checked)


def test_a_link_is_served_as_what_it_leads_to(path, tmp_path):
    write_features_model(path)
    linked = tmp_path / "linked" / "sum" / "1"
    linked.mkdir(parents=True)
    (linked / "model.onnx").symlink_to(path)
    model = ModelRepository(tmp_path / "linked").find("sum")
    assert model.fingerprint == fingerprint_of(path.read_bytes())


# -- reading -------------------------------------------------------------------------------------


def test_a_file_over_the_limit_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(1025))
    assert read_file(path, 1025) == bytes(1025)
    with pytest.raises(ModelFileError, match="more than 1024 bytes, the limit of --max-model-bytes"):
        read_file(path, 1024)


def test_an_endless_device_and_a_pipe_are_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    endless_link = tmp_path / "model.onnx"
    endless_link.symlink_to("/dev/zero")
    for path in (pipe, endless_link, tmp_path):
        with pytest.raises(ModelFileError, match=r"regular file|directory"):
            read_file(path, 1024)


# -- what onnxruntime does by itself -------------------------------------------------------------


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "../{folder}/w.bin", "{path}", MEMORY_ADDRESS])
def test_onnxruntime_reads_no_other_file_for_a_graph_given_as_bytes(tmp_path, monkeypatch, location):
    """The second line of defence: should this ever load, the first one is all there is."""
    weights = np.array([1, 2], np.float32)
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    monkeypatch.chdir(tmp_path)
    location = location.format(folder=tmp_path.name, path=tmp_path / "w.bin")
    offset = weights.ctypes.data if location == MEMORY_ADDRESS else 0
    model = step_graph(
        ("Add", ["x", "w"], ["moved"]), initializers=[external_tensor(location, offset=offset)]
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"(?i)external|path|in-memory|memory address"):
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

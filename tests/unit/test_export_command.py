"""`holdfast model export`: what it says where no network comes out of it. Needs no torch."""

import sys
import types

import pytest

from holdfast.cli import export
from model_export.export_error import ExportError
from service import command


def exporter(monkeypatch, export_step):
    """Puts another exporter in the place of the one that needs torch."""
    module = types.ModuleType("model_export.exporter")
    module.export_step = export_step
    monkeypatch.setitem(sys.modules, "model_export.exporter", module)


def refuses(*_, **__):
    raise ExportError("the network\nis no network")


def test_without_torch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "model_export.exporter", raising=False)
    for name in [name for name in sys.modules if name.startswith("model_export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(
        sys, "argv", ["holdfast", "model", "export", "net.py:build", "--out", "models/mine/1"]
    )
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("holdfast model export: needs torch: pip install 'holdfast[train]'")
    assert said.count("\n") == 1


def test_a_refusal_is_one_line(monkeypatch, capsys, tmp_path):
    exporter(monkeypatch, refuses)
    (tmp_path / "net.py").write_text("def build():\n    return 1, 2\n")
    assert export.main([f"{tmp_path}/net.py:build", "--out", "x/1"]) == 1
    assert capsys.readouterr().err == "holdfast model export: the network is no network\n"


def test_a_network_or_a_file_not_both(capsys):
    for words in ("--out x/1", "net.py:build --from net.onnx --out x/1"):
        assert export.main(words.split()) == 2
        assert "either MODULE:FUNCTION or --from FILE" in capsys.readouterr().err


def test_a_file_is_converted(capsys, tmp_path):
    assert export.main(["--from", f"{tmp_path}/missing.onnx", "--out", "x/1"]) == 1
    assert f"{tmp_path}/missing.onnx" in capsys.readouterr().err
    assert export.main(["--from", "net.onnx", "--out", "x/1", "--role", "logits"]) == 1
    assert "--role is for networks of PyTorch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("net", "'net' names no function, expected MODULE:FUNCTION"),
        ("nowhere_at_all:build", "no module nowhere_at_all"),
        ("{}/missing.py:build", "no file {}/missing.py"),
        ("{}/net.py:made", "has no function 'made'"),
        ("{}/net.py:nothing", "returns NoneType, expected (network, example)"),
        ("{}/needy.py:build", "needs a_library_that_is_not_there, which is not installed"),
    ],
)
def test_a_function_that_is_not_there_is_named(network, words, monkeypatch, capsys, tmp_path):
    exporter(monkeypatch, refuses)
    (tmp_path / "net.py").write_text("def nothing():\n    pass\n")
    (tmp_path / "needy.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert export.main([network.format(tmp_path), "--out", "x/1"]) == 1
    assert words.format(tmp_path) in capsys.readouterr().err


def test_options_are_passed_on_and_those_of_the_function_beside_them(monkeypatch, tmp_path):
    given = {}
    exporter(monkeypatch, lambda *arguments, **options: given.update(options) or refuses())
    (tmp_path / "net.py").write_text("def build():\n    return 1, 2, {'labels': ['a'], 'role': 'raw'}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = f"{tmp_path}/net.py:build --out m/1 --role probs --vocabulary 50 --initial 0 --one-session"
    export.main(words.split())
    assert given == {
        "out": "m/1", "labels": ["a"], "role": "probs", "vocabulary": 50, "initial": 0.0, "batched": False
    }  # fmt: skip

"""docs/guides/your-network.md: its contracts, its networks, and the whole way, as they stand."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from holdfast.demo.processes import ServerProcess
from service.model.document import from_toml
from tests.docs.pages import ROOT, blocks

PAGE = "docs/guides/your-network.md"
PYTHON = [block.text for block in blocks("python") if block.page == PAGE]
COMMANDS = [block.text for block in blocks("sh") if block.page == PAGE]
CONTRACTS = dict(
    re.findall(r"^### (.+?)\n.*?^```toml\n(.*?)^```$", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE)
)


def as_read(text):
    """Returns a contract without what is for people, inputs as a list."""
    read = tomllib.loads(text) if isinstance(text, str) else dict(text)
    read.pop("facts", None)
    read.pop("contract_version", None)
    return read | {"input": read["input"] if isinstance(read["input"], list) else [read["input"]]}


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_of_the_page_is_one(name):
    assert from_toml(CONTRACTS[name].encode())


def test_networks_of_the_page_are_those_that_are_tested():
    source = (ROOT / "tests" / "support" / "user_networks.py").read_text()
    shown = [text for text in PYTHON if "def build" not in text and "import holdfast" not in text]
    assert len(shown) == 4
    for text in shown:
        assert all(part.strip() in source for part in text.split("\n\n\n")), text


def test_contracts_of_the_page_are_what_the_export_writes(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from model_export import closed_loop, export_step
    from tests.docs.shapes import shapes

    monkeypatch.setattr(closed_loop, "STEPS", 8)
    monkeypatch.setattr(closed_loop, "BATCHES", (1,))
    made = {
        name: as_read(
            export_step(module, example, out=tmp_path / "m" / "1", overwrite=True, **given).contract
        )
        for name, (module, example, given) in shapes().items()
    }
    assert made == {name: as_read(text) for name, text in CONTRACTS.items() if name != "One token a run"}


def test_the_way_from_a_file_to_a_stream(tmp_path):
    pytest.importorskip("torch")
    network, client = PYTHON[0], PYTHON[1]
    (tmp_path / "net.py").write_text(network)
    (command,) = [line for text in COMMANDS for line in text.splitlines() if " export " in line]
    words = [sys.executable, "-c", "from service.command import main; main()", *shlex.split(command)[1:]]
    exported = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert exported.returncode == 0, exported.stderr
    axes = [line.rpartition("(")[2] for line in exported.stdout.splitlines() if line.endswith(")")]
    shown = next(block.text for block in blocks("text") if block.page == PAGE)
    assert axes == re.findall(r"\((.*\))$", shown, re.MULTILINE)
    with ServerProcess(tmp_path / "data", "--models", str(tmp_path / "models")) as server:
        code = client.replace("localhost:50051", server.address)
        words = [sys.executable, "-W", "ignore", "-c", code]
        streamed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert streamed.returncode == 0, streamed.stderr
    assert "as in PyTorch: True" in streamed.stdout

"""What the README shows is run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.demo.processes import ServerProcess

README = (Path(__file__).parents[2] / "README.md").read_text()

pytestmark = pytest.mark.e2e


def test_the_client_example_runs(tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with ServerProcess(tmp_path / "data") as server:
        code = example.replace("localhost:50051", server.address)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "the session stands at 19" in result.stdout


def test_the_feature_table_names_every_rpc():
    from holdfast.v1 import holdfast_pb2 as pb

    service = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
    for method in service.methods:
        assert method.name in README, method.name


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target

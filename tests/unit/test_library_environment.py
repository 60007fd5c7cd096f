"""What the command sets for libraries before it imports any of them."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

PRINTS = """
import os, sys
from service import command
sys.argv = ["holdfast", "token", "--help"]
try:
    command.main()
except SystemExit:
    print(os.environ.get("ORT_DISABLE_TELEMETRY"), os.environ.get("GRPC_VERBOSITY"))
"""


def said(**given):
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    line = [sys.executable, "-c", PRINTS]
    result = subprocess.run(line, env=environment | given, capture_output=True, text=True, timeout=60)
    return result.stdout.splitlines()[-1].split()


def test_onnxruntime_is_told_to_report_nothing_and_grpc_to_write_nothing():
    assert said() == ["1", "NONE"]


def test_what_the_operator_has_set_stays():
    assert said(ORT_DISABLE_TELEMETRY="0", GRPC_VERBOSITY="ERROR") == ["0", "ERROR"]

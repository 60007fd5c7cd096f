"""What the command sets for libraries before it imports any of them."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

PRINTS = """
import os, sys
from service import command
sys.argv = [*sys.argv[1:], "token", "--help"]
try:
    command.main()
except SystemExit:
    print(*(os.environ.get(name) for name in sys.argv[0].split()))
"""
NAMES = ("ORT_DISABLE_TELEMETRY", "GRPC_VERBOSITY", "OPENBLAS_NUM_THREADS")


def said(**given):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    line = [sys.executable, "-c", PRINTS, " ".join(NAMES)]
    result = subprocess.run(line, env=environment | given, capture_output=True, text=True, timeout=60)
    return result.stdout.splitlines()[-1].split()


def test_onnxruntime_reports_nothing_grpc_writes_nothing_and_openblas_starts_no_threads():
    assert said() == ["1", "NONE", "1"]


def test_what_the_operator_has_set_stays():
    given = dict(zip(NAMES, ("0", "ERROR", "4"), strict=True))
    assert said(**given) == ["0", "ERROR", "4"]

"""Has a model file stepped by another process, `tests.support.processes.steps_models`; survives its end."""

import functools
import os
import signal
import struct
import subprocess
import sys

LIMITS = (signal.SIGXCPU, signal.SIGKILL)
"""Signals of the limits on CPU time: what takes long is for the watch over steps."""


def ending_of(data):
    """Returns whether a file was loaded and took two small steps, and the signal that ended it, or 0."""
    process = _stepper()
    process.stdin.write(struct.pack("<I", len(data)) + data)
    process.stdin.flush()
    has_passed, signalled = process.stdout.read(2)
    return bool(has_passed), 0 if signalled in LIMITS else signalled


@functools.cache
def _stepper():
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.processes.steps_models"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

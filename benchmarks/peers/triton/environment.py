"""The environment that Triton runs in: made once, apart from the project's own, in build/triton-venv."""

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
VENV = _ROOT / "build" / "triton-venv"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = VENV / "lib" / f"python{PYTHON_VERSION}" / "site-packages"

_RUNTIME = ("onnxruntime", "flatbuffers", "packaging", "protobuf")
"""At the versions of constraints.txt, so that all contestants run the same onnxruntime."""

_READY = VENV / ".ready"


class TritonUnavailable(Exception):
    """Triton cannot run here; the message is one line for the report."""


def is_prepared() -> bool:
    """Whether the environment is there."""
    return _READY.exists()


def prepare() -> None:
    """Makes the environment unless it is there.

    Raises:
        TritonUnavailable: A package cannot be had.
    """
    if is_prepared():
        return
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    pip += ["install", "--no-deps"]
    _run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    _run([*pip, "--requirement", str(Path(__file__).with_name("requirements.txt"))])
    _run([*pip, "--constraint", str(_ROOT / "constraints.txt"), *_RUNTIME])
    _READY.touch()


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise TritonUnavailable(f"its environment cannot be made: {' '.join(errors[-1:]) or command}")

"""What is loaded for a client, its errors and small commands: nothing that they do not need."""

import ast
import subprocess
import sys

import pytest

import holdfast
from tests.release import CLIENT, ROOT

LIGHT = """
import contextlib, io, sys
from service import command

def loaded():
    return {name.partition(".")[0] for name in sys.modules} & {"asyncio", "google", "grpc", "numpy"}

import holdfast.errors
assert not loaded(), f"the errors load {loaded()}"
assert holdfast.errors.ModelNotFound.reason == "MODEL_NOT_FOUND"
assert {"Client", "errors", "__version__"} <= set(dir(holdfast))
assert not loaded(), f"looking at the names loads {loaded()}"
for arguments in (["--help"], ["--version"], ["token", "--help"], ["token", "create"]):
    sys.argv = ["holdfast", *arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        command.main()
    assert said.getvalue(), arguments
    assert not loaded(), f"holdfast {' '.join(arguments)} loads {loaded()}"
from holdfast import Client
assert "grpc" in loaded(), "this looks for the wrong thing"
assert holdfast.Client is Client
"""


@pytest.mark.process
def test_a_client_loads_nothing_of_the_servers():
    run(CLIENT, holdfast.__version__)


@pytest.mark.process
def test_errors_and_small_commands_load_neither_grpc_nor_arrays():
    run(LIGHT)


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_type_checkers_see_is_what_there_is():
    """The names of the client stand in its package twice: for checkers and editors, and for Python."""
    tree = ast.parse((ROOT / "holdfast" / "__init__.py").read_text())
    [checked] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        name.asname: getattr(__import__(node.module, fromlist=[name.name]), name.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert {name: getattr(holdfast, name) for name in seen} == seen
    assert seen.keys() == set(holdfast.__all__) - {"__version__"} | {"errors"}
    assert set(holdfast.__all__) <= set(dir(holdfast))

"""The interpreter ends whatever its clients are doing, at once and without a word."""

import subprocess
import sys

import pytest

from tests.support.server import ServerProcess

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


def run(scene, server, timeout_s):
    command = [sys.executable, "-m", "tests.support.processes.exits", scene, server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "scene",
    [
        "open_client", "half_read", "daemons", "held_up", "finalisers", "async_client", "abandoned_task",
        "thread_ends_last",
    ],
)  # fmt: skip
def test_the_interpreter_ends_at_once_and_says_nothing(server, scene):
    assert run(scene, server, 20) == (0, "", "")


def test_an_interrupt_comes_out_of_what_waits_and_the_client_goes_on(server):
    assert run("interrupted", server, 20) == (0, "", "")


def test_clients_that_are_dropped_leave_no_threads_and_no_descriptors(server):
    assert run("dropped", server, 60) == (0, "", "")


def test_too_many_open_files_for_a_moment_are_got_over(server):
    code, said, errors = run("too_many_files", server, 60)
    assert (code, said) == (0, ""), errors

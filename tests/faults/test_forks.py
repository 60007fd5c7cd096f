"""Forks: a client closed before one is no hindrance, one open at one says so instead of hanging."""

import os
import subprocess
import sys

import pytest

import holdfast
from holdfast.client import forks
from holdfast.errors import ClientForked
from tests.support.server import ServerProcess

SCENES = [
    "closed", "closed_async", "pool", "grandchild", "inherited", "inherited_async", "busy", "idle_async",
    "held_up", "collected", "of_others", "exits",
]  # fmt: skip

OTHER_SUPPORT = [("closed", "0"), ("busy", "0"), ("inherited", "1")]
"""Scenes that also run with gRPC's own handling of forks forbidden or asked for."""

GRPC_SAYS = "skipping fork() handlers"
"""gRPC's own remark at a fork while it is in use."""

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.mark.parametrize(("scene", "support"), [(scene, "") for scene in SCENES] + OTHER_SUPPORT)
def test_a_fork_neither_hangs_nor_crashes(server, scene, support):
    environment = {**os.environ, **({"GRPC_ENABLE_FORK_SUPPORT": support} if support else {})}
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-W",
            "error",
            "-m",
            "tests.support.processes.forks",
            scene,
            server.address,
        ],
        capture_output=True,
        text=True,
        timeout=150,
        env=environment,
    )
    said = [line for line in done.stderr.splitlines() if GRPC_SAYS not in line]
    assert (done.returncode, done.stdout, said) == (0, "", [])


def test_a_client_is_refused_where_grpc_would_hang(monkeypatch):
    monkeypatch.setattr(forks, "_ran_at_fork", True)
    for kind in (holdfast.Client, holdfast.AsyncClient):
        with pytest.raises(ClientForked, match="close clients before the fork"):
            kind("127.0.0.1:1")


def test_threads_of_grpcs_core_count_where_it_does_not_look_after_forks(monkeypatch):
    monkeypatch.setattr(forks.threading, "enumerate", list)  # tests before may have left one of grpc.aio
    monkeypatch.setattr(forks, "_thread_names", lambda: ["python\n", "event_engine\n"])
    assert not forks.is_grpc_running()
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    assert forks.is_grpc_running()

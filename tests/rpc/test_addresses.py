"""Where a server listens: a socket in a folder, IPv6, and both versions of IP at once."""

import socket
import stat
import subprocess
import sys
from pathlib import Path

import holdfast
from tests.rpc.conftest import MODEL
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

SERVE = (sys.executable, "-c", "from service.command import main; main()", "serve")


def step(address):
    """Has a client of ours make a step; returns the position."""
    with holdfast.Client(address, timeout_s=20) as client:
        return client.open_session("s", model=MODEL).step(b"abc").position


def test_a_socket_in_a_folder_is_served_replaced_guarded_and_removed(tmp_path):
    address = f"unix:{tmp_path}/h.sock"
    path = Path(address.removeprefix("unix:"))
    with ServerProcess(tmp_path / "data", grpc_address=address) as killed:
        assert killed.address == address
        assert stat.S_IMODE(path.stat().st_mode) & 0o117 == 0, "others than its group may connect"
        assert step(address) == 3
        second = subprocess.run(
            [
                *SERVE,
                "--data-dir",
                tmp_path / "data",
                "--grpc-address",
                address,
                "--http-address",
                "[::1]:0",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr.splitlines()[-1].startswith(
            f"holdfast serve: --grpc-address {address}: a server"
        )
        assert step(address) == 6, "the first one was disturbed"
        killed.kill()
    assert path.exists(), "nobody was left to remove it"
    with ServerProcess(tmp_path / "data", grpc_address=address) as server:
        assert step(f"unix://{path}") == 9
        assert server.stop() == 0
    assert not path.exists()


def test_ipv6_is_listened_on_and_printed_in_brackets(tmp_path):
    flags = ("--http-address", "[::]:0", "--workers", "2")
    with ServerProcess(tmp_path / "data", *flags, grpc_address="[::1]:0") as server:
        assert server.address.startswith("[::1]:")
        assert server.http.startswith("[::]:")
        assert step(server.address) == 3
        port = int(server.http.rpartition(":")[2])
        for host in ("::1", "127.0.0.1"):
            with socket.create_connection((host, port), timeout=20) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: get(server, "/livez")[0] == 200)

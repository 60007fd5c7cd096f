"""Fills the disk of an embedded store, a small tmpfs, and makes room again; prints what came of it, JSON.

Run by `python -m` in a mount namespace of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import holdfast
from holdfast.demo.processes import ServerProcess
from holdfast.errors import HoldfastError
from tests.faults.streams import MODEL
from tests.support.server import get
from tests.support.waiting import wait_for

DISK_BYTES = 2 << 20


def main(folder, level):
    """Steps until the disk is full, makes room, and reads the session."""
    data = Path(folder) / "data"
    disk = data / "store"
    disk.mkdir(parents=True)
    data.chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "t", disk], check=True)
    with (
        ServerProcess(data, "--ack-level", level) as server,
        holdfast.Client(server.address, timeout_s=1) as client,
    ):
        session = client.open_session("s", model=MODEL)
        acknowledged = session.step("abc").position
        filler = disk / "filler"
        fill(filler)
        try:
            while True:
                acknowledged = session.step("x").position
        except HoldfastError as error:
            refused = error.reason
        wait_for(lambda: get(server, "/readyz")[0] == 503)
        filler.unlink()
        wait_for(lambda: get(server, "/readyz")[0] == 200)
        session.settle()
        position = session.position
        acknowledged += position > acknowledged  # the one that was refused may have been applied
        if position != session.step("y").position - 1:
            sys.exit("it does not go on")
    lines = server.log_path.read_text().splitlines()
    cause = sum("is tried until it can" in line and "no space left" in line for line in lines)
    print(
        json.dumps({"refused": refused, "acknowledged": acknowledged, "position": position, "cause": cause})
    )


def fill(path):
    """Writes a file until the disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])

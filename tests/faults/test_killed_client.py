"""A client is killed in mid-stream: its history tells what it had seen, and another one goes on."""

import subprocess
import sys

import pytest

import holdfast
from tests.faults.verdict import MODEL, assert_held
from tests.support.server import ServerProcess

CLIENT = """
import itertools, sys
import holdfast
with holdfast.Client(sys.argv[1], history=sys.argv[2]) as client:
    session = client.open_session("shared", model="python-source")
    pieces = (bytes([number % 256]) for number in itertools.count())
    for reply in session.stream(pieces, token_log_prob=True):
        print(reply.position, flush=True)
"""

pytestmark = pytest.mark.faults


def test_what_a_killed_client_had_seen_is_in_its_history(tmp_path):
    with ServerProcess(tmp_path / "data") as server:
        command = [sys.executable, "-c", CLIENT, server.address, str(tmp_path / "first")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            seen = [int(client.stdout.readline()) for _ in range(100)]
            client.kill()
            seen += [int(line) for line in client.stdout]
        alone = assert_held(tmp_path / "first")
        with holdfast.Client(server.address, history=tmp_path / "second") as client:
            session = client.open_session("shared", model=MODEL)
            assert session.position >= seen[-1]
            session.step("and on", token_log_prob=True)
    assert alone.replies >= len(seen)
    assert assert_held(tmp_path / "first", tmp_path / "second").replies == alone.replies + 1

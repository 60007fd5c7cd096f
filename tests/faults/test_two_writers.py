"""Two processes write the same session through two servers: each position is applied once."""

import json
import subprocess
import sys

import numpy as np
import pytest

from service.demo.processes import ServerProcess
from tests.oracle import run

TOKENS = 150

WRITER = """
import json, sys
import holdfast
from holdfast.errors import PositionConflict
address, letter, goal = sys.argv[1], sys.argv[2], int(sys.argv[3])
won, lost = {}, 0
with holdfast.Client(address) as client:
    session = client.session("shared", model="python-source")
    print("ready", flush=True)
    sys.stdin.readline()
    while session.position < goal:
        try:
            reply = session.step(letter, token_log_prob=True)
            assert not reply.replayed
            won[reply.position - 1] = float(reply.token_log_probs[0])
        except PositionConflict as error:
            assert error.expected_position > session.position
            lost += 1
            session = client.session("shared", model="python-source")
print(json.dumps({"won": won, "lost": lost}))
"""

pytestmark = pytest.mark.faults


def test_every_position_is_applied_once_and_the_loser_is_told(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as one, ServerProcess(data) as two:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, address, letter, str(TOKENS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for address, letter in ((one.address, "a"), (two.address, "b"))
        ]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        reports = [json.loads(writer.communicate(timeout=60)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    first, second = (report["won"] for report in reports)
    assert not first.keys() & second.keys(), "a position was won twice"
    history = {int(position): b"a" for position in first} | {int(position): b"b" for position in second}
    assert sorted(history) == list(range(len(history))), "a position was lost"
    assert sum(report["lost"] for report in reports) > 0, "the writers never met"
    tokens = b"".join(history[position] for position in range(len(history)))
    given = [({**first, **second})[str(position)] for position in range(len(history))]
    np.testing.assert_allclose(given, run("python-source", tokens)[1], atol=1e-5, rtol=0)

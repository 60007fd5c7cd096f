"""The contract as Node reads it: with @grpc/grpc-js, from the .proto itself, in numbers of JavaScript."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import google.rpc
import pytest

from holdfast.v1 import holdfast_pb2 as pb
from tests.docs.pages import ROOT, blocks

CLIENT = ROOT / "tests" / "node" / "client.cjs"
MODULES = Path(sys.prefix) / "node" / "node_modules"
GOOGLEAPIS = next(
    folder
    for folder in (Path(path).parents[1] for path in google.rpc.__path__)
    if (folder / "google").is_dir()
)
REQUIRE_NODE = "HOLDFAST_TEST_REQUIRE_NODE"
"""Set where Node must be there, so that its test cannot be skipped without a word."""


@pytest.fixture(scope="module")
def said(server):
    """Runs the client against the server; returns what it printed."""
    reason = None
    if shutil.which("node") is None:
        reason = "node is not on PATH, so the contract is not tried from it"
    elif not MODULES.is_dir():
        reason = f"{MODULES} is not there: make .venv/.node"
    if reason is not None:
        if os.environ.get(REQUIRE_NODE):
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(
        ["node", str(CLIENT), server.address, str(ROOT / "proto"), str(GOOGLEAPIS)],
        env={**os.environ, "NODE_PATH": str(MODULES)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_chunk_is_applied_once_however_often_node_sends_it(said):
    assert (said["opened"]["resumed"], said["opened"]["session"]["position"]) == (False, 0)
    assert (said["first"]["position"], said["first"]["replayed"]) == (10, False)
    assert said["again"] == {**said["first"], "replayed": True}
    assert said["first"]["ack_level"] == "ACK_LEVEL_MEMORY"
    assert len(said["first"]["outputs"]["top_ids"]) == 50


def test_every_number_is_one_that_javascript_can_hold(said, rpc):
    session = rpc.call("GetSession", pb.GetSessionRequest(session_id="node")).session
    assert session.incarnation == said["opened"]["session"]["incarnation"] == said["first"]["incarnation"]
    assert said["digest"] == said["first"]["history_digest"]
    last = said["stream"][-1]["result"]
    assert (session.position, session.history_digest) == (last["position"], last["history_digest"])
    assert 0 < session.history_digest < 2**53


def test_chunks_sent_ahead_carry_digests_that_node_computes(said):
    assert [reply["result"]["position"] for reply in said["stream"]] == [13, 14]
    assert not any(reply["result"]["replayed"] for reply in said["stream"])


def test_errors_say_their_reason_to_node(said):
    assert said["failures"] == {
        "gap": "POSITION_GAP",
        "history": "HISTORY_CONFLICT",
        "id": "INVALID_REQUEST",
        "gone": "SESSION_LOST",
    }


def test_the_page_shows_what_runs():
    text = CLIENT.read_text()
    [example] = re.findall(r"^// example\n(.*?)^// example ends$", text, re.DOTALL | re.MULTILINE)
    assert [block.text for block in blocks("javascript")] == [example]

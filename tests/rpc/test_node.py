"""The contract as Node reads it: with @grpc/grpc-js, from the .proto itself, in numbers of JavaScript."""

import json
import re
import subprocess

import pytest

from holdfast.v1 import holdfast_pb2 as pb
from tests.docs.pages import blocks
from tests.support.node import GOOGLEAPIS, ROOT, node_environment

CLIENT = ROOT / "tests" / "node" / "client.cjs"


@pytest.fixture(scope="module")
def said(server):
    """Runs the client against the server; returns what it printed."""
    done = subprocess.run(
        ["node", str(CLIENT), server.address, str(ROOT / "proto"), str(GOOGLEAPIS)],
        env=node_environment(), capture_output=True, text=True, timeout=60,
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
    shown, technique = [block.text for block in blocks("javascript")]
    assert shown == example
    assert technique in (ROOT / "docs" / "guides" / "node" / "batches.cjs").read_text()

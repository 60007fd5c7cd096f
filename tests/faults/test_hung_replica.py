"""A replica that hangs with its connections open: calls go on with another one."""

import numpy as np
import pytest

import holdfast
from holdfast.bench.scrape import scrape
from holdfast.client.history import read_frames
from holdfast.client.transport import PING_TIMEOUT_S
from tests.faults.verdict import MODEL
from tests.nemesis import processes
from tests.support.oracle import run
from tests.support.server import ServerProcess

TEXT = b"for line in sys.stdin:\n    print(line)\n"
PIECE = 9

TIMEOUT_S = PING_TIMEOUT_S - 1.0
"""Less than PING_TIMEOUT_S, after which a ping of gRPC may end the connection and so save the call."""

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("streams", [False, True])
def test_a_replica_that_hangs_holds_a_call_for_one_attempt(tmp_path, streams):
    retry, history = holdfast.RetryPolicy(attempt_s=0.5), tmp_path / "history"
    text = bytearray()
    with (
        ServerProcess(tmp_path / "data") as one,
        ServerProcess(tmp_path / "data") as other,
        holdfast.Client([one.address, other.address], retry=retry, history=history) as client,
    ):
        session = client.open_session("s", model=MODEL)
        replies = []

        def step(piece, **limit):
            text.extend(piece)
            replies.append(session.step(piece, token_log_prob=True, **limit))

        def stream(piece, **limit):
            text.extend(piece)
            replies.extend(session.stream(piece, token_log_prob=True, **limit))

        step(TEXT[:1])
        asked = one if run_count(one) else other
        processes.pause(asked.pid)
        try:
            for at in range(0, len(TEXT), PIECE):
                (stream if streams else step)(TEXT[at : at + PIECE], timeout_s=TIMEOUT_S)
        finally:
            processes.resume(asked.pid)
    given = np.concatenate([reply.token_log_probs for reply in replies])
    np.testing.assert_allclose(given, run(MODEL, bytes(text))[1], atol=1e-5, rtol=0)
    rpcs = [frame.rpc for frame in read_frames(history)]
    sent_count = sum(rpc in ("Step", "StreamSteps", "StreamBatches") for rpc in rpcs)
    assert sent_count > len(replies), "the one that hangs was not asked"


def run_count(server):
    return scrape(server.http).get("holdfast_batch_size_count", 0)

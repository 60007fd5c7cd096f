"""A replica that hangs with its connections open: calls go on with another one."""

import numpy as np
import pytest

import holdfast
from holdfast.demo.processes import ServerProcess
from tests.faults.verdict import MODEL
from tests.nemesis import processes
from tests.support.oracle import run

TEXT = b"for line in sys.stdin:\n    print(line)\n"

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("streams", [False, True])
def test_a_replica_that_hangs_holds_a_call_for_one_attempt(tmp_path, streams):
    retry = holdfast.RetryPolicy(attempt_s=0.5)
    with ServerProcess(tmp_path / "data") as one, ServerProcess(tmp_path / "data") as other:
        addresses = [one.address, other.address]
        with holdfast.Client(addresses, timeout_s=8, retry=retry) as client:
            session = client.open_session("s", model=MODEL)
            log_probs = [session.step(TEXT[at : at + 1], token_log_prob=True) for at in range(4)]
            processes.pause(one.pid)
            try:
                if streams:
                    log_probs += session.stream(TEXT[4:], token_log_prob=True)
                else:
                    log_probs += [
                        session.step(TEXT[at : at + 9], token_log_prob=True)
                        for at in range(4, len(TEXT), 9)
                    ]
            finally:
                processes.resume(one.pid)
    given = np.concatenate([reply.token_log_probs for reply in log_probs])
    np.testing.assert_allclose(given, run(MODEL, TEXT)[1], atol=1e-5, rtol=0)

"""Law 1 under callers at random behind a gateway at random; see `callers`."""

import pytest

from tests.faults import callers, gateway

pytestmark = pytest.mark.faults

CASES = 100
SEED = 20261125


async def test_whatever_a_caller_does_every_token_is_applied_once_or_an_error_says_so(tmp_path):
    totals = await callers.run(tmp_path, range(CASES), SEED)
    assert totals.wrong == [], callers.report(totals, SEED)
    assert totals.counts["cases"] == CASES
    assert totals.counts["replies"] > 100  # how many there are depends on how busy the machine is
    assert totals.counts["replays"] > 20
    for what in ("ChunkPending", "cancellations", "ServerUnavailable", "DeadlinePassed", "ClientClosed"):
        assert totals.counts[what] > 0, what
    for action in callers.ACTIONS:
        assert totals.counts[f"action: {action}"] > 0, action
    for table in (gateway.CALL_FAULTS, gateway.MESSAGE_FAULTS, gateway.REPLY_FAULTS):
        assert len(table.keys() & totals.faults.keys()) > len(table) / 2

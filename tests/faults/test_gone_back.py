"""Law 2 under real processes: no reply from a history that is not the stored one; see `gone_back`."""

import pytest

from tests.faults import gone_back

pytestmark = pytest.mark.faults


async def test_no_reply_comes_from_a_history_that_is_not_the_stored_one(tmp_path):
    books = await gone_back.run(tmp_path, rounds=9, seed=13)
    assert books.wrong == []
    assert books.counts["replies"] > 300
    assert books.counts["replies found in the stored history"] == books.counts["replies"]
    assert books.counts["HISTORY_CONFLICT"] > 0
    ways = {way.__name__ for way in gone_back.WAYS}
    assert ways <= books.counts.keys()

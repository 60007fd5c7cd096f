"""What a killed store loses is what docs/operate/durability.md says; the long form is in `store_losses`."""

import pytest

from tests.faults.loss_table import (
    BEHIND,
    FULL,
    HOLDFAST,
    KILLED,
    SAVED,
    SLOW,
    promises_nothing_lost,
    rows,
    wrong_in,
)
from tests.faults.store_losses import CASES, Case, Losses
from tests.faults.verdict import seeded
from tests.support.stores import binary

pytestmark = pytest.mark.faults

SHORT = (
    Case("memory", "off", HOLDFAST),
    Case("memory", "always", KILLED),
    Case("memory", "no", FULL),
    Case("memory", "off", SAVED),
    Case("memory", "everysec", SLOW),
    Case("memory", "everysec", SLOW, "redis"),
    Case("memory", "everysec", BEHIND),
    Case("fsynced", "always", KILLED),
    Case("replicated", "everysec", BEHIND),
)
NOT_HERE = {("fsynced", "everysec"), ("fsynced+replicated", "everysec")}
"""These need a Redis of 7.4.3 or later."""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    with Losses(tmp_path_factory.mktemp("losses"), seeded(), slow_s=(0.4, 0.9)) as losses:
        yield losses


@pytest.mark.parametrize(
    "case", SHORT, ids=lambda case: f"{case.level}-{case.policy}-{case.event}-{case.kind}"
)
async def test_no_more_is_lost_than_the_table_says(losses, case):
    binary(case.kind)
    if case.event == SLOW and not losses.can_slow:
        pytest.skip("this process may not trace its children, so no sync can be made slow")
    loss = await losses.round(case)
    print(loss)
    assert wrong_in(case, loss) == []
    assert loss.acknowledged > 0
    assert promises_nothing_lost(case) or loss.tokens > 0, "where a loss is made, it is seen"


def test_every_row_of_the_table_is_tried():
    assert {(case.level, case.policy) for case in CASES} | NOT_HERE == set(rows())
    assert set(SHORT) <= set(CASES)

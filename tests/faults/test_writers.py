"""Several writers on one session, through two replicas: each position is applied once."""

import asyncio

import pytest

import holdfast
from holdfast.errors import PositionConflict
from tests.faults.verdict import MODEL, assert_held, seeded
from tests.support.server import ServerProcess

pytestmark = pytest.mark.faults

TOKENS = 200


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    data = tmp_path_factory.mktemp("writers") / "data"
    with ServerProcess(data) as one, ServerProcess(data) as two:
        yield one, two


@pytest.mark.parametrize("count", [2, 10])
async def test_every_position_is_applied_once_and_the_loser_is_told(servers, count, tmp_path):
    rng = seeded()
    name = f"shared by {count}"

    async def write(number):
        """Writes its own letter until the session is long; returns what it won and how often it lost."""
        won, lost = set(), 0
        history = tmp_path / f"history-{number}"
        async with holdfast.AsyncClient(servers[number % 2].address, history=history) as client:
            session = await client.open_session(name, model=MODEL)
            while session.position < TOKENS:
                try:
                    reply = await session.step(
                        bytes([97 + number]) * rng.randint(1, 3), token_log_prob=True
                    )
                    assert not reply.replayed
                    won |= set(range(reply.position - reply.token_count, reply.position))
                except PositionConflict as error:
                    lost += error.expected_position > session.position
                    session = await client.open_session(name)
                await asyncio.sleep(rng.uniform(0, 0.003))
        return won, lost

    reports = await asyncio.gather(*(write(number) for number in range(count)))
    positions = [position for won, _ in reports for position in won]
    assert sorted(positions) == list(range(len(positions))), "a position was lost, or won twice"
    assert sum(lost for _, lost in reports) > 0, "the writers never met"
    total = assert_held(*tmp_path.glob("history-*"))
    assert total.tokens == len(positions)
    assert total.errors["POSITION_CONFLICT"] == sum(lost for _, lost in reports)

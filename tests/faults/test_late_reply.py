"""The connection to the store: a reply that comes too late is nobody's."""

import asyncio

import pytest

from holdfast.errors import StoreUnavailable
from service.store.address import Address
from service.store.connection import StoreConnection, fixed
from tests.nemesis.proxy import FaultProxy
from tests.nemesis.store import StoreProcess

TIMEOUT_S = 0.3

pytestmark = pytest.mark.faults


async def test_a_late_reply_is_not_taken_for_another_requests(tmp_path):
    with StoreProcess(tmp_path / "store") as store, FaultProxy(store.socket_path, tmp_path / "p") as link:
        with store.client() as client:
            client.mset({"mine": "mine", "yours": "yours"})
        connection = StoreConnection(fixed(Address(socket_path=tmp_path / "p")), timeout_s=TIMEOUT_S)
        await connection.open()
        link.to_client.is_black_hole = True
        late = connection.execute("GET", "mine")
        await asyncio.sleep(TIMEOUT_S / 2)
        next_one = connection.execute("GET", "yours")
        async with asyncio.timeout(5):
            while connection.is_connected:  # noqa: ASYNC110 -- it has no event for that
                await asyncio.sleep(0.01)
        link.to_client.is_black_hole = False
        outcomes = await asyncio.gather(late, next_one, return_exceptions=True)
        assert isinstance(outcomes[0], StoreUnavailable)
        assert isinstance(outcomes[1], StoreUnavailable)
        async with asyncio.timeout(5):
            while not connection.is_connected:  # noqa: ASYNC110 -- it has no event for that
                await asyncio.sleep(0.01)
        assert await connection.execute("GET", "yours") == b"yours"
        await connection.close()

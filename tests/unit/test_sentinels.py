"""Which sentinel is believed."""

import pytest

from holdfast.errors import StoreUnavailable
from service.store.address import Address
from service.store.sentinel import Sentinels, _Named


def sentinels(*said):
    one = Sentinels([Address()] * len(said), "m", Address(username="u"), timeout_s=1.0)

    async def hear():
        return list(said)

    one._hear = hear
    return one


async def test_the_newest_configuration_counts():
    said = (_Named(3, "old", 1), _Named(5, "new", 2), "sentinel: no answer", _Named(3, "old", 1))
    assert await sentinels(*said).locate() == Address("new", 2, username="u")


async def test_why_nobody_knows():
    with pytest.raises(StoreUnavailable, match="a is silent; b knows none"):
        await sentinels("a is silent", "b knows none").locate()
    with pytest.raises(StoreUnavailable, match="no sentinel answers in time"):
        await sentinels().locate()

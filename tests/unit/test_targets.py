"""Addresses of replicas as targets of gRPC."""

import pytest

from holdfast.client.targets import to_target


@pytest.mark.parametrize("address", ["localhost:50051", "dns:///name:1", "ipv4:127.0.0.1:1,127.0.0.1:2"])
def test_one_address_is_left_to_grpc(address):
    assert to_target(address) == (address, [])


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["127.0.0.1:1"], "ipv4:127.0.0.1:1"),
        (["127.0.0.1:1", "localhost:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (["[::1]:1", "[::2]:2"], "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_a_list_is_one_target_and_a_certificate_is_compared_with_its_first(addresses, target):
    assert to_target(addresses) == (target, [("grpc.default_authority", addresses[0])])


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["127.0.0.1:0"], ["127.0.0.1:1", "[::1]:2"]])
def test_a_list_of_anything_else_is_refused(addresses):
    with pytest.raises(ValueError, match="expected"):
        to_target(addresses)

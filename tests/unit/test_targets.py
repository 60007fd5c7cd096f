"""Addresses of replicas as targets of gRPC."""

import re

import pytest

from holdfast.client.targets import to_target


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50051",
        "[::1]:1",
        "name:https",
        "dns:///name:1",
        "dns://resolver/name:1",
        "dns:name:1",
        "ipv4:127.0.0.1:1,127.0.0.1:2",
        "ipv6:[::1]:1",
        "unix:server.sock",
        "unix:///run/server.sock",
        "unix-abstract:server",
        "xds:///name",
    ],
)
def test_one_address_is_left_to_grpc(address):
    assert to_target(address) == (address, [])


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", "[::1]", "::1", "dns:///name", "dns:name"]
)
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(ValueError, match=rf"no port in {re.escape(repr(address))}, expected HOST:PORT"):
        to_target(address)


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

"""Every reason has a code of gRPC, comes to the client as its class, and stands in the contract."""

from pathlib import Path

import pytest

from holdfast.client.status import from_status
from holdfast.errors import HoldfastError, Overloaded, ServiceError, StoreFull
from service.rpc.status import code_of, to_status

CONTRACT = (Path(__file__).parents[2] / "proto/holdfast/v1/holdfast.proto").read_text()
ERRORS = ServiceError.__subclasses__()


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_goes_over_the_wire_and_comes_back_as_its_class(kind):
    error = kind("what was wrong", field="a.b", expected_position=7, retry_after_s=0.25)
    given = from_status(to_status(error))
    assert type(given) is kind
    assert (given.reason, given.code, given.field) == (kind.reason, code_of(error).name, "a.b")
    assert (given.expected_position, given.retry_after_s) == (7, 0.25)
    assert str(given) == "what was wrong"


def test_a_reason_of_a_later_version_is_kept():
    status = to_status(StoreFull("what was wrong", reason="STORE_FROZEN", code="UNAVAILABLE"))
    given = from_status(status)
    assert type(given) is HoldfastError
    assert (given.reason, given.code, given.retryable) == ("STORE_FROZEN", "UNAVAILABLE", True)


@pytest.mark.parametrize("kind", [*ERRORS, *HoldfastError.__subclasses__()])
def test_a_class_says_of_its_errors_whether_a_retry_helps(kind):
    """One whose code does not say so says so by the pause that comes with it."""
    assert kind.retry_helps == (kind("no").retryable or kind is Overloaded)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_reason_stands_in_the_contract(kind):
    table = CONTRACT.partition("syntax =")[0]
    line = next(line for line in table.splitlines() if kind.reason in line.replace(",", " ").split())
    assert line.split()[1] == kind.code

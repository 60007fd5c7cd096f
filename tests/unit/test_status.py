"""The error table: every error has a code here, a class in the client, and a line in the contract."""

from pathlib import Path

import pytest

from holdfast import errors as client_errors
from service.common.errors import ServiceError
from service.rpc.status import CODES, to_status

CONTRACT = (Path(__file__).parents[2] / "proto/holdfast/v1/holdfast.proto").read_text()
ERRORS = ServiceError.__subclasses__()


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_goes_through_the_table_to_its_class_in_the_client(kind):
    error = kind("what was wrong", field="a.b", expected_position=7, retry_after_s=0.25)
    given = client_errors.from_status(to_status(error))
    assert type(given).default_reason == kind.reason
    assert type(given) is not client_errors.HoldfastError
    assert given.code == CODES[kind].name
    assert (given.expected_position, given.retry_after_s) == (7, 0.25)
    assert str(given) == "what was wrong"


@pytest.mark.parametrize("kind", ERRORS)
def test_every_reason_stands_in_the_contract(kind):
    table = CONTRACT.partition("syntax =")[0]
    line = next(line for line in table.splitlines() if kind.reason in line.replace(",", " ").split())
    assert CODES[kind].name in line

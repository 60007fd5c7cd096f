"""docs/errors.md says what the errors are."""

from pathlib import Path

import pytest

from holdfast.errors import ServiceError
from holdfast.errors.reference import all_errors, parts, reference

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"


def test_the_page_is_what_the_errors_say():
    assert PAGE.read_text() == reference(), "docs/errors.md is stale: make errors"


def test_every_error_has_one_section():
    reasons = [kind.reason for kind in all_errors()]
    assert len(set(reasons)) == len(reasons)
    headings = [line.removeprefix("### ") for line in reference().splitlines() if line.startswith("### ")]
    assert sorted(headings) == sorted(reasons)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_says_what_it_means_and_what_to_do(kind):
    needed = {"", "Cause", "Tokens", "Step"} | ({"Objective"} if issubclass(kind, ServiceError) else set())
    said = parts(kind)
    assert needed <= {name for name, text in said.items() if text.endswith((".", ")"))}

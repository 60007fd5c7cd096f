"""docs/errors.md says what the errors are."""

from pathlib import Path

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


def test_every_error_says_what_it_means_and_what_to_do():
    wrong = []
    for kind in all_errors():
        needed = {"", "Cause", "Tokens", "Step"} | (
            {"Objective"} if issubclass(kind, ServiceError) else set()
        )
        said = {name for name, text in parts(kind).items() if text.endswith((".", ")"))}
        wrong += (f"{kind.__name__}: {part or 'its meaning'}" for part in needed - said)
    assert not wrong, "parts that are missing, or do not end as a sentence:\n" + "\n".join(wrong)

"""What callers may pass is taken for what docs/guides/inputs.md says, row by row."""

import asyncio
import re

import numpy as np
import pytest

from holdfast.client.batching import batch_message
from holdfast.client.tokens import is_whole, normalise, to_message
from tests.docs.pages import ROOT
from tests.support.foreign_arrays import FakeTable
from tests.support.input_table import ROWS_OF_TWO, TABLE, TURNED, Refused, agenerator, generator, ids
from tests.support.pieces import pieces

PAGE = ROOT / "docs" / "guides" / "inputs.md"


def name_of(row):
    return f"{row.where}: {row.passed}"


def in_the_page():
    """Yields the rows of the table in the page."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("|") and not re.match(r"\|(---|\s*what is passed)", line):
            yield tuple(cell.strip() for cell in line.strip("|").split("|"))


def test_the_page_has_the_rows_that_are_tested():
    assert list(in_the_page()) == [row[:3] for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_what_is_passed_is_taken_for_what_the_page_says(row):
    for number, (call, expected) in enumerate(row.examples):
        check(call, expected, f"example {number} of {name_of(row)}")


def check(call, expected, which):
    if isinstance(expected, Refused):
        with pytest.raises((TypeError, ValueError)) as caught:
            print(f"{which}: {call()!r}")
        said = f"{which}: {type(caught.value).__name__}: {caught.value}"
        assert isinstance(caught.value, expected.kind), said
        assert re.search(expected.says, str(caught.value)), said
    else:
        assert_same(call(), expected, which)


def assert_same(found, expected, which):
    if isinstance(expected, list) and any(isinstance(item, np.ndarray) for item in expected):
        assert len(found) == len(expected), which
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, which)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, which
        np.testing.assert_array_equal(found, expected, err_msg=which)
        assert found.shape == expected.shape, which
    else:
        assert type(found) is type(expected), which
        assert found == expected, which


@pytest.mark.parametrize("value", [np.ones((2, 2), np.float32), np.ones(2, np.int64), bytearray(b"ab")])
def test_what_is_kept_to_be_sent_again_is_not_what_the_caller_changes(value):
    kept = normalise(value)
    before = bytes(kept) if isinstance(kept, bytes) else kept.copy()
    value[:] = bytes(len(value)) if isinstance(value, bytearray) else 0
    assert_same(kept, before, "kept")


def test_a_piece_goes_out_before_the_next_one_is_asked_for():
    async def first():
        async def source():
            yield 1
            raise AssertionError("the next one was asked for")

        return await anext(pieces(source(), 9))

    assert_same(asyncio.run(first()), ids(1), "first")


@pytest.mark.parametrize(
    "tokens", ["a", [1], (1, 2), range(9), np.ones(2), FakeTable({"a": [1.0]}), 5, None, {}, []]
)
def test_runs_are_told_from_pieces(tokens):
    assert is_whole(tokens)


@pytest.mark.parametrize(
    "tokens", [["a"], [[1]], [np.ones(2)], iter([1]), generator(), {}.values(), agenerator()]
)
def test_pieces_are_told_from_runs(tokens):
    assert not is_whole(tokens)


def test_features_turned_round_keep_their_order_on_the_wire():
    message = to_message(normalise(np.asfortranarray(ROWS_OF_TWO, ">f8")))
    assert np.frombuffer(message.features.data, "<f4").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_batch_turned_round_reaches_no_session():
    with pytest.raises(ValueError, match=r"expected \(2,\) or \(2, T\)"):
        batch_message(["a", "b"], TURNED, None, model="m")
    message = batch_message(["a", "b"], TURNED.T, [0, 0], model="m")
    assert (message.tokens_per_row, list(message.ids.values)) == (3, [0, 2, 4, 1, 3, 5])

"""The hash model, as a fake and as a graph, gives what its oracle says, however the tokens are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.verify.oracle import difference
from service.engine.run import _finite_rows
from service.model.check import check_model
from service.model.step_graph import StepGraph
from tests.support.fakes import HashModel
from tests.support.hash_oracle import MODULUS, hash_of, hashes_of
from tests.support.models import write_hash_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hash")
    models = [HashModel()]
    for has_time_axis in (False, True):
        path = folder / f"hash-{has_time_axis}" / "1" / "model.onnx"
        write_hash_model(path, has_time_axis=has_time_axis)
        check_model(path, path.read_bytes())
        models.append(StepGraph(path, name="hash", version=1))
    return models


@pytest.mark.process
@given(
    st.lists(st.binary(min_size=9, max_size=9), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(0, MODULUS - 1),
)
def test_every_form_of_it_gives_what_the_oracle_says(models, rows, cut, start):
    tokens = np.array([list(row) for row in rows], np.int64).T
    for model in models:
        state, found = {"s": np.full(len(rows), start, np.int64)}, []
        for part in (tokens[:cut], tokens[cut:]):
            outputs, state = model.run(np.ascontiguousarray(part), state)
            found.append(outputs["hash"])
        hashes = np.concatenate(found)
        assert hashes.dtype == state["s"].dtype == np.int64
        assert hashes.T.tolist() == [hashes_of(row, start) for row in rows]
        assert state["s"].tolist() == [hash_of(row, start) for row in rows]


def test_tokens_exchanged_lost_or_doubled_are_noticed():
    right = b"abcdef"
    others = {b"abdcef", b"abcef", b"abccef", b"abcdeff", b"abcde", b"\0abcdef", b"abcdeg"}
    assert len({hash_of(tokens) for tokens in {right, *others}}) == len(others) + 1


def test_integers_are_finite_however_large():
    large = np.iinfo(np.int64).max
    assert _finite_rows({"s": np.array([large, -large, 0])}) is None


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.bool_])
def test_of_integers_there_is_no_nearly(dtype):
    largest = True if dtype == np.bool_ else np.iinfo(dtype).max
    expected = np.array([0, largest], dtype)
    nearly = np.array([0, not largest if dtype == np.bool_ else largest - 1], dtype)
    assert difference(expected, expected) == 0
    assert difference(nearly, expected) == np.inf

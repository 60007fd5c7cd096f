"""A batch whose logits would take much memory is ranked call by call, and gives what a small one gives."""

import numpy as np
import pytest

from service.engine import run as batch
from service.engine.asked import Asked, Selection
from service.engine.checks import validate
from service.engine.rows import Rows, token_sums
from service.engine.run import run_batch
from service.model.loading import load_model
from tests.support.subword_models import TEXT, put_words_model

LENGTHS = (40, 40, 13, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(put_words_model(tmp_path_factory.mktemp("words")), name="words", version=1)


def rows_of(model, length, selection, row_count=2):
    data = TEXT.encode()
    tokens = np.array([list(data[row : row + length]) for row in range(row_count)], np.uint8)
    asked = Asked("text", length, selection=selection)
    rows = Rows(asked, [b""] * row_count, tokens, token_sums(tokens), np.zeros(row_count, np.int64))
    rows.model, rows.needs = model, validate(asked, model)
    rows.states = np.zeros((row_count, model.contract.state_bytes), np.uint8)
    return rows


def outcome(model, selections):
    """Runs rows of several lengths; returns the outputs and states of each, in their order."""
    group = [rows_of(model, *asked) for asked in zip(LENGTHS, selections, strict=True)]
    given = {}

    def encode(outputs):
        given[len(given)] = outputs
        return np.full((outputs.row_count, 1), len(given) - 1, np.uint8)

    run_batch(model, group, encode, model.new_halt())
    return [(given[int(rows.outputs[0, 0])], rows.next_states) for rows in group]


@pytest.mark.parametrize(
    "selections",
    [
        [Selection(top_k=3)] * 4,
        [Selection(top_k=1), Selection(), Selection(top_k=12, token_log_prob=True), Selection(top_k=3)],
        [
            Selection(top_k=2),
            Selection(top_k=3, tensors=("logits",)),
            Selection(),
            Selection(tensors=("logits",)),
        ],
    ],
    ids=["alike", "different", "some whole"],
)
def test_a_large_batch_gives_what_a_small_one_gives(model, selections, monkeypatch):
    expected = outcome(model, selections)
    calls = []
    largest = []
    run = model.run

    def counted(tokens, *arguments):
        calls.append(tokens.size)
        return run(tokens, *arguments)

    ranked = batch.ranked_candidates
    monkeypatch.setattr(model, "run", counted, raising=False)
    monkeypatch.setattr(batch, "MAX_OUTPUT_BYTES", 20_000)
    monkeypatch.setattr(
        batch,
        "ranked_candidates",
        lambda values, *rest: (largest.append(values.size), ranked(values, *rest))[1],
    )
    given = outcome(model, selections)
    assert max(calls) <= 20_000 // (4 * model.contract.ranked.shape[0])
    if not any(selection.tensors for selection in selections):
        assert 4 * max(largest) <= 20_000
    for (ours, states), (theirs, same) in zip(given, expected, strict=True):
        np.testing.assert_allclose(states.view(np.float32), same.view(np.float32), atol=1e-5)
        for name in ("top_ids", "top_log_probs", "token_log_probs"):
            left, right = getattr(ours, name), getattr(theirs, name)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_allclose(left, right, atol=1e-5)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, array in theirs.tensors.items():
            np.testing.assert_allclose(ours.tensors[name], array, atol=1e-5)

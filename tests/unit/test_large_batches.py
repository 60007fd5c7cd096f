"""A batch whose logits would take much memory is ranked call by call, and gives what a small one gives."""

import numpy as np
import pytest

from service.engine import batch
from service.engine.batch import Steps, run_batch
from service.engine.block import Block
from service.engine.work import Asked, Selection
from service.model.loading import load_model
from tests.subword_models import TEXT, put_words_model

LENGTHS = (40, 40, 13, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(put_words_model(tmp_path_factory.mktemp("words")), name="words", version=1)


def steps_of(model, length, selection, row_count=2):
    data = TEXT.encode()
    tokens = np.array([list(data[row : row + length]) for row in range(row_count)], np.uint8)
    nothing = np.zeros(row_count, np.int64)
    block = Block(
        None,
        nothing,
        Asked("text", length),
        [b""] * row_count,
        tokens,
        nothing,
        nothing,
        None,
        None,
        None,
        [],
    )
    return Steps(block, nothing, None, model, selection)


def outcome(model, selections):
    """Runs blocks of several lengths; returns the outputs and states of each, in their order."""
    group = [steps_of(model, *asked) for asked in zip(LENGTHS, selections, strict=True)]
    given = {}

    def encode(outputs):
        given[len(given)] = outputs
        return np.zeros((outputs.row_count, 1), np.uint8)

    states = [np.zeros((2, model.contract.state_bytes), np.uint8) for _ in group]
    ran = run_batch(model, group, states, encode, model.new_halt())
    places = {id(steps): place for place, steps in enumerate(group)}
    ordered = sorted(zip(ran, given.values(), strict=True), key=lambda pair: places[id(pair[0].steps)])
    return [(outputs, one.states) for one, outputs in ordered]


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

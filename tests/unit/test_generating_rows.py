"""Rows that draw what follows them: in batches of any size, among rows that do not, of every model."""

import json

import numpy as np
import pytest

from holdfast.errors import InvalidRequest
from holdfast.v1 import holdfast_pb2 as pb
from service.engine import run as batch
from service.engine.asked import Asked, Selection
from service.engine.cache import join_rows
from service.engine.checks import reply_bytes, validate
from service.engine.probing import probe
from service.engine.rows import Chunk, Rows, token_sums
from service.engine.run import run_batch
from service.engine.sampling import Options, Sample
from service.model.loading import load_model
from service.store.outputs import encode_outputs
from tests.support import sampling_oracle
from tests.support.generation_oracle import Loop
from tests.support.models import CONTRACT, write_features_model
from tests.support.oracle import MODELS

TEXT = b"import numpy as np\n\n\ndef main(arguments):\n    return 0 # and so on\n"
LENGTHS = (40, 17, 17, 1)
OPTIONS = Options(penalty=1.3, temperature=0.8, top_k=50, top_p=0.9)
GENERATES = Selection(top_k=3, generates=True)


@pytest.fixture(params=["python-source", "docstring-words"])
def model(request):
    return load_model(MODELS / request.param / "1" / "model.onnx", name=request.param, version=1)


def rows_of(model, length, selection, row_count=3):
    """Returns rows at positions 0, 1, ... of sessions that have had nothing yet."""
    tokens = np.array([list(TEXT[row : row + length]) for row in range(row_count)], np.uint8)
    asked = Asked("text", length, selection=selection)
    rows = Rows(asked, [b""] * row_count, tokens, token_sums(tokens), np.zeros(row_count, np.int64))
    rows.model, rows.needs = model, validate(asked, model)
    states = np.frombuffer(model.contract.initial_state * row_count, np.uint8)
    rows.states = states.reshape(row_count, -1).copy()
    rows.stamps = np.array([[1, row, 1] for row in range(row_count)], np.int64)
    if selection is not None and selection.generates:
        samples = [Sample(OPTIONS, 100 + row, (1, 2, 3), (32, 10)) for row in range(row_count)]
        rows.chunks = [Chunk(b"", asked, b"", print, sample=sample) for sample in samples]
    return rows


def replies(model, selections):
    """Runs rows of several lengths together; returns the reply of each row."""
    group = [rows_of(model, *asked) for asked in zip(LENGTHS, selections, strict=True)]
    run_batch(model, group, encode_outputs, model.new_halt())
    return [[pb.Outputs.FromString(row.tobytes()) for row in rows.outputs] for rows in group]


@pytest.mark.parametrize("most_bytes", [16 << 20, 20_000], ids=["at once", "in parts"])
@pytest.mark.parametrize(
    "others", [GENERATES, Selection(top_k=5, token_log_prob=True), Selection(tensors=("logits",))]
)
def test_rows_draw_what_the_loop_draws(model, monkeypatch, others, most_bytes):
    monkeypatch.setattr(batch, "MAX_OUTPUT_BYTES", most_bytes)
    given = replies(model, [GENERATES, GENERATES, GENERATES, others])
    for place in (0, 1, 2):
        for row, outputs in enumerate(given[place]):
            loop = Loop(path=MODELS / model.name / "1" / "model.onnx")
            loop.apply(TEXT[row : row + LENGTHS[place]])
            number, log_prob = sampling_oracle.draw(
                loop.logits(), OPTIONS, 100 + row, row + LENGTHS[place], (1, 2, 3), (32, 10)
            )
            assert list(outputs.sampled_ids) == [number]
            np.testing.assert_allclose(outputs.sampled_log_probs, [log_prob], atol=1e-4)
            assert outputs.token_count == LENGTHS[place]
            assert list(outputs.top_ids) == np.argsort(-loop.logits(), kind="stable")[:3].tolist()
            assert outputs.ByteSize() <= reply_bytes(GENERATES, model.contract, LENGTHS[place])


def test_rows_beside_them_give_what_they_give_alone(model):
    plain = Selection(top_k=5, token_log_prob=True)
    beside = replies(model, [GENERATES, plain, GENERATES, plain])
    alone = replies(model, [plain] * 4)
    for place in (1, 3):
        for ours, theirs in zip(beside[place], alone[place], strict=True):
            assert list(ours.top_ids) == list(theirs.top_ids)
            np.testing.assert_allclose(ours.top_log_probs, theirs.top_log_probs, atol=1e-5)
            np.testing.assert_allclose(ours.token_log_probs, theirs.token_log_probs, atol=1e-5)
            assert not ours.sampled_ids


def test_a_state_is_weighed_without_a_token(model):
    loop = Loop(path=MODELS / model.name / "1" / "model.onnx")
    loop.apply(TEXT[:30])
    weights = probe(model, join_rows(model.contract, loop.states)[0].tobytes(), model.new_halt())
    found, expected = (sampling_oracle.log_softmax(one.tolist()) for one in (weights[0], loop.logits()))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_a_row_feeds_back_is_its_last_output(tmp_path):
    feedback = {**CONTRACT, "holdfast.feedback": json.dumps("y")}
    write_features_model(tmp_path / "model.onnx", metadata=feedback)
    model = load_model(tmp_path / "model.onnx", name="feedback", version=1)
    tokens = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    asked = Asked("features", 3, 2, selection=Selection(generates=True))
    rows = Rows(asked, [b"", b""], tokens, token_sums(tokens), np.zeros(2, np.int64))
    rows.model, rows.needs = model, validate(asked, model)
    rows.states = np.zeros((2, model.contract.state_bytes), np.uint8)
    run_batch(model, [rows], encode_outputs, model.new_halt())
    for row, data in enumerate(rows.outputs):
        [named] = pb.Outputs.FromString(data.tobytes()).tensors
        assert (named.name, list(named.tensor.shape)) == ("y", [1, 2])
        np.testing.assert_array_equal(np.frombuffer(named.tensor.data, "<f4"), tokens[row].sum(axis=0))


@pytest.mark.parametrize(
    ("model", "text"),
    [("sensor-anomaly", "feedback"), ("code-language", "not the tokens"), ("sound-events", "feedback")],
)
def test_a_model_that_cannot_generate_says_why(model, text):
    loaded = load_model(MODELS / model / "1" / "model.onnx", name=model, version=1)
    kind, width = ("text", 1) if loaded.contract.vocabulary else ("features", loaded.contract.input.width)
    with pytest.raises(InvalidRequest, match=text) as refused:
        validate(Asked(kind, 1, width, selection=Selection(generates=True)), loaded)
    assert refused.value.field == "model"

"""The shipped network over subwords: small, its tokenizer the one of its training, and worth its memory."""

import hashlib
import json
import tomllib

import pytest

import holdfast
from model_export.docstrings import held_out_docstrings
from service.model.loading import load_model
from service.rpc.model_message import contract_message
from service.settings.schema import Settings
from tests.support.subword_models import package
from tests.unit.test_tokenised import run

FOLDER = Settings().models / "docstring-words" / "1"


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER / "model.onnx", name="docstring-words", version=1)


def test_it_is_small_and_says_what_it_is():
    assert (FOLDER / "model.onnx").stat().st_size <= 2_500_000
    assert (FOLDER / "tokenizer.json").stat().st_size <= 200_000
    page = tomllib.loads((FOLDER / "contract.toml").read_text())
    assert (
        page["vocabulary"]["sha256"] == hashlib.sha256((FOLDER / "tokenizer.json").read_bytes()).hexdigest()
    )
    assert {"data", "network", "parity", "seed"} <= page["facts"].keys()


def test_what_it_is_worth_is_on_record():
    tasks = json.loads((Settings().models / "training.json").read_text())["tasks"]
    rows = {row["network"]: row for row in tasks["docstring-words"]["rows"]}
    for figure in ("bits per byte", "perplexity per word"):
        assert rows["gru"][figure] < rows["last subword alone"][figure] < rows["xz -9"][figure]
    assert rows["gru"]["file, bytes"] == (FOLDER / "model.onnx").stat().st_size, (
        "the figures are of another file"
    )


def test_a_text_it_never_saw_has_the_ids_of_the_package_and_few_bits(model):
    text = max((file.data for file in held_out_docstrings()), key=len)[:3000].decode(errors="ignore")
    outputs, _ = run(model, [text.encode(), b" "], needed=("token_log_prob",))
    ids = package((FOLDER / "tokenizer.json").read_text())(text)
    assert (outputs["token_log_prob"] != 0).sum() <= len(ids)
    assert (
        -outputs["token_log_prob"].sum() / len(text) < 2.3 * 0.693
    )  # 2.3 bits per byte; it has 1.9 of all


def test_its_candidates_have_names_that_clients_can_tell_apart(model):
    labels = holdfast.labels_of(contract_message(model.contract))
    assert len(set(labels)) == len(labels) == 4000
    assert {" the", "\n", "Return"} <= set(labels)

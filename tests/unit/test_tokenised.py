"""Text streams into a network over subwords: whatever chunks it comes in, and whoever is beside it, the ids
are those of the package on the whole text, and the outputs those of an uninterrupted run."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model.check import check_model
from service.model.files import ModelFileError, fingerprint_of, read_model
from service.model.loading import load_model
from service.model.pieces import MAX_PIECE_BYTES, cut
from tests.support.subword_models import SIZE, TEXT, byte_pairs, package, put_words_model, text_of_pieces

TOLERANCE = 1e-5
IDS_OF = package(byte_pairs())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(put_words_model(tmp_path_factory.mktemp("words")), name="words", version=1)


def begin(model, count=1):
    return {spec.name: np.zeros((count, *spec.shape), spec.dtype) for spec in model.contract.states}


def run(model, chunks, states=None, needed=None):
    """Runs the chunks of one row; returns outputs (k, ...) and the states after them."""
    states, parts = states or begin(model), []
    for chunk in filter(None, chunks):
        tokens = np.frombuffer(chunk, np.uint8).astype(np.int64)[:, np.newaxis]
        outputs, states = model.run(tokens, states, needed)
        parts.append(outputs)
    return {name: np.concatenate([part[name][:, 0] for part in parts]) for name in parts[0]}, states


def split_at(data, *places):
    edges = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def assert_same(given, expected, tolerance=TOLERANCE):
    assert given.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(given[name], array, rtol=0, atol=tolerance, err_msg=name)


# -- pieces ---------------------------------------------------------------------------------------


@given(st.binary(max_size=200) | text_of_pieces.map(str.encode), st.data())
@settings(max_examples=200, deadline=None)
def test_chunks_do_not_move_the_ends_of_pieces(data, draw):
    whole, rest = cut(b"", data)
    assert b"".join([*(found.piece for found in whole), rest]) == data
    assert all(1 <= len(found.piece) <= MAX_PIECE_BYTES for found in whole)
    assert len(rest) <= MAX_PIECE_BYTES
    places = draw.draw(st.lists(st.integers(0, len(data)), max_size=5))
    held, start, found = b"", 0, []
    for chunk in split_at(data, *places):
        finished, held = cut(held, chunk)
        found += [(one.piece, one.place + start) for one in finished]
        start += len(chunk)
    assert (found, held) == ([tuple(one) for one in whole], rest)


@pytest.mark.parametrize("letter", ["x", "é", "日", "😀"])
@pytest.mark.parametrize("before", range(4))
def test_a_long_piece_is_cut_between_characters(letter, before):
    data = ("x" * before + letter * 100).encode()
    finished, rest = cut(b"", data)
    assert (
        len(finished) == len(data) // (MAX_PIECE_BYTES - 3) or len(finished) == len(data) // MAX_PIECE_BYTES
    )
    for found in finished:
        found.piece.decode()
        assert MAX_PIECE_BYTES - 3 <= len(found.piece) <= MAX_PIECE_BYTES
    rest.decode()


def test_a_piece_of_the_longest_length_waits_for_the_next_byte():
    data = b"x" * MAX_PIECE_BYTES
    assert cut(b"", data) == ([], data)
    [found], rest = cut(data, b" ")
    assert (found.piece, found.place, rest) == (data, 0, b" ")


# -- streams --------------------------------------------------------------------------------------


def oracle(model, text, start=0):
    """What each byte of a text gives: the network on the ids of the whole text, without a break.

    Where pieces end is told anew here: by the lengths of what the package says was before white space.
    """
    blank = [letter.isspace() for letter in text]
    ends = [place for place in range(1, len(text)) if blank[place] and not blank[place - 1]]
    pieces = [IDS_OF(text[first:last]) for first, last in itertools.pairwise([0, *ends])]
    ids = [entry for piece in pieces for entry in piece]
    states = {name: array for name, array in begin(model).items() if name != "piece"}
    tokens = np.array([start, *ids])[:, np.newaxis]
    outputs, _ = model.network.run(tokens, states)
    logits, sums = [], []
    for byte in range(len(text.encode())):
        done = [len(text[:end].encode()) <= byte for end in ends]
        count = sum(len(piece) for piece, is_done in zip(pieces, done, strict=True) if is_done)
        now = [piece for piece, end in zip(pieces, ends, strict=True) if len(text[:end].encode()) == byte]
        logits.append(outputs["logits"][count, 0])
        sums.append(sum(outputs["token_log_prob"][count - len(now[0]) + 1 : count + 1, 0]) if now else 0.0)
    return {"logits": np.array(logits), "token_log_prob": np.array(sums)}


def test_a_stream_gives_what_an_uninterrupted_run_gives(model):
    given, _ = run(model, [TEXT.encode()])
    assert_same(given, oracle(model, TEXT))


def test_a_text_may_be_divided_anywhere(model):
    data = TEXT[:70].encode()
    expected, after = run(model, [data])
    for place in range(1, len(data)):
        given, states = run(model, split_at(data, place))
        assert_same(given, expected)
        assert_same(states, after)
    given, states = run(model, [data[place : place + 1] for place in range(len(data))])
    assert_same(given, expected)
    assert np.array_equal(states["piece"], after["piece"])


@given(st.lists(st.binary(max_size=90) | text_of_pieces.map(str.encode), min_size=1, max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_rows_of_a_batch_do_not_see_each_other(model, texts, draw):
    length = max(1, max(map(len, texts)))
    rows = [text.ljust(length, b" ") for text in texts]
    place = draw.draw(st.integers(0, length))
    states, parts = begin(model, len(rows)), []
    for chunk in (slice(0, place), slice(place, length)):
        tokens = np.array([np.frombuffer(row[chunk], np.uint8) for row in rows], np.int64).T
        if len(tokens):
            outputs, states = model.run(tokens, states)
            parts.append(outputs)
    for number, row in enumerate(rows):
        expected, after = run(model, [row])
        given = {name: np.concatenate([part[name][:, number] for part in parts]) for name in expected}
        assert_same(given, expected)
        assert_same({name: array[number : number + 1] for name, array in states.items()}, after)


def test_one_output_or_none_changes_nothing_else(model):
    data = TEXT.encode()
    expected, after = run(model, [data])
    for needed in ((), ("logits",), ("token_log_prob",)):
        given, states = run(model, [data], needed=needed)
        assert_same(given, {name: expected[name] for name in needed})
        assert_same(states, after)


def test_without_a_start_outputs_are_zeros_until_a_word_has_ended(tmp_path):
    model = load_model(put_words_model(tmp_path, start=None), name="words", version=1)
    given, _ = run(model, [b"list the"])
    assert not given["logits"][:4].any()
    assert given["logits"][4:].any(axis=1).all()


@pytest.mark.parametrize("bad", [255, 64, 65])
def test_a_state_that_a_client_made_up_does_no_harm(model, bad):
    states = begin(model)
    states["piece"][:] = bad
    given, after = run(model, [b"of the list"], states)
    assert np.isfinite(given["logits"]).all()
    assert after["piece"][0, 4] == len(" list")


def test_a_network_that_gives_an_output_once_a_run_gives_it_for_every_byte(tmp_path, model):
    axes = f'["time", "batch", {SIZE}]'
    path = put_words_model(tmp_path, changes=[(axes, f'["batch", {SIZE}]')])
    graph = onnx.load(path)
    [readout] = [node for node in graph.graph.node if node.output[0] == "logits"]
    readout.output[0] = "every_logits"
    [surprise] = [node for node in graph.graph.node if node.output[0] == "token_log_prob"]
    for branch in surprise.attribute:
        for node in branch.g.node:
            node.input[:] = ["every_logits" if name == "logits" else name for name in node.input]
    last = onnx.helper.make_node("Gather", ["every_logits", "minus_one_scalar"], ["logits"], axis=0)
    graph.graph.node.insert(list(graph.graph.node).index(readout) + 1, last)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(-1), "minus_one_scalar"))
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("logits", 1, ["batch", SIZE]))
    path.write_bytes(graph.SerializeToString())
    given, _ = run(load_model(path, name="words", version=1), [TEXT.encode()], needed=("logits",))
    assert_same(given, {"logits": run(model, [TEXT.encode()])[0]["logits"]})


def test_rows_run_apart_give_the_same(tmp_path, model):
    path = put_words_model(tmp_path)
    apart = load_model(path, name="words", version=1, apart=frozenset({"rows", "tokens"}))
    tokens = np.frombuffer(TEXT.encode()[:64], np.uint8).reshape(2, 32).T.astype(np.int64)
    for ours, expected in zip(
        apart.run(tokens, begin(model, 2)), model.run(tokens, begin(model, 2)), strict=True
    ):
        assert_same(ours, expected)


def test_clients_see_bytes_in_and_the_texts_of_entries_out(model):
    contract = model.contract
    assert (contract.vocabulary.kind, contract.vocabulary.size) == ("bytes", 256)
    assert [(spec.name, spec.shape) for spec in contract.states] == [("h", (16,)), ("piece", (72,))]
    assert contract.ranked.shape == (SIZE,)
    assert len(contract.ranked.labels) == SIZE
    assert {"e", " list"} <= set(contract.ranked.labels)
    assert contract.text_bytes > sum(len(label) for label in contract.ranked.labels)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_confined_check_lets_a_tokenizer_pass(tmp_path):
    path = put_words_model(tmp_path)
    check_model(path, read_model(path))


@pytest.mark.process
def test_the_tokenizer_is_part_of_the_fingerprint(tmp_path):
    path = put_words_model(tmp_path)
    before = fingerprint_of(read_model(path))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert fingerprint_of(read_model(path)) != before
    with pytest.raises(ModelFileError, match=r"tokenizer.json has sha256 \w+, the contract says \w+"):
        check_model(path, read_model(path))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('file = "tokenizer.json"', 'file = "../tokenizer.json"', "is not the name of a .json file"),
        ('file = "tokenizer.json"', 'fiel = "tokenizer.json"', "did you mean 'file'"),
        ('file = "tokenizer.json"\n', "", 'a tokenizer needs file = "tokenizer.json"'),
        ('file = "tokenizer.json"', 'file = "other.json"', "No such file"),
        ('sha256 = "', 'sha256 = "x', "expected what sha256sum says of tokenizer.json"),
        ("size = 320", "size = 321", "one value per token id, 321; it has 320"),
        ("start = 0", "start = -1", "start is -1, expected an id"),
        ("start = 0", "start = 320", r"start 320 is not an id, expected 0..319"),
        ('name = "h"', 'name = "piece"', "a state is named 'piece'"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused(tmp_path, old, new, said):
    path = put_words_model(tmp_path, changes=[(old, new)])
    with pytest.raises(ModelFileError, match=said):
        load_model(path, name="words", version=1, data=read_model(path))

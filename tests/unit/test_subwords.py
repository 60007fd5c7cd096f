"""A tokenizer.json gives a stream, piece by piece, the ids that the package gives the whole text; one that
cannot is refused with the reason."""

import hashlib
import json
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model_export.corpus import SourceFile
from model_export.subwords import train_tokenizer
from service.model.subwords import MAX_BYTES, Subwords, TokenizerError
from tests.support.subword_models import SIZE, byte_pairs, other_kinds, package, text_of_pieces

KINDS = {"BPE of bytes": byte_pairs(), **other_kinds()}


def subwords_of(tokenizer, **changes):
    data = tokenizer.encode() if isinstance(tokenizer, str) else json.dumps(tokenizer).encode()
    said = {"name": "tokenizer.json", "size": len(json.loads(data)["model"]["vocab"])}
    return Subwords(data, **{**said, "sha256": hashlib.sha256(data).hexdigest(), **changes})


SERVED = {name: subwords_of(tokenizer) for name, tokenizer in KINDS.items()}
PACKAGE = {name: package(tokenizer) for name, tokenizer in KINDS.items()}


@pytest.fixture(scope="module")
def subwords():
    return SERVED["BPE of bytes"]


@pytest.mark.parametrize("kind", KINDS)
@given(text=text_of_pieces)
@settings(max_examples=80, deadline=None)
def test_pieces_have_the_ids_of_the_whole_text(kind, text):
    assert list(SERVED[kind].by_pieces(text.encode())) == PACKAGE[kind](text)


def test_white_space_of_any_kind_is_joined_with_what_follows_as_the_package_does():
    spaces = [chr(code) for code in range(0x3001) if chr(code).isspace()]
    assert len(spaces) == 29
    texts = [f"a{space}  list{space}\tof{space}" for space in spaces]
    learnt = train_tokenizer([SourceFile("spaces", "".join(texts * 9).encode())], 600)
    given, expected = subwords_of(learnt), package(learnt)
    for text in texts:
        assert list(given.by_pieces(text.encode())) == expected(text), text


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_bytes_of_any_kind_come_back_from_their_ids(subwords, data):
    ids = subwords.by_pieces(data)
    assume(b"\\" not in data)  # as which texts write bytes that are none
    back = b"".join(
        bytes.fromhex(text[2:]) if text.startswith("\\x") else text.encode()
        for text in (subwords.texts[entry] for entry in ids)
    )
    assert back == data


def test_what_a_text_says_of_the_start_is_text(subwords):
    ids = subwords.by_pieces(b"<|start|>")
    assert 0 not in ids
    assert "".join(subwords.texts[entry] for entry in ids) == "<|start|>"


def changed(**parts):
    document = json.loads(KINDS["BPE of bytes"])
    for key, value in parts.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) and document[key] else value
    return document


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (changed(pre_tokenizer=None), "no pre_tokenizer divides the text itself"),
        (changed(pre_tokenizer={"use_regex": False}), "no pre_tokenizer divides the text itself"),
        (changed(pre_tokenizer={"add_prefix_space": True}), "add_prefix_space would put a space"),
        (
            changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "."}}),
            "pre_tokenizer Split nothing says",
        ),
        (
            changed(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "first"}),
            "would begin the first piece",
        ),
        (
            changed(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "never"}),
            "no pre_tokenizer divides",
        ),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": 3}),
            "a Sequence without pretokenizers",
        ),
        (changed(normalizer={"type": "Replace"}), "the normalizer Replace may look beyond a piece"),
        (
            changed(normalizer={"type": "Sequence", "normalizers": [{"type": "Strip"}]}),
            "normalizer Strip may look",
        ),
        (changed(model={"type": "Other"}), "the model Other is not one of BPE"),
        (changed(model={"dropout": 0.1}), "a matter of chance; set it to null"),
        (changed(model={"merges": [["no", "such"]]}), "cannot be loaded"),
        (changed(added_tokens=[{"id": 5, "content": "of the", "special": False}]), "is not special"),
        (changed(model=None), "it has no model"),
        ([1], "is not a tokenizer.json"),
    ],
)
def test_a_tokenizer_that_cannot_stream_is_refused(document, said):
    data = json.dumps(document).encode()
    with pytest.raises(TokenizerError, match=said):
        Subwords(data, name="tokenizer.json", size=SIZE, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (MAX_BYTES + 1), f"expected at most {MAX_BYTES}"),
    ],
)
def test_bytes_that_are_no_tokenizer_are_refused(data, said):
    with pytest.raises(TokenizerError, match=said):
        Subwords(data, name="tokenizer.json", size=SIZE, sha256=hashlib.sha256(data).hexdigest())


def test_ids_with_gaps_and_another_size_are_refused():
    with pytest.raises(TokenizerError, match="has 320 entries, the contract says size = 300"):
        subwords_of(KINDS["BPE of bytes"], size=300)
    document = changed()
    vocabulary = document["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 1000
    with pytest.raises(TokenizerError, match=r"ids other than 0..319"):
        subwords_of(document)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"pip install 'holdfast\[tokenizer\]'"):
        subwords_of(KINDS["BPE of bytes"])

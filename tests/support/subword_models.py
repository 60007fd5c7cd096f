"""Networks over subwords for tests: small tokenizers of every kind, and a graph with drawn weights."""

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from model_export.corpus import SourceFile
from model_export.subwords import START, train_tokenizer
from model_export.words_contract import TOKENIZER_FILE, words_contract
from model_export.words_graph import build_words_graph

SIZE, HIDDEN, WIDTH = 320, 16, 8
TEXT = (
    "Return the number of items in the list; the list's items are returned, in order.\n\n    Café naïve — "
    '日本語 text.  If the\tlist is empty, raise ValueError("empty"): 3.14 12\n'
)
LETTERS = [
    "a",
    "list",
    "the",
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u2003",
    "\u3000",
    "é",
    "日",
    "😀",
    "\u0301",
    "'s",
    "12",
    ".",
    "(",
    "<|start|>",
    "ς",
    "Σ",
]
text_of_pieces = st.lists(st.sampled_from(LETTERS), max_size=14).map("".join)


def byte_pairs():
    """A tokenizer as `docstring-words` has it."""
    return train_tokenizer([SourceFile("text", TEXT.encode() * 3)], SIZE)


def other_kinds():
    """Tokenizers of the other kinds that are served, by name, as JSON."""
    split = pre_tokenizers
    kinds = {
        "WordPiece": (
            models.WordPiece(unk_token="?"),
            split.BertPreTokenizer(),
            normalizers.BertNormalizer(),
            trainers.WordPieceTrainer(vocab_size=200, special_tokens=["?"], show_progress=False),
        ),
        "Unigram": (
            models.Unigram(),
            split.Sequence([split.WhitespaceSplit(), split.Metaspace()]),
            normalizers.NFKC(),
            trainers.UnigramTrainer(
                vocab_size=120, special_tokens=["?"], unk_token="?", show_progress=False
            ),
        ),
        "WordLevel": (
            models.WordLevel(unk_token="?"),
            split.Whitespace(),
            normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
            trainers.WordLevelTrainer(vocab_size=60, special_tokens=["?"], show_progress=False),
        ),
        "BPE of digits": (
            models.BPE(),
            split.Sequence(
                [
                    split.Digits(individual_digits=True),
                    split.Punctuation(),
                    split.ByteLevel(add_prefix_space=False),
                ]
            ),
            None,
            trainers.BpeTrainer(
                vocab_size=300, show_progress=False, initial_alphabet=sorted(split.ByteLevel.alphabet())
            ),
        ),
    }
    made = {}
    for name, (model, splitter, normalizer, trainer) in kinds.items():
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = splitter
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator([TEXT] * 3, trainer)
        made[name] = tokenizer.to_str()
    return made


def package(tokenizer):
    """Returns what gives the ids of a whole text, by the package alone."""
    loaded = Tokenizer.from_str(tokenizer)
    loaded.encode_special_tokens = True
    return lambda text: loaded.encode(text, add_special_tokens=False).ids


def graph_bytes(size=SIZE, seed=5):
    """A step graph with drawn weights over so many entries."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (size, WIDTH),
        "inputs": (WIDTH, 3 * HIDDEN),
        "inputs_bias": (3 * HIDDEN,),
        "recurrent": (HIDDEN, 3 * HIDDEN),
        "recurrent_bias": (3 * HIDDEN,),
        "projection": (HIDDEN, WIDTH),
        "readout_bias": (size,),
    }
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    return build_words_graph(weights).SerializeToString()


def put_words_model(folder, tokenizer=None, *, start=START, changes=()):
    """Writes a model with its contract and tokenizer.

    Args:
        folder: Where to.
        tokenizer: Its JSON.
        start: See the contract.
        changes: Pairs of texts of the contract and what replaces them.
    """
    tokenizer = byte_pairs() if tokenizer is None else tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    size = Tokenizer.from_str(tokenizer).get_vocab_size()
    contract = words_contract(tokenizer, size, HIDDEN, start=start)
    for old, new in changes:
        assert old in contract
        contract = contract.replace(old, new)
    (folder / TOKENIZER_FILE).write_text(tokenizer)
    (folder / "contract.toml").write_text(contract)
    (folder / "model.onnx").write_bytes(graph_bytes(size))
    return folder / "model.onnx"

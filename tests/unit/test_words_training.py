"""How the network over subwords is made: its texts, its baseline, and the gate that its graph passes."""

import math

import numpy as np
import pytest

from model_export.bigrams import bigram_nats
from model_export.corpus import SourceFile
from model_export.docstrings import load_docstrings
from model_export.subwords import START, encode, train_tokenizer
from tests.support.subword_models import TEXT, package

SOURCE = '''"""First."""


class Second:
    """In a class.

    Of two lines:
        indented.
    """

    def third(self):
        """Third."""
        return "no docstring"


async def fourth():
    """Fourth, naïve."""
'''


def test_texts_are_the_docstrings_of_each_file_in_their_order(tmp_path):
    (tmp_path / "some.py").write_text(SOURCE)
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("def\n")
    corpus = load_docstrings(tmp_path)
    [text] = [*corpus.training, *corpus.held_out]
    expected = "First.\n\nIn a class.\n\nOf two lines:\n    indented.\n\nThird.\n\nFourth, naïve."
    assert text == SourceFile("some.py", expected.encode())


def test_the_same_texts_give_the_same_tokenizer_and_each_text_its_start():
    files = [SourceFile("a", TEXT.encode()), SourceFile("b", b"<|start|> again")]
    first, again = (train_tokenizer(files, 300) for _ in range(2))
    assert first == again
    ids = encode(first, files)
    assert ids.tolist() == [START, *package(first)(TEXT), START, *package(first)("<|start|> again")]
    assert (ids == START).sum() == 2


def test_the_baseline_is_the_count_of_pairs_smoothed():
    training = np.array([0, 1, 2, 1, 2, 1, 3, 0, 1])
    held_out = np.array([0, 1, 3, 0, 2, 2])
    seconds = [1, 2, 1, 2, 1, 3, 1]  # no start is predicted
    single = {entry: (seconds.count(entry) + 1) / (7 + 4) for entry in range(4)}
    after = {0: [1, 1], 1: [2, 2, 3], 2: [1, 1], 3: []}

    def nats(first, second):
        different = max(1, len(set(after[first])))
        counted = after[first].count(second) + different * single[second]
        return -math.log(counted / (len(after[first]) + different))

    expected = [nats(0, 1), nats(1, 3), nats(0, 2), nats(2, 2)]
    np.testing.assert_allclose(bigram_nats(training, held_out, 4, 0), expected)


@pytest.fixture(scope="module")
def trained():
    """A small network after a few updates, with the ids it learnt from."""
    torch = pytest.importorskip("torch")
    from model_export.progress import Progress
    from model_export.words_network import WordsRecipe, train_words

    torch.set_num_threads(1)
    ids = np.array([0, *([1, 2, 3, 4] * 40), 0, *([5, 4, 3] * 50)], np.int64)
    recipe = WordsRecipe(embedding=8, hidden=12, steps=60, batch=4, window=10, dropout=0.0, peak_rate=2e-2)
    with Progress("test", recipe.steps) as progress:
        return train_words(recipe, ids, 6, 0, progress), ids


def test_it_learns_what_the_last_subword_does_not_tell(trained):
    from model_export.words_network import surprises, text_nats

    network, ids = trained
    nats = text_nats(network, ids, 0)
    assert nats < bigram_nats(ids, ids, 6, 0).sum()
    texts = np.split(ids, [161])
    assert nats == pytest.approx(sum(surprises(network, text).sum() for text in texts), rel=1e-5)


def test_its_weights_are_float16_and_its_graph_passes_the_gate_which_a_wrong_one_does_not(trained):
    from model_export.parity import ParityError
    from model_export.tasks.docstring_words import check_parity, weights_of
    from model_export.words_graph import build_words_graph

    network, ids = trained
    weights = weights_of(network)
    for name, weight in weights.items():
        assert np.array_equal(weight, weight.astype(np.float16).astype(np.float32)), name
    graph = build_words_graph(weights).SerializeToString()
    assert check_parity(network, graph, ids).max_difference <= 1e-5
    r, z, n = np.split(weights["recurrent"], 3, axis=1)
    wrong = {**weights, "recurrent": np.concatenate([z, r, n], axis=1)}
    with pytest.raises(ParityError, match="largest difference in 500 steps"):
        check_parity(network, build_words_graph(wrong).SerializeToString(), ids)

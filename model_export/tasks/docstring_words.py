"""`docstring-words`: text in, and after every word which one comes next, out of 4,000 subwords.

Many to many over a vocabulary of its own. The server tokenises as the text streams, by the tokenizer.json
that is laid down beside the graph.
"""

import copy
import math
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export import picture
from model_export.bigrams import bigram_nats
from model_export.corpus import Corpus
from model_export.docstrings import load_docstrings
from model_export.parity import BATCHES, STEPS, TOLERANCE, Parity, ParityError, difference, open_session
from model_export.progress import Progress
from model_export.report import compressor_rows
from model_export.subwords import START, VOCABULARY_SIZE, encode, train_tokenizer
from model_export.tasks.task import Cell, Folders, Outcome, facts_in_toml, lay_down, lay_down_picture
from model_export.words_contract import TOKENIZER_FILE, words_contract
from model_export.words_graph import Weights, build_words_graph
from model_export.words_network import WordsNetwork, WordsRecipe, surprises, text_nats, train_words

NAME = "docstring-words"
TOKENS_PER_CALL = (1, 7, 50)

_RECIPE = WordsRecipe()
_SMOOTHED = 50
"""Subwords over which the picture averages."""

_EVERY = 4
"""Of its points one in so many is drawn."""


def train(folders: Folders, scale: float) -> Outcome:
    """See `task.Train`."""
    started_s = time.monotonic()
    corpus = load_docstrings()
    tokenizer = train_tokenizer(corpus.training)
    training, held_out = (encode(tokenizer, files) for files in (corpus.training, corpus.held_out))
    recipe = replace(_RECIPE, steps=max(1, int(_RECIPE.steps * scale)))
    with Progress(NAME, recipe.steps, "bits/subword") as progress:
        network = train_words(recipe, training, VOCABULARY_SIZE, START, progress)
    model = build_words_graph(weights_of(network))
    parity = check_parity(network, model.SerializeToString(), held_out)
    facts = _facts(network, corpus, recipe, parity)
    folder = folders.models / NAME / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).write_text(tokenizer)
    table = facts_in_toml(facts)
    contract = words_contract(tokenizer, VOCABULARY_SIZE, network.hidden, table, start=START)
    size = lay_down(folders, NAME, model, contract)
    baseline = bigram_nats(training, held_out, VOCABULARY_SIZE, START)
    lay_down_picture(folders, NAME, _picture(network, held_out, baseline))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    text = b"".join(file.data for file in corpus.held_out)
    byte_count = len(text)
    word_count = sum(len(file.data.split()) for file in corpus.held_out)
    rows: list[tuple[Cell, ...]] = [
        ("gru", parameters, size, *_figures(text_nats(network, held_out, START), byte_count, word_count)),
        ("last subword alone", "", "", *_figures(float(baseline.sum()), byte_count, word_count)),
    ]
    rows += [
        (row.name, "", "", *_figures(row.bits_per_byte * byte_count * math.log(2), byte_count, word_count))
        for row in compressor_rows(text)
    ]
    return Outcome(
        NAME,
        "Docstrings of files it never saw; a word is what stands between white space, code in it included",
        ("network", "parameters", "file, bytes", "bits per byte", "perplexity per word"),
        tuple(rows),
        {**facts, "minutes": round((time.monotonic() - started_s) / 60, 1)},
    )


def _figures(nats: float, byte_count: int, word_count: int) -> tuple[Cell, ...]:
    return round(nats / math.log(2) / byte_count, 3), round(math.exp(nats / word_count))


def weights_of(network: WordsNetwork) -> Weights:
    """Takes the weights out of a network."""
    given = {
        "embedding": network.embedding,
        "inputs": network.inputs.weight.T,
        "inputs_bias": network.inputs.bias,
        "recurrent": network.recurrent.weight.T,
        "recurrent_bias": network.recurrent.bias,
        "projection": network.projection.weight.T,
        "readout_bias": network.bias,
    }
    return {name: weight.detach().numpy() for name, weight in given.items()}


def check_parity(network: WordsNetwork, graph: bytes, ids: NDArray[np.int64]) -> Parity:
    """Compares a network with its step graph; see `parity`. Compares as it goes: logits are many.

    Args:
        network: In evaluation mode.
        graph: The serialised step graph.
        ids: Real subwords; the rows run different parts of them.

    Raises:
        ParityError: Some difference is above 1e-5, or not a number.
    """
    precise = copy.deepcopy(network).double()
    worst = noise = 0.0
    for batch in BATCHES:
        starts = [row * len(ids) // batch for row in range(batch)]
        tokens = np.stack([np.resize(ids[start:], STEPS) for start in starts], axis=1)
        loops = [_Loop(graph, count, tokens) for count in TOKENS_PER_CALL]
        h = torch.zeros(batch, network.hidden)
        exact_h = h.double()
        for step, row in enumerate(torch.from_numpy(tokens)):
            expected, h = _step(network, row, h)
            exact, exact_h = _step(precise, row, exact_h)
            noise = max(noise, difference(exact, expected))
            worst = max([worst, *(loop.difference(step, expected) for loop in loops)])
    if not worst <= TOLERANCE:
        raise ParityError(
            f"largest difference in {STEPS} steps is {worst:g}, at most {TOLERANCE:g} is let through; "
            f"the network in float32 differs from itself in float64 by {noise:g}"
        )
    return Parity(STEPS, BATCHES, TOKENS_PER_CALL, worst, noise)


@torch.inference_mode()
def _step(network: WordsNetwork, ids: Tensor, h: Tensor) -> tuple[list[NDArray[np.float32]], Tensor]:
    """Returns logits, log-probability and next h of one step, each (1, B, ...), and h as a tensor."""
    given = network(ids, h)
    return [part.numpy()[np.newaxis] for part in given], given[2]


class _Loop:
    """The graph in a closed loop, a number of steps at a time.

    Args:
        graph: Serialised.
        count: Steps per call.
        tokens: int64 (steps, batch).
    """

    def __init__(self, graph: bytes, count: int, tokens: NDArray[np.int64]) -> None:
        self._session = open_session(graph)
        self._count = count
        self._tokens = tokens
        self._given: list[NDArray[np.float32]] = []
        self._hidden: int = self._session.get_inputs()[1].shape[1]

    def difference(self, step: int, expected: list[NDArray[np.float32]]) -> float:
        """Returns the largest difference at a step; the steps come in order."""
        place = step % self._count
        if place == 0:
            shape = (self._tokens.shape[1], self._hidden)
            h = self._given[2] if self._given else np.zeros(shape, np.float32)
            part = self._tokens[step : step + self._count]
            self._given = self._session.run(None, {"token": part, "h": h})
        here = [part[place : place + 1] for part in self._given[:2]]
        is_last = place == min(self._count, len(self._tokens) - (step - place)) - 1
        if is_last:
            here.append(self._given[2][np.newaxis])
        return difference(expected[: len(here)], here)


def _facts(network: WordsNetwork, corpus: Corpus, recipe: WordsRecipe, parity: Parity) -> dict[str, Cell]:
    return {
        "data": "docstrings of Python's standard library, a text per file, without tests",
        "data sha256": corpus.digest,
        "training bytes": sum(len(file.data) for file in corpus.training),
        "held out bytes": sum(len(file.data) for file in corpus.held_out),
        "network": f"gru, {network.hidden} units between tied embeddings of {recipe.embedding}",
        "updates": recipe.steps,
        "seed": recipe.seed,
        "parity": f"{parity.max_difference:.1e} over {parity.steps} steps",
    }


def _picture(network: WordsNetwork, held_out: NDArray[np.int64], baseline: NDArray[np.float64]) -> str:
    """Draws what the longest held-out text says that neither expected, subword by subword."""
    starts = np.flatnonzero(held_out == START)
    lengths = np.diff([*starts, len(held_out)])
    longest = int(lengths.argmax())
    start, stop = starts[longest], starts[longest] + lengths[longest]
    without_starts = start - longest  # each text before has a start that is not counted
    ours = surprises(network, held_out[start:stop]) / math.log(2)
    theirs = baseline[without_starts : without_starts + len(ours)] / math.log(2)
    pairs = ((ours, picture.OURS), (theirs, picture.BASELINE))
    smooth = [
        picture.Curve(
            np.convolve(values, np.full(_SMOOTHED, 1 / _SMOOTHED), "valid")[::_EVERY].tolist(), colour
        )
        for values, colour in pairs
    ]
    total = [picture.Curve((values.cumsum() / 1000)[::_EVERY].tolist(), colour) for values, colour in pairs]
    most = max(float(values.sum()) for values, _ in pairs) / 1000
    lanes = [
        picture.Lane("surprise", "bits/subword", smooth, 0.0, 14.0, 110),
        picture.Lane("in all", "kilobits", total, 0.0, most, 110),
    ]
    title = f"{NAME}: a text it never saw, with memory (teal) and by the last subword alone (orange)"
    return picture.draw(title, lanes, [], end=len(ours), unit="subwords")

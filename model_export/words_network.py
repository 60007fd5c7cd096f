"""A network over subwords, its training and its measure: a GRU between tied embeddings.

The embedding is both the first layer and the last, so that 4,000 entries are paid for once. Texts begin
with an entry of their own at which the state starts anew, as sessions do; otherwise the state is carried
from window to window. Noise on the states and decay of the weights keep rounding from growing, see `train`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.progress import Progress

_BITS = 1 / math.log(2)


@dataclass(frozen=True)
class WordsRecipe:
    """How the network is made.

    Attributes:
        embedding: Width of an entry's vector.
        hidden: Units of h.
        steps: Updates of the weights.
        batch: Parallel streams.
        window: Subwords per stream and update.
        peak_rate: Highest learning rate; it falls to a hundredth along a cosine.
        clip: Largest norm of the gradient.
        weight_decay: Of AdamW.
        dropout: Share of what enters the recurrent layer and the readout that is zeroed.
        state_noise: Standard deviation of the normal noise added to every state.
        restart_rate: Chance of a stream, per window, to start anew in the middle of a text.
        seed: Of weights and noise.
    """

    embedding: int = 160
    hidden: int = 256
    steps: int = 1800
    batch: int = 32
    window: int = 48
    peak_rate: float = 5e-3
    clip: float = 1.0
    weight_decay: float = 0.3
    dropout: float = 0.3
    state_noise: float = 0.02
    restart_rate: float = 0.05
    seed: int = 20261126


class WordsNetwork(nn.Module):
    """h_t = GRU(e(x_t), h_(t-1)), logits = E P h_t + c, with E the table of embeddings e.

    Attributes:
        embedding: E, (vocabulary, width).
        inputs: Width -> 3 * hidden, gates r, z, n.
        recurrent: hidden -> 3 * hidden.
        projection: P, hidden -> width.
        bias: c, (vocabulary,).
    """

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Parameter(torch.empty(vocabulary, width).normal_(std=0.1))
        self.inputs = nn.Linear(width, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        self.projection = nn.Linear(hidden, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        for gate in range(3):
            nn.init.orthogonal_(self.recurrent.weight.data[gate * hidden : (gate + 1) * hidden])

    def advance(self, gates: Tensor, h: Tensor) -> Tensor:
        """Returns h_t (B, hidden) from the input's share of the gates (B, 3 * hidden) and h_(t-1)."""
        from_h = self.recurrent(h)
        two = 2 * self.hidden
        r, z = torch.sigmoid(gates[:, :two] + from_h[:, :two]).chunk(2, dim=1)
        n = torch.tanh(gates[:, two:] + r * from_h[:, two:])
        new_h: Tensor = n + z * (h - n)
        return new_h

    def gates(self, ids: Tensor) -> Tensor:
        """Returns the input's share of the gates, (..., 3 * hidden), of ids (...)."""
        given: Tensor = self.inputs(self.embedding[ids])
        return given

    def readout(self, h: Tensor) -> Tensor:
        """Returns logits (..., vocabulary) of states (..., hidden)."""
        logits: Tensor = self.projection(h) @ self.embedding.T + self.bias
        return logits

    def forward(self, ids: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes one step.

        Args:
            ids: int64 (B,).
            h: float32 (B, hidden).

        Returns:
            Logits (B, vocabulary), the log-probability of `ids` given all before (B,), the next h.
        """
        surprise = torch.log_softmax(self.readout(h), dim=1).gather(1, ids[:, None])[:, 0]
        new_h = self.advance(self.gates(ids), h)
        return self.readout(new_h), surprise, new_h

    def round_to_half(self) -> None:
        """Makes every weight a value that float16 has, since the file keeps them so."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.half().float())


def train_words(
    recipe: WordsRecipe, ids: NDArray[np.int64], vocabulary: int, start: int, progress: Progress
) -> WordsNetwork:
    """Trains a network on ids and returns it in evaluation mode, its weights rounded to float16.

    Args:
        recipe: How.
        ids: Of texts one after the other, each with `start` before it.
        vocabulary: Number of entries.
        start: The entry at which a state starts anew.
        progress: Shows bits per subword.
    """
    torch.manual_seed(recipe.seed)
    network = WordsNetwork(vocabulary, recipe.embedding, recipe.hidden)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay
    )
    h = torch.zeros(recipe.batch, recipe.hidden)
    for step, window in enumerate(_windows(ids, recipe)):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        window[0, torch.rand(recipe.batch) < recipe.restart_rate] = start
        loss, h = _window_loss(network, window, h, start, recipe)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
        progress.advance(float(loss.detach()) * _BITS)
    network.round_to_half()
    return network.eval()


def _learning_rate(recipe: WordsRecipe, step: int) -> float:
    warm_up = min(60, recipe.steps // 10)
    if step < warm_up:
        return recipe.peak_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, recipe.steps - warm_up)
    return recipe.peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _windows(ids: NDArray[np.int64], recipe: WordsRecipe) -> Iterator[Tensor]:
    """Yields `recipe.steps` windows of ids, (window + 1, batch); the last row is only predicted."""
    length = len(ids) // recipe.batch
    streams = torch.from_numpy(ids[: length * recipe.batch].reshape(recipe.batch, length).T.copy())
    per_pass = (length - 1) // recipe.window
    for step in range(recipe.steps):
        begin = (step % per_pass) * recipe.window
        yield streams[begin : begin + recipe.window + 1].clone()


def _window_loss(
    network: WordsNetwork, window: Tensor, h: Tensor, start: int, recipe: WordsRecipe
) -> tuple[Tensor, Tensor]:
    """Returns the mean cross entropy in nats, and h after the window, cut off from the gradient."""
    given, targets = window[:-1], window[1:]
    entering = nn.functional.dropout(network.embedding[given], recipe.dropout)
    goes_on = (given != start).float()[:, :, None]
    states = []
    for gates, keeps in zip(network.inputs(entering).unbind(), goes_on.unbind(), strict=True):
        h = network.advance(gates, h * keeps)
        h = h + recipe.state_noise * torch.randn_like(h)
        states.append(h)
    logits = network.readout(nn.functional.dropout(torch.stack(states), recipe.dropout))
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), h.detach()


@torch.inference_mode()
def text_nats(network: WordsNetwork, ids: NDArray[np.int64], start: int, lanes: int = 32) -> float:
    """Returns -ln p of texts in all, each from the initial state; the starts themselves are given.

    Args:
        network: In evaluation mode.
        ids: Of texts one after the other, each with `start` before it.
        start: See there.
        lanes: Texts that run beside each other.
    """
    texts = sorted(np.split(ids, np.flatnonzero(ids == start)[1:]), key=len)
    total = 0.0
    for first in range(0, len(texts), lanes):
        group = texts[first : first + lanes]
        rows = torch.zeros(len(group), max(map(len, group)), dtype=torch.long)
        is_there = torch.zeros(rows.shape)
        for row, text in enumerate(group):
            rows[row, : len(text)] = torch.from_numpy(text)
            is_there[row, 1 : len(text)] = 1.0
        h = torch.zeros(len(group), network.hidden)
        for column, counts in zip(rows.T, is_there.T, strict=True):
            _, surprise, h = network(column, h)
            total -= float((surprise * counts).sum())
    return total


@torch.inference_mode()
def surprises(network: WordsNetwork, text: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns -ln p of each subword of one text but its start, float64 (n - 1,)."""
    h = torch.zeros(1, network.hidden)
    nats = []
    for entry in torch.from_numpy(text)[:, None]:
        _, surprise, h = network(entry, h)
        nats.append(-float(surprise))
    return np.array(nats[1:])

"""Networks over anything that ends in classes: a gated recurrent unit, and what it is measured against.

Both read what a fixed or learnt front makes of the tokens, and both are trained by `fit`. The one without
memory has a hidden layer in the place of the recurrent one, and takes and gives back a state that it
does not look at, so that everything else treats them alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.progress import Progress
from model_export.step_nodes import Dense, GruWeights
from model_export.train import learning_rate


class Recurrent(nn.Module):
    """Front, GRU (Cho et al. 2014) and a linear head.

    Args:
        front: Tokens (T, B, ...) -> features (T, B, width).
        width: Of the features.
        hidden: Units of the state.
        classes: Of the head.
    """

    def __init__(self, front: nn.Module, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.front = front
        self.gru = nn.GRU(width, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Runs T tokens of B sessions.

        Args:
            tokens: (T, B, ...).
            h: (1, B, hidden).

        Returns:
            Logits (T, B, classes) and the next state.
        """
        every, h = self.gru(self.front(tokens), h)
        return self.head(every), h

    def initial(self, batch: int) -> Tensor:
        """Returns the state of sessions that have seen nothing: zeros (1, batch, hidden)."""
        return torch.zeros(1, batch, self.hidden, dtype=self.head.weight.dtype)

    def weights(self) -> tuple[GruWeights, Dense]:
        """Returns what the recurrent layer and the head have learnt, as ONNX orders it."""
        gru = self.gru
        inputs, recurrent, *biases = (_update_first(value) for value in gru.parameters())
        bias = np.concatenate(biases)
        return GruWeights(inputs[np.newaxis], recurrent[np.newaxis], bias[np.newaxis]), dense(self.head)


class Memoryless(nn.Module):
    """Front, a hidden layer and a linear head: sees the present token only."""

    def __init__(self, front: nn.Module, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.front = front
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (T, B, classes) and `h` as it came."""
        return self.layers(self.front(tokens)), h

    def initial(self, batch: int) -> Tensor:
        """Returns a state of no units."""
        return torch.zeros(1, batch, 0)


Network = Recurrent | Memoryless


class Window(NamedTuple):
    """What one update learns from.

    Attributes:
        tokens: (T, B, ...), the continuation of the window before.
        targets: int64 (T, B), classes.
        fresh: bool (B,): rows whose session starts with this window.
    """

    tokens: Tensor
    targets: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        steps: Updates of the weights.
        peak_rate: Highest learning rate; it falls to a hundredth along a cosine.
        weight_decay: Of AdamW, decoupled from the gradient.
        state_noise: Standard deviation of the noise on the state between two parts of a window: what damps
            it damps rounding as well.
        part: Tokens of such a part; None is the whole window.
        clip: Largest norm of the gradient.
        seed: Of the initial weights and of what is drawn in training.
    """

    steps: int
    peak_rate: float = 4e-3
    weight_decay: float = 0.05
    state_noise: float = 0.03
    part: int | None = None
    clip: float = 1.0
    seed: int = 20261123


def fit(network: Network, windows: Iterator[Window], plan: Plan, progress: Progress) -> None:
    """Trains by truncated backpropagation that carries the state from window to window.

    Args:
        network: Left in evaluation mode.
        windows: At least `plan.steps`.
        plan: How.
        progress: Told the cross entropy in nats.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.peak_rate, weight_decay=plan.weight_decay)
    h: Tensor | None = None
    for step in range(plan.steps):
        window = next(windows)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step)
        if h is None:
            h = network.initial(window.tokens.shape[1])
        h = (h + plan.state_noise * torch.randn_like(h)) * ~window.fresh[:, None]
        logits, h = _noisy_run(network, window.tokens, h, plan)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), window.targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        optimiser.step()
        h = h.detach()
        progress.advance(float(loss.detach()))
    network.eval()


def _noisy_run(network: Network, tokens: Tensor, h: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Returns logits of a window and the state after it, with noise on the state between its parts."""
    collected: list[Tensor] = []
    for part in tokens.split(plan.part or len(tokens)):  # type: ignore[no-untyped-call]
        if collected:
            h = h + plan.state_noise * torch.randn_like(h)
        logits, h = network(part, h)
        collected.append(logits)
    return torch.cat(collected), h


def passes(tokens: Tensor, targets: Tensor, length: int, restart_rate: float) -> Iterator[Window]:
    """Yields windows of recordings that run side by side, from the start again after each pass.

    Args:
        tokens: (time, rows, ...).
        targets: int64 (time, rows).
        length: Tokens of a window.
        restart_rate: Chance of a row, per window, to start anew from the initial state, as sessions do.
    """
    while True:
        for start in range(0, len(tokens) - length + 1, length):
            fresh = torch.rand(tokens.shape[1]) < (restart_rate if start else 1.0)
            yield Window(tokens[start : start + length], targets[start : start + length], fresh)


@torch.inference_mode()
def run(network: Network, tokens: Tensor, part: int = 2000) -> Tensor:
    """Returns logits (time, rows, classes) of whole recordings from the initial state."""
    h = network.initial(tokens.shape[1])
    collected = []
    for start in range(0, len(tokens), part):
        logits, h = network(tokens[start : start + part], h)
        collected.append(logits)
    return torch.cat(collected)


def dense(layer: nn.Linear) -> Dense:
    """Returns the weights of a linear layer as products x W have them."""
    return Dense(layer.weight.detach().numpy().T, layer.bias.detach().numpy())


def parameter_count(network: nn.Module) -> int:
    """Returns how many numbers a network has learnt."""
    return sum(parameter.numel() for parameter in network.parameters())


def _update_first(gates: Tensor) -> NDArray[np.float32]:
    """Brings the gates of torch (reset, update, new) into the order of ONNX."""
    reset, update, new = np.split(gates.detach().numpy(), 3)
    return np.concatenate([update, reset, new])

"""Training: truncated backpropagation through time that carries the state from window to window.

The corpus is cut into as many parallel streams as the batch has rows. A window continues where the one
before ended, with its state but without its gradient, as in serving, where memory goes on.

Two habits keep the memory sound. Now and then a stream starts anew from the initial state, as sessions do;
a network that never saw that state again can read held-out text at 10 bits per byte while it fits the
training text at 1.8. And noise on the states, with strong decay of the weights, teaches the network to damp
small errors, so that rounding does not grow along a stream of any length.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model_export.networks import NETWORKS, StepNetwork
from model_export.progress import Progress

_BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        network: Key of NETWORKS.
        hidden: Units of h.
        steps: Updates of the weights.
        batch: Parallel streams.
        window: Tokens per stream and update.
        peak_rate: Highest learning rate; it falls to a hundredth along a cosine.
        clip: Largest norm of the gradient.
        weight_decay: Of AdamW, decoupled from the gradient.
        state_noise: Standard deviation of the normal noise added to every state after every step.
        restart_rate: Chance of a stream, per window, to start anew from the initial state.
        seed: Of the initial weights.
    """

    network: str
    hidden: int
    steps: int
    batch: int = 128
    window: int = 64
    peak_rate: float = 4e-3
    clip: float = 1.0
    weight_decay: float = 0.3
    state_noise: float = 0.03
    restart_rate: float = 0.05
    seed: int = 20261123


def train(recipe: Recipe, data: bytes, progress: Progress) -> StepNetwork:
    """Trains a network on the bytes and returns it in evaluation mode."""
    torch.manual_seed(recipe.seed)
    network = NETWORKS[recipe.network](recipe.hidden)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay
    )
    states = network.initial(recipe.batch)
    for step, (tokens, targets) in enumerate(windows(data, recipe)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        states = restart_some(states, recipe.restart_rate)
        loss, states = window_loss(network, tokens, targets, states, state_noise=recipe.state_noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
        progress.advance(float(loss.detach()) * _BITS)
    return network.eval()


class Rated(Protocol):
    """What has a learning rate: see `Recipe` for the attributes."""

    @property
    def steps(self) -> int:
        """Updates of the weights."""

    @property
    def peak_rate(self) -> float:
        """Highest learning rate."""


def learning_rate(recipe: Rated, step: int) -> float:
    """Returns the rate of an update: a short linear warm-up, then a cosine."""
    warm_up = min(100, recipe.steps // 10)
    if step < warm_up:
        return recipe.peak_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, recipe.steps - warm_up)
    return recipe.peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def windows(data: bytes, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields `recipe.steps` pairs of tokens and targets, int64 (window, batch), time first."""
    stream = torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64))
    length = len(stream) // recipe.batch
    streams = stream[: length * recipe.batch].view(recipe.batch, length).T
    per_pass = (length - 1) // recipe.window
    for step in range(recipe.steps):
        start = (step % per_pass) * recipe.window
        yield (
            streams[start : start + recipe.window].contiguous(),
            streams[start + 1 : start + recipe.window + 1].contiguous(),
        )


def restart_some(states: tuple[Tensor, ...], rate: float) -> tuple[Tensor, ...]:
    """Returns the states (batch, hidden) with a random share of the rows back at the initial one, zeros."""
    goes_on = (torch.rand(len(states[0]), 1) >= rate).float()
    return tuple(state * goes_on for state in states)


def window_loss(
    network: StepNetwork,
    tokens: Tensor,
    targets: Tensor,
    states: tuple[Tensor, ...],
    *,
    state_noise: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs one window, with normal noise of standard deviation `state_noise` on every new state.

    Returns:
        Mean cross entropy in nats, and the states after it, cut off from the gradient.
    """
    hidden = []
    for gates in network.table[tokens].unbind():  # unbind: one gradient for all steps, not one each
        states = network.advance(gates, states)
        if state_noise:
            states = tuple(state + state_noise * torch.randn_like(state) for state in states)
        hidden.append(states[0])
    logits = network.readout(torch.stack(hidden))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss, tuple(state.detach() for state in states)


@torch.inference_mode()
def bits_per_byte(network: StepNetwork, data: bytes, lanes: int = 64) -> float:
    """Measures a network: mean of -log2 p(byte | all before it in its lane).

    The bytes are cut into `lanes` equal parts, each started from the initial state; the few bytes that
    do not fill a lane are left out.
    """
    stream = torch.from_numpy(np.frombuffer(data, np.uint8).astype(np.int64))
    length = len(stream) // lanes
    tokens = stream[: length * lanes].view(lanes, length).T
    states = network.initial(lanes)
    total = 0.0
    for row in tokens:
        _, log_prob, *states_list = network(row, *states)
        states = tuple(states_list)
        total += float(log_prob.sum())
    return -total * _BITS / (length * lanes)

"""Networks as people bring them, each with an example; needs torch. `NETWORKS` are the matrix."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HIDDEN = 4, 8


class MinGru(nn.Module):
    """minGRU (Feng et al. 2024): gates see the input only, so that training runs in parallel."""

    def __init__(self, width, hidden, layers):
        super().__init__()
        sizes = [width, *[hidden] * (layers - 1)]
        self.gates = nn.ModuleList(nn.Linear(size, 2 * hidden) for size in sizes)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]):
        after = []
        for gates, h in zip(self.gates, state, strict=True):
            z, candidate = gates(x).chunk(2, dim=-1)
            z = torch.sigmoid(z)
            x = (1 - z) * h + z * candidate
            after.append(x)
        return x, tuple(after)


class DiagonalStateSpace(nn.Module):
    """Diagonal state space with complex poles, kept as real and imaginary part (S4D, LRU)."""

    def __init__(self, width, hidden, layers):
        super().__init__()
        self.decay = nn.Parameter(torch.rand(layers, hidden) * 0.5 + 0.1)
        self.turn = nn.Parameter(torch.rand(layers, hidden) * 3.0)
        sizes = [width, *[hidden] * (layers - 1)]
        self.enter = nn.ModuleList(nn.Linear(size, hidden) for size in sizes)
        self.leave = nn.ModuleList(nn.Linear(2 * hidden, hidden) for _ in sizes)

    def forward(self, x, state):
        after = {}
        for layer, (enter, leave) in enumerate(zip(self.enter, self.leave, strict=True)):
            size = torch.exp(-self.decay[layer])
            real, imaginary = size * torch.cos(self.turn[layer]), size * torch.sin(self.turn[layer])
            r, i, u = state[f"real{layer}"], state[f"imaginary{layer}"], enter(x)
            r, i = real * r - imaginary * i + u, real * i + imaginary * r
            x = functional.gelu(leave(torch.cat([r, i], dim=-1)))
            after |= {f"real{layer}": r, f"imaginary{layer}": i}
        return x, after


class MixState(NamedTuple):
    """Of RWKV's time mixing, (layers, B, hidden) each."""

    before: Tensor
    numerator: Tensor
    denominator: Tensor
    greatest: Tensor


class Rwkv(nn.Module):
    """Time mixing of RWKV-4, in its numerically safe form: the greatest exponent starts at -1e30."""

    def __init__(self, width, hidden, layers):
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.mix = nn.Parameter(torch.rand(layers, 3, hidden))
        self.decay = nn.Parameter(torch.rand(layers, hidden))
        self.first = nn.Parameter(torch.rand(layers, hidden))
        self.parts = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in "kvro") for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))

    def forward(self, x, state):
        x = self.enter(x)
        after = []
        for layer, (key, value, receptance, leave) in enumerate(self.parts):
            before, a, b, p = (part[layer] for part in state)
            u = self.norms[layer](x)
            mixed = [u * m + before * (1 - m) for m in self.mix[layer]]
            k, v, r = key(mixed[0]), value(mixed[1]), torch.sigmoid(receptance(mixed[2]))
            q = torch.maximum(p, self.first[layer] + k)
            e1, e2 = torch.exp(p - q), torch.exp(self.first[layer] + k - q)
            x = x + leave(r * (e1 * a + e2 * v) / (e1 * b + e2))
            decayed = p - torch.exp(self.decay[layer])
            q = torch.maximum(decayed, k)
            e1, e2 = torch.exp(decayed - q), torch.exp(k - q)
            after.append((u, e1 * a + e2 * v, e1 * b + e2, q))
        return x, MixState(*(torch.stack(column) for column in zip(*after, strict=True)))


class CausalConvolution(nn.Module):
    """Dilated causal convolutions over (B, channels, T); the state is each layer's last inputs."""

    def __init__(self, width, hidden, layers, kernel=3):
        super().__init__()
        sizes = [width, *[hidden] * (layers - 1)]
        self.layers = nn.ModuleList(
            nn.Conv1d(size, hidden, kernel, dilation=2**layer) for layer, size in enumerate(sizes)
        )

    def forward(self, x, state):
        after = []
        for layer, kept in zip(self.layers, state, strict=True):
            whole = torch.cat([kept, x], dim=2)
            after.append(whole[:, :, whole.shape[2] - kept.shape[2] :])
            x = torch.tanh(layer(whole))
        return x, tuple(after)


@dataclasses.dataclass
class Ring:
    """The last inputs, and where the next one goes."""

    values: Tensor
    place: Tensor


class RingConvolution(nn.Module):
    """A causal convolution whose last inputs lie in a ring: (B, size, width) and a counter (B,)."""

    def __init__(self, width, hidden, size=5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, width, hidden) / size)
        self.size = size

    def forward(self, x, state):
        at = torch.arange(self.size)
        here = (at[None] == state.place[:, None]).unsqueeze(2)
        values = torch.where(here, x.unsqueeze(1), state.values)
        age = (state.place[:, None] - at[None]) % self.size
        weight = self.weight[age]
        y = torch.tanh((values.unsqueeze(2) @ weight).squeeze(2).sum(1))
        return y, Ring(values, (state.place + 1) % self.size)


class Tagger(nn.Module):
    """Ids to logits: embedding, LSTM, dropout, readout. Many to many, or many to one."""

    def __init__(self, vocabulary=50, hidden=HIDDEN, layers=1, *, classes=None, is_last_only=False):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 6)
        self.recurrent = nn.LSTM(6, hidden, layers, batch_first=True, dropout=0.3 if layers > 1 else 0.0)
        self.dropout = nn.Dropout(0.5)
        self.readout = nn.Linear(hidden, classes or vocabulary)
        self.is_last_only = is_last_only

    def forward(self, ids, state):
        h, state = self.recurrent(self.table(ids), state)
        h = h[:, -1] if self.is_last_only else h
        return self.readout(self.dropout(h)), state


def zeros(*shape):
    return torch.zeros(*shape)


def _layers(kind, layers, batch, **options):
    module = getattr(nn, kind)(WIDTH, HIDDEN, layers, **options)
    h = zeros(layers, batch, options.get("proj_size", HIDDEN))
    return module, (h, zeros(layers, batch, HIDDEN)) if kind == "LSTM" else h


class Stacked(nn.Module):
    """Cells of torch, one on the other."""

    def __init__(self, kind, layers):
        super().__init__()
        sizes = [WIDTH, *[HIDDEN] * (layers - 1)]
        self.cells = nn.ModuleList(getattr(nn, kind)(size, HIDDEN) for size in sizes)

    def forward(self, x, state):
        after = []
        for cell, before in zip(self.cells, state, strict=True):
            after.append(cell(x, before))
            x = after[-1][0] if isinstance(after[-1], tuple) else after[-1]
        return x, tuple(after)


def _cells(kind, layers, batch):
    h = zeros(batch, HIDDEN)
    return Stacked(kind, layers), ((h, h) if kind == "LSTMCell" else h,) * layers


def _min_gru(layers, batch):
    return MinGru(WIDTH, HIDDEN, layers), (zeros(batch, HIDDEN),) * layers


def _state_space(layers, batch):
    state = {f"{part}{n}": zeros(batch, HIDDEN) for n in range(layers) for part in ("real", "imaginary")}
    return DiagonalStateSpace(WIDTH, HIDDEN, layers), state


def _rwkv(layers, batch):
    empty = zeros(layers, batch, HIDDEN)
    return Rwkv(WIDTH, HIDDEN, layers), MixState(empty, empty, empty, empty - 1e30)


def _convolution(layers, batch):
    state = tuple(zeros(batch, HIDDEN if n else WIDTH, 2 * 2**n) for n in range(layers))
    return CausalConvolution(WIDTH, HIDDEN, layers), state


class Kind(NamedTuple):
    """A kind of network.

    Attributes:
        make: (layers, batch) -> (module, state).
        axes: Of its x: `tbw`, `btw`, `bwt`, or `bw` for one token a call.
    """

    make: object
    axes: str


NETWORKS = {
    "tanh": Kind(lambda *size: _layers("RNN", *size), "tbw"),
    "relu": Kind(lambda *size: _layers("RNN", *size, nonlinearity="relu"), "tbw"),
    "gru": Kind(lambda *size: _layers("GRU", *size, batch_first=True), "btw"),
    "lstm": Kind(lambda *size: _layers("LSTM", *size), "tbw"),
    "lstm-projection": Kind(lambda *size: _layers("LSTM", *size, proj_size=3), "tbw"),
    "rnn-cell": Kind(lambda *size: _cells("RNNCell", *size), "bw"),
    "gru-cell": Kind(lambda *size: _cells("GRUCell", *size), "bw"),
    "lstm-cell": Kind(lambda *size: _cells("LSTMCell", *size), "bw"),
    "min-gru": Kind(_min_gru, "bw"),
    "state-space": Kind(_state_space, "bw"),
    "rwkv": Kind(_rwkv, "bw"),
    "causal-convolution": Kind(_convolution, "bwt"),
}
LAYERS = (1, 2)


def build(name, layers, batch=2):
    """Returns a network of the matrix, always with the same weights, and its example."""
    torch.manual_seed(len(name) * 10 + layers)
    module, state = NETWORKS[name].make(layers, batch)
    x = torch.randn(batch, 5, WIDTH)
    return module.eval(), (x[:, 0] if NETWORKS[name].axes == "bw" else _arranged(x, name), state)


@torch.inference_mode()
def offline(name, layers, tokens):
    """Returns what PyTorch gives for tokens (B, T, WIDTH), all at once if the network can: (B, T, ...)."""
    module, (_, state) = build(name, layers, len(tokens))
    x = torch.as_tensor(tokens)
    if NETWORKS[name].axes != "bw":
        y, _ = module(_arranged(x, name), state)
        return y.permute([NETWORKS[name].axes.index(axis) for axis in "btw"]).numpy()
    outputs = []
    for token in x.unbind(1):
        y, state = module(token, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1).numpy()


def _arranged(x, name):
    return x.permute(["btw".index(axis) for axis in NETWORKS[name].axes]).contiguous()

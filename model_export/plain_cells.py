"""Torch's recurrent modules, put into plain operators, which every route of torch's exporters takes.

A network's nn.RNN, nn.GRU and nn.LSTM (with projection, stacked, batch first or not) and their cells are
replaced by modules of the same signature. Given one token they are the equations, spelled out. Given many,
each layer is one node `holdfast::Recurrent` in the traced graph, which `recurrent_nodes` makes a Scan of:
a loop in traced code would be as long as the example.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.export_error import ExportError

DOMAIN = "holdfast"
NODE = "Recurrent"

GATES = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}
"""Gates by kind of cell; of a GRU r, z, n, of an LSTM i, f, g, o."""


@dataclass(frozen=True, eq=False)
class CellWeights:
    """One layer, as torch keeps it. No tuple: the tracer would take it apart.

    Attributes:
        kind: `tanh`, `relu`, `gru` or `lstm`.
        inputs: (gates * hidden, width).
        recurrent: (gates * hidden, hidden or its projection).
        input_bias: (gates * hidden,).
        recurrent_bias: (gates * hidden,).
        projection: (projection, hidden), of an LSTM; None without.
    """

    kind: str
    inputs: Tensor
    recurrent: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    projection: Tensor | None


def with_plain_cells(module: nn.Module) -> dict[str, CellWeights]:
    """Replaces the recurrent modules below a module, in place.

    Returns:
        The layers by the key that their nodes have in a traced graph.
    """
    layers: dict[str, CellWeights] = {}
    for name, child in list(module.named_modules(remove_duplicate=True)):
        plain = _plain(name, child)
        if plain is None:
            continue
        if isinstance(plain, PlainLayers):
            layers.update(plain.by_key())
        _replace(module, child, plain)
    return layers


def set_one_token(module: nn.Module, value: bool) -> None:
    """Says whether the plain modules below are given one token a call."""
    for child in module.modules():
        if isinstance(child, PlainLayers):
            child.is_one_token = value


class PlainLayers(nn.Module):
    """nn.RNN, nn.GRU or nn.LSTM."""

    def __init__(self, name: str, original: nn.RNNBase) -> None:
        super().__init__()
        self.is_one_token = False
        self.batch_first = original.batch_first
        self.layers = [_layer(original, number) for number in range(original.num_layers)]
        self._name = name or type(original).__name__.lower()

    def by_key(self) -> dict[str, CellWeights]:
        """Returns the layers by the key of their nodes."""
        return {f"{self._name}.{number}": layer for number, layer in enumerate(self.layers)}

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Takes the steps.

        Args:
            x: (T, B, width), (B, T, width) if batch first, or (T, width).
            state: h (layers, B, hidden), or of an LSTM (h, c); None for zeros.
        """
        if not isinstance(x, Tensor):
            raise ExportError(
                f"{self._name} is given {type(x).__name__}, expected a tensor: a stream has no "
                "padding, so call it without pack_padded_sequence"
            )
        is_lone = x.dim() == 2
        x = x.unsqueeze(1) if is_lone else x.transpose(0, 1) if self.batch_first else x
        states = self._zeros(x) if state is None else state if isinstance(state, tuple) else (state,)
        states = tuple(part.unsqueeze(1) for part in states) if is_lone else states
        after: list[tuple[Tensor, ...]] = []
        for number, (key, layer) in enumerate(self.by_key().items()):
            before = tuple(part[number] for part in states)
            x, ends = self._run(key, layer, x, before)
            after.append(ends)
        columns = tuple(torch.stack(column) for column in zip(*after, strict=True))
        if is_lone:
            x, columns = x.squeeze(1), tuple(part.squeeze(1) for part in columns)
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, columns if len(columns) > 1 else columns[0]

    def _run(
        self, key: str, layer: CellWeights, x: Tensor, before: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.is_one_token and int(x.shape[0]) == 1:  # else it runs over something within a token
            ends = plain_step(layer, x[0], before)
            return ends[0].unsqueeze(0), ends
        result = _Node.apply(x, key, layer, *before)
        return result[0], tuple(result[1:])

    def _zeros(self, x: Tensor) -> tuple[Tensor, ...]:
        layer = self.layers[0]
        extents = [layer.recurrent.shape[1], layer.recurrent.shape[0] // GATES[layer.kind]]
        count = 2 if layer.kind == "lstm" else 1
        shape = (len(self.layers), x.shape[1])
        return tuple(x.new_zeros((*shape, extent)) for extent in extents[:count])


class PlainCell(nn.Module):
    """nn.RNNCell, nn.GRUCell or nn.LSTMCell."""

    def __init__(self, original: nn.RNNCellBase) -> None:
        super().__init__()
        self.layer = _weights(original, "")

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """Takes a step: x (B, width), state h (B, hidden) or (h, c), None for zeros; returns the next."""
        is_lone = x.dim() == 1
        x = x.unsqueeze(0) if is_lone else x
        if state is None:
            zeros = x.new_zeros((x.shape[0], self.layer.recurrent.shape[1]))
            state = (zeros, zeros) if self.layer.kind == "lstm" else zeros
        states = state if isinstance(state, tuple) else (state,)
        states = tuple(part.unsqueeze(0) for part in states) if is_lone else states
        after = plain_step(self.layer, x, states)
        after = tuple(part.squeeze(0) for part in after) if is_lone else after
        return after if len(after) > 1 else after[0]


def plain_step(layer: CellWeights, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Takes one step of a layer: x (B, width), states (B, ...); returns the next states, h first."""
    h = states[0]
    ours = functional.linear(x, layer.inputs, layer.input_bias)
    theirs = functional.linear(h, layer.recurrent, layer.recurrent_bias)
    hidden = len(layer.inputs) // GATES[layer.kind]  # chunk() would be traced with arithmetic of shapes
    if layer.kind == "gru":
        in_r, in_z, in_n = ours.split(hidden, dim=1)
        r_share, z_share, n_share = theirs.split(hidden, dim=1)
        r, z = torch.sigmoid(in_r + r_share), torch.sigmoid(in_z + z_share)
        n = torch.tanh(in_n + r * n_share)
        return (n + z * (h - n),)
    if layer.kind == "lstm":
        i, f, g, o = (ours + theirs).split(hidden, dim=1)
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if layer.projection is None else functional.linear(h, layer.projection), c)
    return (torch.relu(ours + theirs) if layer.kind == "relu" else torch.tanh(ours + theirs),)


class _Node(torch.autograd.Function):
    """A layer over all tokens: in a traced graph one node, which names its weights by a key."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, key: str, layer: CellWeights, *states: Tensor) -> Any:
        """Returns h after every token (T, B, ...), and the states after the last."""
        del ctx, key
        every = []
        for part in x:
            states = plain_step(layer, part, states)
            every.append(states[0])
        return (torch.stack(every), *states)

    @staticmethod
    def symbolic(g: Any, x: Any, key: str, layer: CellWeights, *states: Any) -> Any:
        """Adds the node."""
        made = g.op(f"{DOMAIN}::{NODE}", x, *states, key_s=key, outputs=1 + len(states))
        hidden = layer.recurrent.shape[0] // GATES[layer.kind]
        widths = (layer.recurrent.shape[1], hidden)
        made[0].setType(x.type().with_sizes([None, None, widths[0]]))
        for output, width in zip(made[1:], widths, strict=False):
            output.setType(x.type().with_sizes([None, width]))
        return made


def _plain(name: str, module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.RNNBase):
        return PlainLayers(name, module)
    return PlainCell(module) if isinstance(module, nn.RNNCellBase) else None


def _replace(root: nn.Module, child: nn.Module, plain: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, present in list(parent.named_children()):
            if present is child:
                setattr(parent, name, plain)


def _layer(module: nn.RNNBase, number: int) -> CellWeights:
    return _weights(module, f"_l{number}")


def _weights(module: nn.Module, suffix: str) -> CellWeights:
    def value(name: str) -> Tensor | None:
        found = getattr(module, f"{name}{suffix}", None)
        return None if found is None else found.detach().clone()

    inputs, recurrent = value("weight_ih"), value("weight_hh")
    assert inputs is not None, "bug: a layer without weights"
    assert recurrent is not None, "bug: a layer without weights"
    nothing = torch.zeros(len(inputs), dtype=inputs.dtype)
    input_bias, recurrent_bias = value("bias_ih"), value("bias_hh")
    return CellWeights(
        _kind(module),
        inputs,
        recurrent,
        nothing if input_bias is None else input_bias,
        nothing if recurrent_bias is None else recurrent_bias,
        value("weight_hr"),
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return "lstm"
    if isinstance(module, nn.GRU | nn.GRUCell):
        return "gru"
    return str(module.nonlinearity)

"""The four networks, written as steps: one token and the state in, logits and the next state out.

The equations are spelled out once and serve training, export and the parity gate. x_t is the one-hot
vector of the byte, so W_xh x_t is a row of a table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

VOCABULARY_SIZE = 256


class StepNetwork(nn.Module):
    """A network over bytes whose state h (and, for LSTM, c) has `hidden` units.

    Attributes:
        table: (256, gates * hidden), W_xh: the input's share of each gate, by byte.
        recurrent: W_hh with its bias b, hidden -> gates * hidden; None without memory.
        readout: W_hy with its bias c, hidden -> 256 logits.
        state_names: Names of the state tensors, h first.
    """

    kind = ""
    gate_count = 1
    state_names: Sequence[str] = ("h",)

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.table = nn.Parameter(torch.empty(VOCABULARY_SIZE, self.gate_count * hidden))
        self.recurrent: nn.Linear | None = nn.Linear(hidden, self.gate_count * hidden)
        self.readout = nn.Linear(hidden, VOCABULARY_SIZE)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.table, std=0.3)
        nn.init.zeros_(self.readout.bias)
        if self.recurrent is not None:
            nn.init.zeros_(self.recurrent.bias)
            for gate in range(self.gate_count):
                rows = slice(gate * self.hidden, (gate + 1) * self.hidden)
                nn.init.orthogonal_(self.recurrent.weight.data[rows])

    def advance(self, gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the next states (B, hidden).

        Args:
            gates: `table` rows of the tokens, (B, gates * hidden).
            states: Present states (B, hidden), in the order of `state_names`.
        """
        raise NotImplementedError

    def initial(self, batch: int) -> tuple[Tensor, ...]:
        """Returns the states of sessions that have seen nothing: zeros (batch, hidden)."""
        return tuple(torch.zeros(batch, self.hidden) for _ in self.state_names)

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Takes one step.

        Args:
            token: int64 (B,), bytes.
            states: float32 (B, hidden) each.

        Returns:
            Logits of the next token (B, 256); log-probability of `token` given all before it (B,);
            the next states.
        """
        surprise = torch.log_softmax(self.readout(states[0]), dim=1)
        next_states = self.advance(self.table[token], states)
        log_prob = surprise.gather(1, token[:, None])[:, 0]
        return (self.readout(next_states[0]), log_prob, *next_states)


class Feedforward(StepNetwork):
    """h_t = tanh(W_xh x_t + b): sees the present byte only. What memory is measured against.

    Its state carries h_t to the next step only to say how likely the byte was that came; nothing of
    it flows into h_(t+1).
    """

    kind = "feedforward"

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.recurrent = None

    def advance(self, gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns (tanh(gates),); the state is not looked at."""
        del states
        return (torch.tanh(gates),)


class Elman(StepNetwork):
    """h_t = tanh(W_xh x_t + W_hh h_(t-1) + b), y_t = W_hy h_t + c (Elman 1990)."""

    kind = "elman"

    def advance(self, gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns (h_t,)."""
        assert self.recurrent is not None
        return (torch.tanh(gates + self.recurrent(states[0])),)


class Gru(StepNetwork):
    """Gated recurrent unit (Cho et al. 2014) with the reset gate after the product, as cuDNN has it.

    r, z = sigmoid(W x_t + U h + b);  n = tanh(W_n x_t + r * (U_n h + b_n));  h_t = n + z * (h - n)
    """

    kind = "gru"
    gate_count = 3

    def advance(self, gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns (h_t,); gates are in the order r, z, n."""
        assert self.recurrent is not None
        (h,) = states
        split = [2 * self.hidden, self.hidden]
        in_gates, in_new = gates.split(split, dim=1)  # type: ignore[no-untyped-call]
        hidden_gates, hidden_new = self.recurrent(h).split(split, dim=1)
        r, z = torch.sigmoid(in_gates + hidden_gates).chunk(2, dim=1)
        n = torch.tanh(in_new + r * hidden_new)
        return (n + z * (h - n),)


class Lstm(StepNetwork):
    """Long short-term memory with forget gate (Gers et al. 2000).

    i, f, o = sigmoid(W x_t + U h + b);  g = tanh(W_g x_t + U_g h + b_g);
    c_t = f * c + i * g;  h_t = o * tanh(c_t)
    """

    kind = "lstm"
    gate_count = 4
    state_names = ("h", "c")

    def _initialise(self) -> None:
        super()._initialise()
        assert self.recurrent is not None
        nn.init.ones_(self.recurrent.bias.data[self.hidden : 2 * self.hidden])

    def advance(self, gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns (h_t, c_t); gates are in the order i, f, o, g."""
        assert self.recurrent is not None
        h, c = states
        every = gates + self.recurrent(h)
        i, f, o = torch.sigmoid(every[:, : 3 * self.hidden]).chunk(3, dim=1)
        g = torch.tanh(every[:, 3 * self.hidden :])
        next_c = f * c + i * g
        return (o * torch.tanh(next_c), next_c)


NETWORKS: dict[str, type[StepNetwork]] = {
    network.kind: network for network in (Feedforward, Elman, Gru, Lstm)
}

"""A network for each shape that docs/guides/your-network.md has a contract of; needs torch."""

import torch
from torch import nn

from tests.support.user_networks import CausalConvolution, Tagger, zeros


def lstm_state(hidden):
    return zeros(1, 1, hidden), zeros(1, 1, hidden)


class Window(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(576, 32)
        self.readout = nn.Linear(32, 1)

    def forward(self, x, h):
        h = self.cell(x, h)
        return torch.sigmoid(self.readout(h)), h


class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(40 + 16, 32, batch_first=True)

    def forward(self, x, h, *, speaker):
        beside = speaker[:, None].expand(-1, x.shape[1], -1)
        return self.gru(torch.cat([x, beside], 2), h)


class Keys(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(90, 8)
        self.gru = nn.GRU(8 + 2, 32, batch_first=True)

    def forward(self, x, h):
        return self.gru(torch.cat([self.table(x["key"]), x["times"]], 2), h)


class Bands(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2 * 40, 32, batch_first=True)

    def forward(self, x, h):
        return self.gru(x.transpose(1, 2).flatten(2), h)


def shapes():
    """Returns by heading: module, example, further arguments of the export."""
    return {
        "Many to many": (
            Tagger(vocabulary=256, hidden=32),
            (torch.zeros(1, 5, dtype=torch.int64), lstm_state(32)),
            {"role": "logits", "vocabulary": "bytes"},
        ),
        "Many to one": (
            Tagger(vocabulary=256, hidden=32, classes=3, is_last_only=True),
            (torch.zeros(1, 5, dtype=torch.int64), lstm_state(32)),
            {"role": "logits", "labels": ["en", "de", "fr"], "vocabulary": "bytes"},
        ),
        "Features, batch first": (
            nn.GRU(40, 32, batch_first=True),
            (torch.randn(1, 5, 40), zeros(1, 1, 32)),
            {},
        ),
        "Features, time first": (nn.GRU(40, 32), (torch.randn(5, 1, 40), zeros(1, 1, 32)), {}),
        "Channels before time": (
            CausalConvolution(40, 32, 1),
            (torch.randn(1, 40, 5), (zeros(1, 40, 2),)),
            {},
        ),
        "Tokens of rank 4": (Bands(), (torch.randn(1, 2, 5, 40), zeros(1, 1, 32)), {}),
        "Several inputs": (
            Keys(),
            ({"key": torch.zeros(1, 5, dtype=torch.int64), "times": torch.randn(1, 5, 2)}, zeros(1, 1, 32)),
            {},
        ),
        "Windows that overlap": (
            Window(),
            (torch.randn(1, 576), zeros(1, 32)),
            {"context": 64, "role": "score"},
        ),
        "Given once a session": (
            Speaker(),
            {
                "x": torch.randn(1, 5, 40),
                "state": zeros(1, 1, 32),
                "session": {"speaker": torch.randn(1, 16)},
            },
            {},
        ),
        "No batch": (nn.GRU(40, 32), (torch.randn(5, 40), zeros(1, 32)), {"batched": False}),
    }

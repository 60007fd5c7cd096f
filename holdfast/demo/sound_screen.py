"""The demo of `sound-events`: the envelope of the sound, and how likely it is that somebody speaks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.demo.live import sparkline
from holdfast.demo.shown import Shown
from model_export.data.sound import FRAME, SAMPLE_RATE, make_scene

SHOWN_FRAMES = 75
DEFAULT_FRAMES = 1250
"""Twenty seconds."""

_SEED = 4024


class SoundScreen(Shown):
    """Shows a recording that was made, frame by frame of 16 ms."""

    model = "sound-events"
    outputs = ("speech",)

    def __init__(self, limit: int | None, file: Path | None) -> None:
        del file  # the recording is made
        count = limit or DEFAULT_FRAMES
        self._scene = make_scene(max(20, count * FRAME // SAMPLE_RATE + 1), _SEED)
        self.tokens = self._scene.samples.reshape(-1, FRAME)[:count]
        self._peaks = np.abs(self.tokens).max(axis=1)
        self._speech = np.zeros(count)
        self._wrong = 0
        self.start(count, "frames")

    def show(self, outputs: Mapping[str, NDArray[Any]], count: int) -> None:
        """See `Shown`."""
        part = slice(self._count, self._count + count)
        self._speech[part] = outputs["speech"][:, 1]
        self._wrong += int(((self._speech[part] >= 0.5) != self._scene.speech[part]).sum())
        self._counted(count)

    def body(self) -> Sequence[RenderableType]:
        """Returns the envelope, the probability and the truth."""
        part = slice(max(0, self._count - SHOWN_FRAMES), self._count)
        second = max(0, self._count - 1) * FRAME // SAMPLE_RATE
        table = Table.grid(padding=(0, 1))
        envelope = sparkline(self._peaks[part].tolist(), 0.0, float(self._peaks.max()))
        table.add_row(Text("sound", "bold"), Text(envelope, "cyan"), f"noise: {self._scene.noises[second]}")
        speech = Text()
        for value in self._speech[part]:
            speech.append(sparkline([value], 0.0, 1.0), "bold yellow" if value >= 0.5 else "grey50")
        now = f"{self._speech[self._count - 1]:4.0%}" if self._count else ""
        table.add_row(Text("speech", "bold"), speech, now)
        truth = "".join("━" if speaks else " " for speaks in self._scene.speech[part])
        table.add_row(Text("truth", "bold"), Text(truth, "grey62"), f"second {second}")
        return [Panel(table, title="sound, 16 ms a frame")]

    def figures(self) -> str:
        """Returns how many frames were judged wrongly."""
        return f"wrong frames {self._wrong / self._count:.1%}"

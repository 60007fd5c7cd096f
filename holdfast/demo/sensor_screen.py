"""The demo of `sensor-anomaly`: six channels as sparklines, the score below, and which fault it is."""

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
from model_export.data.machine import CHANNELS, KINDS, UNITS, make_readings

SHOWN_READINGS = 70
DEFAULT_READINGS = 1500
_SEED = 68


class SensorScreen(Shown):
    """Shows a machine that never existed, reading by reading."""

    model = "sensor-anomaly"
    outputs = ("score", "kind")

    def __init__(self, limit: int | None, file: Path | None) -> None:
        del file  # the machine is made
        count = limit or DEFAULT_READINGS
        made = make_readings(max(count, DEFAULT_READINGS), 1, _SEED)
        self.tokens = self._readings = made.values[:count, 0]
        self._truth = made.kinds[:, 0]
        self._scores = np.zeros(len(self.tokens))
        self._kind = ""
        self._right = 0
        self._lows, self._highs = self._readings.min(axis=0), self._readings.max(axis=0)
        self.start(len(self.tokens), "readings")

    def show(self, outputs: Mapping[str, NDArray[Any]], count: int) -> None:
        """See `Shown`."""
        part = slice(self._count, self._count + count)
        self._scores[part] = outputs["score"]
        kinds = outputs["kind"].argmax(axis=1)
        self._right += int((kinds == self._truth[part]).sum())
        self._kind = KINDS[int(kinds[-1])]
        self._counted(count)

    def body(self) -> Sequence[RenderableType]:
        """Returns a line for each channel, the score and the truth."""
        part = slice(max(0, self._count - SHOWN_READINGS), self._count)
        table = Table.grid(padding=(0, 1))
        for index, (name, unit) in enumerate(zip(CHANNELS, UNITS, strict=True)):
            values = self._readings[part, index]
            line = sparkline(values.tolist(), float(self._lows[index]), float(self._highs[index]))
            now = f"{values[-1]:8.1f} {unit}" if len(values) else ""
            table.add_row(Text(name, "bold"), Text(line, "cyan"), now)
        threshold = float(self.facts.get("threshold", "0.5"))
        scores = Text()
        for score in self._scores[part]:
            scores.append(sparkline([score], 0.0, 1.0), "bold red" if score >= threshold else "green")
        table.add_row(Text("score", "bold"), scores, self._kind)
        truth = "".join("·" if kind == 0 else KINDS[kind][0] for kind in self._truth[part])
        now = KINDS[self._truth[self._count - 1]] if self._count else ""
        table.add_row(Text("truth", "bold"), Text(truth, "grey62"), now)
        return [Panel(table, title="a machine's sensors, one reading every 30 s")]

    def figures(self) -> str:
        """Returns how often the fault, or its absence, was named rightly."""
        return f"named rightly {self._right / self._count:.0%}"

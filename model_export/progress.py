"""Shows training as it runs: the loss and the time left, as a bar, or as lines without a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SMOOTHING = 0.98
_LINES = 20


class Progress:
    """Counts updates and shows the smoothed loss of the training windows.

    Args:
        title: What is trained.
        steps: Number of updates.
        unit: Of the loss.
    """

    def __init__(self, title: str, steps: int, unit: str = "bits/byte") -> None:
        self._title = title
        self._steps = steps
        self._done = 0
        self._unit = unit
        self._loss = 0.0
        self._started_s = time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]:.3f} " + unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(title, total=steps, loss=float("nan"))

    def __enter__(self) -> Self:
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the bar."""
        self._bar.stop()

    def advance(self, loss: float) -> None:
        """Counts one update with this loss."""
        self._done += 1
        weight = min(_SMOOTHING, 1 - 1 / self._done)
        self._loss = weight * self._loss + (1 - weight) * loss
        self._bar.update(self._task, advance=1, loss=self._loss)
        if self._bar.disable and self._done % max(1, self._steps // _LINES) == 0:
            self._print_line()

    def _print_line(self) -> None:
        elapsed_s = time.monotonic() - self._started_s
        left_s = elapsed_s / self._done * (self._steps - self._done)
        print(
            f"{self._title}: {self._done}/{self._steps} updates, {self._loss:.3f} {self._unit}, "
            f"{left_s:.0f} s left",
            flush=True,
        )

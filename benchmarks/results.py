"""What turns come to. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

HOLDFAST = "holdfast"
CLIENT = "holdfast by its client"
ECHO = "echo"
PLAIN = "plain"
TRITON = "triton"
TRITON_CLIENT = "triton by its client"
ONNXRUNTIME = "onnxruntime alone"
STORE = "store alone"

ONE_RUN = "1 row x 1, 1 ms apart"
ONE_COMMIT = "one commit at a time, 1 ms apart"


class Label(NamedTuple):
    """Whose turn it is.

    Attributes:
        load: What the contestant is loaded with.
        contestant: Its name.
    """

    load: str
    contestant: str


class Round(NamedTuple):
    """One turn; None is what it does not have.

    Attributes:
        steps_per_s: Tokens answered per second.
        p50_ms: Median time from a message to its reply, milliseconds.
        p99_ms: Its 99th percentile.
        p999_ms: Its 99.9th percentile.
        server_us: CPU time of the server per step, microseconds; of onnxruntime where that runs alone.
        store_us: CPU time of the store per step, microseconds.
        load_us: CPU time of the load itself per step, microseconds.
    """

    steps_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    server_us: float | None = None
    store_us: float | None = None
    load_us: float | None = None


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    low: float
    high: float


class Results(NamedTuple):
    """What came of all turns.

    Attributes:
        rounds: By label, in the order of the report; none for a contestant that never made it.
        failures: Reasons of the turns that failed, by label.
    """

    rounds: Mapping[Label, Sequence[Round]]
    failures: Mapping[Label, Sequence[str]]

    def spread(self, label: Label, figure: str) -> Spread | None:
        """Returns a figure, a field of Round, over the rounds; None where it was not measured."""
        values = [getattr(turn, figure) for turn in self.rounds.get(label, ())]
        known = [value for value in values if value is not None]
        return Spread(statistics.median(known), min(known), max(known)) if known else None

    def median(self, load: str, contestant: str, figure: str = "steps_per_s") -> float | None:
        """Returns the median of a figure; None where it was not measured."""
        spread = self.spread(Label(load, contestant), figure)
        return None if spread is None else spread.median

"""Runs a harness for some time, and keeps what breaks it."""

import hashlib
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

CORPUS = Path(__file__).parent / "corpus"
ROUND_EXAMPLES = 1000


def kept_inputs(name):
    """Returns the files that once broke a harness, or are worth a start."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())


class Failure(Exception):
    """A harness broke.

    Attributes:
        data: The input that breaks it.
    """

    def __init__(self, data):
        super().__init__(f"{len(data)} bytes: {data[:200]!r}")
        self.data = data


def explore(harness, first_seed, *, examples, until_s=None):
    """Tries a harness with inputs drawn from a seed on.

    Args:
        harness: Which.
        first_seed: Of the first round; each round takes the next one.
        examples: Of a round. Without `until_s` there is one round.
        until_s: Monotonic time at which rounds end.

    Returns:
        How many inputs were tried.

    Raises:
        Failure: One of them broke it; the cause is the exception.
    """
    tried, broken = 0, b""

    def attempt(data):
        nonlocal tried, broken
        tried += 1
        try:
            harness.run(data)
        except Exception:
            broken = data
            raise

    round_seed = first_seed
    while True:
        quiet = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate,),  # inputs are small as they are; shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        )
        try:
            seed(round_seed)(quiet(given(data=harness.inputs)(lambda data: attempt(data))))()
        except Exception as error:
            raise Failure(broken) from error
        round_seed += 1
        if until_s is None or time.monotonic() >= until_s:
            return tried


def keep(name, data):
    """Writes an input into the corpus and returns where."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path

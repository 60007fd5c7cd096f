"""Every parser of untrusted bytes against what once broke it, and against new inputs."""

import secrets

import pytest

from tests.fuzz.campaign import CORPUS, Failure, explore, keep, kept_inputs
from tests.fuzz.harnesses import HARNESSES


def marks(name):
    """A model file is judged by a process of its own."""
    return [pytest.mark.process] if name == "model_file" else []


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param(name, path, marks=marks(name)) for name in HARNESSES for path in kept_inputs(name)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_is_kept_breaks_nothing(name, path):
    HARNESSES[name].run(path.read_bytes())


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in HARNESSES])
def test_a_short_run_breaks_nothing(name):
    harness = HARNESSES[name]
    seed = secrets.randbelow(2**32) if harness.seed is None else harness.seed
    print(f"python -m tests.fuzz --only {name} --seed {seed}")
    try:
        explore(harness, seed, examples=harness.examples)
    except Failure as failure:
        path = keep(name, failure.data)
        pytest.fail(f"{failure.__cause__!r} by {failure}; kept as {path}; seed {seed}")


def test_every_folder_of_the_corpus_has_a_harness():
    assert {path.name for path in CORPUS.iterdir()} == set(HARNESSES)

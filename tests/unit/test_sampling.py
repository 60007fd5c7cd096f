"""Tokens are drawn as plain Python draws them, from the distribution that the options leave."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.sampling import NOTHING, Options, Sample, draw, uniform
from tests.support import sampling_oracle

NUMBERS = st.floats(-30, 30, width=32)
OPTIONS = st.builds(
    Options,
    penalty=st.sampled_from([1.0, 1.1, 2.0, 0.5]),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 1.7, 50.0, 1e-30]),
    top_k=st.sampled_from([0, 1, 2, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)
SEEDS = st.integers(0, 2**63 - 1)
POSITIONS = st.integers(0, 2**53 - 1)


@st.composite
def rows(draw):
    """Rows of logits, some of them equal, and what to draw in each."""
    size = draw(st.integers(1, 12))
    ids = st.integers(0, size - 1)
    pool = draw(st.lists(NUMBERS, min_size=1, max_size=4))
    logit = st.one_of(NUMBERS, st.sampled_from(pool))
    logits, samples = [], []
    for _ in range(draw(st.integers(1, 5))):
        logits.append(draw(st.lists(logit, min_size=size, max_size=size)))
        said = tuple(draw(st.sets(ids)))
        excluded = tuple(draw(st.sets(ids, max_size=size - 1)))
        samples.append(Sample(draw(OPTIONS), draw(SEEDS), said, excluded))
    positions = draw(st.lists(POSITIONS, min_size=len(samples), max_size=len(samples)))
    return np.array(logits, np.float32), samples, np.array(positions, np.int64)


@settings(max_examples=300, deadline=None)
@given(rows())
def test_rows_draw_what_plain_python_draws(given):
    logits, samples, positions = given
    drawn = draw(logits, "logits", samples, positions)
    for row, sample in enumerate(samples):
        expected, log_prob = sampling_oracle.draw(
            logits[row], sample.options, sample.seed, int(positions[row]), sample.said, sample.excluded
        )
        assert drawn.ids[row] == expected
        assert drawn.log_probs[row] == pytest.approx(log_prob, abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SEEDS, POSITIONS), min_size=1, max_size=8))
def test_the_random_number_is_splitmix64_of_seed_and_position(pairs):
    seeds, positions = zip(*pairs, strict=True)
    given = uniform(np.array(seeds, np.uint64), np.array(positions, np.int64))
    assert given.tolist() == [sampling_oracle.uniform(*pair) for pair in pairs]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(temperature=0.6),
        Options(top_k=5),
        Options(temperature=2.0, top_p=0.8),
        Options(min_p=0.2),
        Options(penalty=1.5, temperature=1.3, top_k=12, top_p=0.9, min_p=0.05),
    ],
)
def test_frequencies_are_those_of_the_distribution(options):
    """By chi-square: over 40,000 positions of fixed seeds, below the quantile 1 - 1e-6."""
    logits = np.random.default_rng(1).normal(scale=1.5, size=16).astype(np.float32)
    count, said = 40_000, (3, 5)
    drawn = draw(
        np.repeat(logits[np.newaxis], count, axis=0),
        "logits",
        [Sample(options, 20261126 + row // 10_000, said) for row in range(count)],
        np.arange(count) % 10_000,
    )
    weights = np.array(sampling_oracle.weights_of(logits, options, said))
    expected = weights / weights.sum() * count
    found = np.bincount(drawn.ids, minlength=16)
    assert not found[expected == 0].any()
    possible = expected > 0
    statistic = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty: the cube root of chi-square over its freedom is nearly normal
    bound = freedom * (1 - 2 / (9 * freedom) + 4.753 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound, (statistic, bound)


def test_random_numbers_are_spread_evenly_and_do_not_follow_their_neighbours():
    numbers = uniform(np.full(100_000, 7, np.uint64), np.arange(100_000))
    counts, _ = np.histogram(numbers, 100, (0, 1))
    assert abs(counts - 1000).max() < 5 * math.sqrt(1000)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    others = uniform(np.full(100_000, 8, np.uint64), np.arange(100_000))
    assert abs(np.corrcoef(numbers, others)[0, 1]) < 0.02


def test_a_row_draws_the_same_alone_and_among_others():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(64, 256)).astype(np.float32)
    samples = [Sample(Options(1.2, 0.8, 40, 0.9, 0.01), row % 3, (row,)) for row in range(64)]
    positions = rng.integers(0, 1000, 64)
    together = draw(logits, "logits", samples, positions)
    for row in range(64):
        alone = draw(logits[row : row + 1], "logits", samples[row : row + 1], positions[row : row + 1])
        assert alone.ids[0] == together.ids[row]
        assert alone.log_probs[0] == together.log_probs[row]


@pytest.mark.parametrize("role", ["probs", "log_probs", "logits"])
def test_all_roles_say_the_same(role):
    probs = np.random.default_rng(3).dirichlet(np.ones(20), 8)
    values = {"probs": probs, "log_probs": np.log(probs), "logits": np.log(probs) + 3}[role]
    samples, positions = [Sample(seed=row) for row in range(8)], np.arange(8)
    drawn = draw(values, role, samples, positions)
    np.testing.assert_array_equal(drawn.ids, draw(probs, "probs", samples, positions).ids)
    np.testing.assert_allclose(drawn.log_probs, np.log(probs[np.arange(8), drawn.ids]), atol=1e-5)


def test_numbers_that_are_none_are_never_drawn():
    inf, nan = math.inf, math.nan
    logits = np.array(
        [
            [nan, 1, nan, 1],
            [-inf, -inf, -inf, -inf],
            [nan, nan, nan, nan],
            [inf, 0, inf, 0],
            [0, nan, 0, 0],
        ],
        np.float32,
    )
    seen = [set() for _ in logits]
    for seed in range(200):
        drawn = draw(
            logits,
            "logits",
            [Sample(seed=seed)] * 4 + [Sample(seed=seed, excluded=(0, 2, 3))],
            np.zeros(5, np.int64),
        )
        for row, number in enumerate(drawn.ids):
            seen[row].add(int(number))
    assert seen == [{1, 3}, {NOTHING}, {NOTHING}, {0, 2}, {NOTHING}]
    assert math.isnan(drawn.log_probs[1])

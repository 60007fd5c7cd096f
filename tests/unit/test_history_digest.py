import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.history_digest import (
    FACTORS,
    INITIAL,
    MAX_NUMBER,
    PRIMES,
    after,
    initial_digest,
    run_of,
    sums_of,
    to_elements,
)

digests = st.builds(lambda a, b: a << 26 | b, st.integers(0, PRIMES[0] - 1), st.integers(0, PRIMES[1] - 1))
texts = st.binary(min_size=1, max_size=100)


def plain(digest, elements):
    """The definition in the contract, step by step."""
    a, b = digest >> 26, digest & (2**26 - 1)
    for element in elements:
        a = (a * FACTORS[0] + element + 1) % PRIMES[0]
        b = (b * FACTORS[1] + element + 1) % PRIMES[1]
    return a * 2**26 + b


@pytest.mark.parametrize("prime", PRIMES)
def test_the_moduli_are_primes_below_26_bits(prime):
    assert prime < 2**26
    assert all(prime % divisor for divisor in range(2, int(prime**0.5) + 1))


@given(texts, st.integers(1, 100))
def test_it_is_the_definition_however_tokens_are_cut(text, size):
    digest = INITIAL
    for start in range(0, len(text), size):
        digest = run_of(text[start : start + size]).after(digest)
    assert digest == plain(INITIAL, text) == run_of(text).after(INITIAL)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=100))
def test_ids_are_elements(ids):
    assert run_of(np.array(ids, np.int64)).after(INITIAL) == plain(INITIAL, ids)


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**32))
def test_features_are_the_bits_of_their_numbers(count, width, seed):
    features = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    elements = [int.from_bytes(number.tobytes(), "little") for number in features.reshape(-1)]
    assert run_of(features).after(INITIAL) == plain(INITIAL, elements)


@given(st.integers(1, 9), st.integers(1, 70), st.data())
def test_rows_are_what_single_chunks_are(rows, size, data):
    texts = [data.draw(st.binary(min_size=size, max_size=size)) for _ in range(rows)]
    before = [data.draw(digests) for _ in range(rows)]
    sums = sums_of(np.frombuffer(b"".join(texts), np.uint8).reshape(rows, size))
    assert [tuple(row) for row in sums.tolist()] == [run_of(text)[:2] for text in texts]
    ends = after(np.array(before), sums, size)
    assert ends.tolist() == [run_of(text).after(digest) for text, digest in zip(texts, before, strict=True)]


@given(st.lists(texts, min_size=2, max_size=4, unique=True))
def test_other_tokens_give_another_digest(histories):
    assert len({run_of(text).after(INITIAL) for text in histories}) == len(histories)


@pytest.mark.parametrize("changed", [b"abcabd", b"abcab", b"abcabcc", b"bacabc", b"\0abcabc", b"abcabc\0"])
def test_a_token_lost_doubled_or_reordered_shows(changed):
    assert run_of(changed).after(INITIAL) != run_of(b"abcabc").after(INITIAL)


@given(st.binary(min_size=1, max_size=64), texts)
def test_it_fits_a_float64_and_is_never_nothing(state, text):
    first = initial_digest(state)
    for digest in (first, run_of(text).after(first)):
        assert 0 < digest <= MAX_NUMBER
        assert int(float(digest)) == digest


def test_another_first_state_is_another_history():
    assert initial_digest(b"") == INITIAL
    assert len({initial_digest(b""), initial_digest(bytes(8)), initial_digest(b"x" * 8)}) == 3


def test_elements_of_strided_features_are_those_of_a_copy():
    features = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert (to_elements(features) == to_elements(features.copy())).all()

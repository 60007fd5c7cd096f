"""The history digest: which tokens a session has consumed, and in which order, as one number. Pure.

A position counts tokens; after a store has gone back and others have written, equal positions do not mean
equal histories. The digest tells them apart, and since it does not depend on how tokens were cut into
chunks, whoever knows it at one position knows it at every later one.

It is a pair of polynomials over the elements e of the tokens, modulo two primes below 2^26, so that no
intermediate value reaches 2^53 and every language can compute it exactly:

    a = (a * A + e + 1) mod P,  b = (b * B + e + 1) mod Q,  digest = a * 2^26 + b

Elements are the bytes of text, ids, and the bits of float32 features as uint32. It guards against
accidents: who forges tokens with a given digest cheats a session of their own.
"""

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PRIMES = (67108859, 67108837)
FACTORS = (17415474, 37920051)
MAX_NUMBER = 2**53 - 1
"""Bound of digests, incarnations, nonces and positions: what a float64, JavaScript's number, holds."""

_HALF_BITS = 26
_HALF_MASK = (1 << _HALF_BITS) - 1
_FEW = 16
"""Up to so many elements are faster one by one than as an array."""

_MANY = 1 << 16
"""More elements are digested in pieces of so many: the powers of each length are kept, 1 MiB in all, and a
stranger chooses the length."""

_P, _Q = PRIMES
_A, _B = FACTORS
_PRIMES = np.array(PRIMES, np.int64)

INITIAL = 1 << _HALF_BITS | 1
"""Digest of a session that has consumed nothing and began at its model's own initial state."""


class Run(NamedTuple):
    """What a run of tokens does to any digest.

    Attributes:
        a: Polynomial over its elements, modulo the first prime.
        b: The same modulo the second.
        element_count: Elements in it.
    """

    a: int
    b: int
    element_count: int

    def after(self, digest: int) -> int:
        """Returns the digest of a history that ends with this run, given that of the history before it."""
        a, b = digest >> _HALF_BITS, digest & _HALF_MASK
        power_a, power_b = _powers(self.element_count)
        return (a * power_a + self.a) % _P << _HALF_BITS | (b * power_b + self.b) % _Q


def initial_digest(state: bytes) -> int:
    """Returns the digest of a session that begins at a raw state; b"" is the model's own."""
    if not state:
        return INITIAL
    number = int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")
    a, b = number >> 32, number & 0xFFFFFFFF
    return (a % (_P - 1) + 1) << _HALF_BITS | (b % (_Q - 1) + 1)


def run_of(tokens: bytes | NDArray[Any]) -> Run:
    """Digests the tokens of one chunk: bytes, ids (k,) or float32 features (k, width)."""
    elements = tokens if isinstance(tokens, bytes) else to_elements(tokens)
    count = len(elements)
    if count <= _FEW:
        a = b = 0
        for element in elements if isinstance(elements, bytes) else elements.tolist():
            a = (a * _A + element + 1) % _P
            b = (b * _B + element + 1) % _Q
        return Run(a, b, count)
    if isinstance(elements, bytes):
        elements = np.frombuffer(elements, np.uint8)
    ((a, b),) = sums_of(elements.reshape(1, -1)).tolist()
    return Run(a, b, count)


def digest_after(digest: int, tokens: bytes | NDArray[Any]) -> int:
    """Returns the digest of a history that ends with these tokens; 0, not known, stays so."""
    if not digest:
        return 0
    elements = tokens if isinstance(tokens, bytes) else to_elements(tokens)
    if len(elements) > _FEW:
        return run_of(tokens).after(digest)
    a, b = digest >> _HALF_BITS, digest & _HALF_MASK
    for element in elements if isinstance(elements, bytes) else elements.tolist():
        a = (a * _A + element + 1) % _P
        b = (b * _B + element + 1) % _Q
    return a << _HALF_BITS | b


def to_elements(tokens: NDArray[Any]) -> NDArray[Any]:
    """Returns the elements of tokens as a flat array of integers."""
    flat = np.ascontiguousarray(tokens).reshape(-1)
    return flat.view("<u4") if flat.dtype == np.float32 else flat


def sums_of(elements: NDArray[Any]) -> NDArray[np.int64]:
    """Digests the tokens of B chunks of n elements each, integers below 2^32 (B, n).

    Returns:
        `Run.a` and `Run.b` of each, int64 (B, 2).
    """
    count = elements.shape[1]
    if count > _MANY:
        return _sums_in_pieces(elements)
    sums = np.empty((len(elements), 2), np.int64)
    if count == 1 and elements.dtype == np.uint8:  # text, token by token; far below the primes
        np.add(elements, 1, out=sums, dtype=np.int64)
        return sums
    numbers = elements.astype(np.int64)
    numbers += 1
    if count == 1:
        return numbers % _PRIMES
    for half, prime in enumerate(PRIMES):
        terms = numbers % prime
        terms *= _weights(half, count)
        terms %= prime
        sums[:, half] = terms.sum(axis=1) % prime
    return sums


def _sums_in_pieces(elements: NDArray[Any]) -> NDArray[np.int64]:
    sums = np.zeros((len(elements), 2), np.int64)
    for start in range(0, elements.shape[1], _MANY):
        piece = elements[:, start : start + _MANY]
        sums = (sums * _powers_array(piece.shape[1]) + sums_of(piece)) % _PRIMES
    return sums


def after(digests: NDArray[np.int64], sums: NDArray[np.int64], element_count: int) -> NDArray[np.int64]:
    """Returns `Run.after` for B histories.

    Args:
        digests: Before, int64 (B,).
        sums: Of the chunks, int64 (B, 2); see `sums_of`.
        element_count: Elements in each chunk.
    """
    power_a, power_b = _powers(element_count)
    joined, b = digests >> _HALF_BITS, digests & _HALF_MASK  # one column is worked on faster than a pair
    joined *= power_a
    joined += sums[:, 0]
    joined %= _P
    b *= power_b
    b += sums[:, 1]
    b %= _Q
    joined <<= _HALF_BITS
    joined |= b
    return joined


@functools.lru_cache(1024)
def _powers(count: int) -> tuple[int, int]:
    return pow(_A, count, _P), pow(_B, count, _Q)


@functools.lru_cache(1024)
def _powers_array(count: int) -> NDArray[np.int64]:
    return np.array(_powers(count), np.int64)


def _weights(half: int, count: int) -> NDArray[np.int64]:
    """Returns the powers of a factor from the (count - 1)-th down to the 0-th."""
    size = _FEW
    while size < count:
        size *= 2
    return _ascending(half, size)[count - 1 :: -1] if count < size else _ascending(half, size)[::-1]


@functools.lru_cache(64)
def _ascending(half: int, size: int) -> NDArray[np.int64]:
    """Returns the powers 0 .. size - 1 of a factor, by doubling."""
    prime, factor = PRIMES[half], FACTORS[half]
    powers = np.ones(1, np.int64)
    while len(powers) < size:
        powers = np.concatenate([powers, powers * pow(factor, len(powers), prime) % prime])
    return powers

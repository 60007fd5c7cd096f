"""Records of many sessions at once, as arrays: what `record` does one by one. Pure.

Live records of one model that keep as many replies of one size, one or none, are laid out alike, so that
each is a row of one matrix.
"""

import functools
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from holdfast.history_digest import MAX_NUMBER
from service.store.flag import rows_without_flag
from service.store.record import HEADER, MAGIC, REPLY_HEADER, STAMP_END, STAMP_START

_NONCE_END = STAMP_END + 8
_OF_CHECKSUM, _OF_STAMP, _OF_NONCE, _SHARED = 1, slice(2, 5), 5, [0, 6, 7, 8, 9, 10]
"""Where these are in a header that is read as words of 8 bytes; records of one layout share the last."""
_LEAST = (1, 0, 0)
"""The numbers of a live record's stamp are at least these, and at most `MAX_NUMBER`."""


class RecordRows(NamedTuple):
    """B live records of one model that are laid out alike.

    Attributes:
        stamps: Incarnation, position and history digest of each, int64 (B, 3).
        nonces: int64 (B,).
        fingerprint: Of the model, 32 bytes.
        states: Raw, uint8 (B, state_bytes).
        tails: Kept replies as `encode_replies` gives them, uint8 (B, n).
    """

    stamps: NDArray[np.int64]
    nonces: NDArray[np.int64]
    fingerprint: bytes
    states: NDArray[np.uint8]
    tails: NDArray[np.uint8]


def encode_rows(
    stamps: NDArray[np.int64],
    nonces: NDArray[np.int64],
    fingerprint: bytes,
    states: NDArray[np.uint8],
    token_count: int,
    digests_before: NDArray[np.int64],
    outputs: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Encodes B live records of one model that keep one reply each; a row is what `encode` gives.

    Args:
        stamps: (B, 3), incarnation, position and history digest.
        nonces: (B,).
        fingerprint: Of the model, 32 bytes.
        states: (B, n).
        token_count: Tokens in the chunk that each reply answers.
        digests_before: (B,), history digests before these chunks.
        outputs: (B, m), the replies.

    Returns:
        (B, size), C-contiguous.
    """
    rows, state_bytes = states.shape
    reply_start = HEADER.size + state_bytes
    outputs_start = reply_start + REPLY_HEADER.size
    size = outputs_start + outputs.shape[1]
    header, reply_header = _constant_headers(fingerprint, state_bytes, token_count, outputs.shape[1])
    matrix = np.empty((rows, size), np.uint8)
    matrix[:, : HEADER.size] = header
    numbers = np.empty((rows, 5), np.int64)
    numbers[:, :3], numbers[:, 3], numbers[:, 4] = stamps, nonces, digests_before
    of_rows = numbers.view(np.uint8)
    matrix[:, STAMP_START:_NONCE_END] = of_rows[:, :32]
    matrix[:, HEADER.size : reply_start] = states
    matrix[:, reply_start:outputs_start] = reply_header
    matrix[:, reply_start : reply_start + 8] = of_rows[:, 8:16]
    matrix[:, outputs_start - 16 : outputs_start - 8] = of_rows[:, 32:]
    matrix[:, outputs_start - 8 : outputs_start] = of_rows[:, 16:24]
    matrix[:, outputs_start:] = outputs
    matrix[:, 8:STAMP_START] = _checksums(matrix, 1)[:, np.newaxis].view(np.uint8)
    return matrix


def cut_rows(rows: NDArray[np.uint8]) -> list[bytes]:
    """Returns the bytes of each row, (B, n)."""
    if not rows.shape[1]:
        return [b""] * len(rows)
    cut: list[bytes] = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0].tolist()
    return cut


def _checksums(matrix: NDArray[np.uint8], reply_count: int) -> NDArray[np.uint64]:
    """Returns the checksum of each record, (B, size), that keeps so many replies."""
    digests = map(xxhash.xxh3_64_intdigest, matrix[:, STAMP_START:], repeat(reply_count))
    return np.fromiter(digests, "<u8", len(matrix))


@functools.lru_cache(256)
def _constant_headers(
    fingerprint: bytes, state_bytes: int, token_count: int, output_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the headers of record and reply as they are in every row, zero where rows differ."""
    header = HEADER.pack(MAGIC, 1, 0, 0, 0, 0, 0, fingerprint, state_bytes)
    reply_header = REPLY_HEADER.pack(0, token_count, output_bytes, 0, 0)
    return np.frombuffer(header, np.uint8), np.frombuffer(reply_header, np.uint8)


def decode_rows(data: Sequence[bytes]) -> tuple[RecordRows, NDArray[np.int64]] | None:
    """Decodes records of one size together, as far as they are live and laid out as the first of them is.

    Args:
        data: At least one, all of one length.

    Returns:
        Records that `decode` takes as well, and which they are, by index; None if the first one is none of
        them. They keep one reply or, as sessions that were only opened, none.
    """
    size = len(data[0])
    if size < HEADER.size:
        return None
    magic, count, *_, fingerprint, state_bytes = HEADER.unpack_from(data[0])
    tail_start = HEADER.size + state_bytes
    output_bytes = size - tail_start - count * REPLY_HEADER.size
    if magic != MAGIC or count > 1 or output_bytes < 0 or (output_bytes and not count):
        return None
    matrix = rows_without_flag(np.frombuffer(b"".join(data), np.uint8).reshape(-1, size))
    words = np.ascontiguousarray(matrix[:, : HEADER.size]).view("<i8")
    shared, stamps = words[:, _SHARED], words[:, _OF_STAMP]
    is_alike = (shared == shared[0]).all(axis=1)
    is_alike &= ((stamps >= _LEAST) & (stamps <= MAX_NUMBER)).all(axis=1)
    is_alike &= words[:, _OF_CHECKSUM].view("<u8") == _checksums(matrix, count)
    if count:
        lengths = np.ascontiguousarray(matrix[:, tail_start + 12 : tail_start + 16]).view("<u4")
        is_alike &= lengths[:, 0] == output_bytes
    if not is_alike[0]:
        return None
    chosen = np.flatnonzero(is_alike)
    if len(chosen) < len(matrix):
        matrix, words = matrix[chosen], words[chosen]
    rows = RecordRows(
        words[:, _OF_STAMP],
        words[:, _OF_NONCE],
        fingerprint,
        matrix[:, HEADER.size : tail_start],
        matrix[:, tail_start:],
    )
    return rows, chosen

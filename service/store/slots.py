"""Which slot of a Redis Cluster a key lies in. Pure.

A cluster has 16,384 slots. A key's slot is its CRC16 (the XMODEM kind: polynomial 0x1021, from 0), modulo
that number; where the key has a part in braces that is not empty, only the first such part counts, the
*hash tag*.
"""

from binascii import crc_hqx

SLOT_COUNT = 16_384


def slot_of(key: bytes) -> int:
    """Returns the slot of a key, 0 .. 16383."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOT_COUNT

"""The oracle of the hash model: what state and output are after some tokens. Pure.

Of a sum, two tokens that are exchanged, or one that is lost and another that comes twice, can be right by
chance; of this they are not: each token counts by its value and by how many come after it.
"""

FACTOR = 1_000_003
MODULUS = 2_147_483_647


def next_hash(state, token):
    """Returns the state after one token."""
    return (state * FACTOR + token + 1) % MODULUS


def hash_of(tokens, start=0):
    """Returns the state after tokens, bytes or ids; `start` is the state before them."""
    for token in tokens:
        start = next_hash(start, token)
    return start


def hashes_of(tokens, start=0):
    """Returns the state after each of the tokens, which is the output of the model."""
    hashes = []
    for token in tokens:
        start = next_hash(start, token)
        hashes.append(start)
    return hashes

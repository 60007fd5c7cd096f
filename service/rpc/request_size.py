"""How large a request can be that a server may answer with anything but a refusal. Pure.

gRPC receives a message whole before anybody looks at it, so its limit is what a stranger can make a server
hold per call. It is derived from what the models take, not guessed.
"""

from collections.abc import Iterable

from service.engine.rules import MAX_KEPT_REPLIES, MAX_KEPT_REPLY_BYTES
from service.model.contract import Contract
from service.rpc.batches import MAX_MESSAGE_TOKENS
from service.rpc.codec import MAX_ID_CHARS
from service.store.blob import OVERHEAD_BYTES
from service.store.record import REPLY_BYTES

ID_BYTES = 4 * MAX_ID_CHARS + 4
"""Of a session id, in UTF-8, with tag and length."""

ROW_NUMBERS_BYTES = 3 * 10
"""Position, acknowledged position and incarnation of a row, at their longest."""

TOKEN_ID_BYTES = 5
"""Of a token id: 35 bits of a varint."""

ENVELOPE_BYTES = 16 << 10
"""Everything else: the names of a model and of its outputs, tags, lengths."""

KEPT_BYTES = MAX_KEPT_REPLY_BYTES + MAX_KEPT_REPLIES * REPLY_BYTES + OVERHEAD_BYTES
"""Of an exported session, beside its state."""


def largest_request_bytes(contracts: Iterable[Contract], *, max_chunk_tokens: int, max_rows: int) -> int:
    """Returns the size of the largest request that the server can serve.

    Args:
        contracts: Of the models served.
        max_chunk_tokens: Most tokens of a chunk.
        max_rows: Most rows of a batch.
    """
    token_count = max(max_chunk_tokens, MAX_MESSAGE_TOKENS)
    batch_bytes = max_rows * (ID_BYTES + ROW_NUMBERS_BYTES)
    return ENVELOPE_BYTES + max(
        max(batch_bytes + token_count * _token_bytes(contract), contract.state_bytes + KEPT_BYTES)
        for contract in contracts
    )


def _token_bytes(contract: Contract) -> int:
    if contract.vocabulary is None:
        return 4 * contract.input.width
    return TOKEN_ID_BYTES

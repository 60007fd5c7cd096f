"""What chunks ask, and what a model then has to give. Plain values, by which chunks are joined."""

from typing import Literal, NamedTuple

from service.store.protocol import AckLevel

TokenKind = Literal["text", "ids", "features"]
"""What tokens are: bytes of text, ids, or features."""


class Selection(NamedTuple):
    """What a reply should hold.

    Attributes:
        top_k: So many likeliest next tokens after each token.
        token_log_prob: Log-probability of each token given all before it.
        tensors: Names of output tensors.
        state: The state after the chunk.
        generates: It holds what follows the chunk in a generation, and candidates for that place only.
    """

    top_k: int = 0
    token_log_prob: bool = False
    tensors: tuple[str, ...] = ()
    state: bool = False
    generates: bool = False


class Asked(NamedTuple):
    """What chunks that share rows have in common.

    Attributes:
        kind: What the tokens are: bytes of text, ids, or features.
        token_count: k >= 1.
        width: Features per token; 1 for text and ids.
        model_name: Model named by the request; "" if none.
        model_version: Its version; 0 is any, or the newest where the session is opened.
        selection: What to return; None is the default of the model.
        ack_level: How durable the commit must be before the reply; None is the default of the server.
    """

    kind: TokenKind
    token_count: int
    width: int = 1
    model_name: str = ""
    model_version: int = 0
    selection: Selection | None = None
    ack_level: AckLevel | None = None


class Needs(NamedTuple):
    """What a model has to give for chunks.

    Attributes:
        selection: What to return, completed.
        outputs: Names of the outputs that this takes, in the order of the contract.
        step_bytes: Of these outputs, per token.
    """

    selection: Selection
    outputs: tuple[str, ...]
    step_bytes: int

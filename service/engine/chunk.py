"""What a caller sends and what it gets: a chunk and its reply. Plain values."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from holdfast.errors import ServiceError
from service.engine.rules import Claim, check
from service.store.protocol import AckLevel

_log = logging.getLogger(__name__)


class Selection(NamedTuple):
    """What a reply should hold.

    Attributes:
        top_k: So many likeliest next tokens after each token.
        token_log_prob: Log-probability of each token given all before it.
        tensors: Names of output tensors.
        state: The state after the chunk.
    """

    top_k: int = 0
    token_log_prob: bool = False
    tensors: tuple[str, ...] = ()
    state: bool = False


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

    kind: Literal["text", "ids", "features"]
    token_count: int
    width: int = 1
    model_name: str = ""
    model_version: int = 0
    selection: Selection | None = None
    ack_level: AckLevel | None = None

    @property
    def element_count(self) -> int:
        """Elements of a chunk's tokens, as a history digest counts them."""
        return self.token_count * self.width


class Reply(NamedTuple):
    """What a chunk gets that is applied.

    Attributes:
        incarnation: Of the session.
        position: Tokens consumed, the chunk included.
        digest: History digest there.
        model_version: Version that ran.
        replayed: It had been applied before.
        outputs: What it gave, encoded by the edge.
        ack_level: How durable it is.
    """

    incarnation: int
    position: int
    digest: int
    model_version: int
    replayed: bool
    outputs: bytes
    ack_level: AckLevel = AckLevel.MEMORY


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk, sent by itself.

    Attributes:
        key: Store key of its session.
        asked: What it asks.
        tokens: Raw, (k,) or (k, width), row-major; dtype by kind, see `rows.TOKEN_DTYPES`.
        reply: Called once, on the event loop, with this chunk and what it gets.
        position: Tokens before it; None is "append".
        acknowledged: Position of the last reply the client has; None if it does not say.
        incarnation: Meant by the client; 0 is any.
        digest: History digest meant at the position; 0 is any.
        request: What the caller wants to find here again.
        deadline_s: Monotonic time after which the caller no longer waits.
        arrived_s: Monotonic time of arrival.
        is_cancelled: The caller has gone; skip it if it has not run yet.
        is_answered: It is settled.
    """

    key: bytes
    asked: Asked
    tokens: bytes
    reply: "Callable[[Chunk, Reply | ServiceError], None]"
    position: int | None = None
    acknowledged: int | None = None
    incarnation: int = 0
    digest: int = 0
    request: Any = None
    deadline_s: float = math.inf
    arrived_s: float = 0.0
    is_cancelled: bool = False
    is_answered: bool = False

    def check(self) -> None:
        """Refuses it if it would be wrong whatever is stored.

        Raises:
            InvalidRequest: A number is out of its range.
        """
        count = self.asked.token_count  # the tokens themselves are held against a model, not here
        check(Claim(count, b"", self.position, self.acknowledged, self.incarnation, self.digest))

    def settle(self, outcome: Reply | ServiceError) -> None:
        """Gives the caller what the chunk gets; one that cannot take it must not hurt its neighbours."""
        try:
            self.reply(self, outcome)
        except Exception:  # noqa: BLE001 -- logged, whatever it is
            _log.exception("bug: a caller could not take its answer")

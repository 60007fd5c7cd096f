"""How long to wait before a call is sent again. Pure."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, so that clients do not come back all at once.

    Attributes:
        initial_s: Upper bound of the first pause.
        factor: Growth of the bound.
        max_s: Largest bound.
        attempt_s: Longest wait for the reply to a first attempt that may be repeated; doubled for each
            further one. A server that hangs with its connections open costs no more than that.
    """

    initial_s: float = 0.05
    factor: float = 2.0
    max_s: float = 1.0
    attempt_s: float = 4.0


def pause_s(policy: RetryPolicy, attempt: int, retry_after_s: float | None = None) -> float:
    """Returns the pause before attempt 1, 2, …; at least what the server asks for."""
    bound_s = min(policy.max_s, policy.initial_s * policy.factor ** min(attempt - 1, 32))
    return (retry_after_s or 0.0) + random.uniform(0, bound_s)  # noqa: S311 -- no secret


def limit_s(policy: RetryPolicy, attempt: int) -> float:
    """Returns how long attempt 0, 1, 2, … may take."""
    return policy.attempt_s * 2.0 ** min(attempt, 32)

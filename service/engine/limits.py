"""Bounds of the engine. Plain values."""

from dataclasses import dataclass

from service.store.protocol import AckLevel


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of the engine.

    Attributes:
        max_batch: Most single chunks in one batch; beyond 64 the gain per step is flat.
        max_waiting: Most chunks waiting; beyond it new ones are refused.
        hot_state_bytes: Memory for hot sessions.
        session_ttl_s: Time to live of a session after a commit; 0 is for ever.
        ack_level: Of chunks that ask for none.
        run_timeout_s: Longest run of a model.
        quarantine_after: A session that fails by itself so often in a row is quarantined; 0 is never.
    """

    max_batch: int = 64
    max_waiting: int = 8192
    hot_state_bytes: int = 256 << 20
    session_ttl_s: float = 86_400.0
    ack_level: AckLevel = AckLevel.MEMORY
    run_timeout_s: float = 10.0
    quarantine_after: int = 3

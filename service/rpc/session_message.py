"""A session as messages show it."""

from holdfast.v1 import holdfast_pb2 as pb
from service.model.protocol import Model
from service.store.record import Record


def session_message(
    session_id: str, record: Record, model: Model, expires_in_s: float, cursor: bytes
) -> pb.Session:
    """Writes what is stored of a session.

    Args:
        session_id: Its id.
        record: What is stored.
        model: What it runs on.
        expires_in_s: Seconds until it expires; 0 is never.
        cursor: Of its last chunk that had one.
    """
    return pb.Session(
        session_id=session_id,
        incarnation=record.incarnation,
        position=record.position,
        history_digest=record.digest,
        model=model_ref(model),
        fingerprint=record.fingerprint.hex(),
        expires_in_s=expires_in_s,
        quarantine_reason=record.quarantine_reason,
        cursor=cursor,
    )


def model_ref(model: Model) -> pb.ModelRef:
    """Writes which model it is."""
    return pb.ModelRef(name=model.name, version=model.version)

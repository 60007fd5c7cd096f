"""How `holdfast session` prints: tables for people, JSON for programs."""

import base64
import datetime
import json
from collections.abc import Mapping
from typing import Any

from holdfast.v1 import holdfast_pb2 as pb

_UNITS = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0))


def as_json(fields: Mapping[str, Any]) -> str:
    """Returns one line."""
    return json.dumps(fields)


def session_fields(session: pb.Session) -> dict[str, Any]:
    """Returns what is known of a session, for programs; None is not known."""
    fields: dict[str, Any] = {
        "session_id": session.session_id,
        "incarnation": session.incarnation,
        "position": session.position,
        "history_digest": session.history_digest,
        "model": session.model.name or None,
        "model_version": session.model.version or None,
        "fingerprint": session.fingerprint,
        "expires_in_s": session.expires_in_s or None,
        "quarantine_reason": session.quarantine_reason or None,
    }
    if session.HasField("idle_s"):
        fields["idle_s"] = session.idle_s
    if session.cursor:
        fields["cursor_base64"] = base64.b64encode(session.cursor).decode()
    return fields


def session_lines(session: pb.Session) -> list[str]:
    """Returns what is known of a session, a line for each fact."""
    rows = {
        "session": session.session_id,
        "incarnation": session.incarnation,
        "position": session.position,
        "model": f"{session.model.name} version {session.model.version}",
        "fingerprint": session.fingerprint,
        "expires": f"in {session.expires_in_s:.0f} s" if session.expires_in_s else "never",
        "quarantine": session.quarantine_reason or "no",
    }
    if session.cursor:
        rows["cursor"] = repr(session.cursor)
    return [f"{name:<12} {value}" for name, value in rows.items()]


LIST_HEADER = f"{'position':>12}  {'model':<28}  {'idle':>8}  {'expires':>8}  session"


def list_line(session: pb.Session) -> str:
    """Returns a line of the list under `LIST_HEADER`; the id comes last, since it may be long."""
    model = f"{session.model.name} {session.model.version}" if session.model.name else "not served here"
    idle = duration(session.idle_s) if session.HasField("idle_s") else "?"
    expires = duration(session.expires_in_s) if session.expires_in_s else "never"
    held = f"  (in quarantine: {session.quarantine_reason})" if session.quarantine_reason else ""
    return f"{session.position:>12}  {model:<28}  {idle:>8}  {expires:>8}  {session.session_id}{held}"


CHECKPOINT_HEADER = f"{'position':>12}  {'bytes':>10}  {'saved':<20}  name"


def checkpoint_fields(checkpoint: pb.Checkpoint) -> dict[str, Any]:
    """Returns what is known of a checkpoint, for programs."""
    return {
        "name": checkpoint.name,
        "position": checkpoint.position,
        "history_digest": checkpoint.history_digest,
        "saved_unix_s": checkpoint.saved_unix_s,
        "size_bytes": checkpoint.size_bytes,
    }


def checkpoint_line(checkpoint: pb.Checkpoint) -> str:
    """Returns a line of the list under `CHECKPOINT_HEADER`; the time is UTC."""
    saved = datetime.datetime.fromtimestamp(checkpoint.saved_unix_s, datetime.UTC)
    position, size = checkpoint.position, checkpoint.size_bytes
    return f"{position:>12}  {size:>10}  {saved:%Y-%m-%dT%H:%M:%SZ}  {checkpoint.name}"


def duration(seconds: float) -> str:
    """Returns a time for people, in the largest unit of which there is one."""
    for unit, size_s in _UNITS:
        if seconds >= size_s:
            return f"{seconds / size_s:.1f} {unit}"
    return f"{seconds:.0f} s"

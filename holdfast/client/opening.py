"""The requests that open sessions, from what the caller chose."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.client.options import NewId, SessionId, flag, session_id_text, session_ids_text, whole_number
from holdfast.client.tokens import state_message
from holdfast.history_digest import MAX_NUMBER
from holdfast.v1 import holdfast_pb2 as pb


def draw_nonce() -> int:
    """Returns a random number for one opening and its retries."""
    return 1 + secrets.randbelow(MAX_NUMBER)


def session_opening(
    session_id: SessionId | NewId,
    *,
    model: str = "",
    version: int = 0,
    must_be_new: bool = False,
    take_over: bool = False,
    initial_state: Mapping[str, Any] | None = None,
) -> pb.OpenSessionRequest:
    """Writes the opening of a session; arguments as of `AsyncClient.open_session`.

    Raises:
        TypeError, ValueError: Something is not what it should be; see docs/guides/inputs.md.
    """
    state = state_message(initial_state)
    version = whole_number("version", version, at_least=0)
    return pb.OpenSessionRequest(
        session_id=_one_id(session_id),
        model=pb.ModelRef(name=model, version=version) if model else None,
        must_be_new=flag("must_be_new", must_be_new),
        initial_state=state,
        take_over=flag("take_over", take_over),
        nonce=draw_nonce(),
    )


def _one_id(session_id: SessionId | NewId) -> str:
    if isinstance(session_id, NewId):
        return ""  # the server makes one
    text = session_id_text(session_id)
    if not text:
        raise ValueError(
            "a session id is '', expected 1 to 128 characters; without one the server makes an id"
        )
    return text


def batch_opening(
    model: str,
    session_ids: Iterable[SessionId],
    *,
    version: int = 0,
    must_be_new: bool = False,
    initial_state: Mapping[str, Any] | None = None,
) -> pb.OpenBatchRequest:
    """Writes the opening of many sessions; arguments as of `AsyncClient.open_batch`.

    Raises:
        TypeError, ValueError: Something is not what it should be; see docs/guides/inputs.md.
    """
    ids = session_ids_text(session_ids)
    return pb.OpenBatchRequest(
        model=pb.ModelRef(name=model, version=whole_number("version", version, at_least=0)),
        session_ids=ids,
        must_be_new=flag("must_be_new", must_be_new),
        nonce=draw_nonce(),
        initial_state=state_message(initial_state, row_count=len(ids)),
    )

"""The requests that copy, list and delete sessions, from what the caller chose."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from holdfast.client.opening import draw_nonce
from holdfast.client.options import (
    MAX_POSITION,
    NewId,
    SessionId,
    seconds,
    session_id_text,
    session_ids_text,
    whole_number,
)
from holdfast.v1 import holdfast_pb2 as pb


class Where(TypedDict, total=False):
    """Which session is meant, beside its id; see `AsyncClient.fork_session`."""

    position: int | None
    incarnation: int


class ListOptions(TypedDict, total=False):
    """Which sessions are listed; see `AsyncClient.list_sessions`."""

    model: str
    version: int
    min_idle_s: float
    page_size: int


def new_id_text(session_id: SessionId | NewId) -> str:
    """Returns the id of a session that is to be made; one that nobody can guess where it is left out.

    It is made here and not by the server, so that a retry means the same session.

    Raises:
        TypeError, ValueError: It is no id.
    """
    if isinstance(session_id, NewId):
        return secrets.token_hex(16)
    text = session_id_text(session_id)
    if not text:
        raise ValueError("a session id is '', expected 1 to 128 characters; without one an id is made")
    return text


def fork_request(
    session_id: SessionId,
    new_ids: Sequence[str],
    *,
    position: int | None = None,
    incarnation: int = 0,
) -> pb.ForkSessionRequest:
    """Writes the copying of a session; arguments as of `AsyncClient.fork_batch`.

    Raises:
        TypeError, ValueError: Something is not what it should be.
    """
    return pb.ForkSessionRequest(
        session_id=session_id_text(session_id),
        new_session_ids=new_ids,
        nonce=draw_nonce(),
        **_where(position, incarnation),
    )


def export_request(
    session_id: SessionId, *, position: int | None = None, incarnation: int = 0
) -> pb.ExportSessionRequest:
    """Writes the export of a session; arguments as of `AsyncClient.export_session`.

    Raises:
        TypeError, ValueError: Something is not what it should be.
    """
    return pb.ExportSessionRequest(session_id=session_id_text(session_id), **_where(position, incarnation))


def import_request(blob: Any, session_id: SessionId | NewId) -> pb.ImportSessionRequest:
    """Writes the import of a session; arguments as of `AsyncClient.import_session`.

    Raises:
        TypeError, ValueError: Something is not what it should be.
    """
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise TypeError(f"a blob is a {type(blob).__name__}, expected the bytes that an export gave")
    return pb.ImportSessionRequest(session_id=new_id_text(session_id), blob=bytes(blob), nonce=draw_nonce())


def list_request(
    prefix: Any = "",
    *,
    model: str = "",
    version: int = 0,
    min_idle_s: float = 0.0,
    page_size: int = 0,
) -> pb.ListSessionsRequest:
    """Writes the listing of sessions; arguments as of `AsyncClient.list_sessions`.

    Raises:
        TypeError, ValueError: Something is not what it should be.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"a prefix is {prefix!r:.80}, expected str")
    if not isinstance(model, str):
        raise TypeError(f"a model is {model!r:.80}, expected str")
    version = whole_number("version", version, at_least=0)
    return pb.ListSessionsRequest(
        prefix=prefix,
        model=pb.ModelRef(name=model, version=version) if model or version else None,
        min_idle_s=seconds("min_idle_s", min_idle_s),
        page_size=whole_number("page_size", page_size, at_least=0),
    )


def deletion_request(session_ids: Iterable[SessionId], incarnations: Any = None) -> pb.DeleteBatchRequest:
    """Writes the deletion of sessions; arguments as of `AsyncClient.delete_batch`.

    Raises:
        TypeError, ValueError: Something is not what it should be.
    """
    ids = session_ids_text(session_ids)
    numbers = [] if incarnations is None else [_incarnation(number) for number in incarnations]
    if incarnations is not None and len(numbers) != len(ids):
        raise ValueError(f"there are {len(numbers)} incarnations for {len(ids)} session_ids")
    return pb.DeleteBatchRequest(session_ids=ids, incarnations=numbers)


def _where(position: int | None, incarnation: int) -> dict[str, Any]:
    where: dict[str, Any] = {"incarnation": _incarnation(incarnation)}
    if position is not None:
        where["position"] = whole_number("position", position, at_least=0, at_most=MAX_POSITION)
    return where


def _incarnation(value: Any) -> int:
    return whole_number("incarnation", value, at_least=0, at_most=MAX_POSITION)

"""What a store's refusals mean for a request, and what an operator does about them. One table. Pure.

A refusal is an error text whose first word says what it is. It is about a whole command, or, inside the
commit script, about one record. Whatever stands here was refused before anything was written.
"""

from holdfast.errors import RecordCorrupt, ServiceError, StoreFull, StoreUnavailable

RETRY_AFTER_S = 0.2
"""What callers are told while the store is away: about one attempt to reconnect."""

_NO_RULE = "its user may not do what is needed: give it the rule that `holdfast store acl` prints"

_ADVICE = {
    "LOADING": "it reads its data from disk after a start, and answers when it is done",
    "BUSY": "a script of another client runs for too long; SCRIPT KILL ends it",
    "MISCONF": "it cannot write to its disk and so refuses to write; make room, or see its log",
    "READONLY": "it is a replica now and takes no writes; the primary is looked for",
    "MASTERDOWN": "it is a replica that has lost its primary; the primary is looked for",
    "UNBLOCKED": "it became a replica while a reply was waited for; the primary is looked for",
    "CLUSTERDOWN": "the cluster does not serve this session's slot, until its primary is back or a replica "
    "has taken over",
    "TRYAGAIN": "the slot of this session is being moved to another node",
    "MOVED": "the slot of this session is on another node: the store is a cluster, name it by redis+cluster://",
    "ASK": "the slot of this session is on another node: the store is a cluster, name it by redis+cluster://",
    "CROSSSLOT": "the store is a cluster, name it by redis+cluster://",
    "NOAUTH": "it wants a password: name user and password in --store, or --store-password-file",
    "WRONGPASS": "user or password is wrong: see --store and --store-password-file",
    "NOPERM": _NO_RULE,
    "NOREPLICAS": "fewer replicas are connected to it than min-replicas-to-write asks for",
}
"""First word -> what it means and what to do."""

_BY_TEXT = {
    "ERR max number of clients": "it has no connection left: raise maxclients",
    "ERR unknown command": "it does not know a command that is needed: it must be Redis 7 or Valkey, or a "
    "proxy that passes scripts on",
    "ERR ACL failure": _NO_RULE,
    "ERR Script attempted to access a non local key": _ADVICE["TRYAGAIN"],
    "ERR Attempted to access a non local key": _ADVICE["TRYAGAIN"],
    "ERR AUTH": "it has no password, and one is configured: see --store and --store-password-file",
}

_DEMOTED = ("READONLY", "MASTERDOWN", "UNBLOCKED")


def error_of(message: str, where: str = "store") -> ServiceError:
    """Maps the store's error text to what a caller can act on.

    Args:
        message: As the store said it.
        where: Which store, for the operator; no secrets.
    """
    message = message.removeprefix("-")
    if message.startswith("OOM"):
        return StoreFull("the store is out of memory: raise maxmemory or delete sessions")
    if message.startswith("WRONGTYPE"):
        return RecordCorrupt("the key of this session holds something that is not a record")
    advice = _ADVICE.get(message.partition(" ")[0])
    if advice is None:
        advice = next((text for start, text in _BY_TEXT.items() if message.startswith(start)), None)
    said = f"{where}: {message}"
    return StoreUnavailable(f"{said} ({advice})" if advice else said, retry_after_s=RETRY_AFTER_S)


def means_demoted(message: str) -> bool:
    """Whether the server that says this is no primary any more, so that another one is."""
    return message.removeprefix("-").startswith(_DEMOTED)

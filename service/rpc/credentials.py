"""Who may call: the credentials of a tokens file. Pure.

    [[token]]                 # `holdfast token create` prints one
    sha256 = "9f86…"          # of the token; the token itself is kept nowhere
    tenant = "acme"
    scopes = ["step"]

    [[certificate]]           # of a client, verified by mutual TLS
    san = "scorer.acme.example"    # or common_name = "…"
    tenant = "acme"
    scopes = ["step", "read-state"]

The tenant of a call comes from its credential and from nowhere else. Everything not granted is refused.
"""

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from holdfast.errors import PermissionDenied

Scope = Literal["step", "read-state", "admin"]
"""step: open, step and delete sessions. read-state: see states. admin: act on the server."""

SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

DEFAULT_TENANT = "default"
"""Everybody's tenant on a server without a tokens file."""

TOKEN_PREFIX = "holdfast_"  # noqa: S105 -- by it scanners find tokens that strayed
_TOKEN_BYTES = 32

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Tenants stand in store keys, before a colon and inside braces, so they have neither."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOUND_BY = {"token": ("sha256",), "certificate": ("san", "common_name")}


class CredentialsError(Exception):
    """A tokens file cannot be used; the message says where and why, and holds nothing secret."""


class Caller(NamedTuple):
    """Who calls, and what that allows.

    Attributes:
        tenant: Whose sessions these are.
        scopes: What is allowed.
        credential: Which entry of the tokens file says so; "" without a tokens file.
    """

    tenant: str
    scopes: frozenset[Scope]
    credential: str

    @property
    def sees_state(self) -> bool:
        """Whether states may be shown."""
        return "read-state" in self.scopes

    def need(self, *scopes: Scope, field: str = "") -> None:
        """Makes sure that one of the scopes is granted.

        Raises:
            PermissionDenied: None is.
        """
        if self.scopes.isdisjoint(scopes):
            needed = " or ".join(scopes)
            raise PermissionDenied(f"this needs a credential with the scope {needed}", field=field)


ANYBODY = Caller(DEFAULT_TENANT, SCOPES, "")
"""The caller of a server without a tokens file."""

NOBODY = Caller("", frozenset(), "")
"""The caller of a call before it is known who calls, and of one that nobody need be known for."""


class Credentials:
    """What a tokens file grants.

    Tokens are found by a hash with a key that was drawn here and is known to nobody, so how long a look-up
    takes says nothing about the hashes in the file; then the hash itself is compared in constant time.

    Args:
        text: Of the file, TOML.

    Raises:
        CredentialsError: It cannot be read, or something in it is not as described above.
    """

    def __init__(self, text: str) -> None:
        entries = _parse(text)
        self._key = secrets.token_bytes(32)
        self._by_token: dict[bytes, tuple[bytes, Caller]] = {}
        self._by_name: dict[tuple[str, str], Caller] = {}
        for (name, value), caller in entries:
            if name == "sha256":
                digest = bytes.fromhex(value)
                self._by_token[self._blind(digest)] = digest, caller
            else:
                self._by_name[name, value] = caller
        self._callers = {caller for _, caller in entries}

    def __contains__(self, caller: Caller) -> bool:
        """Whether the caller's credential still grants just this."""
        return caller in self._callers

    @property
    def names_certificates(self) -> bool:
        """Whether a certificate can be a credential."""
        return bool(self._by_name)

    def of_token(self, token: str) -> Caller | None:
        """Returns whose token this is."""
        if not token.isascii():
            return None  # no token is, and not every text has bytes that could be hashed
        digest = hashlib.sha256(token.encode()).digest()
        found = self._by_token.get(self._blind(digest))
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]

    def of_certificate(self, sans: Iterable[str], common_names: Iterable[str]) -> Caller | None:
        """Returns whose certificate this is; nobody's, if its names are several callers'."""
        names = [("san", san) for san in sans] + [("common_name", name) for name in common_names]
        found = {self._by_name[name] for name in names if name in self._by_name}
        return found.pop() if len(found) == 1 else None

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._key, digest, "sha256")


def new_token() -> str:
    """Returns a token that nobody can guess, 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def token_entry(token: str, tenant: str, scopes: Iterable[str]) -> str:
    """Returns the entry of a tokens file for a token.

    Raises:
        CredentialsError: The tenant's name or a scope is not allowed.
    """
    digest = hashlib.sha256(token.encode()).hexdigest()
    fields = {"sha256": digest, "tenant": tenant, "scopes": list(scopes)}
    _entry("token", "the token", fields)
    return "[[token]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


class _Entry(NamedTuple):
    """One table of the file: what it is found by, as (key, value), and what it grants."""

    found_by: tuple[str, str]
    caller: Caller


def _parse(text: str) -> list[_Entry]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CredentialsError(f"it is not TOML: {error}") from None
    _check_keys("at the top", document, allowed=_FOUND_BY)
    entries = []
    for kind in _FOUND_BY:
        tables = document.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise CredentialsError(f"{kind} is not a list of tables, expected [[{kind}]]")
        entries += [_entry(kind, f"[[{kind}]] {number}", table) for number, table in enumerate(tables, 1)]
    if not entries:
        raise CredentialsError("it has no [[token]] and no [[certificate]]")
    if len({entry.found_by for entry in entries}) < len(entries):
        raise CredentialsError("a token or a certificate is named twice")
    return entries


def _entry(kind: str, where: str, table: Mapping[str, Any]) -> _Entry:
    names = _FOUND_BY[kind]
    _check_keys(f"in {where}", table, allowed=(*names, "tenant", "scopes"))
    given = [name for name in names if name in table]
    if len(given) != 1:
        raise CredentialsError(f"{where} has {len(given)} of {' and '.join(names)}, expected one")
    [name] = given
    value, tenant, scopes = table[name], table.get("tenant"), table.get("scopes")
    if not isinstance(value, str) or not value or (name == "sha256" and not _SHA256.fullmatch(value)):
        expected = "64 hexadecimal digits, in lower case" if name == "sha256" else "some text"
        raise CredentialsError(f"{name} of {where} is not {expected}")
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise CredentialsError(
            f"tenant of {where} is not 1..63 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
    if not isinstance(scopes, list) or not scopes or not all(scope in get_args(Scope) for scope in scopes):
        raise CredentialsError(f"scopes of {where} are not some of {', '.join(sorted(SCOPES))}")
    return _Entry((name, value), Caller(tenant, frozenset(scopes), f"{name}:{value}"))


def _check_keys(where: str, table: Mapping[str, Any], *, allowed: Iterable[str]) -> None:
    unknown = table.keys() - set(allowed)
    if unknown:
        raise CredentialsError(f"{where} stands {min(unknown)}, expected {', '.join(allowed)}")

"""Writes docs/operate/settings.md from the settings: `python -m service.settings.reference > PAGE`."""

import sys
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from service.settings.schema import Settings
from service.settings.sources import allowed, flag_of, variable_of

GROUPS = {
    "Where it serves": (
        "config",
        "grpc_address",
        "http_address",
        "workers",
        "reflection",
        "stuck_worker_s",
    ),
    "Models": (
        "models",
        "strict_models",
        "model_refresh_s",
        "apart",
        "providers",
        "max_model_bytes",
        "max_batch",
        "run_timeout_s",
        "quarantine_after",
    ),
    "Store": (
        "store",
        "store_password_file",
        "key_prefix",
        "store_timeout_s",
        "data_dir",
        "session_ttl_s",
        "hot_state_bytes",
        "allow_volatile_store",
        "allow_old_store",
    ),
    "Acknowledgement": ("ack_level", "replicas_required", "ack_timeout_s"),
    "Bounds": (
        "max_chunk_tokens",
        "max_rows",
        "max_message_bytes",
        "max_waiting",
        "max_waiting_bytes",
        "max_streams",
        "tenant_share",
        "max_memory_bytes",
        "max_call_s",
        "max_stall_s",
        "keepalive_s",
        "max_connection_age_s",
    ),
    "Who may call": ("tls_cert", "tls_key", "tls_client_ca", "tokens_file", "allow_plaintext"),
    "Stopping": ("drain_timeout_s", "drain_pause_s"),
    "Log and tests": ("log_level", "log_format", "allow_failpoints"),
}
"""Title -> settings, in the order of the page."""

DEFAULTS = {
    "models": "those that come with the package",
    "max_message_bytes": "by the models",
    "apart": "what the files say",
    "max_memory_bytes": "80 % of what the container or the machine has, divided by `workers`",
    "tokens_file": "anyone may call",
}
"""Defaults that are no values."""

HEAD = """\
# Settings of `holdfast serve`

Written by `make settings` from `service/settings/schema.py`; `holdfast serve --help` says the same.

A setting is, in this order: what its flag says, else its variable, else the settings file, else its
default. The settings file is TOML, flat, with the names below as keys; `--config FILE` or
`HOLDFAST_CONFIG` names it:

```toml
grpc_address = "127.0.0.1:50051"
workers = 2
store = "redis://store:6379"
store_password_file = "/run/secrets/store"
```

Paths are relative to the folder in which the server is started, wherever they stand. The file is read
once, at start. Secrets belong into files of their own, or into variables: arguments can be seen by other
users.

A flag, a key, or a variable that starts with `HOLDFAST_` and is none of those below refuses the start,
with the nearest name that is one. Excepted are the variables that Kubernetes sets for a Service named
`holdfast…` (`HOLDFAST_SERVICE_HOST`, `HOLDFAST_PORT=tcp://…` and their like) and those of tests
(`HOLDFAST_TEST_…`, `HOLDFAST_FAULTS`, `HOLDFAST_FAILPOINTS`).

What refuses a start is one line on standard error, as in `holdfast serve: --workers 0: expected an
integer from 1 to 256 [set by HOLDFAST_WORKERS]`. The exit code is 2 for settings that are wrong by
themselves, which will not be better next time, and 1 for what is outside: a file, a port, a model, the
store. After a drain it is 0.

The settings are logged at start, passwords in URLs masked. [logs.md](logs.md) is about the log.
"""

_COLUMNS = ("flag", "variable", "key", "values", "default", "what it is")


def reference() -> str:
    """Returns the page.

    Raises:
        ValueError: A setting is in no group, or in several.
    """
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(Settings.model_fields):
        odd = {name for name in {*grouped, *Settings.model_fields} if grouped.count(name) != 1}
        raise ValueError(f"settings have to be in one of GROUPS each, and are not: {sorted(odd)}")
    return HEAD + "".join(line + "\n" for title, names in GROUPS.items() for line in _table(title, names))


def _table(title: str, names: tuple[str, ...]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|---" * len(_COLUMNS) + "|"
    for name in names:
        field = Settings.model_fields[name]
        flag = f"`{flag_of(name)}`"
        if field.annotation is bool:
            flag += f", `--no-{flag_of(name)[2:]}`"
        default = DEFAULTS.get(name) or _shown(field.default)
        cells = (
            flag,
            f"`{variable_of(name)}`",
            f"`{name}`",
            allowed(field),
            default,
            field.description or "",
        )
        yield f"| {' | '.join(map(_escaped, cells))} |"


def _shown(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"`{default:g}`" if isinstance(default, float) and default < 1e6 else f"`{default}`"


def _escaped(cell: str) -> str:
    """Returns a cell in which neither a bar nor an angle bracket is markup."""
    return cell.replace("|", r"\|").replace("<", r"\<")


if __name__ == "__main__":
    sys.stdout.write(reference())

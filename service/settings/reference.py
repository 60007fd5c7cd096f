"""Writes docs/operate/settings.md from the settings: `python -m service.settings.reference > PAGE`."""

import sys
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from service.settings.schema import Settings
from service.settings.sources import allowed, flag_of, variable_of

GROUPS = {
    "Server": (
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
        "max_checkpoints",
        "hot_state_bytes",
        "allow_volatile_store",
        "allow_old_store",
    ),
    "Acknowledgement": ("ack_level", "replicas_required", "ack_timeout_s"),
    "Limits": (
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
    "Access": ("tls_cert", "tls_key", "tls_client_ca", "tokens_file", "allow_plaintext"),
    "Shutdown": ("drain_timeout_s", "drain_pause_s"),
    "Log, traces and tests": ("log_level", "log_format", "traces", "allow_failpoints"),
}
"""Title -> settings, in the order of the page."""

DEFAULTS = {
    "models": "the models of the package",
    "max_message_bytes": "what the models can use",
    "apart": "what the files say",
    "max_memory_bytes": "80 % of the memory of the container or the machine, divided by `workers`",
    "tokens_file": "anyone may call",
}
"""Defaults that are no values."""

HEAD = """\
# Settings of `holdfast serve`

Written by `make settings` from `service/settings/schema.py`; `holdfast serve --help` says the same.

A setting has the value of its flag; without one, that of its variable, then of its key in the settings
file, then its default. The settings file is flat TOML, with the names below as keys. `--config FILE` or
`HOLDFAST_CONFIG` names it:

```toml
grpc_address = "127.0.0.1:50051"
workers = 2
store = "redis://store:6379"
store_password_file = "/run/secrets/store"
```

All paths are relative to the folder in which the server is started. The server reads the file once, at
start. Put secrets into files of their own or into variables, because other users can see arguments.

The server does not start with an unknown flag, key, or variable that starts with `HOLDFAST_`; the message
suggests the nearest known name. Two groups of variables are ignored: those that Kubernetes sets for
a Service named `holdfast…` (`HOLDFAST_SERVICE_HOST`, `HOLDFAST_PORT=tcp://…` and the like), and those of
tests (`HOLDFAST_TEST_…`, `HOLDFAST_FAULTS`, `HOLDFAST_FAILPOINTS`).

If the server does not start, it prints one line on standard error, such as `holdfast serve: --workers 0:
expected an integer from 1 to 256 [set by HOLDFAST_WORKERS]`. The exit code is 2 for invalid settings, a
settings file that is missing among them, which a restart does not help. It is 1 for problems outside:
a file that a setting names, a port, a model or the store. After a drain it is 0.

The settings are logged at start, with the passwords in URLs masked. [logs.md](logs.md) describes the log.
"""

_COLUMNS = ("flag", "variable", "key", "values", "default", "meaning")


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

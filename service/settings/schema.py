"""The settings of a server: one declaration is flag, variable, key of the file, type, default and help.

`settings_sources` reads them, `settings_reference` writes docs/operate/settings.md from them.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.common.listen_address import ListenAddress
from service.common.redaction import mask_url
from service.model.apart import parse_apart
from service.model.providers import CPU, parse_providers
from service.settings.bounds import (
    LEAST_MEMORY_BYTES,
    LONGEST_S,
    LONGEST_TTL_S,
    MOST_BYTES,
    MOST_COUNT,
    MOST_MESSAGE_BYTES,
    MOST_MODEL_BYTES,
    zero_or_from,
)
from service.store.keys import DEFAULT_PREFIX, KeySpace

EMBEDDED = "embedded"

MODEL = "python-source"
"""The shipped one that tools take where none is named."""


def _shipped_models() -> Path:
    """Returns the models that come with the package, or those of the source tree."""
    packaged = Path(__file__).parents[1] / "shipped_models"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "models"


class Settings(BaseSettings):
    """Runs a server. Each setting is a flag, a variable HOLDFAST_... or a key of the settings file."""

    model_config = SettingsConfigDict(
        env_prefix="HOLDFAST_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="holdfast serve",
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    config: Annotated[
        Path | None, Field(description="settings file, TOML; flags and variables override it")
    ] = None
    models: Annotated[Path, Field(description="folder of models, <name>/<version>/model.onnx")] = Field(
        default_factory=_shipped_models
    )
    max_model_bytes: Annotated[
        int, Field(ge=1024, le=MOST_MODEL_BYTES, description="largest model file, bytes")
    ] = 512 << 20
    strict_models: Annotated[
        bool, Field(description="do not start if any model file is refused, instead of only if all are")
    ] = False
    model_refresh_s: Annotated[
        float,
        Field(ge=0, le=LONGEST_S, description="seconds between checks of the models folder; 0 means never"),
    ] = 5.0
    apart: Annotated[
        str,
        Field(
            description="models that run one session or one token at a time, whatever their files say, "
            "as in NAME=rows,tokens;NAME=rows"
        ),
    ] = ""
    providers: Annotated[
        str,
        Field(
            description="execution providers of onnxruntime, by name; the first one that supports a "
            "node runs it. NAME=ROWS limits the sessions of a run"
        ),
    ] = CPU
    store: Annotated[
        str,
        Field(
            repr=False,  # it may hold a password
            description="embedded, redis://HOST:PORT, rediss://HOST:PORT, unix://PATH, "
            "redis+sentinel://HOST:PORT,HOST:PORT/NAME or redis+cluster://HOST:PORT,HOST:PORT",
        ),
    ] = EMBEDDED
    store_password_file: Annotated[
        Path | None, Field(description="file with the password of the store's user")
    ] = None
    key_prefix: Annotated[
        str,
        Field(description="prefix of the store's keys; deployments that share a store need different ones"),
    ] = DEFAULT_PREFIX
    data_dir: Annotated[Path, Field(description="folder of the embedded store")] = Path(
        "~/.local/share/holdfast"
    )
    grpc_address: Annotated[
        str, Field(description="HOST:PORT or unix:/PATH for gRPC; port 0 picks a free one")
    ] = "127.0.0.1:50051"
    http_address: Annotated[
        str, Field(description="HOST:PORT for /metrics, /livez and /readyz; port 0 picks a free one")
    ] = "127.0.0.1:8080"
    workers: Annotated[
        int, Field(ge=1, le=256, description="processes that serve the gRPC port; use one per core")
    ] = 1
    session_ttl_s: Annotated[
        float,
        Field(
            ge=0, le=LONGEST_TTL_S, description="time to live of an idle session, seconds; 0 means for ever"
        ),
    ] = 86_400.0
    max_batch: Annotated[int, Field(ge=1, le=1024, description="largest batch, chunks")] = 64
    max_waiting: Annotated[
        int, Field(ge=1, le=MOST_COUNT, description="most waiting chunks, per worker")
    ] = 8192
    max_waiting_bytes: Annotated[
        int,
        Field(
            ge=1 << 20,
            le=MOST_BYTES,
            description="most bytes of waiting chunks and unwritten replies, per worker",
        ),
    ] = 256 << 20
    max_streams: Annotated[int, Field(ge=1, le=MOST_COUNT, description="most open streams, per worker")] = (
        16_384
    )
    tenant_share: Annotated[
        float,
        Field(ge=0.01, le=1, description="share of these limits that one tenant may use; 1 means all"),
    ] = 0.8
    max_chunk_tokens: Annotated[int, Field(ge=1, le=65536, description="most tokens in a chunk")] = 1024
    max_rows: Annotated[int, Field(ge=1, le=65536, description="most rows in a batch")] = 1024
    max_message_bytes: Annotated[
        int | None,
        Field(
            ge=1024,
            le=MOST_MESSAGE_BYTES,
            description="largest request, bytes; by default what the models can use",
        ),
    ] = None
    max_memory_bytes: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST_BYTES,
            description="resident memory above which calls are refused, per worker, bytes; 0 means no "
            "limit",
        ),
    ] = None
    max_call_s: Annotated[
        float,
        Field(
            ge=0.05,
            le=LONGEST_S,
            description="longest wait of a call without a deadline, and of a chunk of a stream, seconds",
        ),
    ] = 60.0
    max_stall_s: Annotated[
        float,
        Field(
            ge=0.05,
            le=LONGEST_S,
            description="seconds after which a stream is ended whose client reads nothing",
        ),
    ] = 60.0
    keepalive_s: Annotated[
        float,
        Field(
            ge=1, le=LONGEST_S, description="seconds of silence after which a connection must answer a ping"
        ),
    ] = 60.0
    max_connection_age_s: Annotated[
        float,
        Field(
            ge=0,
            le=LONGEST_S,
            description="seconds, within 10 %, after which clients must reconnect; 0 means never",
        ),
    ] = 600.0
    hot_state_bytes: Annotated[
        int,
        Field(
            ge=0,
            le=MOST_BYTES,
            description="memory for the states of recently used sessions, per worker, bytes",
        ),
    ] = 256 << 20
    store_timeout_s: Annotated[
        float, Field(ge=0.05, le=60, description="longest wait for the store, seconds")
    ] = 1.0
    ack_level: Annotated[
        Literal["memory", "fsynced", "replicated", "fsynced+replicated"],
        Field(
            description="acknowledgement level that a commit must reach before its reply leaves, unless "
            "the request names one"
        ),
    ] = "memory"
    replicas_required: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="replicas that must confirm a commit at level `replicated`; 0 disables the level",
        ),
    ] = 0
    ack_timeout_s: Annotated[
        float, Field(ge=0.05, le=60, description="longest wait for an acknowledgement level, seconds")
    ] = 5.0
    drain_timeout_s: Annotated[
        float,
        Field(ge=0, le=LONGEST_S, description="longest wait for chunks in flight on shutdown, seconds"),
    ] = 10.0
    run_timeout_s: Annotated[
        float, Field(ge=0.05, le=3600, description="longest run of a model before it is aborted, seconds")
    ] = 10.0
    quarantine_after: Annotated[
        int,
        Field(
            ge=0,
            le=MOST_COUNT,
            description="failures in a row after which a session is put into quarantine; 0 means never",
        ),
    ] = 3
    max_checkpoints: Annotated[
        int,
        Field(
            ge=1,
            le=MOST_COUNT,
            description="largest number of checkpoints of a session, each as large as the session",
        ),
    ] = 16
    tls_cert: Annotated[
        Path | None, Field(description="certificate chain for gRPC, PEM; read again when the file changes")
    ] = None
    tls_key: Annotated[Path | None, Field(description="private key of --tls-cert, PEM")] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="certificate authorities, PEM; every client must present a certificate of one "
            "of them"
        ),
    ] = None
    tokens_file: Annotated[
        Path | None,
        Field(
            description="credentials and what they allow, TOML; `holdfast token create` makes an entry. "
            "Without it, anyone may call anything"
        ),
    ] = None
    allow_plaintext: Annotated[
        bool, Field(description="serve gRPC without TLS where other machines can reach it")
    ] = False
    drain_pause_s: Annotated[
        float,
        Field(
            ge=0,
            le=LONGEST_S,
            description="part of --drain-timeout-s in which the server still serves but is not ready, "
            "seconds",
        ),
    ] = 0.0
    stuck_worker_s: Annotated[
        float,
        Field(
            ge=0,
            le=LONGEST_S,
            description="seconds after which a worker whose event loop is stuck is replaced; 0 means never",
        ),
    ] = 15.0
    allow_volatile_store: Annotated[bool, Field(description="use a store that may lose sessions")] = False
    allow_old_store: Annotated[
        bool, Field(description="trust a store whose version has, or may have, known vulnerabilities")
    ] = False
    allow_failpoints: Annotated[
        bool, Field(description="for tests: obey HOLDFAST_FAILPOINTS, which injects faults on purpose")
    ] = False
    reflection: Annotated[bool, Field(description="serve gRPC reflection")] = True
    traces: Annotated[
        str | None,
        Field(description="URL of the OTLP/HTTP collector that gets a span of every call; by default none"),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="lowest level that is logged; SIGUSR1 sets debug, SIGUSR2 this level again"),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"],
        Field(description="format of a log line; auto means text on a terminal and json elsewhere"),
    ] = "auto"

    @property
    def trusts_store_version(self) -> bool:
        """Whether any version of the store will do: also the embedded one's, which only we can reach."""
        return self.allow_old_store or self.store == EMBEDDED

    def redacted(self) -> str:
        """Returns all settings in one line that may be printed."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        urls = {
            name for name, value in values.items() if isinstance(value, str) and re.search("://|@", value)
        }
        return " ".join(
            f"{name}={mask_url(value) if name in urls else value}"
            for name, value in values.items()
            if value is not None
        )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.drain_pause_s > self.drain_timeout_s:
            raise ValueError("--drain-pause-s is longer than --drain-timeout-s, of which it is a part")
        for flag, bound in (("--max-waiting", self.max_waiting), ("--max-streams", self.max_streams)):
            if bound * self.tenant_share < 1:
                raise ValueError(
                    f"{flag} {bound}: --tenant-share {self.tenant_share:g} of it is less than one, so "
                    "no tenant would be served; raise one of them"
                )
        if "replicated" in self.ack_level and not self.replicas_required:
            raise ValueError(
                f"--ack-level {self.ack_level}: level replicated needs --replicas-required N, N >= 1"
            )
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object, info: ValidationInfo) -> object:
        """Refuses what is no text or nothing, and takes off the end of a line that a CRLF file left."""
        if not isinstance(value, str) or value == cls.model_fields[str(info.field_name)].default:
            return value
        value = value.rstrip("\r\n")
        if not value:
            raise ValueError("expected a value, not an empty text; leave it out for the default")
        if "\0" in value or not _is_utf8(value):
            raise ValueError("expected UTF-8 text without NUL")
        return value

    @field_validator("max_connection_age_s", "stuck_worker_s")
    @classmethod
    def _is_long(cls, value: float) -> float:
        return zero_or_from(1, value, LONGEST_S)

    @field_validator("session_ttl_s")
    @classmethod
    def _lives(cls, value: float) -> float:
        return zero_or_from(1, value, LONGEST_TTL_S)

    @field_validator("model_refresh_s")
    @classmethod
    def _is_no_spin(cls, value: float) -> float:
        return zero_or_from(0.05, value, LONGEST_S)

    @field_validator("max_memory_bytes")
    @classmethod
    def _has_room(cls, value: int | None) -> int | None:
        return None if value is None else int(zero_or_from(LEAST_MEMORY_BYTES, value, MOST_BYTES))

    @field_validator("key_prefix")
    @classmethod
    def _names_keys(cls, value: str) -> str:
        KeySpace(value)
        return value

    @field_validator("apart")
    @classmethod
    def _names_models(cls, value: str) -> str:
        parse_apart(value)
        return value

    @field_validator("providers")
    @classmethod
    def _names_providers(cls, value: str) -> str:
        parse_providers(value)
        return value

    @field_validator("grpc_address", "http_address")
    @classmethod
    def _can_be_listened_on(cls, value: str) -> str:
        ListenAddress.parse(value)
        return value

    @field_validator("http_address")
    @classmethod
    def _has_port(cls, value: str) -> str:
        if ListenAddress.parse(value).socket_path:
            raise ValueError("expected HOST:PORT or [IPV6]:PORT; only gRPC listens on a socket in a folder")
        return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

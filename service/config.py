"""The settings of a server: one declaration is flag, HOLDFAST_* variable, type, default and help."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

EMBEDDED = "embedded"


def _shipped_models() -> Path:
    """Returns the models that come with the package, or those of the source tree."""
    packaged = Path(__file__).parent / "shipped_models"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "models"


class Settings(BaseSettings):
    """All settings. Frozen; unknown names are refused."""

    model_config = SettingsConfigDict(
        env_prefix="HOLDFAST_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="holdfast serve",
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    models: Annotated[Path, Field(description="folder of models, <name>/<version>/model.onnx")] = Field(
        default_factory=_shipped_models
    )
    store: Annotated[
        str, Field(description="embedded, redis://HOST:PORT, rediss://HOST:PORT or unix://PATH")
    ] = EMBEDDED
    data_dir: Annotated[Path, Field(description="folder of the embedded store")] = Path(
        "~/.local/share/holdfast"
    )
    grpc_address: Annotated[str, Field(description="HOST:PORT of gRPC; port 0 takes a free one")] = (
        "127.0.0.1:50051"
    )
    http_address: Annotated[
        str, Field(description="HOST:PORT of /metrics, /livez and /readyz; port 0 takes a free one")
    ] = "127.0.0.1:8080"
    workers: Annotated[
        int, Field(ge=1, le=256, description="processes that serve the gRPC port; one per core is right")
    ] = 1
    session_ttl_s: Annotated[
        float, Field(ge=0, description="seconds an idle session lives; 0 is for ever")
    ] = 86_400.0
    max_batch: Annotated[int, Field(ge=1, le=1024, description="most chunks run together")] = 64
    max_waiting: Annotated[int, Field(ge=1, description="most chunks waiting, per worker")] = 8192
    max_chunk_tokens: Annotated[int, Field(ge=1, le=65536, description="most tokens in a chunk")] = 1024
    max_message_bytes: Annotated[int, Field(ge=1024, description="largest request, bytes")] = 1 << 20
    hot_state_bytes: Annotated[
        int, Field(ge=0, description="bytes of state kept in memory, per worker")
    ] = 256 << 20
    store_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="longest wait for the store, seconds")
    ] = 1.0
    ack_level: Annotated[
        Literal["memory", "fsynced", "replicated", "fsynced+replicated"],
        Field(
            description="how durable a commit is before its reply leaves, where a request asks for no level"
        ),
    ] = "memory"
    replicas_required: Annotated[
        int,
        Field(ge=0, le=100, description="replicas that make a commit `replicated`; 0 offers no such level"),
    ] = 0
    ack_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="longest wait for an acknowledgement level, seconds")
    ] = 5.0
    drain_timeout_s: Annotated[
        float, Field(ge=0, description="longest wait for chunks under way when stopping, seconds")
    ] = 10.0
    run_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="longest run of a model before it is ended, seconds")
    ] = 10.0
    quarantine_after: Annotated[
        int, Field(ge=0, description="failures in a row that put a session into quarantine; 0 is never")
    ] = 3
    allow_volatile_store: Annotated[bool, Field(description="serve on a store that may lose sessions")] = (
        False
    )
    allow_failpoints: Annotated[
        bool, Field(description="for tests: obey HOLDFAST_FAILPOINTS, which breaks the server on purpose")
    ] = False
    reflection: Annotated[bool, Field(description="serve gRPC reflection")] = True

    @field_validator("grpc_address", "http_address")
    @classmethod
    def _has_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not (colon and host and port.isdecimal() and int(port) < 65536):
            raise ValueError("expected HOST:PORT")
        return value

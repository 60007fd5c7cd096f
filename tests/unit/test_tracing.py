"""Tracing without its library: off, it is not needed; on, the server says what to install."""

import sys

import pytest

from service.common.start_errors import StartError
from service.telemetry.opening import open_tracing


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "service.telemetry.tracing", raising=False)


def test_without_a_url_the_library_is_not_looked_for(without_library):
    assert open_tracing(None) is None


def test_without_the_library_the_server_says_what_to_install(without_library):
    with pytest.raises(
        StartError, match=r"--traces needs opentelemetry: pip install 'holdfast\[server,otel\]'"
    ):
        open_tracing("http://localhost:4318/v1/traces")


async def test_a_call_that_is_not_sampled_has_no_span(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing = open_tracing("http://127.0.0.1:9/v1/traces")
    assert tracing.begin("Step", ()) is None
    await tracing.close()

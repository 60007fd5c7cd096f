"""What is loopback, and what may be printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.common.listen_address import ListenAddress
from service.common.redaction import mask_url
from service.common.start_errors import StartError
from service.settings.exposure import check_edge
from service.settings.schema import Settings

SECRETS = st.text(
    st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="*"), min_size=8
)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "[::1%lo]", "[::ffff:127.0.0.1]"]
)
def test_loopback(host):
    assert ListenAddress.parse(f"{host}:50051").is_loopback
    check_edge(Settings(grpc_address=f"{host}:50051"))


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "[::]", "10.0.0.1", "[::ffff:10.0.0.1]", "localhost.example", "127.0.0.1.example", "*"],
)
def test_beyond_loopback(host):
    assert not ListenAddress.parse(f"{host}:50051").is_loopback
    with pytest.raises(StartError, match="--allow-plaintext"):
        check_edge(Settings(grpc_address=f"{host}:50051"))
    check_edge(Settings(grpc_address=f"{host}:50051", allow_plaintext=True))


def test_metrics_and_probes_may_be_reached_from_other_machines():
    check_edge(Settings(http_address="0.0.0.0:8080"))


URLS = {
    "redis://localhost:6379/0": "redis://localhost:6379/0",
    "redis://:geheim@localhost": "redis://:***@localhost",
    "rediss://user:geheim@h:1/2": "rediss://user:***@h:1/2",
    "unix://user:geheim@/run/store.sock?db=1": "unix://user:***@/run/store.sock?***",
    "unix:///run/store.sock": "unix:///run/store.sock",
    "redis://h?password=geheim&db=1": "redis://h?***",
    "redis+sentinel://:geheim@h1:26379,h2:26379/name": "redis+sentinel://:***@h1:26379,h2:26379/name",
    "redis://:gehe@im@h": "***",
    "redis://:gehe/im@h": "***",
    "redis://h?password=gehe@im": "***",
    ":geheim@h": "***",
    "embedded": "***",
}


@pytest.mark.parametrize(("url", "masked"), URLS.items())
def test_a_url_is_printed_without_its_secrets(url, masked):
    assert mask_url(url) == masked


@given(SECRETS)
def test_no_password_is_printed_whatever_it_is(secret):
    for url in (
        f"redis://:{secret}@store:6379/0",
        f"redis://user:{secret}@store:6379/0",
        f"unix:///run/store.sock?password={secret}",
        f"redis://store/0?db=1&password={secret}",
    ):
        assert secret not in mask_url(url)


def test_settings_are_printed_without_secrets():
    line = Settings(store="redis://user:geheim@store:6379", tls_key="/k.pem").redacted()
    assert "geheim" not in line
    assert "\n" not in line
    assert "store=redis://user:***@store:6379 " in line
    assert "tls_key=/k.pem" in line
    assert "workers=1" in line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"allow_plaintext": True, "tokens_file": "t.toml"}, ["tokens come to 0.0.0.0:1 in plain text"]),
        ({"tls_cert": "c", "tls_key": "k"}, ["whoever reaches 0.0.0.0:1 may use every session"]),
        ({"tls_cert": "c", "tls_key": "k", "tokens_file": "t.toml"}, []),
        ({"tls_cert": "c", "tls_key": "k", "tls_client_ca": "a"}, []),
    ],
)
def test_what_is_allowed_and_risky_is_said(caplog, settings, said):
    check_edge(Settings(grpc_address="0.0.0.0:1", **settings))
    assert len(caplog.messages) == len(said)
    assert all(line in message for line, message in zip(said, caplog.messages, strict=True))

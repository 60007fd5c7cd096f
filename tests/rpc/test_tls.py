"""TLS and mutual TLS over real sockets, with files that are replaced while the server runs."""

import os
import socket
import ssl

import pytest

import holdfast
from holdfast import Tls
from holdfast.errors import ServerUnavailable
from tests.rpc.conftest import MODEL
from tests.support.certificates import Authority, replace
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def client(server, tls, **options):
    return holdfast.Client(server.address, tls=tls, **{"timeout_s": 10, **options})


def first_position(server, tls):
    with client(server, tls) as given:
        return given.open_session(model=MODEL).step("x").position


def served_certificate(server):
    """Returns the certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True)


def first_of(chain):
    return ssl.PEM_cert_to_DER_cert(
        chain.decode().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----"
    )


def is_refused(server, tls):
    with pytest.raises(ServerUnavailable), client(server, tls, timeout_s=1) as given:
        given.list_models()
    return True


def test_only_clients_that_trust_its_authority_speak_with_a_server(tmp_path, authority):
    other = Authority(tmp_path, "other")
    with ServerProcess(tmp_path / "data", *authority.server()) as server:
        assert first_position(server, Tls(ca=authority.path)) == 1
        assert is_refused(server, Tls(ca=other.path))
        assert is_refused(server, False)


def test_strangers_write_nothing_into_the_log(tmp_path, authority):
    with ServerProcess(tmp_path / "data", *authority.server()) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while stranger.recv(1 << 16):
                pass
        assert is_refused(server, Tls(ca=Authority(tmp_path, "other").path))
    assert all(line.startswith("{") for line in server.log_path.read_text().splitlines())


def test_mutual_tls_takes_clients_of_its_authority_only(tmp_path, authority):
    other = Authority(tmp_path, "other")
    flags = [*authority.server(), "--tls-client-ca", str(authority.path)]
    stranger = other.client("client.example")
    with ServerProcess(tmp_path / "data", *flags) as server:
        assert first_position(server, authority.client("client.example")) == 1
        assert is_refused(server, Tls(ca=authority.path))
        assert is_refused(server, Tls(authority.path, stranger.cert, stranger.key))


def test_another_authority_of_clients_counts_without_a_restart(tmp_path, authority):
    other = Authority(tmp_path, "other")
    trusted = tmp_path / "clients.pem"
    replace(trusted, authority.path.read_bytes())
    ours, theirs = authority.client("client.example"), other.client("client.example")
    theirs = Tls(authority.path, theirs.cert, theirs.key)
    with ServerProcess(tmp_path / "data", *authority.server(), "--tls-client-ca", str(trusted)) as server:
        assert is_refused(server, theirs)
        replace(trusted, other.path.read_bytes())
        wait_for(lambda: "was replaced" in server.log_path.read_text())
        assert first_position(server, theirs) == 1
        assert is_refused(server, ours)


def switch_link(folder, target):
    """Points ..data to another folder, as Kubernetes does."""
    fresh = folder / "..data_new"
    fresh.symlink_to(target)
    os.replace(fresh, folder / "..data")


@pytest.mark.parametrize("workers", [1, 2])
def test_files_switched_by_a_link_are_used_for_new_connections(tmp_path, authority, workers):
    folder = tmp_path / "mounted"
    for version in ("v1", "v2"):
        (folder / version).mkdir(parents=True)
        authority.server(folder / version)
    switch_link(folder, "v1")
    flags = []
    for name in ("crt", "key"):
        (folder / f"tls.{name}").symlink_to(f"..data/tls.{name}")
        flags += [f"--tls-{'cert' if name == 'crt' else name}", str(folder / f"tls.{name}")]
    old, new = (first_of((folder / version / "tls.crt").read_bytes()) for version in ("v1", "v2"))
    with ServerProcess(tmp_path / "data", *flags, "--workers", str(workers)) as server:
        assert served_certificate(server) == old
        with client(server, Tls(ca=authority.path)) as given:
            session = given.open_session(model=MODEL)
            switch_link(folder, "v2")
            wait_for(lambda: server.log_path.read_text().count("was replaced") == workers)
            assert {served_certificate(server) for _ in range(10)} == {new}
            assert session.step("x").position == 1, "a connection outlives the certificate it began with"


def test_a_broken_replacement_is_told_once_and_the_old_one_stays(tmp_path, authority):
    flags = authority.server()
    old, old_key = (tmp_path / "tls.crt").read_bytes(), (tmp_path / "tls.key").read_bytes()
    new, new_key = authority.issue("localhost")
    broken = "new connections go on with the files before"
    with ServerProcess(tmp_path / "data", *flags) as server:
        said = server.log_path.read_text
        replace(tmp_path / "tls.crt", new)  # without its key
        wait_for(lambda: said().count(broken) == 1)
        assert served_certificate(server) == first_of(old)
        (tmp_path / "tls.key").unlink()
        wait_for(lambda: said().count(broken) == 2)
        assert served_certificate(server) == first_of(old)
        replace(tmp_path / "tls.key", b"nonsense")
        wait_for(lambda: said().count(broken) == 3)
        assert served_certificate(server) == first_of(old)
        replace(tmp_path / "tls.key", new_key)
        wait_for(lambda: "was replaced" in said())
        assert served_certificate(server) == first_of(new)
        assert said().count(broken) == 3, "each trouble once"
        for key in (old_key, new_key):
            assert key.splitlines()[1].decode() not in said()


REFUSED = {
    "plain text beyond loopback": (["--grpc-address", "0.0.0.0:0"], "--grpc-address", 2),
    "plain text beyond loopback, IPv6": (["--grpc-address", "[::]:0"], "--allow-plaintext", 2),
    "plain text at a name": (["--grpc-address", "scores.example:0"], "--grpc-address", 2),
    "plain text from workers": (["--grpc-address", "0.0.0.0:0", "--workers", "2"], "--grpc-address", 2),
    "no key": (["--tls-cert", "x.pem"], "--tls-key", 2),
    "no certificate": (["--tls-key", "x.pem"], "--tls-cert", 2),
    "clients' authority alone": (["--tls-client-ca", "x.pem"], "--tls-client-ca", 2),
    "no such file": (["--tls-cert", "x.pem", "--tls-key", "x.pem"], "x.pem: no such file", 1),
    "no such tokens file": (
        ["--tokens-file", "x.toml"],
        "--tokens-file x.toml: no such file or directory; name a TOML file",
        1,
    ),
}


@pytest.mark.parametrize(("flags", "said", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_server_that_would_be_open_or_cannot_be_closed_does_not_start(
    tmp_path, flags, said, code, starts
):
    result = starts.call("serve", *flags, "--data-dir", tmp_path, "--http-address", "127.0.0.1:0")
    assert result.code == code
    last = result.err.splitlines()[-1]
    assert last.startswith("holdfast serve: ")
    assert said in last


def test_plain_text_is_served_everywhere_to_those_who_ask_for_it(tmp_path):
    with ServerProcess(tmp_path / "data", "--allow-plaintext", grpc_address="0.0.0.0:0") as server:
        port = server.address.rpartition(":")[2]
        with holdfast.Client(f"127.0.0.1:{port}") as given:
            assert given.list_models()
        assert "whoever reaches 0.0.0.0:0 may use every session" in server.log_path.read_text()


def test_a_client_with_half_a_certificate_is_told(authority):
    with pytest.raises(ValueError, match="belong together"):
        Tls(cert=authority.path)

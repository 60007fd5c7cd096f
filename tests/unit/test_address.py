"""What the URL of a store says, and that its secrets are shown nowhere."""

from pathlib import Path

import pytest

from service.store.address import parse_url
from tests.support.stores import write_certificates

SECRET = "s3cret"


def test_a_single_server():
    target = parse_url("redis://h%40x:p%3Ay@db.example:7000/3")
    [address] = target.addresses
    assert (target.topology, address.host, address.port, address.database) == (
        "single",
        "db.example",
        7000,
        3,
    )
    assert (address.username, address.password, address.tls) == ("h@x", "p:y", None)
    assert address.greeting() == [("AUTH", "h@x", "p:y"), ("SELECT", 3), ("PING",)]


def test_defaults():
    [address] = parse_url("redis://db").addresses
    assert (address.port, address.database, address.username, address.password) == (6379, 0, None, None)
    assert address.greeting() == [("PING",)]
    [address] = parse_url("redis://:only@[::1]").addresses
    assert (address.host, str(address)) == ("::1", "redis://[::1]:6379/0")
    assert address.greeting() == [("AUTH", "only"), ("PING",)]


def test_a_socket():
    [address] = parse_url("unix://u:p@/run/store.sock?db=2").addresses
    assert (address.socket_path, address.database, address.password) == (Path("/run/store.sock"), 2, "p")


def test_tls(tmp_path):
    [address] = parse_url("rediss://db").addresses
    assert address.tls.check_hostname
    assert address.tls.get_ca_certs()
    write_certificates(tmp_path)
    options = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/client.pem&ssl_check_hostname=no"
    [address] = parse_url(f"rediss://db?{options}").addresses
    assert not address.tls.check_hostname
    assert len(address.tls.get_ca_certs()) == 1


def test_sentinels():
    target = parse_url("redis+sentinel://u:p@a:1,b,[::1]:3/my%2Dmaster?sentinel_password=q&db=4")
    assert [(one.host, one.port) for one in target.addresses] == [("a", 1), ("b", 26379), ("::1", 3)]
    assert (target.topology, target.group) == ("sentinel", "my-master")
    assert target.addresses[0].greeting() == [("AUTH", "q"), ("PING",)]
    assert target.primary.at("x", 9).greeting() == [("AUTH", "u", "p"), ("SELECT", 4), ("PING",)]
    assert parse_url("rediss+sentinel://a/m").addresses[0].tls is not None


def test_a_cluster():
    target = parse_url("redis+cluster://u:p@a:1,b")
    assert [(one.host, one.port) for one in target.addresses] == [("a", 1), ("b", 6379)]
    assert target.topology == "cluster"


def test_a_password_file_is_read_at_each_greeting(tmp_path):
    file = tmp_path / "password"
    file.write_text("one\n")
    [address] = parse_url("redis://u@db", password_file=file).addresses
    assert address.greeting()[0] == ("AUTH", "u", "one")
    file.write_text("two")
    assert address.greeting()[0] == ("AUTH", "u", "two")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://u:s3cret@db", "scheme"),
        ("redis://u:s3cret@db:port", "HOST:PORT"),
        ("redis://u:s3cret@db/x", "database"),
        ("redis://u:s3cret@db?ssl_ca_certs=x", "'ssl_ca_certs' is not known"),
        ("redis://u:s3cret@a,b", "several servers"),
        ("redis://u:s3cret@", "HOST"),
        ("unix://", "path is missing"),
        ("redis+sentinel://u:s3cret@a,b", "name of the primary"),
        ("redis+sentinel://u:s3cret@a/m?sentinel_pass=s3cret", "'sentinel_pass' is not known"),
        ("redis+cluster://u:s3cret@a/1", "one database"),
        ("rediss://u:s3cret@db?ssl_ca_certs=/missing", "cannot be used"),
        ("rediss://u:s3cret@db?ssl_check_hostname=maybe", "ssl_check_hostname"),
    ],
)
def test_what_cannot_be_read_is_refused_without_showing_it(url, words):
    with pytest.raises(ValueError, match=words) as raised:
        parse_url(url)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_password_has_one_place(tmp_path):
    with pytest.raises(ValueError, match="only one"):
        parse_url("redis://u:s3cret@db", password_file=tmp_path / "file")


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:s3cret@db",
        "unix://u:s3cret@/run/s",
        "redis+sentinel://u:s3cret@a,b/m?sentinel_password=s3cret",
        "rediss+cluster://u:s3cret@a,b",
    ],
)
def test_no_secret_is_shown(url):
    target = parse_url(url)
    for shown in (str(target), repr(target), *map(str, target.addresses), *map(repr, target.addresses)):
        assert SECRET not in shown
    assert str(parse_url("rediss+sentinel://u:p@a:1,b/m")) == "rediss+sentinel://a:1,b:26379/m"

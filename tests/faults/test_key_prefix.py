"""Two deployments on one database of one store, each with a key prefix and a user of its own."""

import contextlib

import pytest
import redis

import holdfast
from service.store.acl import store_rule
from tests.support.opening import MODEL
from tests.support.server import ServerProcess
from tests.support.stores import StoreProcess

pytestmark = pytest.mark.faults

PREFIXES = ("holdfast", "team-b")


@contextlib.contextmanager
def shared(kind, folder):
    with StoreProcess(kind, folder, "--appendfsync", "always") as store:
        for prefix in PREFIXES:
            rule = store_rule(prefix, password="p", fsynced=kind == "valkey", key_prefix=prefix)
            store.call(*rule.split())
        yield store


@pytest.fixture
def store(tmp_path):
    with shared("valkey", tmp_path / "store") as store:
        yield store


def test_they_do_not_meet(store, tmp_path):
    flags = ["--ack-level", "fsynced"]  # which writes a marker
    with contextlib.ExitStack() as running:
        one, other = (
            running.enter_context(
                ServerProcess(
                    tmp_path / prefix,
                    "--store",
                    f"redis://{prefix}:p@127.0.0.1:{store.port}",
                    "--key-prefix",
                    prefix,
                    "--workers",
                    workers,
                    *flags,
                )
            )
            for prefix, workers in zip(PREFIXES, ("1", "2"), strict=True)
        )
        ours, theirs = (
            running.enter_context(holdfast.Client(server.address)).open_session("s", model=MODEL)
            for server in (one, other)
        )
        assert ours.step("import").position == 6
        assert theirs.step("a").position == 1
        ours.close()
        assert theirs.step("b").position == 2
    keys = {key.partition(b":")[0] for key in store.call("KEYS", "*")}
    assert keys == {prefix.encode() for prefix in PREFIXES}
    assert "its keys team-b:v1:*" in (tmp_path / "team-b" / "server.log").read_text()


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_neither_user_reaches_the_keys_of_the_other(kind, tmp_path):
    with shared(kind, tmp_path) as store:
        for user, other in (PREFIXES, PREFIXES[::-1]):
            refuse_keys_of(store, user, f"{other}:v1:{{default:s}}")
            with store.client(username=user, password="p") as client:
                assert client.get(f"{user}:v1:{{default:s}}") is None


def refuse_keys_of(store, user, key):
    script = "return redis.call('GET', KEYS[1])"
    with store.client(username=user, password="p") as client:
        for command in (("GET", key), ("SET", key, "x"), ("EVAL", script, 1, key), ("RENAME", key, "x")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)

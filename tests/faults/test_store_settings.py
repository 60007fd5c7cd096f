"""What an operator does to a store, or its disk does, while a server runs on it."""

import asyncio
import resource

import pytest

from service.app import Server
from service.settings.schema import Settings
from service.telemetry.metrics import Metrics
from tests.faults.test_store import health, step
from tests.support.command_line import call
from tests.support.opening import open_at
from tests.support.server import ServerProcess, get, value
from tests.support.stores import StoreProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults


@pytest.fixture
def store(tmp_path):
    with StoreProcess("valkey", tmp_path / "store", restore_signals=False) as store:
        yield store


def is_ready(server):
    return get(server, "/readyz")[0] == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_an_eviction_policy_that_is_changed(store, tmp_path, workers):
    with ServerProcess(tmp_path / "data", "--store", store.url, "--workers", str(workers)) as server:
        open_at(server.address, "s")
        assert step(server.address, "s", b"a", 0).position == 1
        assert "holdfast_store_safe 1.0" in get(server, "/metrics")[1]
        store.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        wait_for(lambda: not is_ready(server))
        said = get(server, "/readyz")[1]
        assert ("maxmemory-policy noeviction" if workers == 1 else "may lose sessions") in said
        wait_for(lambda: health(server.address) == "NOT_SERVING")
        wait_for(lambda: "holdfast_store_safe 0.0" in get(server, "/metrics")[1])
        assert step(server.address, "s", b"b", 1).position == 2, "who is there already is served"
        assert get(server, "/livez")[0] == 200
        store.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        wait_for(lambda: is_ready(server) and health(server.address) == "SERVING")
    log = (tmp_path / "data" / "server.log").read_text()
    assert "maxmemory-policy noeviction" in log
    assert "append-only file, appendfsync everysec" in log


def test_a_disk_that_is_full_until_there_is_room(store, tmp_path):
    """The append-only file may not grow, as on a full disk."""
    _, hard = resource.prlimit(store.pid, resource.RLIMIT_FSIZE)
    with ServerProcess(tmp_path / "data", "--store", store.url) as server:
        open_at(server.address, "s")
        step(server.address, "s", b"abc", 0)
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (500, hard))
        position = 3
        while hasattr(outcome := step(server.address, "s", b"x", position), "position"):
            position += 1
        assert outcome.reason == "STORE_UNAVAILABLE"
        assert "MISCONF" in str(outcome)
        assert outcome.retry_after_s > 0
        wait_for(lambda: not is_ready(server))
        assert "MISCONF" in get(server, "/readyz")[1]
        wait_for(lambda: "append-only file fails" in get(server, "/readyz")[1])
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (hard, hard))
        wait_for(lambda: is_ready(server))
        assert step(server.address, "s", b"x", position).position == position + 1


def test_a_store_that_is_full_until_there_is_memory(store, tmp_path):
    with ServerProcess(tmp_path / "data", "--store", store.url) as server:
        open_at(server.address, "s", "new")
        first = step(server.address, "s", b"abc", 0)
        store.call("CONFIG", "SET", "maxmemory", "1")
        error = step(server.address, "s", b"d", 3)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "STORE_FULL")
        assert step(server.address, "new", b"a", 0).reason == "STORE_FULL"
        again = step(server.address, "s", b"abc", 0)
        assert (again.replayed, again.outputs) == (True, first.outputs)
        store.call("CONFIG", "SET", "maxmemory", "0")
        assert step(server.address, "s", b"d", 3).position == 4
        assert step(server.address, "new", b"a", 0).position == 1


async def test_a_silent_store_does_not_stop_the_heart(store):
    settings = Settings(grpc_address="127.0.0.1:0", store_timeout_s=8.0)
    metrics = Metrics()
    server = Server(settings, metrics)
    await server.start(store.url)
    try:
        store.pause()
        ping = asyncio.create_task(server._store.ping())
        beats = set()
        while len(beats) < 5 and not ping.done():
            beats.add(metrics._beat_s[0])
            await asyncio.sleep(0.05)
        assert not ping.done()
    finally:
        store.resume()
        await ping
        await server.stop()


@pytest.mark.parametrize("flags", [(), ("--allow-old-store",)])
def test_the_redis_of_a_distribution_is_served_on_and_told(flags, tmp_path):
    with StoreProcess("redis", tmp_path / "store") as store:
        if not store.info()["redis_version"].startswith("7.0."):
            pytest.skip("the Redis here is none of Debian's or Ubuntu's")
        with ServerProcess(tmp_path / "data", "--store", store.url, *flags) as server:
            open_at(server.address, "s")
            is_told = not flags
            assert value(server, "holdfast_store_version_suspect") == is_told
            assert get(server, "/readyz")[0] == 200
        log = (tmp_path / "data" / "server.log").read_text()
        assert log.count("apt changelog redis-server") == is_told


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:s3cret@127.0.0.1:1",
        "redis://u:s3cret@127.0.0.1:x",
        "redis+sentinel://u:s3cret@127.0.0.1:1/m?sentinel_password=s3cret",
        "redis+cluster://u:s3cret@127.0.0.1:1",
    ],
)
def test_no_secret_is_printed_when_it_cannot_start(url, monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_STORE", url)
    with pytest.raises(RuntimeError, match="holdfast serve:") as raised:
        ServerProcess(tmp_path / "data")
    assert "s3cret" not in str(raised.value)
    assert "s3cret" not in (tmp_path / "data" / "server.log").read_text()


def test_the_rule_of_the_stores_user_is_printed(tmp_path):
    (tmp_path / "password").write_text("s3cret\n")

    def rule(*flags):
        done = call("store", "acl", *flags)
        return done.code, done.out.strip(), done.err

    code, text, said = rule("--user", "h", "--password-file", str(tmp_path / "password"))
    assert (code, said) == (0, "")
    assert "s3cret" not in text
    assert "-@all" in text
    with StoreProcess("valkey", tmp_path / "store") as store:
        store.call(*text.split())
        assert store.call("AUTH", "h", "s3cret") in (b"OK", True)
        for command in (
            "FLUSHALL",
            "KEYS",
            "CONFIG|GET",
            "ACL|LIST",
            "DEBUG",
            "SCRIPT|FLUSH",
            "DEL",
        ):
            assert f"+{command.lower()}" not in text.split()
        assert store.call("ACL", "DRYRUN", "h", "GET", "holdfast:v1:{t:s}") == b"OK"
        for command in (
            ("GET", "other"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("SHUTDOWN",),
        ):
            assert store.call("ACL", "DRYRUN", "h", *command) != b"OK"
    assert "add >PASSWORD" in rule()[2]
    assert "+waitaof" in rule("--fsynced")[1]
    assert "sentinel|master" in rule("--sentinel")[1]
    assert rule("--password-file", str(tmp_path / "missing"))[0] == 2

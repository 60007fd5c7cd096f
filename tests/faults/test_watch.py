"""Watches while servers and stores die, over every kind of store, and where it grants no channels."""

import asyncio
import contextlib

import pytest

import holdfast
from holdfast.errors import StoreUnavailable
from service.store.keys import session_key
from tests.faults.test_sentinel import cut_off, promoted
from tests.support.server import ServerProcess, get
from tests.support.stores import USER, StoreProcess, deploy, deploy_sentinel, free_port
from tests.support.waiting import wait_for
from tests.support.watcher import Watcher

pytestmark = pytest.mark.faults

MODEL = "python-source"
EVERY = {"max_rate_hz": 1000}
KEY = session_key("default", "s")
OLD = "--allow-old-store"


@pytest.fixture
def store(tmp_path):
    with StoreProcess("valkey", tmp_path / "store") as store:
        yield store


@contextlib.asynccontextmanager
async def client_of(*servers, **options):
    async with holdfast.AsyncClient([server.address for server in servers], **options) as client:
        yield client


async def steps(session, count):
    for _ in range(count):
        position = (await session.step("x")).position
    return position


@pytest.mark.parametrize("topology", ["unix", "tls", "acl", "sentinel", "cluster"])
async def test_over_every_kind_of_store(tmp_path, topology):
    with (
        deploy("redis" if topology == "tls" else "valkey", topology, tmp_path / "store") as store,
        ServerProcess(tmp_path / "a", "--store", store.url, OLD) as one,
        ServerProcess(tmp_path / "b", "--store", store.url, OLD) as other,
    ):
        async with client_of(one) as here, client_of(other) as there:
            for name in ("first", "second", "third"):
                session = await there.open_session(name, model=MODEL)
                async with Watcher(here, name, **EVERY, state=True) as watcher:
                    for text in ("ab", "c"):
                        reply = await session.step(text, state=True)
                        chunk = await watcher.at(reply.position)
                        assert chunk.tokens == text.encode()
                        assert chunk.state.keys() == reply.state.keys()
                    await session.delete()
                    await watcher.end()
                assert watcher.shown[-1].ended
                watcher.check_sums()
        assert "cannot be watched" not in (tmp_path / "a" / "server.log").read_text()


async def test_a_server_with_watches_is_killed_and_what_was_missed_is_counted(store, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    with (
        ServerProcess(tmp_path / "a", "--store", store.url, OLD, grpc_address=address) as one,
        ServerProcess(tmp_path / "b", "--store", store.url, OLD) as other,
    ):
        async with client_of(one) as here, client_of(other) as there:
            session = await there.open_session("s", model=MODEL)
            async with Watcher(here, "s", **EVERY) as watcher:
                await watcher.at(await steps(session, 1))
                one.kill()
                await steps(session, 7)
                with ServerProcess(tmp_path / "a", "--store", store.url, OLD, grpc_address=address):
                    missed = await watcher.at(8)
                    assert (missed.tokens, missed.skipped_tokens) == (None, 7)
                    await watcher.at(await steps(session, 1))
    watcher.check_sums()


async def test_the_replica_that_commits_is_killed_and_the_next_one_is_seen(store, tmp_path):
    with (
        ServerProcess(tmp_path / "a", "--store", store.url, OLD) as one,
        ServerProcess(tmp_path / "b", "--store", store.url, OLD) as other,
        ServerProcess(tmp_path / "c", "--store", store.url, OLD) as third,
    ):
        async with client_of(one) as here, client_of(other) as first, client_of(third) as next_:
            session = await first.open_session("s", model=MODEL)
            async with Watcher(here, "s", **EVERY) as watcher:
                for _ in range(2):
                    await watcher.at(await steps(session, 1))
                other.kill()
                session = await next_.open_session("s")
                for _ in range(2):
                    await watcher.at(await steps(session, 1))
    assert watcher.positions == [0, 1, 2, 3, 4]
    replicas = [chunk.replica for chunk in watcher.shown]
    assert replicas[1] == replicas[2] != replicas[3] == replicas[4]


async def test_the_store_is_killed_and_started_again(store, tmp_path):
    with (
        ServerProcess(tmp_path / "a", "--store", store.url, OLD) as one,
        ServerProcess(tmp_path / "b", "--store", store.url, OLD) as other,
    ):
        async with client_of(one) as here, client_of(other) as there:
            session = await there.open_session("s", model=MODEL)
            async with Watcher(here, "s", **EVERY) as watcher:
                await watcher.at(await steps(session, 2))
                store.kill()
                await asyncio.to_thread(store.start)
                await watcher.at(await steps(session, 3))
                await watcher.at(await steps(session, 1))
    watcher.check_sums()
    assert watcher.positions[-1] == 6


async def test_a_fail_over_is_followed(tmp_path):
    with deploy_sentinel("valkey", tmp_path / "store", down_after_ms=500) as group:
        flags = ("--store", group.url, OLD)
        with (
            ServerProcess(tmp_path / "a", *flags) as one,
            ServerProcess(tmp_path / "b", *flags) as other,
        ):
            async with client_of(one) as here, client_of(other) as there:
                session = await there.open_session("s", model=MODEL)
                async with Watcher(here, "s", **EVERY) as watcher:
                    await watcher.at(await steps(session, 2))
                    await asyncio.to_thread(wait_for, lambda: _has_all(group))
                    group.nodes[0].kill()
                    await asyncio.to_thread(promoted, group, group.nodes[0])
                    await watcher.at(await steps(session, 3))
                    await watcher.at(await steps(session, 1))
    watcher.check_sums()


async def test_a_primary_that_is_cut_off_from_the_others_is_left(tmp_path):
    """It still answers, but nobody at the new primary hears what is said at it."""
    with deploy_sentinel("valkey", tmp_path / "store", down_after_ms=500) as group:
        flags = ("--store", group.url, OLD)
        with ServerProcess(tmp_path / "a", *flags) as one:
            async with client_of(one) as there:
                session = await there.open_session("s", model=MODEL)
                await asyncio.to_thread(wait_for, lambda: _has_all(group))
                cut_off(group.nodes[0])
                await asyncio.to_thread(promoted, group, group.nodes[0])
                log = tmp_path / "a" / "server.log"
                await asyncio.to_thread(wait_for, lambda: "can be watched again" in log.read_text())
                await steps(session, 3)
                with ServerProcess(tmp_path / "b", *flags) as other:
                    async with client_of(other) as here, Watcher(here, "s", **EVERY) as watcher:
                        await watcher.at(await steps(session, 1))
    assert [chunk.tokens for chunk in watcher.shown] == [None, b"x"]


def _has_all(group):
    return group.nodes[0].info()["slave0"]["offset"] >= group.nodes[0].info()["master_repl_offset"]


async def test_without_rights_to_channels_a_watch_says_so_and_steps_go_on(tmp_path):
    with deploy("valkey", "acl", tmp_path / "store") as store:
        [process] = store.processes
        process.call("ACL", "SETUSER", USER, "resetchannels", "-publish", "-subscribe")
        with ServerProcess(tmp_path / "data", "--store", store.url, OLD) as server:
            async with client_of(server, timeout_s=2.0) as client:
                session = await client.open_session("s", model=MODEL)
                assert await steps(session, 3) == 3
                with pytest.raises(StoreUnavailable, match=r"NOPERM.*holdfast store acl"):
                    await anext(client.watch_session("s"))
                assert await steps(session, 1) == 4
            assert get(server, "/readyz")[0] == 200
            log = (tmp_path / "data" / "server.log").read_text()
            assert log.count("sessions cannot be watched") == 1
            process.call("ACL", "SETUSER", USER, "&holdfast:v1:*", "+publish", "+subscribe")
            async with client_of(server) as client:
                session = await client.open_session("s")
                async with Watcher(client, "s", **EVERY) as watcher:
                    await watcher.at(await steps(session, 1))


async def test_databases_of_one_server_do_not_hear_each_other(store, tmp_path):
    with (
        ServerProcess(tmp_path / "a", "--store", f"{store.url}/0", OLD) as one,
        ServerProcess(tmp_path / "b", "--store", f"{store.url}/1", OLD) as other,
    ):
        async with client_of(one) as here, client_of(other) as elsewhere:
            session = await here.open_session("s", model=MODEL)
            with store.client() as client:
                client.copy(KEY, KEY, destination_db=1)
            namesake = await elsewhere.open_session("s")
            assert namesake.incarnation == session.incarnation
            async with Watcher(here, "s", **EVERY) as watcher:
                await namesake.step("other")
                await namesake.delete()
                await watcher.at(await steps(session, 1))
    assert [chunk.tokens for chunk in watcher.shown] == [None, b"x"]

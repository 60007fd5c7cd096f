"""Lists of sessions, and deletions of many: of one's own, of all of them, and at nobody's cost."""

import itertools

import pytest

import holdfast
from holdfast.errors import InvalidRequest, ModelNotFound, SessionDeleted, SessionNotFound
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.listing import MAX_SCANS, SCAN_COUNT
from service.store.keys import session_key
from service.store.record import decode, encode
from tests.rpc.conftest import MODEL, Rpc
from tests.support.models import write_features_model
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess
from tests.support.stores import deploy_cluster
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return TokensFile(tmp_path_factory.mktemp("tokens") / "tokens.toml")


@pytest.fixture(scope="module")
def token_of(tokens):
    return {
        tenant: tokens.add(tenant, "step", "read-state") for tenant in ("acme", "other", "busy", "lone")
    }


@pytest.fixture(scope="module")
def server(store, tokens, token_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    models = folder / "models"
    models.mkdir()
    (models / MODEL).symlink_to(MODELS / MODEL)
    write_features_model(models / "features" / "1" / "model.onnx")
    flags = ["--models", str(models), "--store", store.url, *tokens.write()]
    with ServerProcess(folder / "data", *flags) as server:
        yield server


@pytest.fixture
def client_of(server, token_of):
    clients = {}

    def client(tenant):
        if tenant not in clients:
            clients[tenant] = holdfast.Client(
                server.address, token=token_of[tenant], retry=QUICK, timeout_s=20
            )
        return clients[tenant]

    yield client
    for one in clients.values():
        one.close()


def ids_of(sessions):
    return sorted(session.session_id for session in sessions)


def make(client, ids, model=MODEL):
    for start in range(0, len(ids), 1000):
        assert not client.open_batch(model, ids[start : start + 1000]).errors


def test_thousands_of_sessions_of_several_tenants(client_of, store):
    """Each tenant sees its own; no look holds the store up, and none is KEYS."""
    acme, other = client_of("acme"), client_of("other")
    mine = [f"user-{number}" for number in range(4000)]
    make(acme, mine)
    make(other, [f"user-{number}" for number in range(3000)] + ["user-*"])
    scans, keys = store.calls("scan"), store.calls("keys")
    assert ids_of(acme.list_sessions()) == sorted(mine)
    assert store.calls("keys") == keys
    scans = store.calls("scan") - scans
    assert scans > 7000 / SCAN_COUNT, "a few at a time"
    longest_us = store.client.info("commandstats")["cmdstat_scan"]["usec_per_call"]
    print(f"{scans} calls of SCAN, {longest_us} us each")
    assert ids_of(acme.list_sessions("user-39")) == sorted(one for one in mine if one.startswith("user-39"))
    assert ids_of(other.list_sessions("user-*")) == ["user-*"]
    assert ids_of(acme.list_sessions("user-*")) == []


def test_a_page_has_what_is_stored(client_of, server, token_of, store):
    client = client_of("lone")
    session = client.open_session("a", model=MODEL)
    session.step("abc")
    client.open_session("features", model="features")
    client.open_session("deleted", model=MODEL).delete()
    held = client.open_session("held", model=MODEL)
    key = session_key("lone", "held")
    store.client.set(key, encode(decode(store.client.get(key))._replace(quarantine_reason="it fails")))
    strange = client.open_session("strange", model=MODEL)
    key = session_key("lone", "strange")
    store.client.set(key, encode(decode(store.client.get(key))._replace(fingerprint=bytes(32))))
    found = {one.session_id: one for one in client.list_sessions()}
    assert found.keys() == {"a", "features", "held", "strange"}
    stored = client.get_session("a")
    assert 0 <= found["a"].idle_s < 20
    assert found["a"].expires_in_s == pytest.approx(stored.expires_in_s, abs=20)
    for field in ("incarnation", "position", "history_digest", "model", "fingerprint", "quarantine_reason"):
        assert getattr(found["a"], field) == getattr(stored, field)
    assert (found["held"].quarantine_reason, found["held"].incarnation) == ("it fails", held.incarnation)
    assert (found["strange"].model, found["strange"].position) == (pb.ModelRef(), strange.position)
    assert ids_of(client.list_sessions(model="features")) == ["features"]
    assert ids_of(client.list_sessions(model=MODEL, version=1)) == ["a", "held"]
    with pytest.raises(ModelNotFound):
        list(client.list_sessions(model="none"))
    with pytest.raises(ModelNotFound):
        list(client.list_sessions(model=MODEL, version=2))


def test_sessions_are_found_by_their_idle_time(client_of, store):
    client = client_of("lone")
    make(client, ["idle-1", "idle-2", "idle-3"])
    for name in ("idle-1", "idle-2"):  # as if their last commit were an hour ago
        store.client.pexpire(session_key("lone", name), (86_400 - 3600) * 1000)
    assert ids_of(client.list_sessions("idle-", min_idle_s=3600)) == ["idle-1", "idle-2"]
    assert ids_of(client.list_sessions("idle-", min_idle_s=3700)) == []
    assert {one.idle_s > 3599 for one in client.list_sessions("idle-", min_idle_s=1800)} == {True}
    client.open_session("idle-1").step("a")
    assert ids_of(client.list_sessions("idle-", min_idle_s=3600)) == ["idle-2"]


def test_what_is_there_all_the_time_is_listed_while_others_come_and_go(client_of):
    client = client_of("busy")
    stays = [f"stays-{number}" for number in range(500)]
    make(client, stays)
    numbers = itertools.count()
    seen, gone = [], []
    for session in client.list_sessions(page_size=20):
        seen.append(session.session_id)
        if len(seen) % 10 == 0:
            new = [f"new-{next(numbers)}" for _ in range(60)]
            make(client, new)
            gone += new[:50]
            client.delete_batch(new[:50])
    assert set(stays) <= set(seen)
    assert len(seen) - len(set(seen)) < 100
    assert gone


def page(rpc, token, **fields):
    metadata = (("authorization", f"Bearer {token}"),)
    return rpc.stub.ListSessions(pb.ListSessionsRequest(**fields), metadata=metadata, timeout=10)


def test_a_page_token_belongs_to_its_list(client_of, server, token_of):
    make(client_of("acme"), ["token-1", "token-2", "token-3"])
    rpc = Rpc(server)
    first = page(rpc, token_of["acme"], prefix="token-", page_size=1)
    assert len(first.sessions) == 1
    second = page(rpc, token_of["acme"], prefix="token-", page_size=2, page_token=first.next_page_token)
    assert len({one.session_id for one in (*first.sessions, *second.sessions)}) == 3
    for tenant, fields in (
        ("other", {"prefix": "token-"}),
        ("acme", {"prefix": "token"}),
        ("acme", {"prefix": "token-", "min_idle_s": 1}),
        ("acme", {"prefix": "token-", "model": pb.ModelRef(name=MODEL)}),
    ):
        with pytest.raises(Exception, match="page_token belongs to another list"):
            page(rpc, token_of[tenant], page_token=first.next_page_token, **fields)
    rpc.channel.close()


def test_a_token_of_another_server_is_refused(server, token_of, client_of, tokens, tmp_path):
    make(client_of("acme"), ["else-1", "else-2"])
    rpc = Rpc(server)
    token = page(rpc, token_of["acme"], prefix="else-", page_size=1).next_page_token
    assert token
    rpc.channel.close()
    with (
        StoreProcess(tmp_path / "store") as store,
        ServerProcess(tmp_path / "data", "--store", store.url, *tokens.write()) as other,
    ):
        rpc = Rpc(other)
        with pytest.raises(Exception, match="page_token belongs to another list"):
            page(rpc, token_of["acme"], prefix="else-", page_size=1, page_token=token)
        rpc.channel.close()


def test_a_list_begins_again_where_the_store_was_started_anew(tmp_path):
    with (
        StoreProcess(tmp_path / "store", appendfsync="always") as store,
        ServerProcess(tmp_path / "data", "--store", store.url) as server,
        holdfast.Client(server.address, retry=QUICK, timeout_s=30) as client,
    ):
        make(client, [f"s{number}" for number in range(200)])
        seen = []
        for session in client.list_sessions(page_size=20):
            seen.append(session.session_id)
            if len(seen) == 50:
                store.kill()
                store.start()
        assert set(seen) == {f"s{number}" for number in range(200)}
        assert len(seen) > 200, "some were listed twice"


def test_sessions_of_a_cluster_are_listed_and_copied(tmp_path):
    """Sessions and their copies lie on all nodes; a fork reads one key and writes each where it belongs."""
    with (
        deploy_cluster("valkey", tmp_path / "cluster", fenced=True) as cluster,
        ServerProcess(tmp_path / "data", "--store", cluster.url) as server,
        holdfast.Client(server.address, retry=QUICK, timeout_s=30) as client,
    ):
        session = client.open_session("a", model=MODEL)
        session.step("abc")
        names = [f"copy-{number}" for number in range(300)]
        forked = session.fork_batch(names)
        assert forked.errors == {}
        holders = {cluster.primary_of(session_key("default", name)).port for name in names}
        assert len(holders) == 3
        found = list(client.list_sessions("copy-", page_size=7))
        assert ids_of(found) == sorted(names)
        assert {one.position for one in found} == {3}
        assert client.delete_batch(names[:200]).errors == {}
        assert ids_of(client.list_sessions("copy-")) == sorted(names[200:])


def test_where_nothing_expires_the_store_says_for_how_long_a_session_was_idle(tmp_path):
    """The user of the default setup may turn off that reading counts as use."""
    with (
        StoreProcess(tmp_path / "store") as store,
        ServerProcess(tmp_path / "data", "--store", store.url, "--session-ttl-s", "0") as server,
        holdfast.Client(server.address, retry=QUICK, timeout_s=30) as client,
    ):
        make(client, ["a", "b"])
        key = session_key("default", "a")
        wait_for(lambda: store.client.object("idletime", key) >= 2)
        client.open_session("b").step("x")
        assert ids_of(client.list_sessions(min_idle_s=2)) == ["a"]
        assert ids_of(client.list_sessions(min_idle_s=2)) == ["a"], "the list itself is no use of a session"
        assert {one.expires_in_s for one in client.list_sessions()} == {0.0}


# -- deletions ------------------------------------------------------------------------------------


def test_many_are_deleted_each_by_itself(client_of, store):
    client = client_of("other")
    make(client, [f"d{number}" for number in range(10)])
    client.open_session("d1").step("abc")
    client.delete_session("d2")
    opened = {one.session_id: one.incarnation for one in client.list_sessions("d")}
    before = store.calls("mget"), store.calls("evalsha")
    deleted = client.delete_batch(["d0", "d1", "d2", "none", "line\nfeed", "d3"])
    assert (store.calls("mget"), store.calls("evalsha")) == (before[0] + 1, before[1] + 1)
    assert deleted.positions.tolist() == [0, 3, 0, 0, 0, 0]
    assert {row: type(error) for row, error in deleted.errors.items()} == {
        3: SessionNotFound,
        4: InvalidRequest,
    }
    assert deleted.errors[4].field == "session_ids[4]"
    again = client.delete_batch(["d0", "d1"])
    assert (again.errors, again.positions.tolist()) == ({}, [0, 3])
    with pytest.raises(SessionDeleted):
        client.get_session("d1")
    meant = client.delete_batch(["d4", "d5"], [opened["d4"], 1])
    assert {row: type(error) for row, error in meant.errors.items()} == {1: SessionDeleted}
    assert client.get_session("d5").position == 0


def test_a_deletion_of_many_that_is_wrong_touches_none(client_of, server, token_of):
    rpc = Rpc(server)
    metadata = (("authorization", f"Bearer {token_of['other']}"),)
    make(client_of("other"), ["w0", "w1"])
    for fields in ({}, {"session_ids": ["w0", "w0"]}, {"session_ids": ["w0", "w1"], "incarnations": [1]}):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            rpc.stub.DeleteBatch(pb.DeleteBatchRequest(**fields), metadata=metadata)
    reply = rpc.stub.DeleteBatch(
        pb.DeleteBatchRequest(session_ids=["w0", "w1"], incarnations=[-1, 0]), metadata=metadata
    )
    assert [error.row for error in reply.errors] == [0]
    assert client_of("other").get_session("w0").position == 0
    with pytest.raises(ValueError, match="1 incarnations for 2 session_ids"):
        client_of("other").delete_batch(["w0", "w1"], [1])
    rpc.channel.close()


def test_a_list_looks_through_a_bounded_part_of_a_large_store(client_of, server, token_of, store):
    """A page of a tenant with one session in a store of many may be empty, and is not the last then."""
    client = client_of("lone")
    make(client, ["needle"])
    with store.client.pipeline(transaction=False) as pipeline:
        for number in range(SCAN_COUNT * MAX_SCANS + 10_000):
            pipeline.set(f"holdfast:v1:{{others:{number}}}", "x")
        pipeline.execute()
    rpc = Rpc(server)
    count, token, found = 0, "", []
    while True:
        scans = store.calls("scan")
        reply = page(rpc, token_of["lone"], prefix="needle", page_token=token)
        assert store.calls("scan") - scans <= 2 * MAX_SCANS
        count, token, found = count + 1, reply.next_page_token, found + ids_of(reply.sessions)
        if not token:
            break
    assert (found, count > 1) == (["needle"], True)
    rpc.channel.close()
    for start in range(0, SCAN_COUNT * MAX_SCANS + 10_000, 5000):
        store.client.delete(*(f"holdfast:v1:{{others:{number}}}" for number in range(start, start + 5000)))

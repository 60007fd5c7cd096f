"""The store dies, loses its tail, fills up, or lives in another time; two servers are on it."""

import contextlib
import time

import pytest
import redis

import holdfast
from holdfast.errors import HoldfastError
from tests.faults.verdict import MODEL, assert_held
from tests.nemesis.processes import paused
from tests.nemesis.store import StoreProcess
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

TEXT = b"import os\n\n\ndef names(path):\n    return sorted(os.listdir(path))\n"

pytestmark = pytest.mark.faults


class Deployment:
    """A store, two servers, and a client at each that records what it sees."""

    def __init__(self, store, servers, clients):
        self.store, self.servers, self.clients = store, servers, clients
        self.least_regressions = 0

    def sessions(self, count):
        """Returns new sessions, half of them at each server, each at position 8."""
        sessions = [
            self.clients[number % 2].open_session(f"s{number}-{time.monotonic_ns()}", model=MODEL)
            for number in range(count)
        ]
        self.step(sessions, TEXT[:8])
        return sessions

    def step(self, sessions, text):
        for session in sessions:
            session.step(text, token_log_prob=True)

    def is_ready(self):
        return all(get(server, "/readyz")[0] == 200 for server in self.servers)

    def is_not_ready(self):
        return all(get(server, "/readyz")[0] == 503 for server in self.servers)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployment")
    with StoreProcess(folder / "store") as store, contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(ServerProcess(folder / str(number), "--store", store.url))
            for number in range(2)
        ]
        yield store, servers


@pytest.fixture
def deployment(place, tmp_path):
    store, servers = place
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                holdfast.Client(server.address, timeout_s=20, history=tmp_path / f"history-{number}")
            )
            for number, server in enumerate(servers)
        ]
        deployment = Deployment(store, servers, clients)
        yield deployment
    total = assert_held(*tmp_path.glob("history-*"))
    assert total.errors["STORE_REGRESSED"] >= deployment.least_regressions, "nothing was lost"


def test_a_killed_store_comes_back_with_all_it_acknowledged(deployment):
    sessions = deployment.sessions(6)
    deployment.store.kill()
    wait_for(deployment.is_not_ready, 5)
    with pytest.raises(HoldfastError) as caught:
        sessions[0].step(TEXT[8:9], timeout_s=0.3, token_log_prob=True)
    assert caught.value.retryable
    deployment.store.start()
    wait_for(deployment.is_ready, 5)
    sessions[0].settle()
    deployment.step(sessions[1:], TEXT[8:9])
    deployment.step(sessions, TEXT[9:20])
    assert sessions[0].position == 20


def test_a_store_killed_under_load_loses_nothing(deployment):
    sessions = deployment.sessions(6)
    for start in range(8, 20, 4):
        deployment.step(sessions, TEXT[start : start + 4])
        deployment.store.restart()
    deployment.step(sessions, TEXT[20:30])


@pytest.mark.parametrize("cut_bytes", [1, 700, 4000])
def test_what_a_truncated_tail_has_lost_is_sent_again(deployment, cut_bytes):
    """Acknowledged commits are gone: the servers say so, and the clients resend."""
    sessions = deployment.sessions(6)
    deployment.step(sessions, TEXT[8:16])
    deployment.store.kill()
    deployment.store.truncate_tail(cut_bytes)
    deployment.store.start()
    wait_for(deployment.is_ready, 5)
    deployment.step(sessions, TEXT[16:24])
    for session in sessions:
        assert session.position == 24
        session.state()  # the last look: what was acknowledged is there
    deployment.least_regressions = 1


def test_a_full_store_refuses_cleanly_and_keeps_what_it_has(deployment):
    sessions = deployment.sessions(4)
    deployment.store.fill_memory()
    try:
        for session in sessions:
            with pytest.raises(HoldfastError) as caught:
                session.step(TEXT[8:16], timeout_s=0.5, token_log_prob=True)
            assert caught.value.reason == "STORE_FULL"
        with pytest.raises(HoldfastError) as caught:
            deployment.clients[0].open_session("one too many", model=MODEL)
        assert caught.value.reason == "STORE_FULL"
    finally:
        deployment.store.free_memory()
    for session in sessions:
        assert session.state()["h"].any()
        assert session.step(TEXT[8:16], token_log_prob=True).position == 16


def test_a_full_disk_refuses_writes_takes_readiness_and_is_recovered_from(deployment):
    sessions = deployment.sessions(4)
    store = deployment.store
    store.fill_disk()
    try:
        wait_for(lambda: is_refused(sessions[0]), 20, "the store writes on")
        wait_for(deployment.is_not_ready, 5)
    finally:
        store.free_disk()
    wait_for(lambda: aof_status(store) == "ok", 20)
    wait_for(deployment.is_ready, 5)
    sessions[0].settle()
    position = sessions[0].step(b"x", token_log_prob=True).position
    deployment.step(sessions[1:], TEXT[8:16])
    store.restart()
    assert sessions[0].step(b"y", token_log_prob=True).position == position + 1


def is_refused(session):
    """Steps until the store has noticed, by its own write, that its disk is full."""
    try:
        session.settle(timeout_s=0.3)
        session.step(b"x", timeout_s=0.3, token_log_prob=True)
    except HoldfastError as error:
        return error.reason in ("STORE_UNAVAILABLE", "DEADLINE_PASSED", "STORE_FULL")
    return False


def aof_status(store):
    with store.client() as client:
        with contextlib.suppress(redis.ResponseError):
            client.delete("probe")
        return client.info("persistence")["aof_last_write_status"]


def test_a_store_that_stands_still_is_waited_for_or_refused(deployment):
    sessions = deployment.sessions(4)
    with paused(deployment.store.pid):
        wait_for(deployment.is_not_ready, 5)
        with pytest.raises(HoldfastError):
            sessions[0].step(TEXT[8:9], timeout_s=0.3, token_log_prob=True)
    sessions[0].settle()
    deployment.step(sessions, TEXT[9:16])


def test_a_session_whose_time_has_jumped_past_is_refused_not_started_anew(deployment):
    """The clock of the store decides on expiry. Its jump is stood for by an expiry that is now."""
    [whole] = deployment.sessions(1)
    resumed = deployment.clients[1].open_session(whole.session_id)
    with deployment.store.client() as client:
        [key] = [key for key in client.keys("holdfast:v1:*") if whole.session_id.encode() in key]
        assert client.pttl(key) > 80_000_000
        client.pexpire(key, 1)
        wait_for(lambda: not client.exists(key))
    with pytest.raises(HoldfastError) as caught:  # it does not know the beginning
        resumed.step(TEXT[8:9])
    assert caught.value.reason in ("SESSION_LOST", "SESSION_EXPIRED")
    assert whole.step(TEXT[8:12], token_log_prob=True).position == 12  # it does, and tells it again

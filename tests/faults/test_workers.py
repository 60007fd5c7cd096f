"""`holdfast serve --workers 2`: one port, one scrape, and workers that may die at any moment."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

import holdfast
from tests.faults.test_store import health, store_of
from tests.nemesis.processes import children_of
from tests.nemesis.store import StoreProcess
from tests.support.oracle import held_out_text, run
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

MODEL = "python-source"
SESSIONS = 16
BYTES_PER_SESSION = 160
KILLS = 2


@pytest.fixture(scope="module")
def streams():
    return [held_out_text()[1000 * n :][:BYTES_PER_SESSION] for n in range(SESSIONS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("workers") / "data", "--workers", "2") as server:
        yield server


def workers_of(server):
    """Returns the process ids of the workers."""
    return children_of(server.pid, b"service.process.worker")


def connection_count(pid, server):
    """Returns how many connections of the server's port a process holds."""
    port, established = int(server.address.rpartition(":")[2]), "01"
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    sockets = {
        f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == established
    }
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return len(sockets.intersection(links))


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def samples(server):
    """Returns the scrape: what may only grow by name and labels, and everything without labels by name."""
    families = text_string_to_metric_families(get(server, "/metrics")[1])
    every = [(family, sample) for family in families for sample in family.samples]
    counted = {
        f"{sample.name}{sample.labels or ''}": sample.value
        for family, sample in every
        if family.type != "gauge"
    }
    return counted, {sample.name: sample.value for _, sample in every if not sample.labels}


async def write(client, name, data):
    """Streams a session token by token; returns log-probabilities and position."""
    session = await client.open_session(name, model=MODEL)
    replies = [reply async for reply in session.stream(data, token_log_prob=True)]
    return [reply.token_log_probs[0] for reply in replies], session.position


def assert_uninterrupted(data, log_probs, position):
    assert position == len(log_probs) == len(data)
    np.testing.assert_allclose(log_probs, run(MODEL, data)[1], atol=1e-5, rtol=0)


async def test_both_workers_serve_and_one_scrape_counts_them_all(server, streams):
    before = samples(server)[0]
    async with holdfast.AsyncClient(server.address, timeout_s=20, connections=SESSIONS) as client:
        given = await asyncio.gather(*(write(client, f"all-{n}", data) for n, data in enumerate(streams)))
        assert len(workers_of(server)) == 2
        # so many connections leave a worker out once in 2 ** 15 runs
        assert all(connection_count(pid, server) > 0 for pid in workers_of(server))
    for data, outcome in zip(streams, given, strict=True):
        assert_uninterrupted(data, *outcome)
    counted, values = samples(server)
    for name in ("holdfast_steps_total", "holdfast_chunks_total", "holdfast_chunk_seconds_count"):
        assert counted[name] - before[name] == SESSIONS * BYTES_PER_SESSION
    assert (values["holdfast_workers"], values["holdfast_store_up"]) == (2, 1)
    assert get(server, "/livez")[0] == get(server, "/readyz")[0] == 200
    assert health(server.address) == "SERVING"


async def test_a_session_moves_between_workers_with_every_chunk(server, streams):
    data = streams[0]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(holdfast.AsyncClient(server.address)) for _ in range(32)]
        log_probs = []
        for start in range(0, len(data), 5):
            session = await clients[start // 5 % 32].open_session("mover", model=MODEL)
            assert session.position == start
            reply = await session.step(data[start : start + 5], token_log_prob=True)
            log_probs.extend(reply.token_log_probs)
        assert all(connection_count(pid, server) > 0 for pid in workers_of(server))
    assert_uninterrupted(data, log_probs, session.position)


@pytest.mark.faults
async def test_a_killed_worker_costs_nothing_and_its_counts_stay(tmp_path):
    with ServerProcess(tmp_path / "data", "--workers", "2") as server:
        async with holdfast.AsyncClient(server.address, timeout_s=30, connections=8) as client:
            nemesis = asyncio.create_task(asyncio.to_thread(kill_workers, server))
            writers = (
                write_until(client, f"s{n}", held_out_text()[1000 * n :], nemesis) for n in range(SESSIONS)
            )
            given = await asyncio.gather(*writers)
            await nemesis
        counted, values = samples(server)
    for data, log_probs, position in given:
        assert_uninterrupted(data, log_probs, position)
    assert (values["holdfast_workers"], counted["holdfast_worker_restarts_total"]) == (2, KILLS)
    # A worker counts a batch right after its commit. One that is killed in between leaves steps committed
    # and not counted; nobody was answered, so each of these chunks, of one token here, was sent again and
    # counted as a replay. A replay may also be of a chunk that was counted, so this is a bound.
    steps, replays = counted["holdfast_steps_total"], counted["holdfast_replays_total"]
    assert steps <= sum(position for _, _, position in given) <= steps + replays


async def write_until(client, name, text, end):
    """Streams a session token by token until `end` is done; returns what it sent as well."""
    sent = bytearray()

    async def pieces():
        while not end.done():
            sent.append(text[len(sent)])
            yield bytes(sent[-1:])
            await asyncio.sleep(0.005)

    log_probs, position = await write(client, name, pieces())
    return bytes(sent), log_probs, position


def kill_workers(server):
    """Kills workers under load, each time until another one serves; no count ever decreases."""
    last = {}

    def scrape():
        counted, values = samples(server)
        assert all(counted[name] >= value for name, value in last.items()), "a count went backwards"
        last.update(counted)
        return values

    for kills in range(1, KILLS + 1):
        steps, before = scrape()["holdfast_steps_total"], workers_of(server)
        wait_for(lambda steps=steps: scrape()["holdfast_steps_total"] > steps + 100, 20)
        os.kill(before[kills % 2], signal.SIGKILL)
        wait_for(lambda kills=kills: scrape()["holdfast_worker_restarts_total"] == kills, 20)
        wait_for(lambda: scrape()["holdfast_workers"] == 2, 20)
        assert len(set(workers_of(server)) - set(before)) == 1


@pytest.mark.faults
def test_a_worker_that_cannot_start_again_is_tried_until_it_can(tmp_path):
    data = tmp_path / "data"
    with (
        StoreProcess(tmp_path / "store") as store,
        ServerProcess(data, "--workers", "2", "--store", store.url) as server,
        holdfast.Client(server.address) as client,
    ):
        session = client.open_session("s", model=MODEL)
        session.step("abc")
        store.kill()
        wait_for(lambda: get(server, "/readyz")[0] == 503, 5)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        said = (data / "server.log").read_text
        wait_for(lambda: "a worker did not start: --store: store unix:" in said(), 20)
        assert get(server, "/livez")[0] == 200
        store.start()
        wait_for(lambda: samples(server)[1]["holdfast_workers"] == 2, 20)
        wait_for(lambda: get(server, "/readyz")[0] == 200, 5)
        assert session.step("d").position == 4


@pytest.mark.faults
def test_sigterm_drains_all_workers(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data, "--workers", "2") as server, holdfast.Client(server.address) as client:
        assert client.open_session("s", model=MODEL).step("abc").position == 3
        workers = workers_of(server)
        assert server.stop() == 0
    assert all(is_gone(pid) for pid in workers)
    assert_store_stopped(data)


@pytest.mark.faults
def test_workers_leave_a_killed_supervisor_and_the_next_one_goes_on(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data, "--workers", "2") as server, holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        session.step("abc")
        workers = workers_of(server)
        server.kill()
        wait_for(lambda: all(is_gone(pid) for pid in workers), 10)
        with ServerProcess(data, "--workers", "2", grpc_address=server.address):
            assert session.step("d").position == 4
    assert_store_stopped(data)


def assert_store_stopped(data_dir):
    with store_of(data_dir) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_port_that_is_taken_ends_the_start_with_one_line(server, tmp_path, starts):
    flags = ("--workers", "2", "--data-dir", tmp_path, "--http-address", "127.0.0.1:0")
    said = starts.call("serve", *flags, "--grpc-address", server.address)
    assert (said.code, said.out) == (1, "")
    settings, *_, line = said.err.splitlines()
    assert "settings: models=" in settings
    assert line.startswith(f"holdfast serve: --grpc-address {server.address}: ")

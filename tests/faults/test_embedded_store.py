"""The embedded store's process ends, and whoever uses it starts it again on its files."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast
from service.store import embedded, embedded_process
from service.store.data_folder import EmbeddedStoreError
from service.store.embedded import EmbeddedStore
from tests.faults.streams import MODEL, survive
from tests.faults.test_store import store_of
from tests.nemesis.processes import kill, paused, state_of
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

KILLS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("embedded") / "data"


@pytest.fixture(scope="module")
def servers(data):
    """Two servers, one of them with workers, on one store."""
    with ServerProcess(data) as one, ServerProcess(data, "--workers", "2") as two:
        yield one, two


def pid_of_store(data):
    with store_of(data) as client:
        return client.info("server")["process_id"]


def other_than(pid, data):
    """Returns the store's process once it is another one."""
    return wait_for(lambda: (found := pid_of_store(data)) != pid and found, what="no other store")


def are_ready(servers):
    return all(get(server, "/readyz")[0] == 200 for server in servers)


def stores_on(data):
    """Returns the processes of all stores of a folder."""
    name = os.fsencode(data / "store.sock")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if name in line and b"server" in line.partition(b" ")[0] and state_of(path.parent.name) != "Z":
                found.append(int(path.parent.name))
    return found


def lines_of(server, text):
    return [line for line in server.log_path.read_text().splitlines() if text in line]


async def test_a_killed_store_is_back_by_itself_and_no_token_is_lost(servers, data):
    async def kill_store():
        for _ in range(KILLS):
            pid = pid_of_store(data)
            kill(pid)
            await asyncio.to_thread(other_than, pid, data)
            await asyncio.sleep(0.1)

    for number, server in enumerate(servers):
        await survive(server.address, kill_store(), session_count=6, byte_count=60, prefix=f"k{number}-")
    wait_for(lambda: are_ready(servers))
    assert len(stores_on(data)) == 1
    assert "SIGKILL" in servers[0].log_path.read_text()


def test_a_store_that_was_shut_down_or_cannot_be_reached_is_started_again(servers, data):
    with holdfast.Client(servers[0].address, timeout_s=30) as client:
        session = client.open_session("shut", model=MODEL)

        def shut_down():
            with store_of(data) as store:
                store.shutdown(nosave=True)

        for ends in (shut_down, (data / "store.sock").unlink):
            position = session.step("abc").position
            pid = pid_of_store(data)
            ends()
            other_than(pid, data)
            assert session.step("d").position == position + 1
        wait_for(lambda: are_ready(servers))
    assert len(stores_on(data)) == 1


def test_whoever_comes_when_the_socket_is_deleted_starts_no_second_store(tmp_path):
    one = EmbeddedStore.start(tmp_path)
    one.socket_path.unlink()
    two = EmbeddedStore.start(tmp_path)
    assert stores_on(tmp_path) == [two.pid] != [one.pid]
    one.open()
    assert (one.pid, one.is_whole) == (two.pid, True)
    one.release()
    assert stores_on(tmp_path) == [two.pid]
    two.release()
    assert stores_on(tmp_path) == []


def test_files_alone_that_were_deleted_are_written_anew(tmp_path):
    store = EmbeddedStore.start(tmp_path)
    with store_of(tmp_path) as client:
        client.set("kept", "1")
    shutil.rmtree(tmp_path / "store")
    assert not store.is_whole
    store.open()
    with store_of(tmp_path) as client:
        assert client.get("kept") == b"1"
    store.release()
    assert stores_on(tmp_path) == []


def test_a_store_that_stands_still_is_waited_for(servers, data):
    pid = pid_of_store(data)
    with paused(pid):
        wait_for(lambda: not any(get(server, "/readyz")[0] == 200 for server in servers))
    wait_for(lambda: are_ready(servers))
    assert pid_of_store(data) == pid


def test_a_start_that_fails_is_said_once_and_tried_until_it_works(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server, holdfast.Client(server.address, timeout_s=30) as client:
        session = client.open_session("s", model=MODEL)
        session.step("abc")
        [manifest] = data.glob("store/appendonlydir/*.manifest")
        good = manifest.read_bytes()
        manifest.write_bytes(b"damaged\n")
        kill(pid_of_store(data))
        [said] = wait_for(lambda: lines_of(server, "cannot be started"))
        assert "ended while it started, exit code 1: " in said
        assert "AOF" in said
        wait_for(lambda: get(server, "/readyz")[0] == 503)
        assert get(server, "/livez")[0] == 200
        manifest.write_bytes(good)
        assert session.step("d").position == 4
        wait_for(lambda: are_ready([server]))
        assert len(lines_of(server, "cannot be started")) == 1
    assert stores_on(data) == []


@pytest.mark.parametrize("level", ["memory", "fsynced"])
def test_a_full_disk_is_survived_and_no_acknowledged_token_lost(tmp_path, level):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    script = Path(__file__).with_name("full_disk.py")
    command = [
        "unshare",
        "--mount",
        sys.executable,
        "-m",
        f"tests.faults.{script.stem}",
        str(tmp_path),
        level,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=script.parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["refused"] == "STORE_UNAVAILABLE"
    assert report["position"] == report["acknowledged"] > 0
    if level == "fsynced":
        assert report["cause"] == 1, "lines that say why"


def test_a_start_on_a_full_disk_names_it(tmp_path):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    serve = (
        f"{sys.executable} -c 'from service.command import main; main()' serve --data-dir {tmp_path}/disk"
    )
    serve += " --grpc-address 127.0.0.1:0 --http-address 127.0.0.1:0"
    script = f"mkdir {tmp_path}/disk && mount -t tmpfs -o size=1M t {tmp_path}/disk && "
    script += f"head -c 2M /dev/zero > {tmp_path}/disk/filler; {serve}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"holdfast serve: --data-dir {tmp_path}/disk: ")
    assert "no space left on device; make room on its disk" in said


def test_no_store_outlives_the_last_user_though_it_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_process, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.2)
    store = EmbeddedStore.start(tmp_path)
    os.kill(store.pid, signal.SIGSTOP)
    with pytest.raises(
        EmbeddedStoreError, match=r"does not answer after 0.2 s; if it was stopped, let it go on"
    ):
        EmbeddedStore(tmp_path, start_timeout_s=0.2).open()
    assert stores_on(tmp_path) == [store.pid], "whoever could not join it may not end it"
    with pytest.raises(EmbeddedStoreError, match=r"did not stop within 0.2 s and was killed"):
        store.release()
    assert stores_on(tmp_path) == []


def test_a_store_is_kept_by_a_process_with_thousands_of_connections(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        store = EmbeddedStore.start(tmp_path)
        assert store.is_whole
        kill(store.pid)
        wait_for(lambda: not store.is_whole)
        store.open()
        assert store.is_whole
        store.release()
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stores_on(tmp_path) == []


def test_what_a_store_has_in_memory_is_written_anew_where_its_files_were_deleted(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server, holdfast.Client(server.address, timeout_s=30) as client:
        session = client.open_session("s", model=MODEL)
        session.step("abc")
        pid = pid_of_store(data)
        shutil.rmtree(data)
        assert session.step("d").position == 4
        other_than(pid, data)
        with holdfast.Client(server.address, timeout_s=30) as other:  # which has nothing to send again
            assert other.open_session("s", model=MODEL).position == 4
        assert session.step("e").position == 5
        assert server.stop() == 0
    assert stores_on(data) == []
    with ServerProcess(data) as server, holdfast.Client(server.address, timeout_s=30) as client:
        assert client.open_session("s", model=MODEL).position == 5

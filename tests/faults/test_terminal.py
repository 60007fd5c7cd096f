"""Signals, standard streams and users as terminals, init systems and containers give them to a server."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import holdfast
from tests.faults.test_embedded_store import MODEL, stores_on
from tests.faults.test_workers import workers_of
from tests.nemesis.processes import state_of
from tests.support.server import ServerProcess, get
from tests.support.store_process import free_port
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

HOLDFAST = [sys.executable, "-c", "from service.command import main; main()"]
OTHER_USER = [
    *("setpriv", "--reuid=12345", "--regid=1000", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),  # to read Python itself
    *("env", "-i"),
]
"""In front of a command, runs it without variables as a user that no file knows."""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become somebody else"
)


@contextlib.contextmanager
def serving(data, *flags, prefix=(), **streams):
    """Starts a server with the given standard streams; gives addresses and process once it is ready."""
    host = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"  # where nobody else takes ports
    grpc, http = f"{host}:{free_port()}", f"{host}:{free_port()}"
    command = [
        *prefix,
        *HOLDFAST,
        "serve",
        "--data-dir",
        data,
        "--grpc-address",
        grpc,
        "--http-address",
        http,
    ]
    with subprocess.Popen([*command, *flags], start_new_session=True, **streams) as process:
        server = SimpleNamespace(address=grpc, http=http, pid=process.pid, process=process)
        try:
            wait_for(lambda: process.poll() is not None or get(server, "/readyz")[0] == 200)
            assert process.poll() is None, "it has ended"
            yield server
        finally:
            process.kill()


def steps(server):
    """Whether a step of a new session succeeds."""
    with holdfast.Client(server.address, timeout_s=20) as client:
        return client.open_session(model=MODEL).step("abc").position == 3


@pytest.mark.parametrize(("number", "workers"), [("SIGHUP", 1), ("SIGHUP", 2), ("SIGQUIT", 1)])
def test_a_closed_terminal_drains_and_leaves_no_store_behind(tmp_path, number, workers):
    data = tmp_path / "data"
    with ServerProcess(data, "--workers", str(workers)) as server:
        assert steps(server)
        assert stores_on(data)
        processes = workers_of(server)
        os.killpg(server.pid, signal.Signals[number])
        assert server._process.wait(30) == 0
    assert stores_on(data) == []
    assert all(state_of(pid) == "Z" for pid in processes)
    assert '"draining"' in server.log_path.read_text()


def test_nohup_still_is_and_a_stopped_server_goes_on(tmp_path):
    with serving(
        tmp_path, prefix=["nohup"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        os.kill(server.pid, signal.SIGHUP)
        os.kill(server.pid, signal.SIGPIPE)
        os.kill(server.pid, signal.SIGTSTP)
        os.kill(server.pid, signal.SIGCONT)
        assert steps(server)
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_signal_ends_a_start(tmp_path):
    """It waits for a store that another server starts."""
    with (tmp_path / "start.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [*HOLDFAST, "serve", "--data-dir", tmp_path, "--http-address", "127.0.0.1:0"]
        command += ["--grpc-address", "127.0.0.1:0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_for(lambda: lock.name in opened_by(process.pid))
            process.terminate()
            assert process.wait(20) == 0
            assert process.stdout.read() == b""
            assert b"told to stop while it started" in process.stderr.read()
    assert stores_on(tmp_path) == []


def opened_by(pid):
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return links


@pytest.mark.parametrize("workers", [1, 2])
def test_closed_standard_streams_are_not_taken_by_sockets(tmp_path, workers):
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    with serving(tmp_path, "--workers", str(workers), prefix=closed) as server:
        assert [os.readlink(f"/proc/{server.pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
        assert steps(server)
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_standard_output_and_error_that_nobody_reads(tmp_path):
    gone, output = os.pipe()
    os.close(gone)
    reader, error = os.pipe()
    os.set_blocking(error, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(error, b"full\n" * 100)
    os.set_blocking(error, True)
    with serving(tmp_path, stdout=output, stderr=error) as server:
        os.close(output)
        os.close(error)
        assert steps(server)
        server.process.terminate()
        assert server.process.wait(30) == 0
        with os.fdopen(reader, "rb") as said:
            lines = [line for line in said.read().splitlines() if line != b"full"]
    assert stores_on(tmp_path) == []
    assert lines == [] or lines[0].endswith(b"full"), "what was not read is lost, and nothing waits for it"


def test_what_waits_for_a_reader_is_read_by_it(tmp_path):
    with (
        open("/dev/full", "wb") as full,
        serving(tmp_path, stdout=full, stderr=subprocess.PIPE) as server,
    ):
        assert steps(server)
        server.process.terminate()
        said = server.process.stderr.read().decode()
        assert server.process.wait(30) == 0
    assert "standard output: no space left on device" in said
    assert "draining" in said
    assert "Traceback" not in said


@needs_root
def test_a_user_without_a_home_is_told_which_setting_to_give():
    command = [*OTHER_USER, *HOLDFAST, "serve", "--grpc-address", "127.0.0.1:0"]
    done = subprocess.run([*command, "--http-address", "127.0.0.1:0"], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    assert "--data-dir ~/.local/share/holdfast: user 12345 has no home folder; name a folder" in lines[0]


@needs_root
def test_a_volume_of_a_group_is_used_and_others_are_kept_out_of_it(tmp_path):
    """As Kubernetes mounts one with fsGroup, beneath folders that everybody may pass."""
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 0, 1000)
    volume.chmod(0o2775)
    with serving(volume, prefix=OTHER_USER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        assert steps(server)
        server.process.terminate()
        assert server.process.wait(30) == 0
    [ours] = volume.iterdir()
    assert (ours.name, ours.stat().st_uid, ours.stat().st_mode & 0o777) == ("holdfast", 12345, 0o700)


@needs_root
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare of util-linux")
def test_a_system_with_next_to_nothing_will_do(tmp_path):
    """A root that may not be written, nothing for temporary files or shared memory, and no /proc."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    script = f"""
        mount -t tmpfs -o mode=700 t {data} && mount -o remount,bind,ro / &&
        mount -t tmpfs -o ro t /dev/shm && mount -t tmpfs -o ro t /proc &&
        exec "$@"
    """
    bare = ["unshare", "--mount", "env", "TMPDIR=/none", "sh", "-c", script, "sh"]
    with serving(data, prefix=bare, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        assert steps(server)
        assert "process_open_fds" in get(server, "/metrics")[1]
        server.process.terminate()
        said = server.process.stderr.read().decode()
        assert server.process.wait(30) == 0
    assert "Traceback" not in said


COMMANDS = [["--help"], ["token", "create"], ["store", "acl"], ["session", "--help"], ["model", "--help"],
            ["bench", "--help"], ["verify", "--help"], ["demo", "--help"], ["serve", "--help"]]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_whose_output_nobody_takes_says_no_traceback(arguments):
    gone, output = os.pipe()
    os.close(gone)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(output, "wb") as closed:
        done = subprocess.run(
            [*HOLDFAST, *arguments], stdout=closed, stderr=subprocess.PIPE, text=True, env=variables
        )
    assert done.returncode in (0, 128 + signal.SIGPIPE), done.stderr  # argparse may not tell
    assert "Error" not in done.stderr


def test_a_command_whose_output_has_no_room_says_so_in_a_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*HOLDFAST, "token", "create"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "holdfast token: standard output: no space left on device"


def test_ctrl_c_ends_a_command_without_a_word(tmp_path):
    with ServerProcess(tmp_path / "data") as server:
        command = [*HOLDFAST, "bench", "--target", server.address, "--seconds", "60"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=obey_ctrl_c
        ) as bench:
            wait_for(lambda: "holdfast_steps_total 0.0" not in get(server, "/metrics")[1])
            bench.send_signal(signal.SIGINT)
            said = bench.communicate(timeout=20)[1].decode()
        assert bench.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
        assert "Traceback" not in said


def obey_ctrl_c():
    """Undoes what a shell does to commands that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

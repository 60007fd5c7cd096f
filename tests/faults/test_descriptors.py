"""A moment without descriptors, which a server and its supervisor outlive; prlimit takes them away."""

import contextlib
import http.client
import os
import resource
import signal

import pytest

import holdfast
from tests.faults.test_workers import MODEL, workers_of
from tests.support.server import ServerProcess, get, value
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

FEW = 5
"""Lower than any number that the next descriptor could have."""


@contextlib.contextmanager
def without_descriptors(*pids):
    """Lets processes open nothing meanwhile; what is open stays open."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def failures(scrape, task):
    line = f'holdfast_task_errors_total{{task="{task}"}} '
    return float(scrape.partition(line)[2].split()[0])


def test_a_moment_without_descriptors_ends_nothing(tmp_path):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ServerProcess(tmp_path / "data", "--workers", "2"))
        page = stack.enter_context(contextlib.closing(http.client.HTTPConnection(server.http, timeout=20)))
        client = stack.enter_context(holdfast.Client(server.address, timeout_s=20))
        session = client.open_session("s", model=MODEL)

        def scrape():
            page.request("GET", "/metrics")
            return page.getresponse().read().decode()

        def has_noticed():
            session.step(b"x")  # what is connected is served
            return failures(scrape(), "process_usage") >= 20

        def has_tried_to_replace():
            return (
                "too many open files" in server.log_path.read_text().lower().partition("did not start")[2]
            )

        scrape()
        pids = workers_of(server)
        with without_descriptors(server.pid, *pids):
            wait_for(has_noticed)
            os.kill(pids[0], signal.SIGKILL)
            wait_for(has_tried_to_replace)
            late = stack.enter_context(
                contextlib.closing(http.client.HTTPConnection(server.http, timeout=20))
            )
            late.request("GET", "/livez")  # cannot be let in yet
        assert late.getresponse().status == 200
        wait_for(lambda: value(server, "holdfast_workers") == 2)
        with holdfast.Client(server.address, timeout_s=20) as another:
            assert another.open_session("other", model=MODEL).step(b"abc").position == 3
        session.step(b"y")
        log = server.log_path.read_text()
        wait_for(lambda: "task process_usage works again" in server.log_path.read_text())
        assert get(server, "/livez")[0] == get(server, "/readyz")[0] == 200
        assert log.count("task process_usage: [Errno 24]") <= 1 + len(pids), "it is said once"
        assert "Traceback" not in log
        assert "embedded store" not in log, "it was taken for lost"

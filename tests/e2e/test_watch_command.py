"""`holdfast watch`: a line or an object for each chunk, until the session ends."""

import contextlib
import json
import subprocess
import sys

import pytest

import holdfast
from tests.rpc.conftest import MODEL
from tests.support.command_line import call
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("watch") / "data") as server:
        yield server


@pytest.fixture
def client(server):
    with holdfast.Client(server.address) as client:
        yield client


@contextlib.contextmanager
def watching(server, *words):
    line = [sys.executable, "-c", "from service.command import main; main()", "watch", *words]
    line += ["--target", server.address, "--max-rate-hz", "1000"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with process.stdout, process.stderr:
            yield process
    finally:
        process.kill()
        process.wait(10)


def test_objects_hold_all_there_is(server, client):
    session = client.open_session("objects", model=MODEL)
    with watching(server, "objects", "--json", "--top-k", "2", "--token-log-prob", "--state") as process:
        first = json.loads(process.stdout.readline())
        assert (first["position"], first["ended"]) == (0, False)
        reply = session.step(b"a\xff", top_k=2, token_log_prob=True, state=True)
        step = json.loads(process.stdout.readline())
        assert (step["position"], step["tokens"], step["text"]) == (2, [97, 255], r"a\xff")
        assert step["token_log_probs"] == reply.token_log_probs.tolist()
        assert step["top"] == [[list(pair) for pair in row] for row in reply.top]
        assert step["state"] == {name: value.tolist() for name, value in reply.state.items()}
        assert (step["replayed"], step["skipped_tokens"]) == (False, 0)
        assert step["history_digest"] == reply.history_digest
        session.delete()
        assert json.loads(process.stdout.readline())["ended"]
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_the_table_is_for_people(server, client):
    session = client.open_session("table", model=MODEL)
    with watching(server, "table", "--top-k", "1", "--token-log-prob") as process:
        assert process.stdout.readline().split() == ["time", "position", "skipped", "tokens", "by"]
        assert process.stdout.readline().split() == ["0", "stands", "here"]
        reply = session.step("import", top_k=1, token_log_prob=True)
        [(likeliest, _)] = reply.top[-1]
        line = process.stdout.readline()
        words = line.split()
        assert words[1:3] == ["6", "'import'"]
        assert f"next {chr(likeliest)!r} 0." in line
        assert f"{reply.token_log_probs[-1]:.2f}" in words
        session.delete()
        assert "the session has ended" in process.stdout.readline()
        assert process.wait(20) == 0


def test_a_session_that_is_not_there_is_said_in_one_line(server):
    result = call("watch", "nobody's", "--target", server.address)
    assert result.code == 1
    assert result.err.splitlines() == ["holdfast watch: SESSION_NOT_FOUND: no session has this id"]

"""New versions are loaded while a server serves: real files, real checks, a real socket."""

import resource
import threading

import numpy as np
import pytest

import holdfast
from holdfast.errors import ModelMismatch, ModelNotFound, PermissionDenied
from tests.nemesis.processes import children_of, state_of
from tests.rpc.conftest import MODEL
from tests.support.command_line import starts
from tests.support.hostile_models import endless
from tests.support.models import put_shipped
from tests.support.oracle import run
from tests.support.server import ServerProcess, get, value
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

SECOND = "python-source-elman"
"""The shipped model that is version 2 of MODEL here."""

TEXT = b"for line in open(path):\n    print(line, end='')\n" * 4
HALF = len(TEXT) // 2
LOOKS_OFTEN = ("--model-refresh-s", "0.1")
LOOKS_WHEN_ASKED = ("--model-refresh-s", "0")


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    put_shipped(folder, MODEL, MODEL)
    return folder


@pytest.fixture
def serve(tmp_path, models):
    """Starts servers on one store, on the folder of the fixture or another; stops them after the test."""
    servers = []

    def start(*flags, folder=models):
        servers.append(ServerProcess(tmp_path / "data", "--models", str(folder), *flags))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def versions(client):
    """Returns the versions of MODEL that are served, and the newest of them."""
    found = [model for model in client.list_models() if model.name == MODEL]
    return [model.version for model in found], next(model.version for model in found if model.is_newest)


def assert_equal(log_probs, shipped, text):
    np.testing.assert_allclose(log_probs, run(shipped, text)[1], atol=1e-5, rtol=0)


def step(session, text):
    return session.step(text, token_log_prob=True).token_log_probs


def test_a_new_version_is_taken_by_new_sessions_while_others_stay_on_theirs(serve, models):
    server = serve(*LOOKS_OFTEN)
    with holdfast.Client(server.address) as client:
        old = client.open_session("old", model=MODEL)
        is_loaded = threading.Event()

        def pieces():
            """Streams TEXT, and over and over again until the new version is there."""
            while True:
                for byte in TEXT:
                    yield bytes([byte])
                if is_loaded.is_set():
                    return

        def put_and_wait():
            put_shipped(models, SECOND, MODEL, 2)
            with holdfast.Client(server.address) as watcher:
                wait_for(lambda: versions(watcher) == ([1, 2], 2))
            is_loaded.set()

        putting = threading.Thread(target=put_and_wait)
        putting.start()
        replies = list(old.stream(pieces(), token_log_prob=True))
        putting.join()
        again = client.open_session("old")  # resumed, without a name: on its own version
        assert {reply.model_version for reply in replies} == {again.model_version} == {1}
        log_probs = [reply.token_log_probs[0] for reply in replies]
        log_probs.extend(step(again, TEXT))
        assert_equal(log_probs, MODEL, TEXT * (len(log_probs) // len(TEXT)))
        for version, wanted, shipped in ((0, 2, SECOND), (2, 2, SECOND), (1, 1, MODEL)):
            session = client.open_session(model=MODEL, version=version)
            assert session.model_version == wanted
            assert_equal(step(session, TEXT), shipped, TEXT)


def test_a_bad_file_is_refused_served_past_and_loaded_when_mended(serve, models, tmp_path):
    server = serve(*LOOKS_OFTEN)
    with holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        log_probs = list(step(session, TEXT[:HALF]))
        bad = models / MODEL / "2" / "model.onnx"
        bad.parent.mkdir()
        bad.write_bytes((models / MODEL / "1" / "model.onnx").read_bytes()[:5000])
        log = tmp_path / "data" / "server.log"
        wait_for(lambda: str(bad) in log.read_text())
        put_shipped(models, "python-source-feedforward", MODEL, 3)
        wait_for(lambda: versions(client) == ([1, 3], 3))  # so it has looked again
        assert log.read_text().count(str(bad)) == 1
        [refusal] = client.reload_models().refused
        assert refusal.startswith(f"{bad}: not a loadable ONNX graph")
        assert value(server, "holdfast_models_refused") == 1
        log_probs.extend(step(session, TEXT[HALF:]))
        assert_equal(log_probs, MODEL, TEXT)
        put_shipped(models, SECOND, MODEL, 2)
        reloaded = client.reload_models()
        assert list(reloaded.refused) == []
        assert value(server, "holdfast_models_refused") == 0
        counts = [f'holdfast_model_loads_total{{outcome="{name}"}} 2.0' for name in ("loaded", "refused")]
        assert set(counts) <= set(get(server, "/metrics")[1].splitlines())
        info = f'model="{MODEL}",version="2"}} 1.0'
        wait_for(lambda: info in get(server, "/metrics")[1], what="the version is not shown")
        assert [(model.name, model.version) for model in reloaded.models] == [
            (MODEL, version) for version in (1, 2, 3)
        ]
        assert_equal(step(client.open_session(model=MODEL, version=2), TEXT), SECOND, TEXT)


def test_a_version_exchanged_on_disk_is_refused_and_what_runs_goes_on(serve, models):
    server = serve(*LOOKS_WHEN_ASKED)
    with holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        log_probs = list(step(session, TEXT[:HALF]))
        put_shipped(models, SECOND, MODEL, 1)
        [refusal] = client.reload_models().refused
        assert refusal.endswith(f"version 1 of {MODEL} changed on disk; give it a new version number")
        log_probs.extend(step(session, TEXT[HALF:]))
        assert_equal(log_probs, MODEL, TEXT)
        assert_equal(step(client.open_session(model=MODEL), TEXT), MODEL, TEXT)


def test_who_looks_only_when_asked_finds_nothing_by_itself(serve, models):
    server = serve(*LOOKS_WHEN_ASKED)
    with holdfast.Client(server.address) as client:
        put_shipped(models, SECOND, MODEL, 2)
        assert versions(client) == ([1], 1)
        client.reload_models()
        assert versions(client) == ([1, 2], 2)


def test_all_workers_follow_and_no_session_meets_one_that_has_not(serve, models):
    server = serve("--model-refresh-s", "0.5", "--workers", "2")  # a check takes less than three periods
    # so many connections leave a worker out once in 2 ** 15 runs
    with holdfast.Client(server.address, connections=16) as client:
        put_shipped(models, SECOND, MODEL, 2)
        numbers = iter(range(1_000_000))

        def all_have_it():
            """A session is opened by one worker and stepped by others meanwhile."""
            ids = [f"s{next(numbers)}"]
            client.open_session(ids[0], model=MODEL)
            for position in range(4):
                assert not client.step_batch(MODEL, ids, b"a", [position]).errors
            return all(versions(client) == ([1, 2], 2) for _ in range(16))

        wait_for(all_have_it, 60)


def test_a_replica_without_the_version_says_so_and_goes_on_when_it_has_it(serve, models, tmp_path):
    late = tmp_path / "late"
    put_shipped(late, MODEL, MODEL)
    ahead, behind = serve(*LOOKS_WHEN_ASKED), serve(*LOOKS_WHEN_ASKED, folder=late)
    put_shipped(models, SECOND, MODEL, 2)
    with holdfast.Client(ahead.address) as client:
        client.reload_models()
        session = client.open_session("s", model=MODEL)
        fingerprint = client.get_model(MODEL, 2).fingerprint
        log_probs = list(step(session, TEXT[:HALF]))
    with holdfast.Client(behind.address) as client:
        with pytest.raises(ModelMismatch, match=f"fingerprint {fingerprint}, which this server does not"):
            client.open_session("s")
        with pytest.raises(ModelNotFound, match="no version 2; the server has 1"):
            client.open_session(model=MODEL, version=2)
        put_shipped(late, SECOND, MODEL, 2)
        assert list(client.reload_models().refused) == []
        session = client.open_session("s")
        assert (session.model_version, session.position) == (2, HALF)
        log_probs.extend(step(session, TEXT[HALF:]))
    assert_equal(log_probs, SECOND, TEXT)


def test_a_drain_does_not_wait_for_a_check_that_hangs(serve, models):
    server = serve(*LOOKS_OFTEN)
    hanging = models / MODEL / "2" / "model.onnx"
    hanging.parent.mkdir()
    hanging.write_bytes(endless().SerializeToString())
    [check] = wait_for(lambda: children_of(server.pid, b"service.model.check_process"))
    wait_for(lambda: resource.prlimit(check, resource.RLIMIT_NOFILE) == (0, 0))  # it is at the file
    assert server.stop() == 0  # within 30 s; the check may use 60 s of CPU time
    wait_for(lambda: state_of(check) == "Z")


def models_command(*arguments):
    return starts().call("model", *arguments)


def test_the_command_line_lists_and_reloads_and_says_what_is_refused(serve, models, tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    files = {}
    for scope in ("step", "admin"):
        files[scope] = tmp_path / scope
        files[scope].write_text(tokens.add("acme", scope) + "\n")
    server = serve(*LOOKS_WHEN_ASKED, *tokens.write())
    target = ("--target", server.address)
    listed = models_command("list", *target, "--token-file", str(files["step"]))
    assert listed.code == 0, listed.err
    assert listed.out.split()[:3] == [MODEL, "1", "newest"]
    denied = models_command("reload", *target, "--token-file", str(files["step"]))
    assert (denied.code, PermissionDenied.reason in denied.err) == (1, True)
    put_shipped(models, SECOND, MODEL, 2)
    put_shipped(models, SECOND, MODEL, "next")
    reloaded = models_command("reload", *target, "--token-file", str(files["admin"]))
    assert [line.split()[:2] for line in reloaded.out.splitlines()] == [[MODEL, "1"], [MODEL, "2"]]
    assert reloaded.code == 1
    assert "refused: " in reloaded.err
    assert "version 'next' is not a number >= 1" in reloaded.err
    missing = models_command("list", *target, "--token-file", str(tmp_path / "none"))
    assert (missing.code, "Traceback" in missing.err) == (1, False)

"""The server dies, stops or fails at every stage of a batch, and another replica goes on."""

import asyncio

import pytest

import holdfast
import holdfast.client.history
from holdfast.errors import DeadlinePassed, InternalFailure
from service.common.failpoints import POINTS, VARIABLE
from tests.faults.verdict import MODEL, assert_held, chunk
from tests.nemesis.processes import resume, state_of
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for

TEXT = b"def f(x):\n    return x + 1\n"
ALLOWED = "--allow-failpoints"
MOST_SESSIONS = 1000

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("failpoints") / "data"


@pytest.fixture(scope="module")
def survivor(data):
    with ServerProcess(data) as server:
        yield server


@pytest.fixture
def victim(request, data, survivor, monkeypatch):
    """A replica on the survivor's store that obeys `request.param`."""
    monkeypatch.setenv(VARIABLE, request.param)
    server = ServerProcess(data, ALLOWED)
    yield server
    resume(server.pid)
    server.kill()


def at(action, points=POINTS):
    """Each point with an action: loads happen with the first chunk, the others are let pass once."""
    return [f"{point}={action}@{1 if point.endswith('load') else 2}" for point in points]


@pytest.mark.parametrize("victim", at("kill"), indirect=True)
def test_a_server_killed_at_any_stage_is_replaced_by_another(victim, survivor, tmp_path):
    both = f"ipv4:{victim.address},{survivor.address}"
    sessions = 0
    with holdfast.Client(both, timeout_s=20, history=tmp_path / "history") as client:
        while state_of(victim.pid) != "Z" and sessions < MOST_SESSIONS:  # replicas take turns
            session = client.open_session(f"killed-{sessions}-{tmp_path.name}", model=MODEL)
            for start in range(0, len(TEXT), 5):
                session.step(TEXT[start : start + 5], token_log_prob=True)
            assert session.position == len(TEXT)
            sessions += 1
    wait_for(lambda: state_of(victim.pid) == "Z")
    total = assert_held(tmp_path / "history")
    assert total.tokens == sessions * len(TEXT)
    assert total.retries >= 1


@pytest.mark.parametrize("victim", ["before_commit=kill@3", "after_commit=kill@3"], indirect=True)
def test_a_stream_goes_on_with_another_server(victim, survivor, tmp_path):
    both = f"ipv4:{victim.address},{survivor.address}"
    with holdfast.Client(both, timeout_s=20, history=tmp_path / "history") as client:
        sessions = 0
        while state_of(victim.pid) != "Z" and sessions < MOST_SESSIONS:  # three turns of replicas each
            session = client.open_session(f"streamed-{sessions}-{tmp_path.name}", model=MODEL)
            session.step(TEXT[:1], token_log_prob=True)
            given = [reply.token_count for reply in session.stream(TEXT[1:], token_log_prob=True)]
            assert sum(given) == len(TEXT) - 1
            sessions += 1
    assert state_of(victim.pid) == "Z"
    assert_held(tmp_path / "history")


@pytest.mark.parametrize("victim", at("raise"), indirect=True)
def test_a_stage_that_fails_leaves_the_session_usable(victim, tmp_path):
    """The chunk may or may not have been applied, and settling finds out."""
    with holdfast.Client(victim.address, timeout_s=20, history=tmp_path / "history") as client:
        session = client.open_session(f"raised-{tmp_path.name}", model=MODEL)
        failures = 0
        for start in range(0, len(TEXT), 9):
            try:
                session.step(TEXT[start : start + 9], token_log_prob=True)
            except InternalFailure:
                failures += 1
                session.settle()
        assert session.position == len(TEXT)
    assert failures <= 1  # after the reply there is nobody left to tell
    assert assert_held(tmp_path / "history").tokens == len(TEXT)


@pytest.mark.parametrize(
    ("victim", "is_late"), [("after_load=pause", 0), ("before_commit=pause@2", 1)], indirect=["victim"]
)
async def test_a_server_stopped_past_every_timeout_cannot_commit_late(victim, survivor, tmp_path, is_late):
    name = f"paused-{tmp_path.name}"
    history = holdfast.client.history.Recorder(tmp_path / "history")
    async with (
        holdfast.AsyncClient(victim.address, history=history) as slow,
        holdfast.AsyncClient(survivor.address, history=history) as quick,
    ):
        await quick.open_session(name, model=MODEL)
        await quick._calls.call("Step", chunk(name, TEXT[:5], 0))
        applied = 5
        if is_late:
            await slow._calls.call("Step", chunk(name, TEXT[5:10], 5))
            applied = 10
        request = chunk(name, TEXT[applied : applied + 5], applied)
        with pytest.raises(DeadlinePassed):
            await slow._calls.call_once("Step", request, slow._calls.deadline_s(1.5))
        assert state_of(victim.pid) == "T"
        mine = (await quick._calls.call("Step", chunk(name, TEXT[applied : applied + 5], applied))).result
        other = (await quick._calls.call("Step", chunk(name, b"another", applied + 5))).result
        assert not mine.replayed
        await asyncio.sleep(0.5)  # rounded up on the wire, its deadline comes a little later
        resume(victim.pid)
        seen = (await slow._calls.call("Step", chunk(name, b"another", applied + 5))).result
        assert (seen.replayed, seen.position, seen.outputs) == (True, other.position, other.outputs)
        await quick._calls.call("Step", chunk(name, b"the end", other.position))
    conflicts = get(victim, "/metrics")[1]
    assert f"holdfast_conflicts_total {float(is_late)}" in conflicts
    assert_held(tmp_path / "history")


def test_a_server_does_not_obey_by_accident(tmp_path, starts):
    flags = ("--data-dir", tmp_path, "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    said = starts.call("serve", *flags, **{VARIABLE: "before_run=kill"})
    assert (said.code, "breaks the server on purpose" in said.err) == (1, True)
    said = starts.call("serve", *flags, ALLOWED, **{VARIABLE: "before_lunch=kill"})
    assert (said.code, "'before_lunch=kill' is not POINT=ACTION" in said.err) == (1, True)

"""Sessions, records and runs that fail, in real servers with a real graph: nothing else does."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import redis

import holdfast
from holdfast.client.status import from_rpc
from holdfast.errors import HoldfastError, RecordCorrupt
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.model.step_graph import StepGraph
from service.store.opening import create_store
from tests.support.command_line import starts
from tests.support.models import (
    CHANGES_SHAPE,
    RAISES,
    RULES_OUT_ALL,
    SPOILS_LOGITS,
    SPOILS_STATE,
    STALLS,
    write_poison_model,
)
from tests.support.opening import open_at
from tests.support.server import ServerProcess, get

pytestmark = pytest.mark.faults

MODEL = "poison"
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_poison_model(folder / MODEL / "1" / "model.onnx")
    return folder


@pytest.fixture
def start(tmp_path, models):
    """Starts replicas on one store."""
    servers = []

    def create(*flags):
        server = ServerProcess(tmp_path / "data", "--models", str(models), *flags)
        servers.append(server)
        return server

    yield create
    for server in servers:
        server.stop()


@pytest.fixture
def store(tmp_path):
    with redis.Redis(unix_socket_path=str(tmp_path / "data" / "store.sock")) as client:
        yield client


def step(server, session_id, token, position):
    """Returns the new position, or the error."""
    chunk = pb.Chunk(
        session_id=session_id,
        model=pb.ModelRef(name=MODEL),
        tokens=pb.Tokens(ids=pb.TokenIds(values=[token])),
        position=position,
    )
    with grpc.insecure_channel(server.address) as channel:
        try:
            reply = StreamingInferenceServiceStub(channel).Step(pb.StepRequest(chunk=chunk), timeout=60)
        except grpc.RpcError as error:
            return from_rpc(error)
    return reply.result.position


def reason(outcome):
    return outcome.reason if isinstance(outcome, HoldfastError) else outcome


def count(server, name):
    text = get(server, "/metrics")[1]
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def command(server, *arguments):
    said = starts().call("session", *arguments, "--target", server.address)
    return said.code, said.out + said.err


def test_a_graph_that_does_not_end_is_ended_from_another_thread(models):
    graph = StepGraph(models / MODEL / "1" / "model.onnx", name=MODEL, version=1)
    states = {"h": np.zeros((1, 2), np.float32)}
    halt = graph.new_halt()
    timer = threading.Timer(0.2, setattr, (halt, "terminate", True))
    timer.start()
    with pytest.raises(Exception, match="terminate"):
        graph.run(np.array([[STALLS]]), states, None, halt)
    assert graph.run(np.array([[7]]), states, None, graph.new_halt())[1]["h"].tolist() == [[7, 7]]


def test_a_session_that_stalls_is_ended_and_held_while_others_go_on(start):
    server, other = start("--run-timeout-s", "1"), start()
    open_at(server.address, "bad", model=MODEL)
    step(server, "bad", 1, 0)
    with ThreadPoolExecutor(1) as threads, holdfast.Client(server.address) as client:
        good = client.open_session("good", model=MODEL)
        for attempt in range(3):
            stalled = threads.submit(step, server, "bad", STALLS, 1)
            ends, replies = [], 0
            while not stalled.done():
                replies += 1
                assert good.step([1]).position == good.position
                ends.append(stalled.done())
            assert ends.count(False) > 10, "the others waited for it"
            expected = "SESSION_QUARANTINED" if attempt == 2 else "MODEL_FAILED"
            assert reason(stalled.result()) == expected
        assert good.state()["h"][0] == good.position
    assert "did not end within 1 s" in str(stalled.result())
    # each attempt once for good, and the first one, others where the machine is slow, where others waited
    assert 4 <= count(server, "holdfast_halted_runs_total") <= 6
    assert count(server, 'holdfast_session_events_total{event="quarantined"}') == 1
    assert get(server, "/livez")[0] == 200
    for replica in (server, other):
        error = step(replica, "bad", 1, 1)
        assert (error.code, reason(error)) == ("FAILED_PRECONDITION", "SESSION_QUARANTINED")
        assert error.expected_position == 1
        assert step(replica, "bad", 1, 0) == 1  # a replay
        code, said = command(replica, "show", "bad")
        assert (code, "did not end" in said) == (0, True)
    assert command(other, "release", "bad")[0] == 0
    assert "quarantine   no" in command(server, "show", "bad")[1]
    assert step(server, "bad", 2, 1) == 2
    assert step(other, "bad", 2, 2) == 3


POISON = [RAISES, CHANGES_SHAPE, SPOILS_STATE, SPOILS_LOGITS, RULES_OUT_ALL]
FAILS = {RAISES: "MODEL_FAILED", CHANGES_SHAPE: "MODEL_FAILED", SPOILS_STATE: "STATE_NOT_FINITE"}


def test_rows_beside_poison_get_what_they_would_have_got_without(start):
    server = start()
    seed = int(time.time())
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    good = rng.integers(1, 100, 59)
    tokens = rng.permutation(np.concatenate([good, POISON]))
    options = {"top_k": 5, "outputs": ["y"]}
    with holdfast.Client(server.address) as client:
        ids = [f"mixed-{row}" for row in range(64)]
        open_at(server.address, *ids, "after", model=MODEL)
        mixed = client.step_batch(MODEL, ids, tokens, [0] * 64, **options)
        assert {int(tokens[row]): error.reason for row, error in mixed.errors.items()} == FAILS
        clean = [row for row in range(64) if tokens[row] not in POISON]
        alone_ids = [f"alone-{row}" for row in clean]
        open_at(server.address, *alone_ids, model=MODEL)
        alone = client.step_batch(MODEL, alone_ids, tokens[clean], [0] * len(clean), **options)
        assert not alone.errors
        assert (mixed.outputs["y"][clean] == alone.outputs["y"]).all()
        assert (mixed.top_ids[clean] == alone.top_ids).all()
        np.testing.assert_allclose(mixed.top_log_probs[clean], alone.top_log_probs, atol=1e-5)
        healed = np.where(np.isin(tokens, list(FAILS)), 1, tokens)
        again = client.step_batch(MODEL, ids, healed, [0] * 64, **options)
        assert not again.errors
        assert sorted({*range(64)} - {*again.replayed_rows}) == sorted(mixed.errors)
    assert count(server, "holdfast_reruns_total") > 0
    assert step(server, "after", 1, 0) == 1


def test_a_row_that_stalls_in_a_message_fails_alone(start):
    server = start("--run-timeout-s", "0.5")
    open_at(server.address, *"abcde", model=MODEL)
    tokens = [1, 2, STALLS, 4, 5]
    with holdfast.Client(server.address) as client:
        reply = client.step_batch(MODEL, list("abcde"), tokens, [0] * 5, outputs=["y"])
        assert {row: error.reason for row, error in reply.errors.items()} == {2: "MODEL_FAILED"}
        assert reply.positions.tolist() == [1, 1, 0, 1, 1]
        assert reply.outputs["y"][:, 0, 0].tolist() == [1, 2, 0, 4, 5]


def test_a_refusal_names_what_the_model_gave(start):
    server = start()
    open_at(server.address, "s", model=MODEL)
    with holdfast.Client(server.address) as client:
        reply = client.step_batch(MODEL, ["s"], [CHANGES_SHAPE], [0], outputs=["y"])
        assert "output 'y' is float32 (1, 1, 1), the contract says float32 (1, 1, 2)" in str(
            reply.errors[0]
        )


def test_a_record_that_cannot_be_read_is_set_aside_and_its_id_is_free(start, store):
    server, broken = start(), {}
    for name in ("damaged", "foreign", "another-type"):
        open_at(server.address, name, model=MODEL)
        assert step(server, name, 5, 0) == 1
        [key] = set(store.keys("holdfast:v1:*")) - broken.keys()
        if name == "another-type":
            store.delete(key)
            store.rpush(key, b"x")
        else:
            damaged = bytearray(store.get(key))
            damaged[80] ^= 1
            store.set(key, bytes(damaged) if name == "damaged" else b"somebody else's")
        broken[key] = name
    server = start()  # nothing is hot
    for key, name in broken.items():
        found, aside = store.dump(key), key + b":set-aside"
        expected = "SESSION_LOST" if name == "another-type" else "RECORD_CORRUPT"
        assert reason(step(server, name, 5, 1)) == expected
        with holdfast.Client(server.address) as client, pytest.raises(RecordCorrupt):
            client.open_session(name, model=MODEL)
        assert command(server, "release", name)[0] == 1
        assert store.dump(key) == found
        code, said = command(server, "release", name, "--discard")
        assert (code, "the id is free" in said) == (0, True)
        assert store.dump(aside) == found
        assert 29 * DAY_MS < store.pttl(aside) <= 30 * DAY_MS
        open_at(server.address, name, model=MODEL)
        assert step(server, name, 5, 0) == 1
        assert store.dump(aside) == found


async def test_a_record_written_meanwhile_is_not_set_aside(start, tmp_path, store):
    server = start()
    open_at(server.address, "s", model=MODEL)
    step(server, "s", 5, 0)
    [key] = store.keys("holdfast:v1:*")
    seen = store.get(key)
    step(server, "s", 5, 1)
    written = create_store(f"unix://{tmp_path / 'data' / 'store.sock'}", timeout_s=10)
    await written.open()
    try:
        for stale in (seen, b""):
            assert not await written.set_aside(key, stale, 60)
        assert step(server, "s", 5, 2) == 3
        assert await written.set_aside(key, store.get(key), 60)
        assert not await written.set_aside(key, seen, 60)
    finally:
        await written.close()
    assert store.keys("holdfast:v1:*") == [key + b":set-aside"]

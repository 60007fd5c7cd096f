"""The log of a running server: its form in every process, what it says of calls, and what it does not."""

import json
import os
import signal

import grpc
import pytest

import holdfast
from holdfast.client.status import from_rpc
from holdfast.v1 import holdfast_pb2 as pb
from service.telemetry.log_lines import LINES
from tests.faults.test_workers import workers_of
from tests.nemesis.store import StoreProcess
from tests.rpc.conftest import MODEL, Rpc
from tests.support.models import write_features_model
from tests.support.server import ServerProcess, get
from tests.support.waiting import wait_for


def lines_of(server):
    """Returns the log as objects; fails at a line that is none."""
    return [json.loads(line) for line in server.log_path.read_text().splitlines()]


def lines_with(server, **wanted):
    return [line for line in lines_of(server) if wanted.items() <= line.items()]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_of_every_process_is_an_object_and_signals_change_the_level(tmp_path, workers):
    with ServerProcess(tmp_path / "data", "--workers", str(workers)) as server:
        processes = workers_of(server) if workers > 1 else [server.pid]
        with holdfast.Client(server.address) as client:
            session = client.open_session("secret-session", model=MODEL)
            session.step("before")
            os.kill(server.pid, signal.SIGUSR1)
            os.kill(server.pid, signal.SIGUSR1)
            wait_for(
                lambda: (
                    {line["pid"] for line in lines_with(server, logger="service.telemetry.logs")}
                    >= {*processes}
                )
            )
            session.step("secret text", state=True)  # alone, so that it is a call of its own
            [call] = wait_for(lambda: lines_with(server, message="a call ended", method="Step"))
            os.kill(server.pid, signal.SIGUSR2)
            usual = {"message": "lines from level info on are logged"}
            wait_for(lambda: {line["pid"] for line in lines_with(server, **usual)} >= {*processes})
            session.step("after")
        if workers > 1:
            os.kill(processes[0], signal.SIGKILL)
            wait_for(lambda: lines_with(server, level="warning", process="supervisor"))
            wait_for(lambda: len(workers_of(server)) == workers)
    assert len(lines_with(server, message="a call ended", method="Step")) == 1
    assert (call["outcome"], call["level"], call["pid"] in processes) == ("OK", "debug", True)
    assert (len(call["session"]), len(call["request_id"]), call["took_ms"] > 0) == (12, 16, True)
    assert {line["process"] for line in lines_of(server)} == (
        {"server"} if workers == 1 else {"supervisor", "worker"}
    )
    assert "secret" not in server.log_path.read_text().replace(str(tmp_path), "")


def test_a_worker_that_comes_later_logs_as_the_others_do(tmp_path):
    with ServerProcess(tmp_path / "data", "--workers", "2") as server:
        first = set(workers_of(server))
        os.kill(server.pid, signal.SIGUSR1)
        verbose = {"message": "lines from level debug on are logged", "process": "worker"}
        wait_for(lambda: len(lines_with(server, **verbose)) == 2)
        os.kill(min(first), signal.SIGKILL)
        [later] = wait_for(lambda: set(workers_of(server)) - first)
        wait_for(lambda: lines_with(server, **verbose, pid=later))


@pytest.fixture
def store(tmp_path):
    with StoreProcess(tmp_path / "store") as store:  # not embedded: it stays away
        yield store


@pytest.fixture
def rpc(tmp_path, store):
    write_features_model(tmp_path / "models" / "features" / "1" / "model.onnx")
    flags = ("--models", str(tmp_path / "models"), "--store", store.url)
    with ServerProcess(tmp_path / "data", *flags) as server:
        rpc = Rpc(server)
        yield rpc
        rpc.channel.close()


def features(session_id, **fields):
    return pb.Chunk(
        session_id=session_id,
        model=pb.ModelRef(name="features"),
        tokens=pb.Tokens(features=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=(1, 2), data=bytes(8))),
        **fields,
    )


def refused(rpc, *metadata, **fields):
    """Returns reason and trailing request id of a step that fails."""
    with pytest.raises(grpc.RpcError) as error:
        rpc.stub.Step(pb.StepRequest(chunk=features("secret-id", **fields)), timeout=10, metadata=metadata)
    trailers = dict(error.value.trailing_metadata())
    return from_rpc(error.value).reason, trailers["x-request-id"]


def test_a_store_that_is_away_is_logged_with_the_calls_ids_and_not_once_per_call(rpc, store):
    store.kill()
    wait_for(lambda: get(rpc.server, "/readyz")[0] == 503)
    assert refused(rpc, ("x-request-id", "mine-1")) == ("STORE_UNAVAILABLE", "mine-1")
    for foreign in ("x" * 65, "a b", ""):
        given = refused(rpc, ("x-request-id", foreign))[1]
        assert len(given) == 16, "an id that is no id is not taken"
    for _ in range(40):
        refused(rpc)
    stream = rpc.stub.StreamSteps(
        iter([pb.StreamStepsRequest(chunk=features("secret-id"))]),
        timeout=10,
        metadata=[("x-request-id", "mine-2")],
    )
    assert next(stream).WhichOneof("outcome") == "error"
    failures = lines_with(rpc.server, message="a call failed")
    assert len(failures) == LINES
    first = lines_with(rpc.server, request_id="mine-1")[0]
    assert (first["level"], first["method"], first["reason"]) == ("warning", "Step", "STORE_UNAVAILABLE")
    assert "store" in first["detail"]
    assert len({line["session"] for line in failures}) == 1, "one session has one mark"
    rpc.server.stop()  # or after ten seconds
    [told] = [line for line in lines_of(rpc.server) if "left_out" in line]
    assert (told["left_out"], told["reason"]) == (45 - LINES, "STORE_UNAVAILABLE")
    assert "secret-id" not in rpc.server.log_path.read_text()


def test_a_failed_chunk_of_a_stream_and_failed_rows_are_logged_too(rpc, store):
    store.kill()
    wait_for(lambda: get(rpc.server, "/readyz")[0] == 503)
    stream = rpc.stub.StreamSteps(
        iter([pb.StreamStepsRequest(chunk=features("s"))]),
        timeout=10,
        metadata=[("x-request-id", "stream")],
    )
    assert next(stream).WhichOneof("outcome") == "error"
    batch = pb.Batch(
        model=pb.ModelRef(name="features"),
        session_ids=["a", "b", "c"],
        features=bytes(24),
    )
    metadata = [("x-request-id", "rows")]
    reply = rpc.stub.StepBatch(pb.StepBatchRequest(batch=batch), timeout=10, metadata=metadata)
    assert len(reply.result.errors) == 3
    batches = rpc.stub.StreamBatches(
        iter([pb.StreamBatchesRequest(batch=batch)]), timeout=10, metadata=[("x-request-id", "batches")]
    )
    assert len(next(batches).result.errors) == 3
    wait_for(lambda: len(lines_with(rpc.server, message="a call failed")) == 3)  # written by a thread
    said = {line["request_id"]: line for line in lines_with(rpc.server, message="a call failed")}
    assert (said["stream"]["method"], len(said["stream"]["session"])) == ("StreamSteps", 12)
    assert (said["rows"]["method"], said["rows"]["rows"]) == ("StepBatch", 3)
    assert (said["batches"]["method"], said["batches"]["rows"]) == ("StreamBatches", 3)


def test_what_callers_do_wrong_is_not_logged_and_has_an_id_all_the_same(rpc):
    with pytest.raises(grpc.RpcError) as error:
        rpc.stub.Step(pb.StepRequest(), timeout=10)
    assert len(dict(error.value.trailing_metadata())["x-request-id"]) == 16
    assert not lines_with(rpc.server, level="warning")


def test_what_the_store_has_lost_is_logged_though_the_store_answers(rpc):
    assert refused(rpc, ("x-request-id", "gone"), position=4) == ("SESSION_LOST", "gone")
    rpc.open("secret-id", model="features")
    reply = rpc.stub.Step(pb.StepRequest(chunk=features("secret-id")), timeout=10)
    other = {"position": reply.result.position, "history_digest": 7}
    assert refused(rpc, ("x-request-id", "other"), **other) == ("HISTORY_CONFLICT", "other")
    lines = wait_for(lambda: len(lines := lines_with(rpc.server, message="a call failed")) == 2 and lines)
    said = {line["request_id"]: line["reason"] for line in lines}
    assert said == {"gone": "SESSION_LOST", "other": "HISTORY_CONFLICT"}

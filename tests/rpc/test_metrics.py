"""The scrape of a running server: what it counts, how it is named, and that sessions add no series."""

import re
import time

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

import holdfast
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.common.failpoints import VARIABLE
from tests.rpc.conftest import MODEL
from tests.support.opening import open_sessions
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess, get
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

PREFIXES = ("holdfast_", "grpc_server_", "process_")
CLOSED_LABELS = {
    "reason", "level", "event", "outcome", "le", "grpc_type", "grpc_service", "grpc_method", "grpc_code",
    "model", "version", "fingerprint", "task",
}  # fmt: skip
"""Each takes few values, which sessions, tenants and requests do not add to."""

SMALL_UNITS = re.compile(r"_(ms|us|ns|millis|micros|milliseconds|kb|mb|mib|percent)(_|$)")
SESSIONS = 10_000
ROWS = 1000


def families(server):
    return list(text_string_to_metric_families(get(server, "/metrics")[1]))


def sample(server, name, **labels):
    """Returns the sum of a metric's series that have these labels."""
    return sum(
        one.value
        for family in families(server)
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    )


def handled(server, method):
    """Returns calls ended, by code."""
    return {
        one.labels["grpc_code"]: one.value
        for family in families(server)
        for one in family.samples
        if one.name == "grpc_server_handled_total" and one.labels["grpc_method"] == method and one.value
    }


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A server whose second run of a model takes long."""
    monkeypatch.setenv(VARIABLE, "before_run=delay:2@2")
    with ServerProcess(tmp_path / "data", "--allow-failpoints") as server:
        yield server


def test_rpcs_are_counted_as_grpc_servers_count_them(fresh):
    chunk = pb.Chunk(session_id="s", model=pb.ModelRef(name=MODEL), tokens=pb.Tokens(text=b"abc"))
    with grpc.insecure_channel(fresh.address) as channel:
        stub = StreamingInferenceServiceStub(channel)
        open_sessions(stub, ["s"])
        raw = channel.unary_unary("/holdfast.v1.StreamingInferenceService/Step")
        stub.Step(pb.StepRequest(chunk=chunk), timeout=10)
        chunk.position = 3
        for call, options in (
            (stub.Step, {"timeout": 0.3}),  # its run takes longer
            (stub.GetSession, {}),
        ):
            request = pb.StepRequest(chunk=chunk) if call is stub.Step else pb.GetSessionRequest()
            with pytest.raises(grpc.RpcError):
                call(request, **options)
        left = stub.Step.future(pb.StepRequest(chunk=chunk))
        wait_for(lambda: sample(fresh, "grpc_server_started_total", grpc_method="Step") == 3, 5)
        left.cancel()
        with pytest.raises(grpc.RpcError):
            raw(b"\xff", timeout=10)
    wait_for(lambda: sum(handled(fresh, "Step").values()) == 4, 10)
    ended = handled(fresh, "Step")
    assert (ended.pop("OK"), ended.pop("InvalidArgument")) == (1, 1)
    # a server that learns of the client's end before its own clock says so takes it for a cancellation
    assert ended in ({"Canceled": 1, "DeadlineExceeded": 1}, {"Canceled": 2})
    assert handled(fresh, "GetSession") == {"InvalidArgument": 1}
    assert sample(fresh, "grpc_server_msg_sent_total", grpc_method="Step") == 1
    assert sample(fresh, "grpc_server_handling_seconds_count", grpc_method="Step") == 4


def test_streams_count_their_messages_and_end_well(rpc):
    before = handled(rpc.server, "StreamSteps").get("OK", 0)
    names = ("grpc_server_msg_received_total", "grpc_server_msg_sent_total")
    counts = [sample(rpc.server, name, grpc_method="StreamSteps") for name in names]
    with holdfast.Client(rpc.server.address) as client:
        replies = list(client.open_session("streams", model=MODEL).stream(b"a" * 20))
    assert len(replies) == 20
    wait_for(lambda: handled(rpc.server, "StreamSteps").get("OK", 0) == before + 1, 5)
    after = [sample(rpc.server, name, grpc_method="StreamSteps") for name in names]
    assert after == [count + 20 for count in counts]
    assert (
        sample(rpc.server, "grpc_server_handled_total", grpc_method="StreamSteps", grpc_code="Canceled")
        == 0
    )


async def test_a_pipeline_of_batches_ends_well(rpc):
    rpc.open("p0", "p1")
    async with holdfast.AsyncClient(rpc.server.address) as client:
        async with client.batches(MODEL) as pipeline:
            await (await pipeline.submit(["p0", "p1"], b"ab"))
        wait_for(lambda: handled(rpc.server, "StreamBatches") == {"OK": 1}, 5)


def test_calls_without_a_token_are_counted(tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    tokens.add("somebody", "step")
    tokens.write()
    with ServerProcess(tmp_path / "data", "--tokens-file", str(tokens.path)) as server:
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            StreamingInferenceServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=10)
        assert handled(server, "ListModels") == {"Unauthenticated": 1}


def test_what_happens_to_sessions_is_counted(rpc):
    def events():
        return {
            event: sample(rpc.server, "holdfast_session_events_total", event=event)
            for event in ("opened", "resumed", "taken_over", "deleted")
        }

    before = events()
    rpc.open("row-0", "row-1")
    rpc.open("row-1", "row-2")
    opening = pb.OpenSessionRequest(session_id="by-call", model=pb.ModelRef(name=MODEL))
    rpc.call("OpenSession", opening)
    rpc.call("OpenSession", opening)
    opening.take_over = True
    rpc.call("OpenSession", opening)
    rpc.call("DeleteSession", pb.DeleteSessionRequest(session_id="by-call"))
    rpc.step("by-call", text=b"a", position=0)  # which opens nothing
    after = events()
    assert {event: after[event] - before[event] for event in before} == {
        "opened": 4, "resumed": 2, "taken_over": 1, "deleted": 1,
    }  # fmt: skip


def test_names_and_units_are_those_that_users_of_prometheus_expect(rpc):
    rpc.open("named")
    rpc.step("named", text=b"a", position=0)
    wrong = []
    for family in families(rpc.server):
        labels = set().union(*(one.labels for one in family.samples)) if family.samples else set()
        faults = {
            "no help": not family.documentation,
            "prefix": not family.name.startswith(PREFIXES),
            "unit": SMALL_UNITS.search(family.name),
            "case": not re.fullmatch(r"[a-z][a-z0-9_]*", family.name),
            "label": labels - CLOSED_LABELS,
            "total": family.type == "gauge" and family.name.endswith("_total"),
            "counter": family.type == "counter"
            and not all(one.name.endswith("_total") for one in family.samples),
            "type": family.type not in ("counter", "gauge", "histogram"),
        }
        wrong += [(family.name, fault) for fault, is_there in faults.items() if is_there]
    assert not wrong


def test_the_process_and_its_store_and_its_models_are_shown(rpc):
    assert sample(rpc.server, "process_resident_memory_bytes") > 20e6
    assert sample(rpc.server, "process_open_fds") > 5
    assert 0 < time.time() - sample(rpc.server, "process_start_time_seconds") < 3600
    assert sample(rpc.server, "holdfast_store_memory_bytes") > 100_000
    assert sample(rpc.server, "holdfast_store_persists") == 1
    assert sample(rpc.server, "holdfast_build_info") == 1
    assert sample(rpc.server, "holdfast_model_info", model=MODEL, version="1") == 1
    assert sample(rpc.server, "holdfast_model_info") == len(list(MODELS.glob("*/"))) + 1
    rpc.open("to-be-hot")
    rpc.step("to-be-hot", text=b"a", position=0)
    wait_for(lambda: sample(rpc.server, "holdfast_hot_sessions") >= 1, 5)
    assert sample(rpc.server, "holdfast_hot_state_bytes") >= 1024
    wait_for(lambda: sample(rpc.server, "holdfast_store_keys") >= 1, 10)
    before = sample(rpc.server, "process_cpu_seconds_total")
    wait_for(lambda: sample(rpc.server, "process_cpu_seconds_total") > before, 5)


def test_thousands_of_sessions_add_no_series(tmp_path):
    with (
        ServerProcess(tmp_path / "data") as server,
        holdfast.Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = StreamingInferenceServiceStub(channel)

        def add(first):
            names = [f"many-{number}" for number in range(first, first + ROWS)]
            open_sessions(stub, names)
            assert not client.step_batch(MODEL, names, b"x" * ROWS, [0] * ROWS).errors

        add(0)
        before = get(server, "/metrics")[1]
        for first in range(ROWS, SESSIONS, ROWS):
            add(first)
        after = get(server, "/metrics")[1]
        assert len(after.splitlines()) == len(before.splitlines())
        assert sample(server, "holdfast_session_events_total", event="opened") == SESSIONS

"""A span for each call, as a collector over loopback gets it."""

import itertools

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

import holdfast
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.rpc.conftest import MODEL
from tests.support.collector import Collector, attributes
from tests.support.opening import open_sessions
from tests.support.server import ServerProcess

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def traced(collector, tmp_path):
    """A server whose spans are with the collector once it has ended."""
    collector.spans.clear()
    with ServerProcess(tmp_path / "data", "--traces", collector.url) as server:
        yield server


@pytest.fixture
def stub(traced):
    with grpc.insecure_channel(traced.address) as channel:
        yield StreamingInferenceServiceStub(channel)


def step_request(session_id, text=b"ab", **fields):
    return pb.StepRequest(chunk=pb.Chunk(session_id=session_id, tokens=pb.Tokens(text=text), **fields))


def test_a_step_is_a_child_of_its_callers_span_with_the_stages_in_order(traced, collector, stub):
    open_sessions(stub, ["secret-id"])
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=1"))
    stub.Step(step_request("secret-id"), timeout=10, metadata=metadata)
    traced.stop()
    [span] = collector.named("Step")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=1"
    assert span.kind == SpanKind.SERVER.value + 1  # OTLP counts from "unspecified"
    assert span.name == "holdfast.v1.StreamingInferenceService/Step"
    said = attributes(span)
    assert (said["rpc.system"], said["rpc.method"], said["rpc.grpc.status_code"]) == ("grpc", "Step", 0)
    assert "secret-id" not in str(span)
    assert said["holdfast.session"]
    assert [event.name for event in span.events] == ["queue", "load", "run", "commit"]
    for event in span.events:
        took_ns = attributes(event)["holdfast.duration_s"] * 1e9
        assert span.start_time_unix_nano - 1e6 < event.time_unix_nano
        assert event.time_unix_nano + took_ns < span.end_time_unix_nano + 1e6
    for one, other in itertools.pairwise(span.events):
        assert one.time_unix_nano <= other.time_unix_nano
    resource = collector.resources[-1]
    assert resource["service.name"] == "holdfast"
    assert resource["service.instance.id"].endswith(f":{traced.pid}")


def test_a_session_in_memory_is_not_loaded_and_a_replay_does_not_run(traced, collector, stub):
    open_sessions(stub, ["s"])
    for _ in range(2):
        stub.Step(step_request("s"), timeout=10)
    for _ in range(2):
        stub.Step(step_request("s", position=4), timeout=10)
    traced.stop()
    names = [[event.name for event in span.events] for span in collector.named("Step")]
    assert names[:3] == [["queue", "load", "run", "commit"], *[["queue", "run", "commit"]] * 2]
    assert not {"run", "commit"}.intersection(names[3])


def test_the_rows_of_a_batch_have_one_span(traced, collector, stub):
    ids = [f"row-{number}" for number in range(3)]
    open_sessions(stub, ids)
    batch = pb.Batch(model=pb.ModelRef(name=MODEL), session_ids=ids, tokens_per_row=1, text=b"abc")
    stub.StepBatch(pb.StepBatchRequest(batch=batch), timeout=10)
    traced.stop()
    [span] = collector.named("StepBatch")
    assert attributes(span)["holdfast.rows"] == 3
    assert {"queue", "load", "run", "commit"} == {event.name for event in span.events}


def test_a_refusal_says_why_and_only_a_failure_of_the_server_is_an_error(traced, collector, stub):
    with pytest.raises(grpc.RpcError):
        stub.Step(step_request("nobody's"), timeout=10)
    traced.stop()
    [span] = collector.named("Step")
    assert attributes(span)["holdfast.reason"] == "SESSION_NOT_FOUND"
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert span.status.code == 0
    assert not span.parent_span_id


def test_a_stream_is_one_span(traced, collector, stub):
    open_sessions(stub, ["s"])
    requests = [pb.StreamStepsRequest(chunk=step_request("s").chunk) for _ in range(3)]
    assert len(list(stub.StreamSteps(iter(requests), timeout=10))) == 3
    traced.stop()
    assert len(collector.named("StreamSteps")) == 1


def test_the_client_passes_on_the_span_in_which_it_is_called(traced, collector):
    tracer = TracerProvider().get_tracer("test")
    with holdfast.Client(traced.address) as client:
        client.open_session("s", model=MODEL)
        with tracer.start_as_current_span("mine") as span:
            client.get_session("s")
        with pytest.raises(HoldfastError):
            client.get_session("nobody's")
    traced.stop()
    inside, outside = collector.named("GetSession")
    assert inside.trace_id == span.get_span_context().trace_id.to_bytes(16, "big")
    assert inside.parent_span_id == span.get_span_context().span_id.to_bytes(8, "big")
    assert not outside.parent_span_id


def test_a_collector_that_is_away_disturbs_nobody(tmp_path):
    with ServerProcess(tmp_path / "data", "--traces", "http://127.0.0.1:9/v1/traces") as server:
        with holdfast.Client(server.address) as client:
            session = client.open_session("s", model=MODEL)
            assert session.step("abc").position == 3
        assert server.stop() == 0


def test_a_url_that_is_none_is_refused(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"--traces: expected a URL such as http://localhost:4318/v1/traces"
    ):
        ServerProcess(tmp_path / "data", "--traces", "localhost:4318")

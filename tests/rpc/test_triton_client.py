"""Triton's own client, unchanged, against a server: sequences are sessions, each step is applied once."""

import queue

import grpc
import numpy as np
import pytest

from holdfast.client.status import from_rpc
from holdfast.oip.v2 import oip_pb2
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import MODEL
from tests.support.opening import open_at
from tests.support.oracle import held_out_text, run
from tests.support.server import ServerProcess, get
from tests.support.store_process import StoreProcess
from tests.support.tokens import TokensFile
from tests.support.triton import (
    InferenceServerException,
    ids,
    infer_input,
    model_config_pb2,
    service_pb2,
    service_pb2_grpc,
    triton,
    triton_aio,
)
from tests.support.waiting import wait_for

OTHER_MODEL = "python-source-elman"
TTL_S = 1.0


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


class Stream:
    """A stream of the client, and what comes back on it."""

    def __init__(self, client, **options):
        self.came = queue.Queue()
        self.client = client
        client.start_stream(lambda result, error: self.came.put(error or result), **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop_stream()

    def send(self, token, sequence_id, model=MODEL, **options):
        self.client.async_stream_infer(model, ids(token), sequence_id=sequence_id, **options)

    def get(self):
        return self.came.get(timeout=20)


def step(client, token, sequence_id, model=MODEL, **options):
    return client.infer(model, ids(token), sequence_id=sequence_id, **options)


def refusal(call, *arguments, **options):
    with pytest.raises(InferenceServerException) as found:
        call(*arguments, **options)
    return found.value


def logits(results):
    return np.concatenate([result.as_numpy("logits").reshape(-1, 256) for result in results])


def parameter(result, name):
    value = result.get_response().parameters[name]
    return getattr(value, value.WhichOneof("parameter_choice"))


def flags(number, count):
    return {"sequence_start": number == 0, "sequence_end": number == count - 1}


def served_messages():
    """Yields our messages and Triton's, by name, nested ones included."""
    pending = list(oip_pb2.DESCRIPTOR.message_types_by_name.values())
    for ours in pending:
        pending += ours.nested_types
        name = ours.full_name.removeprefix("holdfast.oip.v2.")
        pool = {
            **service_pb2.DESCRIPTOR.message_types_by_name,
            **model_config_pb2.DESCRIPTOR.message_types_by_name,
        }
        theirs = pool[name.partition(".")[0]]
        for inner in name.split(".")[1:]:
            theirs = theirs.nested_types_by_name[inner]
        yield ours, theirs


def shape_of(field):
    """Returns what decides how a field lies on the wire."""
    oneof = field.containing_oneof
    message = field.message_type.name if field.message_type else None
    return field.number, field.type, field.is_repeated, message, oneof and oneof.name


def test_the_messages_are_those_of_triton_on_the_wire():
    seen = 0
    for ours, theirs in served_messages():
        for field in ours.fields:
            seen += 1
            assert shape_of(field) == shape_of(theirs.fields_by_name[field.name]), field.full_name
    assert seen > 80
    numbers = dict(model_config_pb2.DataType.items())
    assert dict(oip_pb2.DataType.items()) == numbers
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in oip_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        theirs = methods[method.name]
        assert (method.input_type.name, method.output_type.name, method.client_streaming) == (
            theirs.input_type.name, theirs.output_type.name, theirs.client_streaming
        )  # fmt: skip


# -- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence_id", [11, "eleven"])
def test_unary_steps_give_what_an_uninterrupted_run_gives(client, sequence_id):
    text = held_out_text()[:24]
    results = [
        step(client, text[place : place + 1], sequence_id, request_id=f"r{place}", **flags(place, 24))
        for place in range(24)
    ]
    assert np.array_equal(logits(results), run(MODEL, text)[0])
    assert [result.get_response().id for result in results] == [f"r{place}" for place in range(24)]
    assert [parameter(result, "holdfast_position") for result in results] == list(range(1, 25))
    assert results[0].as_numpy("logits").shape == (1, 1, 256)
    assert results[0].as_numpy("token_log_prob").shape == (1, 1)


def test_seven_and_the_string_seven_and_other_models_are_other_sequences(client):
    text = held_out_text()[100:112]
    lines = [(7, MODEL), ("7", MODEL), (7, OTHER_MODEL), ("7", OTHER_MODEL)]
    texts = [text[number:] for number in range(4)]
    results = {line: [] for line in lines}
    for place in range(8):
        for line, own in zip(lines, texts, strict=True):
            results[line].append(step(client, own[place : place + 1], *line, **flags(place, 8)))
    for line, own in zip(lines, texts, strict=True):
        assert np.array_equal(logits(results[line]), run(line[1], own[:8])[0])


def test_a_stream_carries_many_sequences_and_answers_in_the_order_of_its_requests(server):
    text = held_out_text()[200:240]
    numbers = range(1, 6)
    with triton.InferenceServerClient(server.address) as client, Stream(client) as stream:
        sent = []
        for place in range(8):
            for number in numbers:
                token = text[number + place : number + place + 1]
                stream.send(token, 1000 + number, request_id=f"{number}-{place}", **flags(place, 8))
                sent.append(f"{number}-{place}")
        results = [stream.get() for _ in sent]
    assert [result.get_response().id for result in results] == sent
    for number in numbers:
        own = [result for result in results if result.get_response().id.startswith(f"{number}-")]
        assert np.array_equal(logits(own), run(MODEL, text[number : number + 8])[0])


async def test_the_client_of_asyncio(server):
    text = held_out_text()[300:310]

    async def requests():
        for place in range(10):
            yield {
                "model_name": MODEL,
                "inputs": ids(text[place : place + 1]),
                "sequence_id": "of-asyncio",
                **flags(place, 10),
            }

    async with triton_aio.InferenceServerClient(server.address) as client:
        assert await client.is_model_ready(MODEL)
        results = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            results.append(result)
        whole = await client.infer(
            MODEL, ids(text), sequence_id="w", sequence_start=True, sequence_end=True
        )
    assert np.array_equal(logits(results), run(MODEL, text)[0])
    np.testing.assert_allclose(logits([whole]), run(MODEL, text)[0], rtol=1e-5, atol=1e-5)


def test_several_tokens_as_ids_and_as_text(client):
    text = held_out_text()[400:416]
    whole = step(client, text, 21, sequence_start=True)
    as_bytes = infer_input("token", np.array([text], np.object_), "BYTES")
    same = client.infer(MODEL, [as_bytes], sequence_id=22, sequence_start=True)
    assert whole.as_numpy("logits").shape == (1, 16, 256)
    assert same.as_numpy("logits").shape == (16, 256)
    assert np.array_equal(logits([whole]), logits([same]))
    np.testing.assert_allclose(logits([whole]), run(MODEL, text)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2), (1, 3, 2), (3, 1, 2)])
def test_features_keep_the_axes_that_a_request_has(client, shape):
    rows = np.arange(6, dtype=np.float32).reshape(shape)
    result = client.infer(
        "features", [infer_input("x", rows, "FP32")], sequence_id=f"x{shape}", sequence_start=True
    )
    assert result.as_numpy("y").shape == shape
    assert np.array_equal(result.as_numpy("y").reshape(3, 2), np.cumsum(rows.reshape(3, 2), axis=0))


def test_outputs_come_in_the_order_asked_for(client):
    wanted = [triton.InferRequestedOutput("token_log_prob"), triton.InferRequestedOutput("logits")]
    result = step(client, b"a", 31, sequence_start=True, outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["token_log_prob", "logits"]
    only = step(client, b"b", 31, outputs=wanted[:1])
    assert [output.name for output in only.get_response().outputs] == ["token_log_prob"]


# -- life of a sequence ----------------------------------------------------------------------------


def test_a_start_on_a_live_sequence_begins_it_anew(client):
    text = held_out_text()[500:506]
    first = [step(client, text[:1], 41, sequence_start=True), step(client, text[1:2], 41)]
    again = [step(client, text[:1], 41, sequence_start=True), step(client, text[1:2], 41)]
    assert np.array_equal(logits(again), logits(first))
    assert parameter(again[1], "holdfast_position") == 2
    assert parameter(again[0], "holdfast_incarnation") != parameter(first[0], "holdfast_incarnation")


def test_a_sequence_is_a_session_of_our_own_contract(client, rpc):
    step(client, b"a", 42, sequence_start=True)
    step(client, b"a", "own", sequence_start=True)
    for session_id in (f"{MODEL}#42", f"{MODEL}/own"):
        assert rpc.call("GetSession", pb.GetSessionRequest(session_id=session_id)).session.position == 1
    open_at(rpc.server.address, f"{MODEL}/opened-there")
    assert parameter(step(client, b"a", "opened-there"), "holdfast_position") == 1


def test_unknown_ended_and_expired_are_three_errors(tmp_path):
    flags = ("--session-ttl-s", str(TTL_S))
    with (
        StoreProcess(tmp_path / "store") as store,
        ServerProcess(tmp_path / "data", "--store", store.url, *flags) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        step(client, b"a", "idle", sequence_start=True)
        step(client, b"a", "over", sequence_start=True, sequence_end=True)
        told = {"unknown": "never started", "over": "was ended", "idle": "has expired"}
        errors = {name: refusal(step, client, b"b", name) for name in ("unknown", "over")}
        wait_for(lambda: not store.client.keys("*idle*"), 20)
        errors["idle"] = refusal(step, client, b"b", "idle")
        for name, error in errors.items():
            assert error.status() == "StatusCode.NOT_FOUND"
            assert f"sequence {name!r} of model {MODEL!r}" in error.message()
            assert told[name] in error.message()
            assert "sequence_start" in error.message()


def test_the_next_request_of_a_stream_finds_a_sequence_ended(server):
    with triton.InferenceServerClient(server.address) as client, Stream(client) as stream:
        stream.send(b"a", 51, sequence_start=True, sequence_end=True)
        stream.send(b"b", 51, request_id="late")
        stream.send(b"c", 51, sequence_start=True)
        assert parameter(stream.get(), "holdfast_position") == 1
        assert stream.get().message().startswith("SESSION_DELETED: sequence 51")
        assert parameter(stream.get(), "holdfast_position") == 1


def test_requests_of_a_sequence_are_applied_in_their_order_a_start_among_them(stub):
    requests = []
    for number in range(60):
        request = good()
        request.parameters["sequence_id"].string_param = "in-order"
        request.parameters["sequence_start"].bool_param = number % 3 == 0
        requests.append(request)
    replies = list(stub.ModelStreamInfer(iter(requests), timeout=30))
    assert not any(reply.error_message for reply in replies)
    positions = [reply.infer_response.parameters["holdfast_position"].int64_param for reply in replies]
    assert positions == [1, 2, 3] * 20


# -- exactly once ------------------------------------------------------------------------------------


def test_a_request_with_its_position_is_applied_once_however_often_it_comes(client):
    first = step(client, b"a", 61, sequence_start=True)
    second = step(client, b"b", 61, parameters={"holdfast_position": 1})
    again = step(client, b"b", 61, parameters={"holdfast_position": 1})
    assert (parameter(second, "holdfast_replayed"), parameter(again, "holdfast_replayed")) == (False, True)
    assert np.array_equal(logits([second]), logits([again]))
    assert np.array_equal(logits([first, again]), run(MODEL, b"ab")[0])
    assert parameter(step(client, b"b", 61), "holdfast_position") == 3  # without, it is another step
    only = [triton.InferRequestedOutput("logits")]
    step(client, b"c", 61, parameters={"holdfast_position": 3}, outputs=only)
    again = step(client, b"c", 61, parameters={"holdfast_position": 3})
    assert [output.name for output in again.get_response().outputs] == ["logits"]
    only = [triton.InferRequestedOutput("token_log_prob")]
    error = refusal(step, client, b"c", 61, parameters={"holdfast_position": 3}, outputs=only)
    assert "without output 'token_log_prob'" in error.message()
    other = refusal(step, client, b"x", 61, parameters={"holdfast_position": 1})
    assert other.status() == "StatusCode.ABORTED"
    assert "sequence 61" in other.message()


def test_a_sequence_goes_on_after_kill_9_with_the_outputs_of_an_uninterrupted_run(tmp_path):
    text = held_out_text()[600:630]
    with StoreProcess(tmp_path / "store") as store:
        results = []
        place = 0
        for life in range(3):
            with ServerProcess(tmp_path / f"data{life}", "--store", store.url) as server:
                client = triton.InferenceServerClient(server.address)
                until = min(len(text), place + 10 + life)
                if place:  # the last reply may have been lost: what was sent comes again
                    place -= 1
                    results.pop()
                while place < until:
                    position = {"holdfast_position": place} if place else {}
                    token = text[place : place + 1]
                    results.append(step(client, token, 71, sequence_start=place == 0, parameters=position))
                    place += 1
                client.close()
                if life < 2:
                    server.kill()
    assert place == len(text)
    assert np.array_equal(logits(results), run(MODEL, text)[0])


def test_a_stream_that_a_kill_cuts_is_sent_again_from_its_first_reply_that_is_missing(tmp_path):
    text = held_out_text()[700:760]
    with StoreProcess(tmp_path / "store") as store:
        got = []
        with ServerProcess(tmp_path / "first", "--store", store.url) as server:
            client = triton.InferenceServerClient(server.address)
            with Stream(client) as stream:
                for place in range(60):
                    position = {"holdfast_position": place} if place else {}
                    stream.send(
                        text[place : place + 1], "cut", sequence_start=place == 0, parameters=position
                    )
                got += [stream.get() for _ in range(20)]
                server.kill()
                while not isinstance(more := stream.get(), InferenceServerException):
                    got.append(more)
        with (
            ServerProcess(tmp_path / "second", "--store", store.url) as server,
            triton.InferenceServerClient(server.address) as client,
        ):
            for place in range(len(got), 60):
                token = text[place : place + 1]
                got.append(step(client, token, "cut", parameters={"holdfast_position": place}))
    assert np.array_equal(logits(got), run(MODEL, text)[0])


# -- errors --------------------------------------------------------------------------------------------


def test_an_error_leaves_a_stream_open(server):
    with triton.InferenceServerClient(server.address) as client, Stream(client) as stream:
        stream.send(b"a", 81, sequence_start=True)
        stream.send(b"a", 82, request_id="lost")
        stream.send(b"b", 81, model="no-such-model")
        stream.send(b"b", 81)
        assert parameter(stream.get(), "triton_final_response") is True
        assert "sequence 82 of model" in stream.get().message()
        assert "no-such-model" in stream.get().message()
        assert parameter(stream.get(), "holdfast_position") == 2


def test_a_stream_error_has_the_id_of_its_request(stub):
    request = service_pb2.ModelInferRequest(model_name=MODEL, id="one")
    [reply] = stub.ModelStreamInfer(iter([request]), timeout=10)
    assert reply.infer_response.id == "one"
    assert reply.error_message.startswith("INVALID_REQUEST: ")
    assert "sequence_id" in reply.error_message


def test_a_stream_ends_with_an_error_if_its_caller_asks_for_that(server):
    options = {"headers": {"triton_grpc_error": "true"}}
    with triton.InferenceServerClient(server.address) as client, Stream(client, **options) as stream:
        stream.send(b"a", 91, sequence_start=True)
        stream.send(b"a", 92)
        stream.send(b"b", 91)
        assert parameter(stream.get(), "holdfast_position") == 1
        error = stream.get()
        assert error.status() == "StatusCode.NOT_FOUND"
        assert "sequence 92" in error.message()


def good():
    """Returns a request that starts a sequence by typed contents."""
    request = service_pb2.ModelInferRequest(model_name=MODEL, id="r")
    request.parameters["sequence_id"].string_param = "typed"
    request.parameters["sequence_start"].bool_param = True
    tensor = request.inputs.add(name="token", datatype="INT64", shape=[1, 1])
    tensor.contents.int64_contents.append(97)
    return request


def both(request):
    request.raw_input_contents.append(b"\0" * 8)


def no_input(request):
    del request.inputs[:]


def surplus_input(request):
    request.inputs.add(name="extra", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)


def wrong_name(request):
    request.inputs[0].name = "tokens"


def wrong_datatype(request):
    request.inputs[0].datatype = "FP32"


def unknown_datatype(request):
    request.inputs[0].datatype = "BF16"


def two_rows(request):
    request.inputs[0].shape[:] = [2, 2]
    request.inputs[0].contents.int64_contents[:] = [1, 2, 3, 4]


def wrong_count(request):
    request.inputs[0].shape[:] = [1, 2]


def twice(request):
    request.inputs.append(request.inputs[0])


def short_bytes(request):
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.append(b"\0" * 7)


def no_such_id(request):
    request.inputs[0].contents.int64_contents[:] = [256]


def no_such_output(request):
    request.outputs.add(name="loggits")


def classes(request):
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3


def shared_memory(request):
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"


def no_sequence(request):
    del request.parameters["sequence_id"]


def unsigned_sequence(request):
    request.parameters["sequence_id"].uint64_param = 7


def long_sequence(request):
    request.parameters["sequence_id"].string_param = "x" * 128


def start_as_number(request):
    request.parameters["sequence_start"].int64_param = 1


def unknown_parameter(request):
    request.parameters["holdfast_postion"].int64_param = 1


def start_at_a_position(request):
    request.parameters["holdfast_position"].int64_param = 3


def wrong_version(request):
    request.model_version = "one"


WRONG = {
    both: "inputs[token]",
    no_input: "inputs[token]",
    surplus_input: "inputs[extra]",
    wrong_name: "inputs[tokens]",
    wrong_datatype: "inputs[token]",
    unknown_datatype: "inputs[token]",
    two_rows: "inputs[token]",
    wrong_count: "inputs[token]",
    twice: "inputs[token]",
    short_bytes: "inputs[token]",
    no_such_id: "tokens.ids.values[0]",
    no_such_output: "outputs.tensors",
    classes: "outputs[logits]",
    shared_memory: "inputs[token]",
    no_sequence: "parameters[sequence_id]",
    unsigned_sequence: "parameters[sequence_id]",
    long_sequence: "parameters[sequence_id]",
    start_as_number: "parameters[sequence_start]",
    unknown_parameter: "parameters[holdfast_postion]",
    start_at_a_position: "parameters[holdfast_position]",
    wrong_version: "model_version",
}


def test_typed_contents_are_taken(stub):
    reply = stub.ModelInfer(good(), timeout=10)
    assert np.array_equal(np.frombuffer(reply.raw_output_contents[0], "<f4"), run(MODEL, b"a")[0][0])
    assert len(reply.outputs) == len(reply.raw_output_contents) == 2


@pytest.mark.parametrize("spoil", WRONG)
def test_a_wrong_request_is_told_what_is_wrong_with_it(stub, spoil):
    request = good()
    spoil(request)
    with pytest.raises(grpc.RpcError) as found:
        stub.ModelInfer(request, timeout=10)
    error = from_rpc(found.value)
    assert found.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.field == WRONG[spoil]
    name = WRONG[spoil].partition("[")[2].rstrip("]")
    assert name in ("0", "") or name in error.message


def test_a_model_that_is_not_served(client):
    error = refusal(step, client, b"a", 1, model="no-such-model")
    assert error.status() == "StatusCode.NOT_FOUND"
    assert "no-such-model" in error.message()


# -- the edge --------------------------------------------------------------------------------------------


def test_a_server_that_leaves_answers_what_it_has_read_and_ends_streams(tmp_path):
    with (
        ServerProcess(tmp_path / "data") as server,
        triton.InferenceServerClient(server.address) as client,
        Stream(client) as stream,
    ):
        for place in range(5):
            stream.send(b"a", 5, sequence_start=place == 0)
        first = stream.get()
        assert server.stop() == 0
        results = [first, *(stream.get() for _ in range(4))]
        assert [parameter(result, "holdfast_position") for result in results] == [1, 2, 3, 4, 5]
        assert stream.get().status() == "StatusCode.UNAVAILABLE"


def test_callers_need_a_credential_and_have_sequences_of_their_own(tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    acme, beta, reader = (
        tokens.add("acme", "step"),
        tokens.add("beta", "step"),
        tokens.add("b", "read-state"),
    )
    headers = [{"authorization": f"Bearer {token}"} for token in (acme, beta, reader)]
    with (
        ServerProcess(tmp_path / "data", *tokens.write()) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert refusal(step, client, b"a", 1, sequence_start=True).status() == "StatusCode.UNAUTHENTICATED"
        assert refusal(client.is_server_ready).status() == "StatusCode.UNAUTHENTICATED"
        assert refusal(client.get_log_settings).status() == "StatusCode.UNAUTHENTICATED"
        step(client, b"a", 1, sequence_start=True, headers=headers[0])
        assert refusal(step, client, b"a", 1, headers=headers[1]).status() == "StatusCode.NOT_FOUND"
        error = refusal(step, client, b"a", 1, headers=headers[2])
        assert error.status() == "StatusCode.PERMISSION_DENIED"
        assert client.is_model_ready(MODEL, headers=headers[2])
        assert parameter(step(client, b"a", 1, headers=headers[0]), "holdfast_position") == 2


def test_rpcs_are_counted_under_the_name_of_their_service(client, server):
    step(client, b"a", "counted", sequence_start=True)
    labels = 'grpc_method="ModelInfer",grpc_service="inference.GRPCInferenceService",grpc_type="unary"'
    counts = [line for line in get(server, "/metrics")[1].splitlines() if labels in line]
    assert any(
        line.startswith("grpc_server_started_total") and float(line.split()[1]) > 0 for line in counts
    )


# -- descriptions ----------------------------------------------------------------------------------------


def test_the_server_describes_itself_and_its_models(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "9")
    assert not client.is_model_ready("no-such-model")
    assert {"sequence", "sequence(string_id)"} <= set(client.get_server_metadata().extensions)
    assert (MODEL, "1", "READY") in [
        (one.name, one.version, one.state) for one in client.get_model_repository_index().models
    ]
    metadata = client.get_model_metadata("features")
    described = [(one.name, one.datatype, list(one.shape)) for one in (*metadata.inputs, *metadata.outputs)]
    assert described == [("x", "FP32", [-1, 2]), ("y", "FP32", [-1, 2])]
    config = client.get_model_config(MODEL).config
    assert config.sequence_batching.max_sequence_idle_microseconds == 86_400_000_000
    assert [(one.name, list(one.dims)) for one in config.input] == [("token", [-1])]
    assert (config.output[0].name, list(config.output[0].dims)) == ("logits", [-1, 256])
    assert config.input[0].data_type == model_config_pb2.TYPE_INT64


def test_statistics_count_requests(client):
    def counts():
        [one] = client.get_inference_statistics("python-source-feedforward").model_stats
        return one.inference_count, one.inference_stats.success.count, one.inference_stats.fail.count

    assert counts() == (0, 0, 0)
    step(client, b"a", 1, model="python-source-feedforward", sequence_start=True)
    refusal(step, client, b"a", 2, model="python-source-feedforward")
    assert counts() == (1, 1, 1)


def test_what_is_not_served_says_so(client):
    for call in (client.get_log_settings, client.get_trace_settings, client.get_cuda_shared_memory_status):
        error = refusal(call)
        assert error.status() == "StatusCode.UNIMPLEMENTED"
        assert "is not served" in error.message()
    assert "--models" in refusal(client.load_model, MODEL).message()

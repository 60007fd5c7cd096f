"""A stock gRPC client with docs/guides/service-config.json gets through a restart."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from tests.faults.test_drain import MODEL
from tests.support.opening import open_sessions
from tests.support.oracle import run
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for

CONFIG = Path(__file__).parents[2] / "docs" / "guides" / "service-config.json"
CALLERS = 16
RESTARTS = 3

pytestmark = pytest.mark.faults


def test_stock_grpc_with_the_config_gets_through_restarts(tmp_path):
    data, is_over = tmp_path / "data", threading.Event()
    server = ServerProcess(data)
    options = [("grpc.service_config", CONFIG.read_text()), ("grpc.max_reconnect_backoff_ms", 1000)]
    try:
        with grpc.insecure_channel(server.address, options) as channel, ThreadPoolExecutor(CALLERS) as pool:
            stub = StreamingInferenceServiceStub(channel)
            open_sessions(stub, [f"s{number}" for number in range(CALLERS)])
            counts = [0] * CALLERS
            callers = [pool.submit(step_on, stub, number, counts, is_over) for number in range(CALLERS)]
            try:
                for _ in range(RESTARTS):
                    assert server.stop() == 0
                    server = ServerProcess(data, grpc_address=server.address)
                    before = list(counts)
                    wait_for(lambda before=before: is_further(counts, before) or fails(callers), 20)
            finally:
                is_over.set()
            for caller in callers:
                caller.result()
    finally:
        server.stop()


def is_further(counts, before):
    return all(now > then for now, then in zip(counts, before, strict=True))


def fails(callers):
    return any(caller.done() for caller in callers)


def step_on(stub, number, counts, is_over):
    """Steps a session, each token once its reply is there."""
    count = 0
    while not is_over.is_set():
        chunk = pb.Chunk(
            session_id=f"s{number}",
            model=pb.ModelRef(name=MODEL),
            tokens=pb.Tokens(text=b"x"),
            position=count,
            outputs=pb.OutputSelection(token_log_prob=True),
        )
        result = stub.Step(pb.StepRequest(chunk=chunk), timeout=30).result
        counts[number] = count = count + 1
        assert result.position == count
    expected = run(MODEL, b"x" * count)[1][-1]
    np.testing.assert_allclose(result.outputs.token_log_probs[0], expected, atol=1e-5, rtol=0)


def test_the_config_retries_openings_steps_and_reads_and_nothing_else():
    service = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
    config = json.loads(CONFIG.read_text())
    [policy] = config["methodConfig"]
    names = {name["method"] for name in policy["name"]}
    assert all(name["service"] == service.full_name for name in policy["name"])
    assert names <= set(service.methods_by_name)
    openings, reads = {"OpenSession", "OpenBatch"}, {"GetSession", "ListModels", "GetModel"}
    assert names == openings | {"Step"} | reads
    assert policy["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]

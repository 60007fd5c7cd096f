"""Metrics, health and reflection of a running server."""

import contextlib
import os
import re
import socket
import subprocess
import sys

import pytest
from grpc_reflection.v1alpha import reflection_pb2

from tests.rpc.conftest import MODEL
from tests.support.server import get


def test_metrics_count_what_happened(rpc):
    rpc.open("counted")
    rpc.step("counted", position=0, text=b"abc")
    rpc.step("counted", position=0, text=b"abc")
    rpc.step("counted", position=1, text=b"x")
    status, text = get(rpc.server, "/metrics")
    assert status == 200
    for name in ("steps_total", "chunks_total", "replays_total"):
        value = re.search(rf"^holdfast_{name} (\S+)$", text, re.MULTILINE)[1]
        assert float(value) >= 1, name
    assert 'holdfast_errors_total{reason="POSITION_CONFLICT"}' in text
    for stage in ("queue", "state_load", "run", "commit", "chunk"):
        assert f'holdfast_{stage}_seconds_bucket{{le="5e-05"}}' in text
    assert "counted" not in text


SERVES = """
from service.process.library_environment import set_library_environment
set_library_environment()
import grpc, os
grpc.server(None).add_insecure_port("127.0.0.1:0")
print(os.environ["GRPC_EXPERIMENTS"])
"""


@pytest.mark.parametrize(
    ("given", "complains"), [({}, False), ({"GRPC_EXPERIMENTS": "-no_such_thing"}, True)]
)
def test_the_installed_grpc_knows_its_settings(given, complains):
    assert "GRPC_EXPERIMENTS" not in os.environ, "nobody else may set it here"
    environment = os.environ | {"GRPC_VERBOSITY": "INFO"} | given
    command = [sys.executable, "-c", SERVES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == given.get("GRPC_EXPERIMENTS", "-event_engine_listener")
    assert ("unknown experiment" in done.stderr.lower()) == complains, done.stderr


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_service(rpc, version):
    method = rpc.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    [reply] = method(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    names = {service.name for service in reply.list_services_response.service}
    assert "holdfast.v1.StreamingInferenceService" in names


def test_pages(rpc):
    assert get(rpc.server, "/livez")[0] == 200
    assert get(rpc.server, "/readyz")[0] == 200
    assert get(rpc.server, "/nothing")[0] == 404


def test_those_who_connect_and_say_nothing_are_let_go(rpc):
    with contextlib.ExitStack() as stack:
        silent = []
        for address in (rpc.server.address, rpc.server.http):
            host, _, port = address.rpartition(":")
            connection = socket.create_connection((host, int(port)), timeout=20)
            silent.append(stack.enter_context(connection))
        for connection in silent:
            while connection.recv(1 << 16):  # gRPC greets first
                pass


def test_models_are_described(rpc):
    from holdfast.v1 import holdfast_pb2 as pb

    model = rpc.call("GetModel", pb.GetModelRequest(model=pb.ModelRef(name=MODEL))).model
    assert (model.version, model.is_newest, model.state_bytes) == (1, True, 1024)
    assert (model.vocabulary.size, model.vocabulary.is_bytes) == (256, True)
    assert "parity" in model.facts

"""What gRPC is told about connections."""

import asyncio
import contextlib
import struct
from pathlib import Path

import grpc.aio
import pytest
from grpc._cython import cygrpc

from holdfast.client.transport import OPTIONS as CLIENT_OPTIONS
from service.model.contract import Contract
from service.rpc import connections
from service.rpc.connections import connection_options, receive_limit_bytes, request_bound
from service.settings.schema import Settings
from tests.support.fakes import SUM_CONTRACT, InputSpec, np


def options(**settings):
    return dict(connection_options(Settings(**settings), [SUM_CONTRACT]))


def features(width):
    given = InputSpec("x", "features", np.dtype("<f4"), width)
    return Contract(input=given, states=(), outputs=SUM_CONTRACT.outputs)


def test_models_of_bytes_need_far_less_than_grpc_would_take():
    assert 256 << 10 < receive_limit_bytes(Settings(), [SUM_CONTRACT]) < 1 << 20


def test_the_limit_grows_with_what_a_chunk_and_a_message_may_hold():
    narrow, wide = (receive_limit_bytes(Settings(), [features(width)]) for width in (1, 256))
    assert wide - narrow == 16_384 * 4 * 255
    assert receive_limit_bytes(Settings(), [features(1), features(256)]) == wide
    more_rows = receive_limit_bytes(Settings(max_rows=2048), [SUM_CONTRACT])
    assert more_rows - receive_limit_bytes(Settings(), [SUM_CONTRACT]) > 1024 * 512
    longer = receive_limit_bytes(Settings(max_chunk_tokens=65536), [features(256)])
    assert longer - wide == (65536 - 16_384) * 4 * 256


def test_a_limit_that_is_set_is_taken():
    assert options(max_message_bytes=4096)["grpc.max_receive_message_length"] == 4096


def test_a_model_that_comes_later_is_held_to_the_limit_of_the_start():
    why_not = request_bound(Settings(), [features(8)])
    assert why_not(features(8)) is why_not(SUM_CONTRACT) is None
    needed, limit = (receive_limit_bytes(Settings(), [features(width)]) for width in (9, 8))
    assert why_not(features(9)).startswith(
        f"its requests may have {needed} bytes, and this server receives {limit}"
    )
    assert request_bound(Settings(max_message_bytes=4096), [features(8)])(features(9)) is None


def test_a_connection_outlives_every_stream_that_may_begin_on_it():
    told = options(max_connection_age_s=100, drain_timeout_s=10)
    assert told["grpc.max_connection_age_ms"] == 100_000
    assert told["grpc.max_connection_age_grace_ms"] == 120_000
    assert "grpc.max_connection_age_ms" not in options(max_connection_age_s=0)


def test_what_admission_lets_in_never_waits_for_a_place_on_its_connection():
    assert not [name for name in options(max_streams=7, max_waiting=5) if "concurrent_streams" in name]


def test_clients_may_look_after_their_connections():
    told, client = options(), dict(CLIENT_OPTIONS)
    often_ms = told["grpc.http2.min_ping_interval_without_data_ms"]
    assert 2 * often_ms <= client["grpc.keepalive_time_ms"] <= 10_000
    assert told["grpc.keepalive_permit_without_calls"] == 1
    assert client["grpc.keepalive_permit_without_calls"] == 0


def test_grpc_knows_what_it_is_told():
    """An option with a name that it does not know is passed over without a word."""
    known = Path(cygrpc.__file__).read_bytes()
    assert [name for name in {**options(), **dict(CLIENT_OPTIONS)} if name.encode() not in known] == []


PREFACE, GOAWAY, PING, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 7, 6, 4


def frame(kind, body=b""):
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, 0, 0) + body


@pytest.mark.parametrize(("pause_s", "is_refused"), [(0.15, False), (0.02, True)])
async def test_a_connection_is_not_ended_for_pings_that_clients_may_send(monkeypatch, pause_s, is_refused):
    monkeypatch.setattr(connections, "PING_INTERVAL_S", 0.1)
    server = grpc.aio.server(options=list(options().items()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + frame(SETTINGS))
    answers = asyncio.create_task(kinds_of_frames(reader))
    for _ in range(6):
        writer.write(frame(PING, bytes(8)))
        await asyncio.sleep(pause_s)
    await server.stop(None)
    writer.close()
    kinds = await answers
    answered = kinds[: kinds.index(GOAWAY)].count(PING)  # the stop sends a goodbye too, after all answers
    assert (answered < 6) == is_refused


async def kinds_of_frames(reader):
    kinds = []
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readexactly(9)
            kinds.append(head[3])
            await reader.readexactly(int.from_bytes(head[:3], "big"))
    return kinds

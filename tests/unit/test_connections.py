"""What gRPC is told about connections."""

from service.config import Settings
from service.model.contract import Contract
from service.rpc.connections import connection_options, receive_limit_bytes, request_bound
from tests.fakes import SUM_CONTRACT, InputSpec, np


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
    told = options(max_streams=7, max_waiting=5)
    assert told["grpc.http2.max_concurrent_streams"] == 12


def test_clients_may_look_after_their_connections():
    told = options()
    assert told["grpc.http2.min_recv_ping_interval_without_data_ms"] <= 10_000
    assert told["grpc.keepalive_permit_without_calls"] == 1

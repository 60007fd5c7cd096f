"""What gRPC is told about connections: how large, how many, how old, how silent.

The figures that are no settings say here why they are what they are.
"""

from collections.abc import Callable, Iterable

from service.model.contract import Contract
from service.rpc.open_calls import AGE_JITTER
from service.rpc.request_size import largest_request_bytes
from service.settings.bounds import MOST_MESSAGE_BYTES
from service.settings.schema import Settings

HANDSHAKE_S = 5.0
"""For a connection to say that it speaks HTTP/2, TLS included; with gRPC's 120 s silent ones pile up."""

WINDOW_BYTES = 64 << 10
"""What a client may send ahead on a stream that is not read. A message that is read may be larger: the
window is extended by its length."""

MAX_BURST = 16_384
"""Calls that have come and have no handler yet. Beyond it gRPC ends calls with a bare CANCELLED, whoever
they are from; by itself it does so at random from 1,000 on."""

ARRIVING_SHARE = 1 / 4
"""Of `max_waiting_bytes`, and on top of it: what messages of unary calls take while they arrive."""

MIN_PLACES = 16
"""Unary calls whose message is received at a time, however large a message may be."""

IDLE_S = 900.0
"""A connection without calls is closed after so long; clients connect again with their next call."""

PING_INTERVAL_S = 5.0
"""Clients may ping so often, with calls and without; gRPC's own limits, 300 s and two hours, would close
the connections of clients that look after theirs through a NAT or a proxy. Our client pings half as often,
and only while calls are under way (`holdfast.client.transport.PING_AFTER_S`)."""

KEEPALIVE_TIMEOUT_SHARE = 1 / 3
"""Of the time after which a silent connection is pinged: so long it may leave the ping unanswered."""


def connection_options(settings: Settings, contracts: Iterable[Contract]) -> list[tuple[str, int]]:
    """Returns the channel arguments of a server."""
    age_s = settings.max_connection_age_s
    ping_timeout_ms = _ms(settings.keepalive_s * KEEPALIVE_TIMEOUT_SHARE)
    return [
        ("grpc.max_receive_message_length", receive_limit_bytes(settings, contracts)),
        # no grpc.max_concurrent_streams: beyond it a client waits without a word; admission answers instead
        ("grpc.http2.bdp_probe", 0),  # else a stream's window grows to megabytes, read or not
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.server.max_pending_requests", MAX_BURST),
        ("grpc.server.max_pending_requests_hard_limit", MAX_BURST),
        ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_S)),
        ("grpc.max_connection_idle_ms", _ms(IDLE_S)),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", ping_timeout_ms),
        ("grpc.http2.ping_timeout_ms", ping_timeout_ms),  # without it no ping is given up within 60 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(PING_INTERVAL_S)),
        *(_age_options(settings, age_s) if age_s else ()),
    ]


def receive_limit_bytes(settings: Settings, contracts: Iterable[Contract]) -> int:
    """Returns the largest request that is received: as set, or what the models can make use of."""
    if settings.max_message_bytes is not None:
        return settings.max_message_bytes
    derived_bytes = largest_request_bytes(
        contracts, max_chunk_tokens=settings.max_chunk_tokens, max_rows=settings.max_rows
    )
    return min(derived_bytes, MOST_MESSAGE_BYTES)


def reading_places(settings: Settings, contracts: Iterable[Contract]) -> int:
    """Returns of how many unary calls the message is received at a time.

    Together they take no more than a part of what waits may take, however little of each has come.
    """
    arriving_bytes = int(settings.max_waiting_bytes * ARRIVING_SHARE)
    return max(MIN_PLACES, arriving_bytes // receive_limit_bytes(settings, contracts))


def request_bound(settings: Settings, contracts: Iterable[Contract]) -> Callable[[Contract], str | None]:
    """Returns what says why a model that comes later cannot be served: its requests would not be received.

    Args:
        settings: Of the server.
        contracts: Of the models from which the bound was derived, at start.
    """
    limit_bytes = receive_limit_bytes(settings, contracts)

    def why_not(contract: Contract) -> str | None:
        needed_bytes = receive_limit_bytes(settings, [contract])
        if needed_bytes <= limit_bytes:
            return None
        return (
            f"its requests may have {needed_bytes} bytes, and this server receives {limit_bytes}, by what "
            "it served at its start; restart it"
        )

    return why_not


def _age_options(settings: Settings, age_s: float) -> tuple[tuple[str, int], ...]:
    """A stream may begin just before its connection is asked to go: the grace is a stream's whole life."""
    grace_s = age_s * (1 + AGE_JITTER) + settings.drain_timeout_s
    return (
        ("grpc.max_connection_age_ms", _ms(age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(grace_s)),
    )


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))

"""Makes the store that a URL names."""

from collections.abc import Callable
from pathlib import Path

from holdfast.errors import AckLevelUnsupported, ServiceError, StoreUnavailable
from service.common.start_errors import StartError
from service.store.address import Address, parse_url
from service.store.cluster import Cluster
from service.store.confirmation import AckSettings
from service.store.keys import DEFAULT_PREFIX, KeySpace
from service.store.one_node import OneNode
from service.store.protocol import UnsafeStore
from service.store.safety import Allowances
from service.store.sentinel import Sentinels
from service.store.store import Store
from service.store.topology import Topology


def create_store(
    url: str,
    *,
    timeout_s: float,
    password_file: Path | None = None,
    allowances: Allowances | None = None,
    acks: AckSettings = AckSettings(),  # noqa: B008 -- frozen
    key_prefix: str = DEFAULT_PREFIX,
    on_change: Callable[[bool], None] = lambda _: None,
) -> Store:
    """Returns a store, not yet opened.

    Args:
        url: See `address`.
        timeout_s: Longest wait for any reply.
        password_file: Holds the store's password, instead of the URL.
        allowances: Dangers that `check_safe` does not mind; by default none.
        acks: What is asked of it beyond its primary's memory.
        key_prefix: See `KeySpace`.
        on_change: Called with whether the store answers, when that changes.

    Raises:
        ValueError: The URL cannot be read; the text shows no secret. Or the prefix is not allowed.
    """
    key_space = KeySpace(key_prefix)
    target = parse_url(url, password_file=password_file)
    topology: Topology
    if target.topology == "cluster":
        topology = Cluster(
            target.addresses,
            timeout_s=timeout_s,
            acks=acks,
            marker_of=key_space.ack_marker_of,
            on_change=on_change,
        )
    else:
        place: Address | Sentinels = target.addresses[0]
        if target.topology == "sentinel":
            place = Sentinels(target.addresses, target.group, target.primary, timeout_s=timeout_s)
        topology = OneNode(
            place, timeout_s=timeout_s, acks=acks, marker=key_space.ack_marker, on_change=on_change
        )
    return Store(topology, allowances or Allowances(), key_space)


def refused_store(error: ServiceError | UnsafeStore, ack_level: str) -> StartError:
    """Returns why no server starts on a store that refused, or is not safe."""
    if isinstance(error, AckLevelUnsupported):
        return StartError(f"--ack-level {ack_level}: {error}")
    if isinstance(error, StoreUnavailable):
        return StartError(f"--store: {error}; a server starts once its store answers")
    return StartError(f"--store: {error}")

"""Makes the store that a URL names."""

from collections.abc import Callable
from pathlib import Path

from service.store.address import parse_url
from service.store.cluster import ClusterStore
from service.store.confirmation import AckSettings
from service.store.connection import fixed
from service.store.keys import DEFAULT_PREFIX, KeySpace
from service.store.node import Node
from service.store.placed import PlacedStore
from service.store.protocol import Store
from service.store.redis import RedisStore
from service.store.safety import Allowances
from service.store.sentinel import Sentinels


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
    allowances = allowances or Allowances()
    store: Store
    if target.topology == "cluster":
        store = ClusterStore(
            target.addresses,
            timeout_s=timeout_s,
            allowances=allowances,
            acks=acks,
            marker_of=key_space.ack_marker_of,
            on_change=on_change,
        )
    else:
        sentinels = None
        if target.topology == "sentinel":
            sentinels = Sentinels(target.addresses, target.group, target.primary, timeout_s=timeout_s)
        node = Node(
            fixed(target.addresses[0]) if sentinels is None else sentinels.locate,
            timeout_s=timeout_s,
            on_change=on_change,
            must_be_primary=sentinels is not None,
            acks=acks,
            marker=lambda: key_space.ack_marker,
        )
        store = RedisStore(node, allowances, sentinels)
    return store if key_space.is_default else PlacedStore(store, key_space)

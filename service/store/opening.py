"""Makes the store that a URL names."""

from collections.abc import Callable
from pathlib import Path

from service.store.address import parse_url
from service.store.cluster import ClusterStore
from service.store.confirmation import AckSettings
from service.store.connection import fixed
from service.store.node import Node
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
    on_change: Callable[[bool], None] = lambda _: None,
) -> Store:
    """Returns a store, not yet opened.

    Args:
        url: See `address`.
        timeout_s: Longest wait for any reply.
        password_file: Holds the store's password, instead of the URL.
        allowances: Dangers that `check_safe` does not mind; by default none.
        acks: What is asked of it beyond its primary's memory.
        on_change: Called with whether the store answers, when that changes.

    Raises:
        ValueError: The URL cannot be read; the text shows no secret.
    """
    target = parse_url(url, password_file=password_file)
    allowances = allowances or Allowances()
    if target.topology == "cluster":
        return ClusterStore(
            target.addresses, timeout_s=timeout_s, allowances=allowances, acks=acks, on_change=on_change
        )
    if target.topology == "single":
        node = Node(fixed(target.addresses[0]), timeout_s=timeout_s, on_change=on_change, acks=acks)
        return RedisStore(node, allowances)
    sentinels = Sentinels(target.addresses, target.group, target.primary, timeout_s=timeout_s)
    node = Node(sentinels.locate, timeout_s=timeout_s, on_change=on_change, must_be_primary=True, acks=acks)
    return RedisStore(node, allowances, sentinels)

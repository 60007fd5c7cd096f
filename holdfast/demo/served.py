"""A stream through a server that is killed half-way, and through the one that takes its place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import holdfast
from holdfast.client.reply import StepReply
from holdfast.demo.live import LiveScreen
from holdfast.demo.processes import ServerProcess


def served(
    data_dir: Path, store: str, model: str, tokens: bytes | NDArray[Any], screen: LiveScreen, **options: Any
) -> Iterator[StepReply]:
    """Yields the replies to a stream.

    Args:
        data_dir: Folder of the embedded store.
        store: As in `holdfast serve --store`.
        model: Name of the network.
        tokens: All of them.
        screen: Told of the servers.
        options: As of `Session.stream`.

    Raises:
        RuntimeError: A server does not start.
    """
    half, is_killed = len(tokens) // 2, False
    server = ServerProcess(data_dir, "--store", store)
    try:
        screen.event(f"server {server.pid} serves {model} at {server.address}")
        with holdfast.Client(server.address) as client:
            session = client.open_session(model=model)
            for reply in session.stream(tokens, **options):
                yield reply
                if reply.position >= half and not is_killed:
                    server.kill()
                    is_killed = True
                    screen.event(f"server {server.pid} killed with SIGKILL after token {reply.position}")
                    server = ServerProcess(data_dir, "--store", store, grpc_address=server.address)
                    screen.event(f"server {server.pid} took over; the stream goes on")
            session.delete()
    finally:
        server.stop()

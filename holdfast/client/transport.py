"""The connections of a client: how many, how they are opened, looked after, given up and let go of."""

import asyncio
import contextlib
import functools
import gc
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import grpc
import grpc.aio

from holdfast.client import forks
from holdfast.client.connection import FORK_POLL_S, Connection, Home, Stream
from holdfast.client.targets import Options, is_local, name_in, to_target
from holdfast.client.tls import Files, Tls, channel_credentials, read_files

GRACE_S = 30.0
"""For calls that still go well over a connection that was given up for others."""

PING_AFTER_S = 10.0
"""While calls are under way, a connection that is silent for so long must answer a ping; once a minute when
they send nothing either. A server of ours takes pings twice as often (PING_INTERVAL_S there). One that
takes less says so as it ends the connection; gRPC then pings half as often, until that is right."""

PING_TIMEOUT_S = 5.0
"""For the answer to a ping; then the connection is dead, and all calls over it end."""

LET_GO_S = 0.5
"""For callers to forget calls that were cut off for a fork; others may keep gRPC running."""

SETTLE_S = 0.05
"""For gRPC to end calls that were cut off, in threads of its own."""

OPTIONS: Options = [
    ("grpc.enable_retries", 0),  # this library retries, and knows when that is right
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2000),  # in spite of its name, how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", int(PING_AFTER_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_S * 1000)),
    (
        "grpc.http2.ping_timeout_ms",
        int(PING_TIMEOUT_S * 1000),
    ),  # without it no ping is given up within 60 s
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel connects anew, whatever others there are
    # calls go in turns to all replicas that an address stands for, and to none that is gone
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
]


class Transport:
    """The connections of one client, which take turns.

    Nothing is opened before the first call: where that is made is the loop it belongs to.

    Args:
        address: As `AsyncClient` takes it.
        tls: True, or files.
        connections: Connections to each replica.
        http_proxy: Whether proxies of the environment are used for targets elsewhere.

    Raises:
        ValueError: `connections` is less than 1, or an address is not HOST:PORT.
        OSError: A file of `tls` cannot be read, or a name in a list is not known.
        ClientForked: gRPC cannot be used in this process.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        tls: bool | Tls = False,
        connections: int = 1,
        http_proxy: bool = True,
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections is {connections}, expected at least 1")
        target, own_options = to_target(address)
        forks.check_usable()
        options = OPTIONS + own_options
        if not http_proxy or is_local(target):
            options = [*options, ("grpc.enable_http_proxy", 0)]
        files = read_files(tls) if tls else None
        self._open_channel = functools.partial(_channel, target, files, options)
        self._home = Home()
        self._connections = [Connection(self._home, self._open_channel) for _ in range(connections)]
        self._turn = 0
        self._replica_count = target.count(",") + 1
        self._name = name_in(target)
        self._counting: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[None], Connection] = {}
        forks.keep_in_children(self)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that made it."""
        return self._home.is_inherited

    @property
    def replica_count(self) -> int:
        """Replicas behind each connection; 1 until a name was looked up, which the first call begins."""
        if self._name and self._counting is None:
            self._counting = asyncio.get_running_loop().create_task(self._count())
        return self._replica_count

    @property
    def is_closed(self) -> bool:
        """Whether `close` has begun."""
        return self._home.is_closed

    def check(self) -> None:
        """Makes sure that the client may be used here.

        Raises:
            ClientForked, ClientClosed, WrongEventLoop: It may not, or not any more.
        """
        self._home.check()

    def next_stub(self) -> Connection:
        """Returns the connection whose turn it is.

        Raises:
            ClientForked, ClientClosed, WrongEventLoop: See `check`.
        """
        self._home.check()
        self._turn = (self._turn + 1) % len(self._connections)
        return self._connections[self._turn]

    def suspect(self, used: Connection | Stream, waited_s: float | None = None) -> None:
        """Connects anew for the next attempts, beside a connection over which nothing came back in time.

        The old one is closed once nothing uses it any more, or after a grace.

        Args:
            used: What the attempt went over.
            waited_s: For how long it waited; a stream knows by itself.
        """
        if isinstance(used, Stream):
            connection = used.connection
            waited_s = time.monotonic() - used.since_s if waited_s is None else waited_s
        else:
            connection = used.current()
        if connection not in self._connections or not connection.is_doubtful(waited_s or 0.0):
            return
        place = self._connections.index(connection)
        self._connections[place] = connection.succeeded_by(self._open_channel)
        task = asyncio.get_running_loop().create_task(connection.retire(GRACE_S))
        self._retiring[task] = connection
        task.add_done_callback(self._retiring.pop)

    async def close(self) -> None:
        """Closes the connections and lets go of gRPC; calls under way end with ClientClosed.

        Raises:
            ClientForked: This is a child of the process that made it.
            WrongEventLoop: The loop of the client is another one, and still there.
        """
        if self._home.is_closed:
            return
        if not self._home.is_loop_gone:
            self._home.check()
        self._home.is_closed = True
        forks.note_release()
        retiring = dict(self._retiring)
        if not self._home.is_loop_gone:
            for task in retiring:
                task.cancel()
            await asyncio.gather(*retiring, return_exceptions=True)
        for connection in (*self._connections, *retiring.values()):
            await connection.close()

    async def _count(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # gRPC says what is wrong with the name
            found = await loop.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
            per_family = Counter(family for family, *_ in set(found))
            self._replica_count = max(per_family.values(), default=1)

    @property
    def is_open(self) -> bool:
        """Whether it has a channel in this process."""
        own = (*self._connections, *self._retiring.values())
        return not self.is_inherited and any(connection.is_open for connection in own)

    def let_go(self) -> "Future[None] | None":
        """Closes the connections for the moment of a fork; the next calls open them again.

        Returns:
            When that is done; None if it is.
        """
        if not self.is_open:
            return None
        forks.note_release()
        loop = self._home.loop
        if loop is not None and loop.is_running() and not _is_here(loop):
            return asyncio.run_coroutine_threadsafe(self._let_go(), loop)
        has_calls = [connection.cut() for connection in (*self._connections, *self._retiring.values())]
        if any(has_calls):
            time.sleep(SETTLE_S)  # their loop is held up by the fork; gRPC at least has ended them
        return None

    async def _let_go(self) -> None:
        had_calls = any([await one.close() for one in (*self._connections, *self._retiring.values())])
        until_s = time.monotonic() + LET_GO_S
        # those who waited for the calls have yet to hear of their end and to forget them
        if had_calls:
            await asyncio.sleep(FORK_POLL_S)
            gc.collect()
        while had_calls and forks.is_grpc_running() and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(FORK_POLL_S)

    def inherited(self) -> Iterable[object]:
        """Returns what a child must not free."""
        yield self
        for connection in (*self._connections, *self._retiring.values()):
            yield from connection.inherited()


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:  # none runs in this thread
        return False


def _channel(target: str, files: Files | None, options: Options) -> grpc.aio.Channel:
    if files is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, channel_credentials(files), options=options)

"""Forks with clients closed, open, half used; its arguments are the name of a scene and an address.

A scene that goes well ends with 0 and says nothing; what hangs is ended by an alarm.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time

import grpc.aio

import holdfast
from holdfast.client.batcher import IDLE_S
from holdfast.errors import ClientForked, HoldfastError, InvalidRequest

FORKS = 20
CHILD_S = 20
MODEL = "python-source"


def in_child(work):
    """Forks, runs `work` in the child, and fails unless it ends well."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_S)
        try:
            work()
        except BaseException:  # noqa: BLE001 -- said, and the child must not go on
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"status {status}"


def refused(work):
    """Fails unless `work` raises ClientForked."""
    try:
        work()
    except ClientForked as error:
        if error.retryable or error.reason != "CLIENT_FORKED" or "fork" not in str(error):
            raise
    else:
        raise AssertionError("it was not refused")


def use(address):
    """Uses a client for all that opens something."""
    with holdfast.Client(address, timeout_s=10) as client:
        session = client.open_session(model=MODEL)
        session.step("abc")
        list(session.stream("hello"))


async def use_async(address):
    """Does the same with asyncio, and returns what a user may keep of it."""
    async with holdfast.AsyncClient(address, timeout_s=10) as client:
        session = await client.open_session(model=MODEL)
        await session.step("abc")
        replies = [reply async for reply in session.stream("hello")]
        try:
            await session.step([300])
        except InvalidRequest as error:
            return client, session, replies, error
    raise AssertionError("it was not refused")


def used_and_closed(address):
    """Returns all that a user may keep of a client that was closed in the middle of a stream."""
    client = holdfast.Client(address, timeout_s=10)
    session = client.open_session(model=MODEL)
    stream = session.stream("abcdef")
    kept = [client, session, stream, next(stream)]
    try:
        client.open_session("x" * 999)
    except HoldfastError as error:
        kept.append(error)
    client.close()
    return kept


def closed(address):
    """Clients that were closed before leave nothing behind that a child could stumble over."""
    kept = used_and_closed(address)
    for _ in range(FORKS):
        in_child(lambda: use(address))
    assert kept


def closed_async(address):
    """The same with asyncio, in the parent, in the child, and in both."""
    kept = [asyncio.run(use_async(address)) for _ in range(3)]
    for number in range(FORKS):
        in_child(lambda: asyncio.run(use_async(address)))
        if number % 4 == 0:
            kept.append(asyncio.run(use_async(address)))
            in_child(lambda: use(address))
    assert kept


def pool(address):
    """Workers of multiprocessing, started by forks, each with a client of its own."""
    kept = used_and_closed(address)
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as workers:
        workers.map(use, [address] * 6)
    process = context.Process(target=use, args=(address,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert kept


def grandchild(address):
    """A child that forks in its turn, after a client of its own."""

    def child():
        use(address)
        in_child(lambda: use(address))

    use(address)
    in_child(child)


def inherited(address):
    """An open client, a session and a half-read stream are refused in a child, and go on in the parent.

    The child makes a client of its own, though.
    """
    with holdfast.Client(address, timeout_s=10) as client:
        session = client.open_session(model=MODEL)
        stream = session.stream("a" * 99)
        next(stream)

        def child():
            refused(lambda: session.step("a"))
            refused(lambda: next(stream))
            refused(lambda: list(session.stream("a")))
            refused(lambda: client.open_session("other"))
            refused(lambda: client.list_models())
            refused(session.close)
            refused(session.delete)
            refused(client.close)
            with client, session:
                pass  # a block that a child leaves closes nothing
            use(address)
            asyncio.run(use_async(address))

        for _ in range(FORKS):
            in_child(child)
        assert [reply.position for reply in stream] == list(range(2, 100))
        assert session.step("b").position == 100
    in_child(lambda: use(address))


def inherited_async(address):
    """The same for a client of asyncio, forked off inside its loop."""

    async def parent():
        async with holdfast.AsyncClient(address, timeout_s=10) as client:
            session = await client.open_session(model=MODEL)
            stream = session.stream("a" * 99)
            await anext(stream)

            async def attempts():
                for attempt in (
                    lambda: session.step("a"),
                    lambda: anext(session.stream("a")),
                    lambda: client.open_session("other"),
                    client.close,
                ):
                    try:
                        await attempt()
                    except ClientForked:
                        continue
                    raise AssertionError("it was not refused")

            in_child(lambda: asyncio.run(attempts()))
            in_child(lambda: refused(lambda: holdfast.Client(address)))
            in_child(lambda: refused(lambda: asyncio.run(use_async(address))))
            assert [reply.position async for reply in stream] == list(range(2, 100))

    asyncio.run(parent())


def busy(address):
    """Threads that step and stream meanwhile lose nothing; children begin anew, or are refused."""
    stop, positions = threading.Event(), {}

    def begin():
        with contextlib.suppress(ClientForked):
            use(address)

    stop, positions = threading.Event(), {}
    with holdfast.Client(address, timeout_s=20) as client:

        def step():
            session = client.open_session(model=MODEL)
            while not stop.is_set():
                positions["steps"] = positions.get("steps", 0) + 1
                assert session.step("a").position == positions["steps"]

        def stream():
            session = client.open_session(model=MODEL)
            while not stop.is_set():
                for reply in session.stream("abcdefgh"):
                    positions["streamed"] = positions.get("streamed", 0) + 1
                    assert reply.position == positions["streamed"]

        threads = [threading.Thread(target=work) for work in (step, stream)]
        for thread in threads:
            thread.start()
        for _ in range(FORKS):
            time.sleep(0.05)
            in_child(begin)
        before = dict(positions)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
    assert all(positions[name] > before[name] for name in ("steps", "streamed"))


def idle_async(address):
    """A client of asyncio that has been idle for a moment lets go of gRPC when its own loop forks."""

    async def parent():
        async with holdfast.AsyncClient(address, timeout_s=10) as client:
            session = await client.open_session(model=MODEL)
            for position in range(1, 3):
                assert (await session.step("a")).position == position
                await asyncio.sleep(IDLE_S + 0.5)
                in_child(lambda: use(address))

    asyncio.run(parent())


def held_up(address):
    """A loop that is held up cannot let go: the child says so, frees nothing, and ends as it should."""
    holder = []
    begun = threading.Event()

    async def use_and_hold_up():
        holder.append(holdfast.AsyncClient(address, timeout_s=10))
        await holder[0].list_models()
        begun.set()
        time.sleep(3)  # noqa: ASYNC251 -- as an iterator of a user may
        assert await holder[0].list_models()
        await holder[0].close()

    thread = threading.Thread(target=lambda: asyncio.run(use_and_hold_up()))
    thread.start()
    begun.wait()

    def child():
        refused(lambda: holdfast.Client(address))
        holder.clear()
        gc.collect()

    in_child(child)
    thread.join()


def collected(address):
    """What is inherited may be dropped and collected in a child."""
    holder = [holdfast.Client(address, timeout_s=10)]
    holder.append(holder[0].open_session(model=MODEL))
    holder.append(holder[1].stream("abcdef"))
    next(holder[2])

    def child():
        while holder:
            holder.pop()
            gc.collect()

    in_child(child)
    assert holder[1].position == 1
    holder[2].close()
    holder[0].close()


def of_others(address):
    """What others have opened is a hindrance too, also where no client was used before the fork."""

    async def parent():
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.channel_ready()
            in_child(lambda: refused(lambda: holdfast.Client(address)))

    assert "holdfast.client.sync" not in sys.modules
    asyncio.run(parent())


def exits(address):
    """A child with an open client, a session and a half-read stream may end as every process does."""
    client = holdfast.Client(address, timeout_s=10)
    stream = client.open_session(model=MODEL).stream("abcdef")
    next(stream)
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_S)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    stream.close()
    client.close()


if __name__ == "__main__":
    signal.alarm(120)
    globals()[sys.argv[1]](sys.argv[2])

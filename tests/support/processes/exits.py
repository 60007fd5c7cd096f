"""Ends of the interpreter with clients in use; its arguments are the name of a scene and an address.

A scene that goes well ends with 0 and says nothing; what hangs is ended by an alarm.
"""

import asyncio
import atexit
import contextlib
import gc
import os
import resource
import signal
import sys
import threading
import time

import holdfast
from holdfast.errors import ClientClosed, HoldfastError
from tests.nemesis.proxy import FaultProxy

MODEL = "python-source"

kept = []


def client_of(address):
    """Returns an open client and a session, kept until the end."""
    client = holdfast.Client(address, timeout_s=60)
    session = client.open_session(model=MODEL)
    kept.extend((client, session))
    return client, session


def in_daemon(work):
    """Runs `work` again and again in a daemon thread."""

    def repeat():
        while True:
            work()

    threading.Thread(target=repeat, daemon=True).start()


def open_client(address):
    """Nobody closes the client."""
    client_of(address)[1].step("abc")


def half_read(address):
    """Nor reads its stream to the end."""
    stream = client_of(address)[1].stream("a" * 99)
    next(stream)
    kept.append(stream)


def daemons(address):
    """Daemon threads step, stream, and wait for a source that never comes."""
    client, session = client_of(address)

    async def silent():
        yield "a"
        await asyncio.sleep(3600)

    other = client.open_session(model=MODEL)
    waiting = client.open_session(model=MODEL)
    in_daemon(lambda: session.step("a"))
    in_daemon(lambda: list(other.stream("abcdef")))
    in_daemon(lambda: list(waiting.stream(silent())))
    time.sleep(0.3)


def held_up(address):
    """The loop itself is held up by an iterator of the user."""
    session = client_of(address)[1]

    def endless():
        yield "a"
        time.sleep(60)

    in_daemon(lambda: list(session.stream(endless())))
    time.sleep(0.3)


def finalisers(address):
    """Users close their clients in finalisers and at exit, before and after the client's own end."""

    class Owner:
        def __init__(self):
            self.client = holdfast.Client(address)
            self.client.list_models()

        def __del__(self):
            self.client.close()

    kept.append(Owner())
    cycle = Owner()
    cycle.itself = cycle
    del cycle

    def last():
        kept[0].client.close()
        try:
            kept[0].client.list_models()
        except ClientClosed:
            return
        os._exit(5)

    atexit.register(last)


def async_client(address):
    """A client of asyncio, not closed, its stream half read."""

    async def main():
        client = holdfast.AsyncClient(address)
        session = await client.open_session(model=MODEL)
        stream = session.stream("a" * 99)
        await anext(stream)
        kept.extend((client, session, stream))

    asyncio.run(main())


def abandoned_task(address):
    """A client of asyncio in a task that is cut off with its loop."""

    async def main():
        client = holdfast.AsyncClient(address)
        session = await client.open_session(model=MODEL)

        async def silent():
            yield "a"
            await asyncio.sleep(3600)

        async def consume():
            return [reply async for reply in session.stream(silent())]

        kept.append(asyncio.create_task(consume()))
        await asyncio.sleep(0.2)

    asyncio.run(main())


def thread_ends_last(address):
    """A thread that is no daemon goes on after the main one, and gets its replies."""
    _, session = client_of(address)

    def work():
        time.sleep(0.3)
        for _ in range(20):
            session.step("a")
        if session.position != 20:
            os._exit(6)

    threading.Thread(target=work).start()


def interrupted(address):
    """Ctrl-C comes out of a step and of a stream, whatever they wait for, and the client goes on."""
    proxy = FaultProxy(address)
    retry = holdfast.RetryPolicy(attempt_s=1)
    client = holdfast.Client(proxy.__enter__().address, timeout_s=60, retry=retry)
    session = client.open_session(model=MODEL)
    frozen = client.open_session(model=MODEL)
    kept.extend((proxy, client, session, frozen))

    async def silent():
        yield "a"
        await asyncio.sleep(3600)

    def waits_for_source():
        kept.extend(session.stream(silent()))

    def waits_for_replies():
        for reply in frozen.stream("a" * 99):
            proxy.freeze()
            kept.append(reply)

    def waits_for_reply():
        session.step("b")

    for work in (waits_for_source, waits_for_source, waits_for_replies, waits_for_reply):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        started_s = time.monotonic()
        try:
            work()
        except KeyboardInterrupt:
            if time.monotonic() - started_s > 1:
                sys.exit("it took too long")
        else:
            sys.exit("it was not interrupted")
    session.settle()
    frozen.settle()
    if (session.step("b").position, frozen.step("a").position > 1) != (4, True):
        sys.exit("the session stands elsewhere")
    proxy.__exit__()


def dropped(address):
    """A hundred clients made, used and dropped leave neither threads nor descriptors."""

    def threads():
        return len(os.listdir("/proc/self/task"))

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def use():
        client = holdfast.Client(address)
        session = client.open_session(model=MODEL)
        session.step("a")
        next(session.stream("abcdef"))

    before = descriptors()
    for _ in range(100):
        use()
    gc.collect()
    deadline_s = time.monotonic() + 20
    while threading.active_count() > 1 or descriptors() > before or threads() > 2:
        if time.monotonic() > deadline_s:
            sys.exit(f"{before} became {threading.enumerate()}, {threads()}, {descriptors()}")
        time.sleep(0.01)


def too_many_files(address):
    """Too many open files for a moment, before the first connection and after one: errors, then none."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more):
        taken = {int(name) for name in os.listdir("/proc/self/fd")}
        taken.remove(max(taken))  # of the listing itself
        free = [number for number in range(len(taken) + more + 1) if number not in taken]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], limits[1]))

    def refuse(kind, work):
        try:
            work()
        except kind as error:
            if "oo many open files" not in str(error):
                raise
        else:
            sys.exit("it was not refused")

    async def use():
        async with holdfast.AsyncClient(address, timeout_s=0.3) as client:
            return await client.list_models()

    async def use_twice():
        async with holdfast.AsyncClient(address, timeout_s=0.3) as client:
            for more in range(1, 10):
                allow(more)
                with contextlib.suppress(HoldfastError):
                    await client.list_models()
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            client._calls._timeout_s = 20
            return await client.list_models()

    for more in range(1, 8):
        allow(more)
        refuse(OSError, lambda: holdfast.Client(address))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    asyncio.run(use_twice())
    asyncio.run(use())
    with holdfast.Client(address, timeout_s=20) as client:
        client.list_models()
        allow(1)
        threading.Timer(1, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)).start()
        connections = client._client._calls._connections
        connections.suspect(connections._connections[0], 9)
        client.list_models()


if __name__ == "__main__":
    if sys.argv[1] == "interrupted":
        signal.signal(signal.SIGALRM, signal.default_int_handler)
    else:
        signal.alarm(60)
    globals()[sys.argv[1]](sys.argv[2])

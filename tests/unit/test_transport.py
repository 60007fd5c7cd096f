"""The connections of a client: which proxies they use, when they are given up, whose they are."""

import asyncio
import gc
import os
import subprocess
import sys
import threading

import grpc.aio
import pytest

import holdfast
from holdfast.client import forks, transport
from holdfast.client.connection import SUSPECT_AFTER_S, Stream
from holdfast.client.targets import is_local, name_in
from holdfast.client.transport import Transport
from holdfast.errors import ClientClosed, HoldfastError, ServerUnavailable, WrongEventLoop
from holdfast.v1 import holdfast_pb2 as pb


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:50051", True),
        ("127.9.8.7:1", True),
        ("localhost:50051", True),
        ("LOCALHOST:1", True),
        ("localhost", True),
        ("one.localhost:1", True),
        ("[::1]:50051", True),
        ("::1", True),
        ("dns:///localhost:1", True),
        ("dns:localhost:1", True),
        ("dns://8.8.8.8/localhost:1", True),
        ("unix:/run/holdfast.sock", True),
        ("unix:///run/holdfast.sock", True),
        ("unix-abstract:holdfast", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv6:[::1]:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("10.0.0.1:50051", False),
        ("[2001:db8::1]:1", False),
        ("localhost.example.org:1", False),
        ("dns:///holdfast.example.org:50051", False),
        ("xds:///localhost", False),
    ],
)
def test_what_lies_on_this_machine(target, expected):
    assert is_local(target) == expected


@pytest.mark.parametrize(
    ("address", "options", "uses_proxies"),
    [
        ("127.0.0.1:1", {}, False),
        (["127.0.0.1:1", "127.0.0.1:2"], {}, False),
        (["127.0.0.1:1", "10.0.0.1:2"], {}, True),
        ("10.0.0.1:1", {}, True),
        ("10.0.0.1:1", {"http_proxy": False}, False),
    ],
)
def test_proxies_of_the_environment_are_for_targets_elsewhere(address, options, uses_proxies):
    _, _, given = Transport(address, **options)._open_channel.args
    assert (dict(given).get("grpc.enable_http_proxy", 1) == 1) == uses_proxies


CALL = """
import sys
import holdfast
with holdfast.Client(sys.argv[1], timeout_s=1, http_proxy=sys.argv[2] == "yes") as client:
    try:
        client.list_models()
    except holdfast.HoldfastError as error:
        print(error)
"""


@pytest.mark.process
def test_a_proxy_of_the_environment_does_not_capture_this_machine():
    """Nothing listens at either address: the error names the one that was tried."""
    proxies = dict.fromkeys(["grpc_proxy", "http_proxy", "https_proxy"], "http://127.0.0.1:2")
    environment = {**os.environ, **proxies}
    for name in ("no_proxy", "no_grpc_proxy"):
        environment.pop(name, None)
    for address, choice, tried in [
        ("127.0.0.1:1", "yes", "127.0.0.1:1"),
        ("0.0.0.0:1", "yes", "127.0.0.1:2"),
        ("0.0.0.0:1", "no", "0.0.0.0:1"),
    ]:
        command = [sys.executable, "-c", CALL, address, choice]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
        assert tried in done.stdout, (address, choice, done.stderr)


def test_a_client_may_be_made_before_its_loop_runs_and_belongs_to_the_first_that_uses_it():
    client = holdfast.AsyncClient("127.0.0.1:1", timeout_s=0.2)

    async def use():
        with pytest.raises(ServerUnavailable):
            await client.list_models()

    async def use_elsewhere():
        for attempt in (client.list_models, lambda: client.open_session("s"), client.close):
            with pytest.raises(WrongEventLoop, match="another event loop"):
                await attempt()

    with asyncio.Runner() as first:
        first.run(use())
        asyncio.run(use_elsewhere())
        first.run(client.close())
    assert issubclass(WrongEventLoop, RuntimeError)
    assert issubclass(WrongEventLoop, HoldfastError)


def test_a_client_whose_loop_is_gone_may_be_closed_in_another():
    client = holdfast.AsyncClient("127.0.0.1:1", timeout_s=0.2)

    async def use():
        with pytest.raises(ServerUnavailable):
            await client.list_models()

    asyncio.run(use())
    asyncio.run(client.close())
    with pytest.raises(ClientClosed):
        asyncio.run(client.list_models())


async def test_a_closed_client_says_so_and_may_be_closed_again():
    client = holdfast.AsyncClient("127.0.0.1:1")
    await client.close()
    await client.close()
    with pytest.raises(ClientClosed):
        await client.list_models()
    with pytest.raises(ClientClosed):
        await client.open_session("s")
    async with client.batches("m") as batches:
        for _ in range(9):  # more than may be under way
            with pytest.raises(ClientClosed):
                await asyncio.wait_for(batches.submit(["s"], b"x"), 2)


async def test_a_call_under_way_ends_when_its_client_is_closed_and_the_task_is_not_cancelled(silent_server):
    client = holdfast.AsyncClient(silent_server)
    call = asyncio.create_task(client.list_models())
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(ClientClosed):
        await asyncio.wait_for(call, 2)


async def test_a_cancelled_call_is_cancelled(silent_server):
    async with holdfast.AsyncClient(silent_server) as client:
        call = asyncio.create_task(client.list_models())
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 2)


@pytest.fixture
async def silent_server():
    """Address of a server that takes connections and says nothing."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield "{}:{}".format(*server.sockets[0].getsockname())
    server.close()
    for writer in writers:
        writer.close()


async def connections_after(waits_s, *, age_s=9.0, heard_s_ago=9.0):
    """Returns a transport, and the connections whose turn it was after each call that waited so long."""
    own = Transport("127.0.0.1:1")
    turns = [own.next_stub()]
    turns[0]._opened()
    turns[0]._opened_s -= age_s
    turns[0].heard_s -= heard_s_ago
    for waited_s in waits_s:
        own.suspect(turns[-1], waited_s)
        turns.append(own.next_stub())
    await own.close()
    return turns


@pytest.mark.parametrize(
    ("waited_s", "ages", "is_new"),
    [
        (4.0, {}, True),
        (4.0, {"heard_s_ago": 0.0}, True),
        (SUSPECT_AFTER_S / 2, {}, True),
        (SUSPECT_AFTER_S / 2, {"heard_s_ago": 0.0}, False),
        (4.0, {"age_s": 0.0}, False),
    ],
)
async def test_a_connection_is_given_up_for_silence_and_not_for_short_time_limits(waited_s, ages, is_new):
    before, after = await connections_after([waited_s], **ages)
    assert (after is not before) == is_new
    assert (before.current() is after) is True


async def test_a_connection_is_given_up_once():
    own = Transport("127.0.0.1:1", connections=2)
    first, second = own.next_stub(), own.next_stub()
    first._opened()
    first._opened_s -= 9
    stream = first.StreamSteps(metadata=())
    own.suspect(first, 4)
    successor = first.current()
    assert successor is not first
    own.suspect(stream, 4)
    assert first.current() is successor
    assert {own.next_stub(), own.next_stub()} == {successor, second}
    await own.close()


async def test_a_connection_that_was_given_up_goes_on_for_its_calls_until_the_grace_ends(monkeypatch):
    monkeypatch.setattr(transport, "GRACE_S", 0.3)
    own = Transport("127.0.0.1:1")
    first = own.next_stub()
    first._opened()
    first._opened_s -= 9
    first._under_way += 1  # a call that does not end
    first._idle.clear()
    own.suspect(first, 4)
    await asyncio.sleep(0.1)
    assert first._channel is not None
    await asyncio.sleep(0.4)
    assert first._channel is None
    assert not own._retiring
    await own.close()


async def test_nothing_of_grpc_outlives_the_end_of_a_client_whose_errors_are_kept(silent_server):
    before = grpc_objects()
    client = holdfast.AsyncClient(silent_server, timeout_s=0.2)
    errors = []
    for call in (client.list_models, client.open_session):
        try:
            await call()
        except HoldfastError as error:
            errors.append(error)
    stub = client._calls.next_stub()
    nowhere = holdfast.AsyncClient("127.0.0.1:1")
    stream = nowhere._calls.next_stub().StreamSteps(metadata=())
    for attempt in (stream.read, lambda: stream.write(pb.StreamStepsRequest())):
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)) as caught:
            await attempt()
        errors.append(caught.value)
    await nowhere.close()
    await client.close()
    del client, call, caught
    gc.collect()
    assert len(errors) == 4
    assert stub
    assert grpc_objects() <= before


def grpc_objects():
    kinds = (grpc.aio.Channel, grpc.aio.Call)
    return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), kinds)}


@pytest.mark.parametrize("times", [1, 2])
async def test_a_write_that_waits_for_its_call_to_begin_ends_when_that_is_cut_off(silent_server, times):
    class Call:
        async def write(self, _):
            await asyncio.sleep(60)

    own = Transport(silent_server)
    stream = Stream(own.next_stub(), Call())
    write = asyncio.create_task(stream.write(pb.StreamStepsRequest()))
    await asyncio.sleep(0.05)
    for _ in range(times):  # forks may come at once, from two threads
        stream.let_go()
    with pytest.raises(grpc.aio.AioRpcError, match="cut off"):
        await asyncio.wait_for(write, 2)
    assert write.cancelling() == 0
    await own.close()


def test_a_fork_that_is_over_says_nothing_of_another_one(monkeypatch):
    waiting, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(forks, "_runs_now", False)
    other = threading.Thread(
        target=lambda: (forks._before_fork(), waiting.set(), go_on.wait(10), forks._in_parent())
    )
    other.start()
    assert waiting.wait(10)
    forks._before_fork()
    forks._in_parent()
    assert forks.is_forking()
    go_on.set()
    other.join()
    assert not forks.is_forking()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("holdfast.example.org:50051", "holdfast.example.org"),
        ("dns:///holdfast.example.org:50051", "holdfast.example.org"),
        ("dns://8.8.8.8/holdfast.example.org:1", "holdfast.example.org"),
        ("127.0.0.1:50051", ""),
        ("[::1]:50051", ""),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", ""),
        ("unix:/run/holdfast.sock", ""),
        ("xds:///holdfast", ""),
    ],
)
def test_a_name_is_what_may_stand_for_several_replicas(target, name):
    assert name_in(target) == name


@pytest.mark.parametrize(
    ("address", "found", "count"),
    [
        (["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"], [], 3),
        ("127.0.0.1:1", [], 1),
        ("replicas:1", ["10.0.0.1", "10.0.0.2", "10.0.0.2", "fd00::1"], 2),
        ("replicas:1", OSError("no such name"), 1),
    ],
)
async def test_replicas_are_counted_by_the_addresses_of_a_name(monkeypatch, address, found, count):
    async def getaddrinfo(host, *_, **__):
        assert host == "replicas"
        if isinstance(found, OSError):
            raise found
        return [(":" in place, 0, 0, "", (place, 0)) for place in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    own = Transport(address)
    assert own.replica_count == (count if isinstance(address, list) else 1)
    await asyncio.sleep(0.01)
    assert own.replica_count == count
    await own.close()

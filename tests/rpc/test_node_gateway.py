"""The gateway of docs/guides/node in real Node: callers of HTTP share messages, and nothing else."""

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections import defaultdict

import pytest

from holdfast.demo.processes import ServerProcess
from tests.support.hash_oracle import hashes_of
from tests.support.models import (
    RAISES,
    SPOILS_STATE,
    write_features_model,
    write_hash_model,
    write_poison_model,
)
from tests.support.node import Caller, Gateway, array_of
from tests.support.server import get
from tests.support.waiting import wait_for

CALLERS, SESSIONS, STEPS = 200, 50, 6


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    write_hash_model(folder / "models" / "hash" / "1" / "model.onnx")
    write_poison_model(folder / "models" / "poison" / "1" / "model.onnx")
    write_features_model(folder / "models" / "features" / "1" / "model.onnx")
    with ServerProcess(folder / "data", "--models", str(folder / "models")) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(server):
    with Gateway(server.address) as gateway:
        yield gateway


@pytest.fixture
async def callers(gateway):
    """Makes callers, and closes their connections."""
    async with contextlib.AsyncExitStack() as stack:

        def make(count):
            made = [Caller(gateway.port) for _ in range(count)]
            for caller in made:
                stack.push_async_callback(caller.aclose)
            return made

        yield make


def message_count(server):
    """Returns how many messages of batches have come."""
    [line] = [
        line
        for line in get(server, "/metrics")[1].splitlines()
        if line.startswith("grpc_server_msg_received_total{") and '"StreamBatches"' in line
    ]
    return float(line.split()[-1])


async def test_two_hundred_callers_get_what_each_would_alone(server, callers):
    """Four callers share each session; the positions of the replies say whose tokens came when."""
    rng = random.Random(7)
    callers = callers(CALLERS)
    await asyncio.gather(
        *(caller.open(f"s{index}", "hash") for index, caller in enumerate(callers[:SESSIONS]))
    )
    before = message_count(server)
    given = defaultdict(list)

    async def run(caller, session_id, chunks):
        for tokens in chunks:
            status, reply = await caller.step(session_id, ids=list(tokens))
            assert (status, reply["session_id"], reply["replayed"]) == (200, session_id, False), reply
            given[session_id].append((reply["position"], tokens, array_of(reply, "hash").tolist()))

    chunks = [[rng.randbytes(rng.randint(1, 3)) for _ in range(STEPS)] for _ in callers]
    await asyncio.gather(
        *(run(caller, f"s{index % SESSIONS}", chunks[index]) for index, caller in enumerate(callers))
    )
    for steps in given.values():
        steps.sort(key=lambda step: step[0])
        tokens = b"".join(tokens for _, tokens, _ in steps)
        assert [value for _, _, values in steps for value in values] == hashes_of(tokens)
        assert steps[-1][0] == len(tokens)
    assert sum(len(steps) for steps in given.values()) == CALLERS * STEPS
    assert message_count(server) - before < CALLERS * STEPS / 4


@pytest.mark.parametrize(
    ("model", "bad", "status", "reason"),
    [
        ("hash", {"ids": [256]}, 400, "INVALID_REQUEST"),
        ("hash", {"ids": [1], "position": 9}, 409, "POSITION_GAP"),
        ("poison", {"ids": [RAISES]}, 500, "MODEL_FAILED"),
        ("poison", {"ids": [SPOILS_STATE]}, 400, "STATE_NOT_FINITE"),
        ("poison", {"text": "a", "outputs": {"top_k": 999}}, 400, "INVALID_REQUEST"),
        ("features", {"features": [[1e39, 0]]}, 400, "INVALID_REQUEST"),
        ("features", {"features": [[1, 2, 3]]}, 400, "INVALID_REQUEST"),
        ("hash", {"text": ""}, 400, "INVALID_REQUEST"),
        ("hash", {"ids": [1.5]}, 400, "INVALID_REQUEST"),
        ("hash", {"ids": [1], "position": -1}, 400, "INVALID_REQUEST"),
    ],
    ids=str,
)
async def test_an_error_is_of_its_row_alone(callers, model, bad, status, reason):
    good = {"features": [[1, 2]]} if model == "features" else {"ids": [3]}
    callers = callers(30)
    ids = [f"{reason}-{bad}-{index}".encode().hex()[:90] + str(index) for index in range(len(callers))]
    await asyncio.gather(*(caller.open(one, model) for caller, one in zip(callers, ids, strict=True)))
    bodies = [bad if index % 10 == 4 else good for index in range(len(callers))]
    replies = await asyncio.gather(
        *(caller.step(one, **body) for caller, one, body in zip(callers, ids, bodies, strict=True))
    )
    for body, (found, reply) in zip(bodies, replies, strict=True):
        if body is bad:
            assert (found, reply["reason"]) == (status, reason), reply
        else:
            assert (found, reply.get("position")) == (200, 1), reply
    after = await asyncio.gather(
        *(caller.step(one, **good) for caller, one in zip(callers, ids, strict=True))
    )
    assert [(found, reply["position"]) for found, reply in after] == [
        (200, 1 if body is bad else 2) for body in bodies
    ]


async def test_a_step_with_its_position_may_be_repeated(callers):
    [caller] = callers(1)
    assert (await caller.open("again", "hash"))["resumed"] is False
    _, first = await caller.step("again", text="ab", position=0)
    status, again = await caller.step("again", text="ab", position=0)
    assert (status, again) == (200, {**first, "replayed": True})
    status, other = await caller.step("again", text="ac", position=0)
    assert (status, other["reason"], other["expected_position"]) == (409, "POSITION_CONFLICT", 2)
    opened = await caller.open("again", "hash")
    assert (opened["resumed"], opened["position"]) == (True, 2)
    assert opened["incarnation"] != first["incarnation"]


async def test_what_does_not_exist_is_said_with_a_reason(callers):
    [caller] = callers(1)
    status, reply = await caller.step("nobody", text="a")
    assert (status, reply["reason"]) == (404, "SESSION_NOT_FOUND")
    status, reply = await caller.call("PUT", "/sessions/x", {"model": "none"})
    assert (status, reply["reason"]) == (404, "MODEL_NOT_FOUND")
    for method, path in (("PUT", "/"), ("GET", "/sessions/x"), ("POST", "/sessions/%ff/steps")):
        status, reply = await caller.call(method, path, {})
        assert (status, reply["reason"]) == (400, "INVALID_REQUEST")


async def test_sigterm_lets_the_calls_end_that_have_come(server):
    """The server stands still until the gateway has been told to end."""
    with Gateway(server.address) as gateway:
        callers = [Caller(gateway.port) for _ in range(20)]
        await asyncio.gather(*(caller.open(f"end{index}", "hash") for index, caller in enumerate(callers)))
        last = Caller(gateway.port)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for index, caller in enumerate(callers):
                await caller.send("POST", f"/sessions/end{index}/steps", {"text": "abc"})
            assert (await last.call("GET", "/", {}))[0] == 400  # so those before it have come
            gateway.terminate()
            await asyncio.to_thread(wait_for, lambda: _is_refused(gateway.port))
        finally:
            os.kill(server.pid, signal.SIGCONT)
        replies = await asyncio.gather(*(caller.receive() for caller in callers))
        assert [(status, reply["position"]) for status, reply in replies] == [(200, 3)] * len(callers)
        for caller in (*callers, last):
            await caller.aclose()
        assert await asyncio.to_thread(gateway.wait) == 0


def _is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False

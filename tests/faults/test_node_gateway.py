"""The gateway of docs/guides/node when servers or gateways go: its callers lose and double nothing."""

import asyncio
import contextlib
import os
import random
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from holdfast.demo.processes import ServerProcess
from tests.support.hash_oracle import hashes_of
from tests.support.models import write_hash_model
from tests.support.node import Caller, Gateway, array_of, node_environment
from tests.support.waiting import wait_for

CALLERS, SESSIONS = 200, 40
STEPS_BETWEEN = 400

pytestmark = pytest.mark.faults


class Load:
    """Callers that make steps until they are told to end, and what they were answered.

    Attributes:
        is_over: Set to end.
    """

    def __init__(self):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        self.is_over = False
        self._rng = random.Random(seed)
        self._steps = defaultdict(list)
        self._left = 0
        self._reached = asyncio.Event()

    async def run(self, caller, session_id, *, gives_positions):
        """Makes steps, and repeats one whose fate is unknown, which needs its position."""
        position = 0
        async with contextlib.aclosing(caller):
            while not self.is_over:
                tokens = self._rng.randbytes(self._rng.randint(1, 2))
                body = {"ids": list(tokens)} | ({"position": position} if gives_positions else {})
                while (answer := await self._answer(caller, session_id, body)) is None:
                    assert gives_positions
                status, reply = answer
                assert status == 200, reply
                position = reply["position"]
                self._steps[session_id].append((position, tokens, array_of(reply, "hash").tolist()))
                self._left -= 1
                if self._left == 0:
                    self._reached.set()

    async def _answer(self, caller, session_id, body):
        try:
            return await caller.step(session_id, **body)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.01)
            return None

    async def goes_on(self):
        """Returns when some more answers have come."""
        self._left = STEPS_BETWEEN
        self._reached.clear()
        await self._reached.wait()

    async def check(self, port):
        """Compares all with the oracle, and with where the sessions stand."""
        assert len(self._steps) == SESSIONS
        async with contextlib.aclosing(Caller(port)) as caller:
            for session_id, steps in self._steps.items():
                steps.sort(key=lambda step: step[0])
                tokens = b"".join(tokens for _, tokens, _ in steps)
                assert [value for _, _, values in steps for value in values] == hashes_of(tokens)
                assert (await caller.open(session_id, "hash"))["position"] == len(tokens)


@pytest.fixture
def flags(tmp_path):
    node_environment()  # without Node a test ends before it starts a server
    write_hash_model(tmp_path / "models" / "hash" / "1" / "model.onnx")
    return ["--models", str(tmp_path / "models"), "--max-connection-age-s", "2"]


async def test_a_server_that_goes_costs_callers_nothing_but_time(tmp_path, flags):
    """It is killed, drains, and hangs. Five callers share each session and give no positions."""
    load, server = Load(), ServerProcess(tmp_path / "data", *flags)
    with Gateway(server.address) as gateway:
        try:
            callers = [Caller(gateway.port) for _ in range(CALLERS)]
            await _open(callers[:SESSIONS])
            async with asyncio.TaskGroup() as tasks:
                for n, caller in enumerate(callers):
                    tasks.create_task(load.run(caller, f"s{n % SESSIONS}", gives_positions=False))
                for end in (ServerProcess.kill, ServerProcess.stop):
                    await load.goes_on()
                    end(server)
                    server = ServerProcess(tmp_path / "data", *flags, grpc_address=server.address)
                await load.goes_on()
                before = _connections_to(server)
                os.kill(server.pid, signal.SIGSTOP)
                await asyncio.to_thread(wait_for, lambda: _connections_to(server) - before)
                os.kill(server.pid, signal.SIGCONT)
                await load.goes_on()
                load.is_over = True
            await load.check(gateway.port)
        finally:
            os.kill(server.pid, signal.SIGCONT)
            server.stop()


async def test_a_gateway_that_is_killed_costs_callers_that_give_positions_a_repetition(tmp_path, flags):
    """Each has a session of its own; what it repeats at the next gateway is answered as the first time."""
    load = Load()
    with ServerProcess(tmp_path / "data", *flags) as server, contextlib.ExitStack() as gateways:
        gateway = gateways.enter_context(Gateway(server.address))
        callers = [Caller(gateway.port) for _ in range(SESSIONS)]
        await _open(callers)
        async with asyncio.TaskGroup() as tasks:
            for n, caller in enumerate(callers):
                tasks.create_task(load.run(caller, f"s{n}", gives_positions=True))
            for _ in range(2):
                await load.goes_on()
                gateway.kill()
                gateway = gateways.enter_context(Gateway(server.address, gateway.port))
            await load.goes_on()
            load.is_over = True
        await load.check(gateway.port)


async def _open(callers):
    await asyncio.gather(*(caller.open(f"s{n}", "hash") for n, caller in enumerate(callers)))


def _connections_to(server):
    """Returns the addresses from which connections to a server stand."""
    port, established = int(server.address.rpartition(":")[2]), "01"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == established}

"""Node, and the gateway of docs/guides/node with its HTTP callers, for tests."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import google.rpc
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MODULES = Path(sys.prefix) / "node" / "node_modules"
GOOGLEAPIS = next(
    folder
    for folder in (Path(path).parents[1] for path in google.rpc.__path__)
    if (folder / "google").is_dir()
)
REQUIRE_NODE = "HOLDFAST_TEST_REQUIRE_NODE"
"""Set where Node must be there, so that its tests cannot be skipped without a word."""


def node_environment():
    """Returns the environment of a process of Node; without Node or its packages the test ends here."""
    reason = None
    if shutil.which("node") is None:
        reason = "node is not on PATH, so the contract is not tried from it"
    elif not MODULES.is_dir():
        reason = f"{MODULES} is not there: make .venv/.node"
    if reason is not None:
        if os.environ.get(REQUIRE_NODE):
            pytest.fail(reason)
        pytest.skip(reason)
    return {**os.environ, "NODE_PATH": str(MODULES)}


class Gateway:
    """The gateway, ready to serve until its `with` block ends.

    Args:
        server: HOST:PORT of the service.
        port: To listen on; 0 takes a free one.

    Attributes:
        port: On which it listens.
    """

    def __init__(self, server, port=0):
        script = ROOT / "docs" / "guides" / "node" / "gateway.cjs"
        command = ["node", script, server, str(port), ROOT / "proto", GOOGLEAPIS]
        self._process = subprocess.Popen(
            command, env=node_environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        with self._process.stdout as output:
            self.port = int(output.readline().removeprefix("ready "))

    def terminate(self):
        """Sends SIGTERM."""
        self._process.terminate()

    def wait(self):
        """Returns its exit code."""
        return self._process.wait(30)

    def kill(self):
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Caller:
    """One HTTP connection to the gateway, for one call at a time; made anew after it broke."""

    def __init__(self, port):
        self._port = port
        self._streams = None

    async def call(self, method, path, body):
        """Makes a call; returns status and body.

        Raises:
            OSError, asyncio.IncompleteReadError: The connection broke; what became of the call is unknown.
        """
        try:
            await self.send(method, path, body)
            return await self.receive()
        except BaseException:
            await self.aclose()
            raise

    async def send(self, method, path, body):
        """Begins a call."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        text = json.dumps(body).encode()
        self._streams[1].write(f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n".encode())
        self._streams[1].write(f"Content-Length: {len(text)}\r\n\r\n".encode() + text)
        await self._streams[1].drain()

    async def receive(self):
        """Returns status and body of the call that was begun."""
        reader, _ = self._streams
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
        text = await reader.readexactly(int(fields["content-length"]))
        if fields["connection"] == "close":
            await self.aclose()
        return int(head.split()[1]), json.loads(text)

    async def open(self, session_id, model):
        """Opens a session; returns it."""
        status, session = await self.call("PUT", f"/sessions/{session_id}", {"model": model})
        assert status == 200, session
        return session

    async def step(self, session_id, **body):
        """Makes a step; returns status and reply."""
        return await self.call("POST", f"/sessions/{session_id}/steps", body)

    async def aclose(self):
        """Closes its connection."""
        if self._streams is not None:
            streams, self._streams = self._streams, None
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()


def array_of(reply, name):
    """Returns an output tensor of a reply."""
    tensor = reply["outputs"]["tensors"][name]
    dtype = tensor["dtype"].removeprefix("DATA_TYPE_").lower()
    return np.frombuffer(base64.b64decode(tensor["data"]), dtype).reshape(tensor["shape"])

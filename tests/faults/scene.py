"""A deployment to be broken: a store and replicas as processes, a proxy on every link."""

import contextlib
import os
import random
import threading

import grpc

from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.common.failpoints import VARIABLE
from tests.nemesis.processes import pause, resume, state_of
from tests.nemesis.proxy import FaultProxy
from tests.nemesis.store import StoreProcess
from tests.support.server import ServerProcess, get
from tests.support.waiting import time_until

STORE_TIMEOUT_S = 0.5


class Replica:
    """A server that is started again where it was, behind a proxy that clients know."""

    def __init__(self, folder, store_url):
        self._folder = folder
        self._flags = ("--store", store_url, "--store-timeout-s", str(STORE_TIMEOUT_S))
        self._address = "127.0.0.1:0"
        self.start()
        self._address = self.server.address
        self._waking = None
        self.link = FaultProxy(self._address)

    def start(self, failpoints=""):
        """Starts the server, armed if something is given."""
        os.environ[VARIABLE] = failpoints
        try:
            flags = (*self._flags, "--allow-failpoints") if failpoints else self._flags
            self.server = ServerProcess(self._folder, *flags, grpc_address=self._address)
        finally:
            del os.environ[VARIABLE]

    @property
    def lives(self):
        """Whether its process runs."""
        return state_of(self.server.pid) not in "ZT"

    def kill(self):
        """Ends it, whatever state it is in."""
        self.server.kill()

    def pause(self):
        """Stops it where it is."""
        pause(self.server.pid)

    def resume(self):
        """Lets it go on."""
        resume(self.server.pid)

    def pause_for(self, seconds):
        """Stops it for a while, be it stopped already."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking.join()  # else it might wake it before `pause` has seen it stand
        self.pause()
        self._waking = threading.Timer(seconds, self.resume)
        self._waking.start()

    def is_ready(self):
        """Whether it says that it is ready."""
        with contextlib.suppress(OSError):
            return get(self.server, "/readyz")[0] == 200
        return False

    def steps(self, timeout_s=1.0):
        """Whether a step of a new session succeeds on it, past its proxy."""
        chunk = pb.Chunk(model=pb.ModelRef(name="python-source"), tokens=pb.Tokens(text=b"?"))
        chunk.session_id = f"probe-{random.getrandbits(48)}"
        with grpc.insecure_channel(self.server.address) as channel:
            stub = StreamingInferenceServiceStub(channel)
            with contextlib.suppress(grpc.RpcError):
                opening = pb.OpenSessionRequest(session_id=chunk.session_id, model=chunk.model)
                stub.OpenSession(opening, timeout=timeout_s)
                stub.Step(pb.StepRequest(chunk=chunk), timeout=timeout_s)
                return True
        return False


class Scene:
    """A store and its replicas. A context manager.

    Args:
        folder: For all files.
        replica_count: Servers.
        binary: Of the store; default is the one of the embedded store.
    """

    def __init__(self, folder, *, replica_count=2, binary=None):
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self._replica_count = replica_count
        self._binary = binary

    def __enter__(self):
        with self._stack:
            self.store = self._stack.enter_context(
                StoreProcess(self._folder / "store", binary=self._binary)
            )
            socket_path = self._folder / "store" / "proxy"
            self.store_link = self._stack.enter_context(FaultProxy(self.store.socket_path, socket_path))
            self.replicas = []
            for number in range(self._replica_count):
                replica = Replica(self._folder / f"replica-{number}", f"unix://{socket_path}")
                self._stack.callback(replica.kill)
                self._stack.enter_context(replica.link)
                self.replicas.append(replica)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_):
        self.heal()
        self._stack.close()

    def address(self, rng):
        """Returns an address of all replicas, one of them first."""
        addresses = [replica.link.address for replica in self.replicas]
        rng.shuffle(addresses)
        return "ipv4:" + ",".join(addresses)

    def heal(self):
        """Takes every fault away that is not a death."""
        resume(self.store.pid)
        self.store_link.heal()
        for replica in self.replicas:
            if state_of(replica.server.pid) != "Z":
                replica.resume()
            replica.link.heal()

    def recover(self, timeout_s=30.0):
        """Waits until every replica is ready and steps; returns the seconds to readiness and to a step."""
        ready_s = time_until(
            lambda: all(replica.is_ready() for replica in self.replicas), timeout_s, "not ready"
        )
        step_s = time_until(
            lambda: all(replica.steps() for replica in self.replicas), timeout_s, "no good step"
        )
        return ready_s, ready_s + step_s

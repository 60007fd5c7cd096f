"""A watched deployment that can be broken in every way that an alert is about."""

import asyncio
import contextlib
import random
import threading

from holdfast import AsyncClient, Client
from holdfast.demo.processes import ServerProcess
from holdfast.verify.load import Load, LoadSettings
from service.process.library_environment import set_library_environment
from tests.faults.test_workers import workers_of
from tests.nemesis import processes
from tests.nemesis.proxy import FaultProxy
from tests.nemesis.store import StoreProcess
from tests.rpc.conftest import Rpc
from tests.support.models import write_poison_model
from tests.support.oracle import MODELS
from tests.support.stores import free_port
from tests.support.waiting import wait_for

MODEL, POISON = "python-source", "poison"
MAX_WAITING = 64
HOT_BYTES = 64 << 10
LOAD = LoadSettings(session_count=8, think_s=0.2, timeout_s=2.0, restart_chance=0.0)


class Scene:
    """A replica under load on a store that has a replica, a proxy between; and a server with two workers.

    A context manager.

    Args:
        folder: For all files.

    Attributes:
        store, store_replica: Of the nemesis.
        link: The proxy between replica and store.
        server: The replica; it can be killed and started again.
        workers_server: The server with two workers, on a store of its own.
        models: Folder of the replica's models.
    """

    def __init__(self, folder):
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self.models = folder / "models"

    def __enter__(self):
        set_library_environment()
        self.models.mkdir(parents=True)
        (self.models / MODEL).symlink_to(MODELS / MODEL)
        write_poison_model(self.models / POISON / "1" / "model.onnx")
        with self._stack:
            enter, port = self._stack.enter_context, free_port()
            self.store = enter(
                StoreProcess(
                    self._folder / "store", port=port, bind="127.0.0.1", repl_diskless_sync_delay=0
                )
            )
            self.store_replica = enter(
                StoreProcess(self._folder / "store-replica", replicaof=f"127.0.0.1 {port}")
            )
            wait_for(lambda: self._is_followed(), 30, "the store's replica does not follow")
            self.link = enter(FaultProxy(self.store.socket_path, self._folder / "link"))
            self._grpc_address = "127.0.0.1:0"
            self.start_server()
            self._grpc_address = self.server.address
            self._stack.callback(self.stop_server)
            self.workers_server = enter(ServerProcess(self._folder / "workers", "--workers", "2"))
            enter(self._loaded())
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_):
        self.link.heal()
        for pid in (self.store.pid, self.store_replica.pid, self.server.pid):
            processes.resume(pid)
        self._stack.close()

    def start_server(self):
        """Starts the replica, where it was if it was before."""
        flags = {
            "--store": f"unix://{self._folder}/link",
            "--models": self.models,
            "--max-waiting": MAX_WAITING,
            "--hot-state-bytes": HOT_BYTES,
            "--replicas-required": 1,
            "--ack-timeout-s": 1,
        }
        arguments = [str(part) for flag in flags.items() for part in flag]
        self.server = ServerProcess(self._folder / "server", *arguments, grpc_address=self._grpc_address)

    def stop_server(self):
        """Ends the replica."""
        self.server.stop()

    @property
    def targets(self):
        """What there is to scrape, by instance."""
        return {"replica": self.server.http, "workers": self.workers_server.http}

    @contextlib.contextmanager
    def rpc(self):
        """Gives calls to the replica that do not heal anything by themselves."""
        rpc = Rpc(self.server)
        try:
            yield rpc
        finally:
            rpc.channel.close()

    def client(self):
        """Returns a client of the replica, as a context manager."""
        return Client(self.server.address, timeout_s=10)

    def key_of(self, session_id):
        """Returns the key of a session in the store."""
        with self.store.client() as client:
            [key] = client.keys(f"holdfast:v1:*:{session_id}}}")
        return key

    def workers(self):
        """Returns the process ids of the two workers."""
        return workers_of(self.workers_server)

    def _is_followed(self):
        with self.store.client() as client:
            return client.info("replication").get("slave0", {}).get("state") == "online"

    @contextlib.contextmanager
    def _loaded(self):
        """Has sessions stepped all the while, by clients that heal what they can."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="load")
        thread.start()
        load = asyncio.run_coroutine_threadsafe(self._load(), loop).result(30)
        running = asyncio.run_coroutine_threadsafe(load.run(), loop)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(load.stop)
            with contextlib.suppress(Exception):  # clients may have met the end of the server
                running.result(60)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _load(self):
        async with AsyncClient(self.server.address) as client:
            model = await client.get_model(MODEL)
        return Load(lambda: self.server.address, model, None, random.Random(1), LOAD, "load")


@contextlib.contextmanager
def repeated(action, count=1):
    """Repeats an action in threads of its own until the block ends; what it raises is its own affair."""
    stopping = threading.Event()

    def run(number):
        turn = 0
        while not stopping.is_set():
            with contextlib.suppress(Exception):
                action(number, turn)
            turn += 1
            stopping.wait(0.005)

    threads = [threading.Thread(target=run, args=(number,), name="fault") for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()

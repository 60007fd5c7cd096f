"""The fault of each alert: a context manager that injects it and heals it, by the alerts that it is for."""

import contextlib
import time

from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb
from service.store.record import STAMP_START
from tests.alerts.scene import MODEL, POISON, repeated
from tests.nemesis.processes import kill, paused
from tests.support.models import RAISES

FAULTS = {}
"""Names of alerts -> (what is done, context manager of a scene), in the order in which they are drilled:
what needs a long window without errors before it comes first."""


def _fault(*alerts, what):
    def add(function):
        FAULTS[alerts] = (what, contextlib.contextmanager(function))
        return function

    return add


@_fault(
    "HoldfastStoreDown", "HoldfastErrorBudgetFast", "HoldfastErrorBudgetSlow",
    what="the store answers nothing",
)  # fmt: skip
def _silence_the_store(scene):
    scene.link.to_client.is_black_hole = True
    yield
    scene.link.to_client.is_black_hole = False


@_fault("HoldfastTargetDown", what="SIGKILL to the replica; then it is started again")
def _kill_the_replica(scene):
    scene.server.kill()
    yield
    scene.start_server()


@_fault("HoldfastStoreUnsafe", what="the store's eviction policy is set to allkeys-lru")
def _allow_eviction(scene):
    with scene.store.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        yield
        client.config_set("maxmemory-policy", "noeviction")


@_fault(
    "HoldfastStorePersistenceFailing", what="the store's append-only file cannot grow, as on a full disk"
)
def _fill_the_disk(scene):
    scene.store.fill_disk()
    yield
    scene.store.free_disk()


@_fault("HoldfastStoreNearlyFull", what="the store's maxmemory is set to little more than it uses")
def _leave_little_memory(scene):
    with scene.store.client() as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.9))
    yield
    scene.store.free_memory()


@_fault(
    "HoldfastStoreFull",
    what="the store's maxmemory is set to half of what it uses; new sessions come all the while",
)
def _fill_the_memory(scene):
    scene.store.fill_memory()

    def open_another(_, turn):
        opening = pb.OpenSessionRequest(session_id=f"new-{turn}", model=pb.ModelRef(name=MODEL))
        rpc.call("OpenSession", opening)

    with scene.rpc() as rpc, repeated(open_another):
        yield
    scene.store.free_memory()


@_fault("HoldfastCommitsSlow", what="every reply of the store is 0.2 s late")
def _slow_the_store(scene):
    scene.link.to_client.delay_s = 0.2
    yield
    scene.link.heal()


@_fault("HoldfastSaturated", what="48 callers at a bound of 64 chunks, each commit 0.4 s late")
def _saturate(scene):
    with scene.rpc() as rpc:
        rpc.open(*(f"full-{number}" for number in range(48)))
        scene.link.to_client.delay_s = 0.4
        with repeated(lambda number, _: rpc.step(f"full-{number}", text=b"x"), 48):
            yield
            scene.link.heal()


@_fault("HoldfastHotStateThrash", what="400 sessions in turn, where 60 fit into the memory for hot states")
def _use_many_sessions(scene):
    groups = [[f"many-{row}" for row in range(start, start + 50)] for start in range(0, 400, 50)]
    with scene.rpc() as rpc:
        for group in groups:
            rpc.open(*group)
    with (
        scene.client() as client,
        repeated(lambda _, turn: client.step_batch(MODEL, groups[turn % 8], b"x" * 50)),
    ):
        yield


@_fault("HoldfastEventLoopLag", what="the replica is stopped for 0.4 s, again and again")
def _stop_and_go(scene):
    def stop(*_):
        with paused(scene.server.pid):
            time.sleep(0.4)  # longer than the loop sleeps by itself, so that it cannot wake up in between
        time.sleep(0.4)

    with repeated(stop):
        yield


@_fault("HoldfastWorkersRestarting", what="SIGKILL to one of two workers")
def _kill_a_worker(scene):
    kill(scene.workers()[0])
    yield


@_fault("HoldfastModelRefused", what="a file that is no model, in the models folder")
def _add_a_bad_model(scene):
    path = scene.models / "broken" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a model")
    yield
    path.unlink()


@_fault("HoldfastSessionsLost", what="a session's key is deleted, and the session goes on")
def _lose_a_session(scene):
    with scene.rpc() as rpc:
        rpc.open("gone")
        rpc.step("gone", text=b"ab", position=0)
        with scene.store.client() as client:
            client.delete(scene.key_of("gone"))
        rpc.step("gone", text=b"c", position=2, acknowledged_position=2)
    yield


@_fault("HoldfastRecordsCorrupt", what="a byte of a record is changed, and its session goes on")
def _damage_a_record(scene):
    with scene.rpc() as rpc, scene.store.client() as client:
        rpc.open("damaged")
        rpc.step("damaged", text=b"ab", position=0)
        key = scene.key_of("damaged")
        record = client.get(key)
        # within the stamp, or the session that is hot would write over it without a look
        client.set(key, record[:STAMP_START] + bytes([record[STAMP_START] ^ 1]) + record[STAMP_START + 1 :])
        rpc.step("damaged", text=b"c", position=2)
        yield
        client.delete(key)


@_fault("HoldfastAckLevelNotReached", what="the store's replica is stopped, and `replicated` is asked for")
def _stop_the_replica(scene):
    def step(_, turn):
        rpc.open(f"replicated-{turn}")
        rpc.step(f"replicated-{turn}", text=b"x", ack_level=pb.ACK_LEVEL_REPLICATED)

    with paused(scene.store_replica.pid), scene.rpc() as rpc, repeated(step):
        yield


@_fault("HoldfastPositionConflicts", what="a second writer sends other tokens at positions that are taken")
def _write_twice(scene):
    with scene.rpc() as rpc:
        rpc.open("two")
        rpc.step("two", text=b"mine", position=0)
        with repeated(lambda *_: rpc.step("two", text=b"yours", position=0)):
            yield


@_fault("HoldfastSessionsQuarantined", what="a session whose token makes the model raise, three times")
def _poison(scene):
    def step(token, position):
        ids = pb.Tokens(ids=pb.TokenIds(values=[token]))
        return rpc.step("poison", model=POISON, tokens=ids, position=position)

    with scene.rpc() as rpc:
        rpc.open("poison", model=POISON)
        step(1, 0)
        for _ in range(3):
            step(RAISES, 1)
    yield
    with scene.client() as client, contextlib.suppress(HoldfastError):
        client.release_session("poison")

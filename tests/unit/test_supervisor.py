"""What a supervisor says about its workers, and the port it holds for them."""

import socket
from types import SimpleNamespace

import pytest

from service.common.listen_address import ListenAddress
from service.common.ports import hold_port
from service.process.supervisor import Supervisor
from service.settings.schema import Settings
from service.telemetry.metrics import STALLED_AFTER_S, Metrics


def worker(pid, *, silent_s=0.0, store_up=1, store_safe=1):
    metrics = Metrics()
    metrics.beat()
    metrics._beat_s[0] -= silent_s
    metrics.store_up.set(store_up)
    metrics.store_safe.set(store_safe)
    metrics.workers.set(1)
    return SimpleNamespace(pid=pid, metrics=metrics)


def supervisor(*workers):
    one = Supervisor(Settings(workers=2))
    one._workers = list(workers)
    return one


def test_it_is_live_while_every_loop_turns():
    stuck = worker(7, silent_s=STALLED_AFTER_S + 1)
    assert supervisor(worker(5), worker(6)).why_not_live() is None
    assert "worker 7" in supervisor(worker(5), stuck).why_not_live()
    stuck.metrics.workers.set(0)  # it only starts
    assert supervisor(worker(5), stuck).why_not_live() is None


def test_it_is_ready_while_one_worker_can_answer():
    assert supervisor().why_not_ready() == "no worker serves"
    assert supervisor(worker(5, store_up=0)).why_not_ready() == "the store does not answer"
    assert supervisor(worker(5, store_up=0), worker(6)).why_not_ready() is None
    assert "may lose sessions" in supervisor(worker(5, store_safe=0)).why_not_ready()
    draining = supervisor(worker(6))
    draining._is_draining = True
    assert draining.why_not_ready() == "draining"


def test_workers_may_listen_on_the_port_that_is_held():
    with hold_port(ListenAddress("127.0.0.1", 0)) as holder, listening(holder.getsockname()[1]) as listener:
        socket.create_connection(listener.getsockname()).close()


@pytest.mark.parametrize("shares_port", [False, True])
def test_a_port_on_which_another_server_listens_is_refused(shares_port):
    with listening(0, shares_port=shares_port) as listener, pytest.raises(OSError, match="in use"):
        hold_port(ListenAddress("127.0.0.1", listener.getsockname()[1]))


def listening(port, *, shares_port=True):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shares_port)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener

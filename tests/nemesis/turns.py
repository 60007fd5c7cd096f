"""Faults that a run injects in turns, drawn with a seed; each leaves the scene as it should be again."""

import time

from service.common.failpoints import POINTS
from tests.nemesis.processes import paused

SHORT_S = (0.2, 1.0)
LONG_S = (0.5, 3.0)
UNSYNCED_S = 2.5
"""For so long a killed store may not have written what it acknowledged: it holds writes back for up to two
seconds while its file is being synced."""


class Turns:
    """Draws and injects faults.

    Args:
        scene: See `tests.faults.scene`.
        rng: Draws.
        hold: Called with a number of seconds before the store may lose what it acknowledged: clients may
            not start again within it, nor until all have stepped; what a client no longer keeps, it cannot
            send again.
    """

    def __init__(self, scene, rng, hold=lambda seconds: None):
        self._scene, self._rng, self._hold = scene, rng, hold
        self._faults = {
            "replica killed": self._kill_replica,
            "replica killed at a failpoint": self._failpoint,
            "replica paused": self._pause_replica,
            "store killed": self._kill_store,
            "store killed, tail of its file cut off": self._truncate,
            "store paused": self._pause_store,
            "store without memory": self._fill_memory,
            "store without disk": self._fill_disk,
            "store link cut": self._cut_store_link,
            "store link silent": self._silence_store_link,
            "store link slow": self._slow_store_link,
            "store link in single bytes": self._slice_store_link,
            "store reply cut off": self._reset_store_reply,
            "client link cut": self._cut_client_link,
            "client link silent": self._silence_client_link,
            "client reply cut off": self._reset_client_reply,
            "replica killed while the store is paused": self._kill_both,
        }

    @property
    def names(self):
        """All faults."""
        return list(self._faults)

    def inject(self, name=None):
        """Injects a fault, drawn if none is named, and takes it away again; returns its name."""
        name = name or self._rng.choice(self.names)
        self._faults[name]()
        return name

    def _wait(self, limits):
        time.sleep(self._rng.uniform(*limits))

    def _replica(self):
        return self._rng.choice(self._scene.replicas)

    # -- replicas -----------------------------------------------------------------------------

    def _kill_replica(self):
        replica = self._replica()
        replica.kill()
        self._wait(SHORT_S)
        replica.start()

    def _failpoint(self):
        replica = self._replica()
        replica.kill()
        until_s = time.monotonic() + 5
        try:
            replica.start(f"{self._rng.choice(POINTS)}=kill@{self._rng.randint(1, 60)}")
        except RuntimeError:  # killed as it should be, by calls that came before it said that it is ready
            pass
        else:
            while replica.lives and time.monotonic() < until_s:
                time.sleep(0.02)
            replica.kill()
        replica.start()

    def _pause_replica(self):
        replica = self._replica()
        replica.pause()
        self._wait(LONG_S)
        replica.resume()

    def _kill_both(self):
        self._hold(UNSYNCED_S)
        replica = self._replica()
        self._scene.heal()
        self._pause_store_for(lambda: (self._wait(SHORT_S), replica.kill()))
        self._scene.store.restart()
        replica.start()

    # -- the store ----------------------------------------------------------------------------

    def _kill_store(self):
        self._hold(UNSYNCED_S)
        self._scene.store.kill()
        self._wait(SHORT_S)
        self._scene.store.start()

    def _truncate(self):
        self._hold(UNSYNCED_S)
        self._scene.store.kill()
        self._scene.store.truncate_tail(self._rng.choice((1, 100, 1500, 4000, 12_000)))
        self._scene.store.start()

    def _pause_store(self):
        self._pause_store_for(lambda: self._wait(LONG_S))

    def _pause_store_for(self, do):
        with paused(self._scene.store.pid):
            do()

    def _fill_memory(self):
        self._scene.store.fill_memory()
        self._wait(LONG_S)
        self._scene.store.free_memory()

    def _fill_disk(self):
        self._scene.store.fill_disk()
        self._wait(LONG_S)
        self._scene.store.free_disk()

    # -- links --------------------------------------------------------------------------------

    def _cut_store_link(self):
        for _ in range(self._rng.randint(1, 4)):
            self._scene.store_link.cut()
            self._wait((0.0, 0.2))

    def _silence_store_link(self):
        link = self._rng.choice((self._scene.store_link.to_server, self._scene.store_link.to_client))
        link.is_black_hole = True
        self._wait(LONG_S)
        link.is_black_hole = False

    def _slow_store_link(self):
        link = self._rng.choice((self._scene.store_link.to_server, self._scene.store_link.to_client))
        link.delay_s, link.jitter_s = self._rng.uniform(0, 0.3), self._rng.uniform(0, 0.4)
        self._wait(LONG_S)
        link.heal()

    def _slice_store_link(self):
        for link in (self._scene.store_link.to_server, self._scene.store_link.to_client):
            link.slice_bytes = 1
        self._wait(SHORT_S)
        self._scene.store_link.heal()

    def _reset_store_reply(self):
        link = self._rng.choice((self._scene.store_link.to_server, self._scene.store_link.to_client))
        link.reset_after = self._rng.randint(0, 4000)
        self._wait(SHORT_S)
        link.heal()

    def _cut_client_link(self):
        for _ in range(self._rng.randint(1, 4)):
            self._replica().link.cut()
            self._wait((0.0, 0.2))

    def _silence_client_link(self):
        proxy = self._replica().link
        link = self._rng.choice((proxy.to_server, proxy.to_client))
        link.is_black_hole = True
        self._wait(LONG_S)
        link.is_black_hole = False

    def _reset_client_reply(self):
        link = self._replica().link.to_client
        link.reset_after = self._rng.randint(0, 4000)
        self._wait(SHORT_S)
        link.heal()

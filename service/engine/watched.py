"""Tells the processes that have watchers what becomes of the sessions that they watch.

It has no part in what becomes of a chunk: callers have their replies first, nothing is waited for, and what
the store does not take at once is dropped. While nobody watches, the driver does not call it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.common.this_process import this_process
from service.engine.effects import Settle
from service.engine.rows import Rows
from service.engine.watch_events import Event, decode_lease, encode_change, encode_event

_log = logging.getLogger(__name__)

SWEEP_S = 2.0
"""Between looks for leases that are over."""

Publish = Callable[[bytes, bytes], bool]
"""Takes a channel and a message, and sends it or drops it; see `store.channels`."""


@dataclass(slots=True)
class _Wish:
    """What one process wants of one session, until a monotonic time."""

    ends_s: float
    wants_state: bool


class Watched:
    """The sessions that somebody watches, and who.

    Args:
        publish: Sends.
        on_any: Called with whether any session is watched, when that changes.
    """

    def __init__(self, publish: Publish, on_any: Callable[[bool], None]) -> None:
        self._publish = publish
        self._on_any = on_any
        self._wishes: dict[bytes, dict[bytes, _Wish]] = {}
        self._has_any = False
        self._timer: asyncio.TimerHandle | None = None
        self._replica = this_process()

    def hear(self, message: bytes) -> None:
        """Takes note of a lease."""
        try:
            lease = decode_lease(message)
        except ValueError as error:
            _log.debug("not understood: %s", error)
            return
        ends_s = time.monotonic() + lease.duration_s
        for key, wants_state in lease.wants_state.items():
            if lease.duration_s:
                self._wishes.setdefault(key, {})[lease.channel] = _Wish(ends_s, wants_state)
            else:
                self._forget(key, lease.channel)
        self._look()

    def settled(self, settle: Settle) -> None:
        """Tells watchers of the chunks that were applied."""
        rows, error, is_applied = settle
        if (error is not None and not is_applied) or self._wishes.keys().isdisjoint(rows.keys):
            return
        try:
            for place, key in enumerate(rows.keys):
                if key in self._wishes:
                    self._tell(rows, place, self._wishes[key])
        except Exception:  # noqa: BLE001 -- whatever it is, the chunks are answered and others go on
            _log.exception("bug: watchers could not be told of a chunk")

    def changed(self, key: bytes) -> None:
        """Tells watchers that a record was changed otherwise than by a chunk."""
        for channel in self._wishes.get(key, ()):
            self._publish(channel, encode_change(key))

    def close(self) -> None:
        """Forgets everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._wishes.clear()
        self._look()

    def _tell(self, rows: Rows, place: int, wishes: dict[bytes, _Wish]) -> None:
        asked, [incarnation, position, digest] = rows.asked, rows.next_stamps[place].tolist()
        wants_state = not rows.is_replayed and any(wish.wants_state for wish in wishes.values())
        message = encode_event(
            Event(
                rows.keys[place],
                incarnation,
                position,
                digest,
                rows.model.version,
                asked.kind,
                asked.token_count,
                asked.width,
                rows.tokens[place].tobytes(),
                rows.outputs[place].tobytes(),
                rows.next_states[place].tobytes() if wants_state else None,
                rows.is_replayed,
                time.time(),
                self._replica,
            )
        )
        for channel in wishes:
            self._publish(channel, message)

    def _forget(self, key: bytes, channel: bytes) -> None:
        if (wishes := self._wishes.get(key)) is not None:
            wishes.pop(channel, None)
            if not wishes:
                del self._wishes[key]

    def _sweep(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        over = [
            (key, channel)
            for key, wishes in self._wishes.items()
            for channel, wish in wishes.items()
            if wish.ends_s < now_s
        ]
        for key, channel in over:
            self._forget(key, channel)
        self._look()

    def _look(self) -> None:
        """Has the driver call while there is somebody to tell, and comes back to see whether there is."""
        if bool(self._wishes) != self._has_any:
            self._has_any = not self._has_any
            self._on_any(self._has_any)
        if self._has_any and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

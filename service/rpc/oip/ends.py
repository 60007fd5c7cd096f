"""Ends sequences: once the last reply of one is on its way, its session is deleted.

The reply goes first, so that a caller who loses it can still ask for it again while the session is there.
Requests of the same sequence that come meanwhile wait here, so they find it ended.
"""

import asyncio
import logging

from holdfast.errors import ServiceError
from service.engine.sessions import Sessions
from service.telemetry.log_lines import fields

_log = logging.getLogger(__name__)


class Ends:
    """The ends of sequences that are under way in this process.

    Args:
        sessions: Deletes sessions.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._under_way: dict[bytes, asyncio.Task[None]] = {}

    def begin(self, key: bytes, incarnation: int) -> None:
        """Ends a sequence.

        Args:
            key: Of its session.
            incarnation: The one that ends; another one that has begun since goes on.
        """
        task = asyncio.create_task(self._end(key, incarnation))
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._over(key, task))

    async def settled(self, key: bytes) -> None:
        """Returns once no end of this sequence is under way."""
        while (task := self._under_way.get(key)) is not None:
            await asyncio.wait([task])

    async def _end(self, key: bytes, incarnation: int) -> None:
        try:
            await self._sessions.delete(key, incarnation)
        except ServiceError as error:  # it is gone already, or else it expires by itself
            if error.counts_against_objective:
                _log.warning(
                    "a sequence that has ended could not be deleted; it expires when it has been idle",
                    extra=fields(reason=error.reason, detail=error.message),
                )

    def _over(self, key: bytes, task: "asyncio.Task[None]") -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]

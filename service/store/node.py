"""One primary: the connection to it, and what every topology asks of it.

A single server and the primary behind Sentinel are one node; a cluster has one per primary.
"""

from collections.abc import Callable
from typing import Any

import hiredis

from holdfast.errors import AckLevelNotReached, ServiceError
from service.store.confirmation import ASK_POLICY, AckSettings, AckSupport, Confirmer
from service.store.connection import Locate, StoreConnection
from service.store.error_table import error_of, means_demoted
from service.store.protocol import AckLevel, UnsafeStore
from service.store.replies import Reply
from service.store.safety import CONFIG_NAMES, Allowances, StoreUsage, dangers, suspicion, usage_of


class Node(StoreConnection):
    """A primary.

    Args:
        locate: As in `StoreConnection`, as are the next three.
        timeout_s: See there.
        on_change: See there.
        must_be_primary: See there.
        acks: What is asked of it beyond its memory.
        marker: Gives a key of ours that it owns.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        timeout_s: float,
        on_change: Callable[[bool], None] = lambda _: None,
        must_be_primary: bool = False,
        acks: AckSettings,
        marker: Callable[[], bytes],
    ) -> None:
        super().__init__(locate, timeout_s=timeout_s, on_change=on_change, must_be_primary=must_be_primary)
        self._acks = acks
        self._confirmer = Confirmer(self, marker, acks)

    def __str__(self) -> str:
        return f"store {self.address}"

    async def close(self) -> None:
        """Closes for good."""
        await self._confirmer.close()
        await super().close()

    async def ask(self, *command: Any) -> Reply:
        """Executes a command.

        Raises:
            ServiceError: What the error means, by `error_table`, or StoreUnavailable: no answer in time.
        """
        reply = await self.execute(*command)
        if isinstance(reply, hiredis.ReplyError):
            raise self.refusal(str(reply))
        return reply

    def refusal(self, message: str) -> ServiceError:
        """Returns what an error means; a server that says it is no primary any more is left."""
        if means_demoted(message):
            self.leave(message)
        return error_of(message, str(self))

    async def check(self, allowances: Allowances, *, in_cluster: bool) -> StoreUsage:
        """Makes sure that it keeps what it acknowledges; returns what it uses.

        Raises:
            UnsafeStore: It does not, for all the reasons in its text.
            StoreUnavailable: No answer in time.
        """
        info = await self.info()
        asks_config = info.get("rdb_last_bgsave_status", "ok") != "ok"  # else nothing depends on it
        config = await self.config() if asks_config else {}
        found = dangers(info, config, in_cluster=in_cluster, allowances=allowances)
        if found:
            raise UnsafeStore(f"{self}: {'; '.join(found)}", usage_of(info))
        return usage_of(info)._replace(suspicion=suspicion(info, allowances))

    async def ack_support(self) -> AckSupport:
        """Finds out which acknowledgement levels it can give.

        Raises:
            ServiceError: It gave no answer.
        """
        policy = await self.execute(*ASK_POLICY)  # an error is no answer
        return AckSupport(await self.ask("INFO"), policy, self._acks)

    async def confirm(self, level: AckLevel, epoch: int) -> AckLevelNotReached | None:
        """Waits until all that it has answered is as durable as the level says; see `Confirmer`."""
        return await self._confirmer.confirm(level, epoch)

    async def info(self) -> dict[str, str]:
        """Returns what INFO says.

        Raises:
            StoreUnavailable: No answer in time, or INFO is not allowed.
        """
        lines = (await self.ask("INFO")).decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def config(self) -> dict[str, str]:
        """Returns the settings CONFIG_NAMES; empty where CONFIG is not allowed or not known.

        Raises:
            StoreUnavailable: No answer in time.
        """
        reply = await self.execute("CONFIG", "GET", *CONFIG_NAMES)
        if isinstance(reply, hiredis.ReplyError):
            return {}
        texts = [part.decode(errors="replace") for part in reply]
        return dict(zip(texts[::2], texts[1::2], strict=True))

"""The channels of a deployment in its store: who publishes and subscribes there is not kept anywhere.

A message is lost where nobody listens, or where the connection breaks. So nothing that has to arrive goes
this way. In a cluster every node passes on what one of them is told.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import hiredis

from holdfast.errors import ServiceError, StoreUnavailable
from service.store.error_table import RETRY_AFTER_S, error_of
from service.store.store import Store
from service.store.talk import Talk, talk_to

_log = logging.getLogger(__name__)

PING_S = 1.0
"""A server that is silent for so long is asked for a sign of life."""

PAUSE_S = 0.5
"""Before the next attempt to connect."""

MAX_UNSENT_BYTES = 4 << 20
"""While more than this waits to be sent, messages are dropped."""

_MESSAGE = b"message"


class Channels:
    """A connection of its own, which publishes, and hears what others do; connects by itself.

    Args:
        store: Says where its servers are.
        names: Of the channels to hear.
        timeout_s: Longest wait for the server.
        on_message: Called with channel and message.
        on_lost: Called when what is published from now on may not be heard here.

    Attributes:
        trouble: Why there is no connection; "" while there is one.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[bytes],
        *,
        timeout_s: float,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._store = store
        self._names = tuple(names)
        self._timeout_s = timeout_s
        self._on_message = on_message
        self._on_lost = on_lost
        self._talk: Talk | None = None
        self._unanswered: deque[asyncio.Future[None] | None] = deque()
        self._is_told = False
        self.trouble = "the channels of the store are not open yet"

    async def turn(self) -> None:
        """Connects, and hears what comes until the connection is lost, or the store's server is another."""
        try:
            await self._listen()
        except (OSError, TimeoutError, EOFError) as error:
            self._note(f"the channels of the store: {str(error) or 'no answer in time'}")
        except ServiceError as error:
            self._note(error.message)
        finally:
            self._end()
        await asyncio.sleep(PAUSE_S)

    def publish(self, channel: bytes, message: bytes) -> bool:
        """Sends a message without waiting; returns whether it was sent at all."""
        if self._talk is None or self._talk.unsent_bytes > MAX_UNSENT_BYTES:
            return False
        self._publish(self._talk, channel, message)
        self._unanswered.append(None)
        return True

    async def announce(self, channel: bytes, message: bytes) -> None:
        """Sends a message; when this returns, the store has passed it on.

        Raises:
            StoreUnavailable: There is no connection, or it was lost, or the store refuses.
        """
        if self._talk is None:
            raise self.unavailable()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publish(self._talk, channel, message)
        self._unanswered.append(answered)
        await answered

    def unavailable(self) -> StoreUnavailable:
        """Returns the error of what needs the connection while there is none."""
        return StoreUnavailable(self.trouble, retry_after_s=RETRY_AFTER_S)

    def _publish(self, talk: Talk, channel: bytes, message: bytes) -> None:
        sizes = len(channel), channel, len(message), message
        talk.write(b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % sizes)

    async def _listen(self) -> None:
        address = self._store.where()
        name = f"store {address}"
        async with talk_to(address, self._timeout_s, name) as talk:
            async with asyncio.timeout(self._timeout_s):
                await talk.ask("HELLO", 3)  # so that one connection may do both, and replies are told apart
                await talk.ask("SUBSCRIBE", *self._names)
            self._connected(talk)
            is_asked = False
            while not self._store.is_elsewhere(address):
                try:
                    async with asyncio.timeout(self._timeout_s if is_asked else PING_S):
                        reply = await talk.read()
                except TimeoutError:
                    if is_asked:
                        raise
                    is_asked = True
                    talk.write(hiredis.pack_command(("PING",)))
                    self._unanswered.append(None)
                    continue
                is_asked = False
                if isinstance(reply, hiredis.PushNotification):
                    if reply[0] == _MESSAGE:
                        self._on_message(reply[1], reply[2])
                elif isinstance(reply, hiredis.ReplyError):
                    raise error_of(str(reply), name)
                elif (answered := self._unanswered.popleft()) is not None and not answered.done():
                    answered.set_result(None)
        self._note(f"{name} is not a primary of the store any more")

    def _connected(self, talk: Talk) -> None:
        if self._is_told:
            _log.info("sessions can be watched again")
        self._talk, self.trouble, self._is_told = talk, "", False

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble or not self._is_told:
            _log.warning("sessions cannot be watched: %s", trouble)
        self.trouble, self._is_told = trouble, True

    def _end(self) -> None:
        was_open, self._talk = self._talk is not None, None
        while self._unanswered:
            answered = self._unanswered.popleft()
            if answered is not None and not answered.done():
                answered.set_exception(self.unavailable())
        if was_open:
            self._on_lost()

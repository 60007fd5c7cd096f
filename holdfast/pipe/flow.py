"""The pipe itself: reads events ahead, serves many sessions at once, and ends well.

Events of one session are served one after the other, each until its record is in the sink; see `sessions`
for why. Sessions are served beside each other, so that their steps travel together, and so do their records
and acknowledgements.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from holdfast.client.aio import AsyncClient
from holdfast.pipe.events import Event, Fields, Malformed, Raw, read_event
from holdfast.pipe.failures import Refused
from holdfast.pipe.records import Records, dead_letter
from holdfast.pipe.sessions import Line, Sessions
from holdfast.pipe.sinks import Sink, Together
from holdfast.pipe.sources import OthersTurn, Source


class Counts:
    """What became of the events.

    Attributes:
        applied: Applied, and their records written.
        repeated: Applied before; their records were written then, or are now.
        left_out: Not applied, and told of or written to the dead letters.
    """

    def __init__(self) -> None:
        self.applied = self.repeated = self.left_out = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.applied + self.repeated + self.left_out


class Rules(NamedTuple):
    """How a pipe works.

    Attributes:
        model: Of all sessions.
        fields: Where an event says what.
        version: Of the model; 0 is the newest, or any to resume.
        concurrency: Sessions with a step under way, at most.
        stops_at_bad: Whether it ends at an event that cannot be applied, else leaves it out.
        read_ahead: Events read and not begun, at most.
        open_sessions: Sessions held open, at most, but for those in use.
    """

    model: str
    fields: Fields
    version: int = 0
    concurrency: int = 256
    stops_at_bad: bool = True
    read_ahead: int = 1024
    open_sessions: int = 4096


class Pipe:
    """One run from a source to a sink.

    Args:
        client: Of the server.
        source: Gives the events.
        sink: Takes the records.
        dead_letters: Takes the records of events that cannot be applied; None leaves them out.
        records: Makes the records.
        rules: See there.
        say: Prints a line for people.

    Attributes:
        counts: So far.
    """

    def __init__(
        self,
        client: AsyncClient,
        source: Source,
        sink: Sink,
        dead_letters: Sink | None,
        records: Records,
        rules: Rules,
        say: Callable[[str], None],
    ) -> None:
        self._source = source
        self._records = records
        self._rules = rules
        self._say = say
        self._leaving = asyncio.Event()
        self._sessions = Sessions(
            client,
            rules.model,
            rules.version,
            source.source_id,
            records.asked,
            sink,
            self._leaving.is_set,
            say,
        )
        self._out = Together(sink.write)
        self._dead = None if dead_letters is None else Together(dead_letters.write)
        self._done = Together(self._acknowledge)
        self._lines: OrderedDict[str, Line] = OrderedDict()
        self._ready: deque[Line] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._worker_count = 0  # of those that still look at `_ready`
        self._queued = 0
        self._has_room = asyncio.Event()
        self._failure: Exception | None = None
        self.counts = Counts()

    def leave(self) -> None:
        """Has `run` end after what is under way, without beginning anything more."""
        self._leaving.set()
        self._has_room.set()

    async def run(self) -> None:
        """Returns at the end of the source, or after `leave`; all that was begun is written then.

        Raises:
            PipeFailed, HoldfastError: What ended it. What is not written comes again.
        """
        try:
            while not self._leaving.is_set():
                try:
                    raws = await self._read()
                except OthersTurn as turn:
                    self._say(f"{turn}: what was read here and not begun is left to it")
                    await self._forget()
                    continue
                if raws is None:
                    break
                for raw in raws:
                    await self._take(raw)
        except Refused as refusal:  # after all that came before it
            self._failure = refusal
        except Exception as error:  # noqa: BLE001 -- raised below, when what is under way has ended
            self._fail(error)
        await self._finish()
        if self._failure is not None:
            raise self._failure

    # -- reading ----------------------------------------------------------------------------------

    async def _read(self) -> Sequence[Raw] | None:
        """Reads as many events as there is room for; None at the end, or when the pipe has to leave."""
        while self._queued >= self._rules.read_ahead and not self._leaving.is_set():
            self._has_room.clear()
            await self._has_room.wait()
        reading = asyncio.ensure_future(self._source.read(max(1, self._rules.read_ahead - self._queued)))
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
            return await reading if reading.done() else None
        finally:
            leaving.cancel()
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])

    async def _take(self, raw: Raw) -> None:
        """Queues an event behind the others of its session."""
        try:
            event = read_event(raw, self._rules.fields)
        except Malformed as error:
            await self._leave_out(raw, str(error))
            return
        line = self._lines.get(event.session_id)
        if line is None:
            line = self._lines[event.session_id] = Line(event.session_id)
        line.events.append(event)
        self._queued += 1
        if not line.is_served:
            line.is_served = True
            self._ready.append(line)
            if self._worker_count < self._rules.concurrency:
                self._worker_count += 1
                worker = asyncio.create_task(self._work())
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)

    async def _leave_out(self, raw: Raw, why: str) -> None:
        """Leaves an event out.

        Raises:
            Refused: It must not be left out.
        """
        what = f"{self._source.source_id}, entry {raw.entry}: {why}"
        if self._rules.stops_at_bad:
            raise Refused(what)
        self._say(f"left out: {what}")
        if self._dead is not None:
            await self._dead.put(dead_letter(self._source.source_id, raw, why))
        self.counts.left_out += 1
        self._done.put(raw.entry)

    # -- working ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Serves sessions that have events, one event of each in turn, until none is left."""
        try:
            while self._ready and not self._leaving.is_set():
                line = self._ready.popleft()
                event = line.events.popleft()
                self._queued -= 1
                self._has_room.set()
                await self._serve(line, event)
                if line.events:
                    self._ready.append(line)
                else:
                    line.is_served = False
                    self._lines.move_to_end(line.session_id)
                    await self._close_some()
        except Exception as error:  # noqa: BLE001 -- ends the pipe, which raises it
            self._fail(error)
        finally:
            self._worker_count -= 1

    async def _serve(self, line: Line, event: Event) -> None:
        """Applies an event, and returns when its record is in the sink."""
        try:
            reply, is_new = await self._sessions.apply(line, event)
        except Refused as refusal:
            await self._leave_out(event.raw, str(refusal))
            return
        if reply is not None:
            await self._out.put(self._records.of(event, reply))
        self.counts.applied += is_new
        self.counts.repeated += not is_new
        self._done.put(event.raw.entry)

    async def _close_some(self) -> None:
        """Lets go of sessions that were used longest ago, if there are too many."""
        excess = len(self._lines) - self._rules.open_sessions
        if excess > 0:
            unused = (line for line in self._lines.values() if not line.is_served)
            for line in list(islice(unused, excess)):
                del self._lines[line.session_id]
                if line.session is not None:
                    await line.session.close()

    # -- ends -------------------------------------------------------------------------------------

    async def _acknowledge(self, entries: list[str]) -> None:
        try:
            await self._source.done(entries)
        except Exception as error:  # noqa: BLE001 -- ends the pipe, which raises it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Notes what ends the pipe, the first time."""
        self._failure = self._failure or error
        self.leave()

    async def _forget(self) -> None:
        """Drops the events that were not begun, and the sessions once the others are through."""
        self._ready.clear()
        for line in self._lines.values():
            self._queued -= len(line.events)
            line.events.clear()
        await self._finish()
        self._lines.clear()

    async def _finish(self) -> None:
        """Waits for what is under way, and for all that it writes."""
        while self._workers:
            await asyncio.wait(self._workers)
        for together in (self._out, self._dead, self._done):
            if together is not None:
                await together.settled()

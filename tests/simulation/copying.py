"""Copies of a simulation: how writers make them, by forks and by blobs, and the law that they must keep.

A copy begins with state, position and digest that its source had at some moment while it was asked for, in
an incarnation that no other session has. A fork brings neither replies nor a cursor along, a blob both.
"""

import asyncio
import math
from dataclasses import dataclass

from holdfast.errors import HoldfastError, SessionExists
from service.store.blob import decode_blob
from service.store.record import decode

SHARED_IDS = 2
"""Of forks and of imports each: ids that all writers try to take."""


@dataclass
class Copy:
    """A copy that was made, or a blob that was taken.

    Attributes:
        source_id: Whose copy it is.
        asked_s, heard_s: When the source was read, at the earliest and at the latest.
        session_id: Of the copy; "" of a blob.
        incarnation: Of the copy.
        position, digest: Where it begins, as its writer was told.
        blob: Exported; None of a fork.
    """

    source_id: str
    asked_s: float
    heard_s: float = math.inf
    session_id: str = ""
    incarnation: int = 0
    position: int = 0
    digest: int = 0
    blob: bytes | None = None

    def told(self, session):
        """Notes what the client says of the copy."""
        self.session_id, self.incarnation = session.session_id, session.incarnation
        self.position, self.digest = session.position, session.history_digest


class Copying:
    """What a writer does to have sessions twice."""

    async def _fork(self, session_id):
        world = self._world
        source = await self._opened(session_id)
        new_id = self._copy_id("fork", session_id)
        copy = Copy(session_id, world.loop.now_s)
        try:
            if world.chance.random() < 0.5:
                session = await source.fork(new_id)
            elif world.chance.random() < 0.5:
                session = await self.client.fork_session(session_id, new_id)
            else:
                session = await self._fork_while_it_steps(source, new_id)
        except SessionExists as error:
            await self._failed("fork", new_id, error)
            return
        copy.heard_s = world.loop.now_s
        copy.told(session)
        world.copies.append(copy)
        await self._go_on_with(session)

    async def _fork_while_it_steps(self, source, new_id):
        """Copies what moves on meanwhile: each attempt may find another state."""
        session_id = source.session_id
        forking = self.client.fork_session(session_id, new_id)
        stepping = self._step_once(source, self._chunk(session_id))
        session, stepped = await asyncio.gather(forking, stepping, return_exceptions=True)
        if isinstance(stepped, HoldfastError):
            await self._failed("step", session_id, stepped)
        elif isinstance(stepped, BaseException):
            raise stepped
        if isinstance(session, BaseException):
            raise session
        return session

    async def _move(self, session_id):
        """Exports a session and imports it, some time later, under another id."""
        world = self._world
        source = await self._opened(session_id)
        copy = Copy(session_id, world.loop.now_s)
        if world.chance.random() < 0.5:
            blob = await source.export()
        else:
            blob = await self.client.export_session(session_id)
        copy.heard_s, copy.blob = world.loop.now_s, blob
        world.copies.append(copy)
        if world.chance.random() < 0.5:
            await self._step_once(source, self._chunk(session_id))
        new_id = self._copy_id("import", session_id)
        exported = decode_blob(blob)
        place = exported.record.position, exported.record.digest
        world.cursors[(new_id, *place)] = exported.cursor
        try:
            session = await self.client.import_session(blob, new_id)
        except HoldfastError as error:
            await self._failed("import", new_id, error)
            return
        copy.told(session)
        await self._go_on_with(session)

    def _copy_id(self, kind, source_id):
        """Returns an id for a copy; mostly one that nobody else has."""
        world, model = self._world, self._world.model_of(source_id)
        if world.chance.random() < 0.3:
            new_id = f"{kind} {model} {world.chance.randrange(SHARED_IDS)}"
        else:
            new_id = f"{self.name}, {kind} {len(self.copy_ids)}"
            self.copy_ids.append(new_id)
        world.models[new_id] = model
        return new_id

    async def _go_on_with(self, copy):
        """Steps a copy as any other session."""
        session_id = copy.session_id
        self._world.note(self.name, "copied", session_id.encode(), f"at {copy.position}")
        try:
            for _ in range(self._world.chance.randint(0, 3)):
                if copy.pending:
                    await copy.settle()
                await self._step_once(copy, self._chunk(session_id))
            if self._world.model_of(session_id) == "talk" and not copy.pending:
                await self._talk_on(copy, session_id in self.copy_ids)
        except HoldfastError as error:
            await self._failed("copy", session_id, error)


def miscopied(copies, primary, key_of):
    """Yields copies that are not what their source was, and incarnations that several sessions have.

    Args:
        copies: Those that writers were told of.
        primary: The store.
        key_of: Gives the store key of a session.
    """
    for copy in copies:
        source, first = key_of(copy.source_id), None
        if copy.blob is not None:
            first = decode_blob(copy.blob).record
        if copy.session_id:
            made = (
                record
                for _, raw in primary.shown.get(key_of(copy.session_id), ())
                if raw is not None and (record := decode(raw)).incarnation == copy.incarnation
            )
            stored = next(made, None)
            if stored is None:
                yield copy.session_id, f"incarnation {copy.incarnation} of a copy was never stored"
                continue
            if (stored.position, stored.digest) != (copy.position, copy.digest):
                yield copy.session_id, f"a copy begins at {stored.position}, its writer at {copy.position}"
            if first is not None and _content(stored) != _content(first):
                yield copy.session_id, f"a session at {stored.position} is not what was in its blob"
            if copy.blob is None and stored.replies:
                yield copy.session_id, f"a fork at {stored.position} has replies of its source"
            first = first or stored
        if first is not None and not _was_shown(primary, source, copy, first):
            yield copy.source_id, f"a copy at {first.position} is not what its source was meanwhile"
    owners = {}
    for key, raws in primary.written.items():
        for incarnation in {decode(raw).incarnation for raw in raws}:
            if owners.setdefault(incarnation, key) != key:
                yield "", f"two sessions have one incarnation: {key} and {owners[incarnation]}"


def _content(record):
    return record.position, record.digest, record.state, record.replies


def _was_shown(primary, source, copy, first):
    """Whether the source was what a copy begins at, at some moment while it was asked for."""
    shown = primary.shown.get(source, ())
    ends_s = [since_s for since_s, _ in shown[1:]] + [math.inf]
    for (since_s, raw), end_s in zip(shown, ends_s, strict=True):
        if raw is None or end_s < copy.asked_s or since_s > copy.heard_s:
            continue
        record = decode(raw)
        if copy.blob is None:
            record = record._replace(replies=())
        if not record.deleted and _content(record) == _content(first):
            return True
    return False

"""A server in a thread that applies tokens as the contract says, and fails exactly where it is told to.

Its model knows nothing: the log-probability of a token is the token. What it has applied is in `applied`,
token by token, so that one that is lost or doubled shows.
"""

import asyncio
import itertools
import threading
from collections import deque

import grpc
import grpc.aio

from holdfast import errors
from holdfast.history_digest import INITIAL, digest_after
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1 import holdfast_pb2_grpc as stubs
from service.rpc.status import code_of, to_status, to_trailers

LOST = "applied, and the reply is lost"
DOWN = "not applied, and the connection fails"
SILENT = "applied, and no reply ever comes"
STUCK = "neither applied nor answered"


class Stored:
    """A session in the store."""

    def __init__(self, incarnation, nonce):
        self.incarnation = incarnation
        self.nonce = nonce
        self.text = b""
        self.replies = {}

    def digest_at(self, position):
        return digest_after(INITIAL, self.text[:position])


class ScriptedServer:
    """Serves until its `with` block ends.

    Attributes:
        script: What happens to the next chunks, in order: one of the words above, an error of the service,
            or None. Chunks after those are applied and answered.
        openings: What happens to the next openings.
        sessions: What is stored, by id.
        chunks: Every chunk that has come.
        is_old: It knows no digests.
    """

    def __init__(self, is_old=False):
        self.script = deque()
        self.openings = deque()
        self.sessions = {}
        self.chunks = []
        self.is_old = is_old
        self._numbers = itertools.count(1000)
        self._stopping = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def hold(self):
        """Holds replies back from now on."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def let_go(self):
        """Lets replies leave."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def applied(self, session_id="s"):
        """Returns the tokens that were applied to a session."""
        return self.sessions[session_id].text

    def stand_at(self, text, session_id="s"):
        """Has a session stand after other tokens, as after a loss in the store, or another writer."""
        self.sessions[session_id].text = text
        self.sessions[session_id].replies.clear()

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._stopping, self._gate = asyncio.Event(), asyncio.Event()
        self._gate.set()
        server = grpc.aio.server()
        stubs.add_StreamingInferenceServiceServicer_to_server(_Servicer(self), server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._ready.set()
        await self._stopping.wait()
        await server.stop(0)

    async def take(self, chunk):
        """Does with a chunk what the script says.

        Returns:
            The result.

        Raises:
            Broken: The connection fails.
            ServiceError: It is refused.
        """
        self.chunks.append(chunk)
        what = self.script.popleft() if self.script else None
        if what == DOWN:
            raise Broken
        if what == STUCK:
            await asyncio.Event().wait()
        if isinstance(what, errors.ServiceError):
            raise what
        result = self.apply(chunk)
        if what == LOST:
            raise Broken
        if what == SILENT:
            await asyncio.Event().wait()
        await self._gate.wait()
        return result

    def apply(self, chunk):
        """Applies a chunk by the rules of the contract."""
        stored = self.sessions.get(chunk.session_id)
        if stored is None:
            raise errors.SessionLost("nothing is stored")
        if chunk.incarnation not in (0, stored.incarnation):
            raise errors.SessionDeleted("another incarnation")
        text = chunk.tokens.text or bytes(chunk.tokens.ids.values)
        position, stands_at = chunk.position, len(stored.text)
        kept = stored.replies.get((position, text))
        if kept is not None:
            return pb.ChunkResult(**fields_of(kept, replayed=True, tag=chunk.tag))
        if position > stands_at:
            kind = errors.StoreRegressed if chunk.acknowledged_position > stands_at else errors.PositionGap
            raise kind("ahead", expected_position=stands_at)
        if position < stands_at:
            raise errors.PositionConflict("behind", expected_position=stands_at)
        if not self.is_old and chunk.history_digest not in (0, stored.digest_at(position)):
            raise errors.HistoryConflict("another history")
        stored.text += text
        stored.replies = {
            key: reply for key, reply in stored.replies.items() if key[0] >= chunk.acknowledged_position
        }
        result = pb.ChunkResult(
            session_id=chunk.session_id,
            incarnation=stored.incarnation,
            position=len(stored.text),
            model_version=1,
            history_digest=0 if self.is_old else stored.digest_at(len(stored.text)),
            outputs=pb.Outputs(token_count=len(text), token_log_probs=text),
            tag=chunk.tag,
        )
        stored.replies[position, text] = result
        return result

    def open(self, session_id, nonce):
        """Opens a session; whether it was resumed is the second thing returned."""
        stored = self.sessions.get(session_id)
        if stored is None:
            stored = self.sessions[session_id] = Stored(next(self._numbers), nonce)
            return stored, False
        return stored, self.is_old or not nonce or nonce != stored.nonce


class Broken(Exception):
    """The connection fails."""


def fields_of(message, **changes):
    return {field.name: value for field, value in message.ListFields()} | changes


class _Servicer(stubs.StreamingInferenceServiceServicer):
    def __init__(self, server):
        self._server = server

    async def OpenSession(self, request, context):  # noqa: N802 -- gRPC's name
        what = self._server.openings.popleft() if self._server.openings else None
        if what == DOWN:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        stored, resumed = self._server.open(request.session_id, request.nonce)
        if resumed and request.must_be_new:
            await refuse(context, errors.SessionExists("it exists"))
        if what == LOST:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
        session = pb.Session(
            session_id=request.session_id,
            incarnation=stored.incarnation,
            position=len(stored.text),
            model=pb.ModelRef(name="m", version=1),
            history_digest=0 if self._server.is_old else stored.digest_at(len(stored.text)),
        )
        return pb.OpenSessionResponse(session=session, resumed=resumed)

    async def OpenBatch(self, request, context):  # noqa: N802 -- gRPC's name
        opened = pb.OpenBatchResponse()
        for row, session_id in enumerate(request.session_ids):
            if session_id == "refused":
                status = to_status(errors.SessionExists("it exists"))
                opened.errors.append(pb.RowError(row=row, status=status))
                columns = (0, 0, 0, 0)
            else:
                stored, resumed = self._server.open(session_id, request.nonce)
                opened.resumed_rows.extend([row] if resumed else [])
                position = len(stored.text)
                columns = (position, stored.incarnation, stored.digest_at(position), 1)
            for column, number in zip(
                (opened.positions, opened.incarnations, opened.history_digests, opened.model_versions),
                columns,
                strict=True,
            ):
                column.append(number)
        return opened

    async def Step(self, request, context):  # noqa: N802 -- gRPC's name
        try:
            return pb.StepResponse(result=await self._server.take(request.chunk))
        except Broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is cut")
        except errors.ServiceError as error:
            await refuse(context, error)

    async def StreamSteps(self, requests, context):  # noqa: N802
        async for request in requests:
            try:
                yield pb.StreamStepsResponse(result=await self._server.take(request.chunk))
            except Broken:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is cut")
            except errors.ServiceError as error:
                refusal = pb.ChunkError(tag=request.chunk.tag, status=to_status(error))
                yield pb.StreamStepsResponse(error=refusal)

    async def StepBatch(self, request, context):  # noqa: N802 -- gRPC's name
        try:
            return pb.StepBatchResponse(result=await self._rows(request.batch))
        except Broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is cut")

    async def StreamBatches(self, requests, context):  # noqa: N802
        replies, rows = asyncio.Queue(), set()

        async def part(batch, row):
            try:
                replies.put_nowait(await self._rows(batch, [row]))
            except Broken as broken:
                replies.put_nowait(broken)

        async def read():
            async for request in requests:
                if request.batch.in_parts:
                    for row in range(len(request.batch.session_ids)):
                        rows.add(asyncio.create_task(part(request.batch, row)))
                else:
                    replies.put_nowait(await self._rows(request.batch))
            replies.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (reply := await replies.get()) is not None:
                if isinstance(reply, Broken):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is cut")
                yield pb.StreamBatchesResponse(result=reply)
        finally:
            for task in (reading, *rows):
                task.cancel()

    async def _rows(self, batch, numbers=()):
        """Applies rows one by one; those of sessions named so have separate outputs, or too wide ones."""
        result = pb.BatchResult(model_version=1, tag=batch.tag, rows=numbers)
        size = max(1, batch.tokens_per_row)
        text = batch.text or bytes(batch.ids.values)
        for row in numbers or range(len(batch.session_ids)):
            session_id = batch.session_ids[row]
            stored = self._server.sessions.get(session_id)
            chunk = pb.Chunk(
                session_id=session_id,
                model=batch.model,
                tokens=pb.Tokens(text=text[row * size : (row + 1) * size]),
                position=batch.positions[row] if batch.positions else len(stored.text),
                incarnation=batch.incarnations[row] if batch.incarnations else 0,
                history_digest=batch.history_digests[row] if batch.history_digests else 0,
                ack_level=batch.ack_level,
                outputs=batch.outputs if batch.HasField("outputs") else None,
            )
            if batch.acknowledged_positions:
                chunk.acknowledged_position = batch.acknowledged_positions[row]
            elif batch.positions:
                chunk.acknowledged_position = batch.positions[row]
            try:
                given = await self._server.take(chunk)
            except errors.ServiceError as error:
                result.errors.append(pb.RowError(row=row, status=to_status(error)))
                given = pb.ChunkResult()
            result.positions.append(given.position)
            result.incarnations.append(given.incarnation)
            result.history_digests.append(given.history_digest)
            result.replayed_rows.extend([len(result.positions) - 1] if given.replayed else [])
            result.outputs.token_count += given.outputs.token_count
            result.outputs.token_log_probs.extend(given.outputs.token_log_probs)
            if session_id == "too wide":
                result.separate_rows.append(pb.SeparateRow(row=len(result.positions) - 1, model_version=1))
            if session_id == "separate":
                outputs = pb.Outputs(token_count=1, token_log_probs=[0.5])
                result.separate_rows.append(pb.SeparateRow(row=row, model_version=2, outputs=outputs))
        return result


async def refuse(context, error):
    await context.abort(code_of(error), str(error), trailing_metadata=to_trailers(error))

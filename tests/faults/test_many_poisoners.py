"""Many who poison at once, against a real server: however many they are and whatever they send, no row of
anybody else fails for it."""

import asyncio
import itertools

import grpc
import grpc.aio
import pytest

from holdfast.client.status import from_rpc, from_status
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.engine.suspects import BARS
from tests.support.models import CHANGES_SHAPE, RAISES, SPOILS_STATE, STALLS, write_poison_model
from tests.support.server import ServerProcess
from tests.support.tokens import TokensFile

pytestmark = pytest.mark.faults

MODEL = pb.ModelRef(name="poison")
Y = pb.OutputSelection(tensors=["y"])
STEPS = 6
"""Of each neighbour."""

HISTORY = max(BARS)
"""Tokens behind those that are no newcomers."""

WHAT_POISON_GETS = {
    "MODEL_FAILED", "SESSION_QUARANTINED", "STATE_NOT_FINITE", "OVERLOADED", "DEADLINE_EXCEEDED"
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The tokens of three tenants, by tenant, and the file that grants them."""
    file = TokensFile(tmp_path_factory.mktemp("tokens") / "tokens.toml")
    return {tenant: file.add(tenant, "step") for tenant in ("good", "mixed", "bad")}, file


@pytest.fixture(scope="module")
def server(tmp_path_factory, tokens):
    folder = tmp_path_factory.mktemp("server")
    write_poison_model(folder / "models" / "poison" / "1" / "model.onnx")
    flags = ["--models", str(folder / "models"), *tokens[1].write()]
    with ServerProcess(folder / "data", *flags, "--run-timeout-s", "0.5") as server:
        yield server


def chunk(session_id, token, position, count=1):
    ids = pb.Tokens(ids=pb.TokenIds(values=[token] * count))
    return pb.Chunk(session_id=session_id, model=MODEL, tokens=ids, position=position, outputs=Y)


class Caller:
    """A tenant's connection. What fails is raised."""

    def __init__(self, channel, tenant, tokens):
        self._stub = StreamingInferenceServiceStub(channel)
        self._options = {"timeout": 60, "metadata": [("authorization", f"Bearer {tokens[0][tenant]}")]}

    async def open(self, *session_ids):
        request = pb.OpenBatchRequest(session_ids=session_ids, model=MODEL)
        reply = await self._stub.OpenBatch(request, **self._options)
        assert not reply.errors

    async def step(self, session_id, token, position, count=1):
        request = pb.StepRequest(chunk=chunk(session_id, token, position, count))
        return (await self._stub.Step(request, **self._options)).result

    async def establish(self, name, count):
        """Opens sessions and gives them a history."""
        names = [f"{name}-{number}" for number in range(count)]
        await self.open(*names)
        for session in names:
            await self.step(session, 1, 0, HISTORY)
        return names

    async def steps(self, names):
        for position in range(HISTORY, HISTORY + STEPS):
            for name in names:
                assert (await self.step(name, 1, position)).position == position + 1

    async def newcomers(self, name):
        """Steps a new session each time."""
        for number in range(STEPS):
            await self.open(f"{name}-{number}")
            assert (await self.step(f"{name}-{number}", 1, 0)).position == 1

    async def stream(self, names):
        """Steps sessions on a stream, all of them at once."""
        call = self._stub.StreamSteps(**self._options)
        for position in range(HISTORY, HISTORY + STEPS):
            for name in names:
                await call.write(pb.StreamStepsRequest(chunk=chunk(name, 1, position)))
            for _ in names:
                reply = await call.read()
                assert reply.result.position == position + 1, from_status(reply.error.status)
        await call.done_writing()

    async def batch(self, names, *poison):
        """Steps rows of messages, and those of `poison` in new sessions each time; only these fail."""
        call = self._stub.StreamBatches(**self._options)
        for position in range(HISTORY, HISTORY + STEPS):
            fresh = [f"{names[0]}-{position}-{number}" for number in range(len(poison))]
            if fresh:
                await self.open(*fresh)
            batch = pb.Batch(
                session_ids=[*names, *fresh],
                model=MODEL,
                ids=pb.TokenIds(values=[1] * len(names) + [*poison]),
                positions=[position] * len(names) + [0] * len(fresh),
                outputs=Y,
            )
            await call.write(pb.StreamBatchesRequest(batch=batch))
            result = (await call.read()).result
            assert [error.row for error in result.errors] == list(
                range(len(names), len(names) + len(fresh))
            )
            assert list(result.positions[: len(names)]) == [position + 1] * len(names)
        await call.done_writing()

    async def poison(self, name, token, got, *, good_steps=0):
        """Opens a session, runs it for a while, and poisons, again and again, for ever."""
        for number in itertools.count():
            try:
                await self.open(f"{name}-{number}")
                for position in range(good_steps):
                    await self.step(f"{name}-{number}", 1, position)
                await self.step(f"{name}-{number}", token, good_steps)
            except grpc.RpcError as error:
                got.add(from_rpc(error).reason or from_rpc(error).code)


@pytest.mark.parametrize("count", [1, 12, 200])
async def test_nobody_fails_for_what_others_send(server, tokens, count):
    got, neighbours = set(), []
    kinds = itertools.cycle([RAISES, CHANGES_SHAPE, RAISES, SPOILS_STATE])
    async with grpc.aio.insecure_channel(server.address) as channel:
        good, mixed, bad = (Caller(channel, tenant, tokens) for tenant in ("good", "mixed", "bad"))
        for caller in (good, mixed):
            names = await caller.establish(f"{count}", 24)
            neighbours += [
                caller.steps(names[:2]),
                caller.newcomers(f"{count}-new"),
                caller.stream(names[2:6]),
                caller.batch(names[6:], *([RAISES, CHANGES_SHAPE] * 6 if caller is mixed else [])),
            ]
        poisoners = [
            (bad if number % 2 else mixed).poison(
                f"{count}-p{number}", next(kinds), got, good_steps=number % 3
            )
            for number in range(count)
        ]
        poisoners += [
            bad.poison(f"{count}-stalls", STALLS, got),
            mixed.poison(f"{count}-stalls", STALLS, got),
        ]
        await poison_beside(poisoners, *neighbours)
    assert "MODEL_FAILED" in got
    assert got <= WHAT_POISON_GETS


async def poison_beside(poisoners, *neighbours):
    """Lets neighbours do what they do while others poison; raises what fails of them."""
    tasks = [asyncio.create_task(poisoner) for poisoner in poisoners]
    try:
        await asyncio.gather(*neighbours)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""What the parts do alone: onnxruntime on one thread, one commit at a time."""

import asyncio
import secrets
import time

import numpy as np
import onnxruntime as ort
import uvloop

from benchmarks.contestants import cpu_s
from benchmarks.results import Round
from holdfast.bench.loads import Took
from holdfast.v1 import holdfast_pb2 as pb
from service.store.embedded import EmbeddedStore
from service.store.opening import create_store
from service.store.protocol import Writes
from service.store.record import NO_STAMP, KeptReply, Record, draw_incarnation, encode, stamp

IDLE_PAUSE_S = 1e-3
"""Between calls: about what one session that waits for each reply leaves a server."""

STATE_BYTES = 1024
TTL_S = 3600.0
_DIGEST = 1 << 52
"""Stands for any history digest."""


def bare(
    session: ort.InferenceSession, rows: int, tokens_per_row: int, seconds: float, *, pause_s: float = 0.0
) -> Round:
    """Runs a step graph, its states fed back, with pauses if asked for; what can be switched off is.

    `server_us` is the CPU time of this process per step, which does nothing else meanwhile.
    """
    tokens = np.full((tokens_per_row, rows), ord("x"), np.int64)
    states = {spec.name: np.zeros((rows, spec.shape[1]), np.float32) for spec in session.get_inputs()[1:]}
    switches = {spec.name: np.array(False) for spec in session.get_overridable_initializers()}
    outputs = ["logits", *(f"{name}_next" for name in states)]

    def run() -> None:
        _, *after = session.run(outputs, {"token": tokens, **states, **switches})
        states.update(zip(states, after, strict=True))

    latencies_s: list[float] = []
    cpu_begin_s = time.process_time()
    started_s = ended_s = time.monotonic()
    while ended_s < started_s + seconds:
        began_s = ended_s
        if pause_s:
            time.sleep(pause_s)
            began_s = time.monotonic()
        run()
        ended_s = time.monotonic()
        latencies_s.append(ended_s - began_s)
    took = Took(len(latencies_s) * rows * tokens_per_row, ended_s - started_s, latencies_s)
    cpu_us = (time.process_time() - cpu_begin_s) / took.step_count * 1e6
    return Round(took.steps_per_s, *took.percentiles_ms(), server_us=cpu_us)


def commits(store: EmbeddedStore, seconds: float, *, pause_s: float = 0.0) -> Round:
    """Commits one record at a time as the server does, each waited for, with pauses if asked for."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_commits(store, seconds, pause_s))


async def _commits(store: EmbeddedStore, seconds: float, pause_s: float) -> Round:
    client = create_store(store.url, timeout_s=1.0)
    await client.open()
    key, incarnation = f"ceiling:{secrets.token_hex(4)}".encode(), draw_incarnation()
    latencies_s: list[float] = []
    expected, position = NO_STAMP, 0
    started_s, store_s = time.monotonic(), cpu_s(store.pid)
    while time.monotonic() < started_s + seconds:
        position += 1
        writes = Writes([key], expected, [_record(incarnation, position)])
        sent_s = time.monotonic()
        refusals = await client.commit([writes], TTL_S)
        latencies_s.append(time.monotonic() - sent_s)
        assert not refusals, f"bug: the commit was refused: {refusals}"
        expected = stamp(incarnation, position, _DIGEST)
        await asyncio.sleep(pause_s)
    took = Took(position, time.monotonic() - started_s, latencies_s)
    store_us = (cpu_s(store.pid) - store_s) / position * 1e6
    await client.close()
    return Round(took.steps_per_s, *took.percentiles_ms(), store_us=store_us)


def _record(incarnation: int, position: int) -> bytes:
    """Returns a record as one token of a GRU-256 leaves it."""
    outputs = pb.Outputs(token_count=1, top_k=5, top_ids=[97] * 5, top_log_probs=[-1.0] * 5)
    reply = KeptReply(position, 1, _DIGEST, _DIGEST, outputs.SerializeToString())
    return encode(Record(incarnation, position, bytes(32), bytes(STATE_BYTES), (reply,), digest=_DIGEST))

"""The soak: `python -m tests.faults.soak --minutes 10`: half of full load with churn, and nothing may grow.

What the server keeps of sessions that it has seen is bounded, and is filled to its bounds first. Then,
beside a steady load, sessions are opened and deleted, streams opened and left, calls cancelled, connections
made and dropped. Memory, descriptors, threads, tasks and metric series of the server are sampled; the
slopes are those of straight lines through what follows the first quarter.
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import holdfast
from holdfast.demo.processes import ServerProcess
from holdfast.errors import HoldfastError
from holdfast.verify.load import Load, LoadSettings
from service.process.library_environment import set_library_environment
from tests.faults.verdict import MODEL, chunk
from tests.support.server import get

SESSIONS = 40
CALIBRATION_S = 5.0
SAMPLE_S = 2.0
CHURNERS = 4
HOT_STATE_BYTES = 16 << 20
FILL_SESSIONS = 80_000
"""More than the memory for states and the cache of keys hold."""

FILL_ROWS = 1000
LIMITS_PER_MINUTE = {"rss_mb": 1.0, "descriptors": 1.0, "threads": 0.2, "tasks": 2.0, "series": 0.0}


def main(arguments):
    """Runs the command; returns 0 if nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="the soak")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (10)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the load")
    parser.add_argument(
        "--out", type=Path, default=Path("build/soak"), help="report, .md and .json are added"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = asyncio.run(_run(Path(folder), options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(to_markdown(report))
    print(options.out.with_suffix(".md").read_text())
    return 0 if report["is_flat"] else 1


async def _run(folder, options):
    set_library_environment()
    rng = random.Random(options.seed)
    with ServerProcess(folder / "data", "--hot-state-bytes", str(HOT_STATE_BYTES)) as server:
        async with holdfast.AsyncClient(server.address) as client:
            model = await client.get_model(MODEL)
            for first in range(0, FILL_SESSIONS, FILL_ROWS):
                names = [f"fill-{number}" for number in range(first, first + FILL_ROWS)]
                assert not (await client.open_batch(MODEL, names)).errors
                await client.step_batch(MODEL, names, b"x" * FILL_ROWS, [0] * FILL_ROWS)

        def make_load(think_s, name):
            return Load(lambda: server.address, model, None, rng, LoadSettings(SESSIONS, think_s), name)

        full = make_load(0.0, "full")
        await _run_for(full, CALIBRATION_S)
        full_rate = full.good_count / CALIBRATION_S
        half = make_load(SESSIONS / full_rate, "half")
        churn = Churn(server.address, rng)
        churning = [asyncio.create_task(churn.run()) for _ in range(CHURNERS)]
        sampling = asyncio.create_task(_sample(server, half))
        await _run_for(half, 60 * options.minutes)
        samples = await _ended(sampling)
        for task in churning:
            await _ended(task)
        rows = [row for row in samples if row["at_s"] >= samples[-1]["at_s"] / 4]
    slopes = {name: slope(rows, name) for name in LIMITS_PER_MINUTE}
    return {
        "seed": options.seed,
        "minutes": options.minutes,
        "full_replies_per_s": round(full_rate),
        "replies_per_s": round(half.good_count / (60 * options.minutes)),
        "churn": churn.counts,
        "first": rows[0],
        "last": rows[-1],
        "slopes_per_minute": slopes,
        "limits_per_minute": LIMITS_PER_MINUTE,
        "is_flat": all(slopes[name] <= limit for name, limit in LIMITS_PER_MINUTE.items()),
        "samples": samples,
    }


async def _run_for(load, seconds):
    running = asyncio.create_task(load.run())
    await asyncio.sleep(seconds)
    load.stop()
    await running


async def _ended(task):
    """Cancels a task; returns what it returns."""
    task.cancel()
    return (await asyncio.gather(task, return_exceptions=True))[0]


class Churn:
    """Opens and leaves what there is to open and leave.

    Attributes:
        counts: How often, by kind.
    """

    def __init__(self, address, rng):
        self._address, self._rng = address, rng
        self.counts = {"sessions deleted": 0, "streams left": 0, "calls cancelled": 0, "connections": 0}

    async def run(self):
        """Goes on until it is cancelled."""
        while True:
            async with holdfast.AsyncClient(self._address, timeout_s=10) as client:
                self.counts["connections"] += 1
                for _ in range(20):
                    with contextlib.suppress(HoldfastError):
                        await self._use(client)
                    await asyncio.sleep(self._rng.uniform(0, 0.1))

    async def _use(self, client):
        session = await client.open_session(model=MODEL)
        await session.step(self._rng.randbytes(8))
        stream = session.stream(self._rng.randbytes(64))
        async for _ in stream:
            break
        await stream.aclose()
        self.counts["streams left"] += 1
        request = chunk(f"cancelled-{self._rng.getrandbits(6)}", b"x", 0)
        await client.open_session(request.chunk.session_id, model=MODEL)
        call = asyncio.create_task(client._calls.call("Step", request))
        await asyncio.sleep(self._rng.uniform(0, 0.003))
        self.counts["calls cancelled"] += call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await session.delete()
        self.counts["sessions deleted"] += 1


async def _sample(server, load):
    samples, started_s = [], time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            samples.append(await asyncio.to_thread(_look, server, time.monotonic() - started_s))
            if len(samples) % 15 == 0:
                print(samples[-1], f"{load.good_count:,} replies", flush=True)
            await asyncio.sleep(SAMPLE_S)
    return samples


def _look(server, at_s):
    process = Path(f"/proc/{server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    lines = [line for line in get(server, "/metrics")[1].splitlines() if not line.startswith("#")]
    [tasks] = [line.split()[1] for line in lines if line.startswith("holdfast_tasks ")]
    return {
        "at_s": round(at_s, 1),
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "tasks": float(tasks),
        "series": len(lines),
    }


def slope(rows, name):
    """Returns the growth per minute of a straight line through the samples."""
    at_min = [row["at_s"] / 60 for row in rows]
    return round(float(np.polyfit(at_min, [row[name] for row in rows], 1)[0]), 3)


def to_markdown(report):
    """Returns the report for people."""
    churn = ", ".join(f"{count:,} {name}" for name, count in report["churn"].items())
    lines = [
        "# Soak",
        "",
        f"{report['minutes']:g} minutes, seed {report['seed']}: {report['replies_per_s']:,} replies",
        f"a second where {report['full_replies_per_s']:,} were possible, beside churn:",
        f"{churn}.",
        "Made by `make soak`.",
        "",
        f"**{'Nothing grew.' if report['is_flat'] else 'Something grew.'}**",
        "",
        "| | after a quarter | at the end | slope per minute | limit |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {report['first'][name]:.1f} | {report['last'][name]:.1f} | {value} "
            f"| {report['limits_per_minute'][name]} |"
            for name, value in report["slopes_per_minute"].items()
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

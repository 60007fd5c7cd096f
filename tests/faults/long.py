"""The long fault run: `python -m tests.faults.long --minutes 20 --seed N`.

A store and two replicas as processes, a proxy on every link, sessions stepped through the client library
with a history, and faults in random turns, so that what follows the last of them is judged as well. The
checker has the last word; the exit code is 0 only if nothing was lost, applied twice or wrong.
"""

import argparse
import asyncio
import json
import logging
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.live import Live
from rich.table import Table

import holdfast
from holdfast.cli.verify import summary, to_json
from holdfast.client.history import Recorder
from holdfast.verify.findings import FAULTS
from holdfast.verify.judge import judge
from holdfast.verify.load import Load, LoadSettings
from service.process.library_environment import set_library_environment
from tests.faults.branches import BRANCHING, Branches, judge_generated
from tests.faults.scene import Scene
from tests.faults.verdict import MODEL
from tests.nemesis.turns import Turns
from tests.support.oracle import MODELS

SETTINGS = LoadSettings(session_count=40, think_s=0.05, timeout_s=4.0, restart_chance=0.003)


def main(arguments):
    """Runs the command; returns 0 if the promise held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long", description="the long fault run")
    parser.add_argument("--minutes", type=float, default=20.0, help="of faults (20)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of faults and load")
    parser.add_argument(
        "--out", type=Path, default=Path("build/faults"), help="report, .md and .json are added"
    )
    parser.add_argument("--only", nargs="+", help="faults to draw from, by name")
    options = parser.parse_args(arguments)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report = asyncio.run(_run(Path(folder), options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(to_markdown(report))
    print(f"report: {options.out}.md")
    return 0 if report["verdict"]["is_good"] and not report["generated"]["wrong"] else 1


async def _run(folder, options):
    set_library_environment()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    history = folder / "history"
    recorder = Recorder(history)
    with Scene(folder) as scene, Display(options.seed, options.minutes) as display:
        address = random.Random(rng.random())
        async with holdfast.AsyncClient(scene.replicas[0].server.address) as client:
            model = await client.get_model(MODEL)
        load = Load(lambda: scene.address(address), model, recorder, rng, SETTINGS, "faults")
        branches = Branches(load, lambda: scene.address(address), recorder, random.Random(rng.random()))
        loading = asyncio.gather(load.run(), branches.run())
        await _inject(scene, load, rng, options, display)
        load.stop()
        branches.stop()
        await loading
        await load.look()
        await branches.look()
    recorder.close()
    print(f"judging {history.stat().st_size >> 20} MiB", flush=True)
    started_s = time.monotonic()
    verdict = await asyncio.to_thread(judge, [history], MODELS)
    print(f"{summary(verdict.total)}; judged in {time.monotonic() - started_s:.0f} s", flush=True)
    for name, found in verdict.bad.items():
        print(name, *found.notes[:5], sep="\n  ")
    generated_count, unknown_count, wrong = await asyncio.to_thread(
        judge_generated, history, branches.generated
    )
    print(f"{dict(branches.acts)}; {generated_count} generated tokens checked", *wrong, sep="\n  ")
    return {
        "seed": options.seed,
        "minutes": options.minutes,
        "sessions": SETTINGS.session_count,
        "events": display.events,
        "writer_errors": dict(load.errors + branches.errors),
        "branches": dict(branches.acts),
        "generated": {"checked": generated_count, "of_unknown_begin": unknown_count, "wrong": wrong},
        "verdict": to_json(verdict),
    }


async def _inject(scene, load, rng, options, display):
    """Injects faults until the time is up, and sees the deployment recover from each."""
    loop = asyncio.get_running_loop()

    def hold(seconds):
        load.may_restart = False
        time.sleep(seconds)

    turns = Turns(scene, rng, hold)
    until_s = loop.time() + 60 * options.minutes
    await asyncio.sleep(1)
    while loop.time() < until_s:
        name = rng.choice(options.only or turns.names)
        await asyncio.to_thread(turns.inject, name)
        healed_s = loop.time()
        await asyncio.to_thread(scene.heal)
        ready_s, step_s = await asyncio.to_thread(scene.recover)
        display.add(load, name, ready_s, step_s)
        if not load.may_restart:
            while min(load.good_s.values(), default=0) < healed_s:  # noqa: ASYNC110 -- a dict
                await asyncio.sleep(0.05)
            load.may_restart = True
        await asyncio.sleep(rng.uniform(0.2, 1.5))


class Display:
    """Shows how the run goes: live on a terminal, else a line per fault."""

    def __init__(self, seed, minutes):
        self._seed, self._minutes = seed, minutes
        self._started_s = time.monotonic()
        self._live = Live(refresh_per_second=4) if sys.stdout.isatty() else None
        self.events = []

    def __enter__(self):
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()

    def add(self, load, fault, ready_s, step_s):
        """Shows one fault that is over."""
        elapsed_s = time.monotonic() - self._started_s
        event = {"fault": fault, "at_s": elapsed_s, "ready_s": ready_s, "step_s": step_s}
        self.events.append({**event, **{name: round(event[name], 3) for name in list(event)[1:]}})
        replies = f"{load.good_count:,} replies, {load.errors.total()} errors seen by writers"
        if self._live is None:
            print(
                f"{elapsed_s:6.1f} s  {fault}: ready {ready_s:.2f} s, step {step_s:.2f} s; {replies}",
                flush=True,
            )
            return
        shown = Table.grid(padding=(0, 2))
        shown.add_row("seed", str(self._seed))
        shown.add_row("elapsed", f"{elapsed_s / 60:.1f} of {self._minutes:g} min")
        shown.add_row("load", replies)
        for name, times in by_fault(self.events).items():
            shown.add_row(f"{len(times)} x {name}", f"step after {max(times):.2f} s at most")
        self._live.update(shown)


def by_fault(events):
    """Returns the recovery times by fault."""
    times = {}
    for event in events:
        times.setdefault(event["fault"], []).append(event["step_s"])
    return dict(sorted(times.items()))


def to_markdown(report):
    """Returns the report for people."""
    verdict, total = report["verdict"], report["verdict"]["total"]
    is_good = verdict["is_good"] and not report["generated"]["wrong"]
    outcome = "Nothing was lost or applied twice." if is_good else "The promise did not hold."
    events = report["events"]
    ready = [event["ready_s"] for event in events] or [0.0]
    steps = [event["step_s"] for event in events] or [0.0]
    lines = [
        "# Faults",
        "",
        f"The run took {report['minutes']:g} minutes, with seed {report['seed']}: a store and two",
        f"replicas as processes, a proxy on every link, and {report['sessions']} sessions that are stepped",
        f"through the client library; {BRANCHING} more fork, move to other ids, go back to checkpoints and",
        "generate. `make faults` wrote this section. `holdfast verify` checked the run, by running every",
        "session again without interruption; so was every generation.",
        "",
        f"**{outcome}**",
        "",
        "| | |",
        "|---|---:|",
        f"| faults | {len(events)} |",
        *(f"| {name} | {total[name]:,} |" for name in ("requests", "replies", "retries", "replays")),
        f"| history digests checked | {total['digests']:,} |",
        f"| tokens recomputed | {total['tokens']:,} |",
        *(f"| {name} | {total[name]} |" for name in FAULTS),
        *(
            f"| {name}s | {count:,} |"
            for name, count in sorted(report["branches"].items())
            if name != "step"
        ),
        f"| generated tokens drawn again | {report['generated']['checked']:,} |",
        f"| generations that differ | {len(report['generated']['wrong'])} |",
        f"| largest difference | {total['largest_difference']:.1e} |",
        f"| ready again, median and most | {statistics.median(ready):.2f} s, {max(ready):.2f} s |",
        f"| first good step, median and most | {statistics.median(steps):.2f} s, {max(steps):.2f} s |",
        "",
        "Times count from the moment at which the store or the replica is back, or the link is healed,",
        "until every replica is ready, and has stepped a new session.",
        "",
        "| fault | times | step, median s | most s |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {len(times)} | {statistics.median(times):.2f} | {max(times):.2f} |"
            for name, times in by_fault(events).items()
        ),
        "",
        "| error | requests that saw it |",
        "|---|---:|",
        *(f"| {reason} | {count:,} |" for reason, count in Counter(total["errors"]).most_common()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

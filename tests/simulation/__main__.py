"""Simulates deployments in virtual time: `python -m tests.simulation --minutes 10`, or `--seed 7`.

Every run is drawn from its seed: a failing one prints the command that replays it, step by step the same.
"""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.world import simulate

SHOWN_S = 5.0
"""Between lines of progress."""

MOST_LINES = 400
"""Of a transcript."""


def main(arguments):
    """Runs the command; returns 0 if no law was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seeds", type=int, help="so many runs; default is as many as the time allows")
    parser.add_argument("--minutes", type=float, default=1.0, help="time limit (1)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run (0)")
    parser.add_argument("--seed", type=int, help="replay this one, and print all that happens")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed)
    return search(options.first, options.seeds, options.minutes)


def replay(seed):
    """Runs one seed and prints its transcript; returns 0 if no law was broken."""
    outcome = simulate(seed)
    print(*outcome.transcript(), sep="\n")
    print(told(outcome))
    return 1 if outcome.broken else 0


def search(first, count, minutes):
    """Runs seed after seed until one breaks a law; returns 0 if none does."""
    began_s = shown_s = time.perf_counter()
    steps, faults, seed = 0, Counter(), first
    while (count is None or seed < first + count) and time.perf_counter() - began_s < minutes * 60:
        outcome = simulate(seed)
        seed += 1
        steps += outcome.step_count
        faults += outcome.faults
        now_s = time.perf_counter()
        if outcome.broken:
            print(progress(seed - first, steps, faults, now_s - began_s))
            print(failed(outcome))
            print(f"found after {now_s - began_s:.1f} s, {time.process_time():.1f} s of a core")
            return 1
        if now_s - shown_s >= SHOWN_S:
            shown_s = now_s
            print(progress(seed - first, steps, faults, now_s - began_s), flush=True)
    print(progress(seed - first, steps, faults, time.perf_counter() - began_s))
    print(f"no law was broken in {time.process_time():.1f} s of a core")
    return 0


def progress(runs, steps, faults, seconds):
    """Says how far it is."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    return (
        f"{runs} runs ({runs / seconds:.1f}/s), {steps} interleavings ({steps / seconds:.0f}/s), "
        f"{sum(faults.values())} faults: {kinds or 'none'}"
    )


def told(outcome):
    """Says what was broken in a run."""
    if not outcome.broken:
        return f"seed {outcome.seed}: no law was broken; trace {outcome.trace:012x}"
    lines = [f"{session_id or 'all sessions'}: {what}" for session_id, what in outcome.broken]
    return "\n".join([f"seed {outcome.seed} breaks a law; trace {outcome.trace:012x}", *lines])


def failed(outcome):
    """Returns the transcript of the session concerned, what is wrong, and how to see it again."""
    session_id = next((session_id for session_id, _ in outcome.broken if session_id), "")
    lines = list(outcome.transcript(session_id))[-MOST_LINES:]
    return "\n".join([*lines, told(outcome), f"replay: python -m tests.simulation --seed {outcome.seed}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`make fuzz`: tries every harness in turns for so many minutes; keeps what breaks one in the corpus."""

import argparse
import secrets
import sys
import time
import traceback

from tests.fuzz.campaign import ROUND_EXAMPLES, Failure, explore, keep, kept_inputs
from tests.fuzz.harnesses import HARNESSES

TURN_S = 10.0


def main():
    """Returns 1 if anything broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--only", choices=sorted(HARNESSES), action="append")
    arguments = parser.parse_args()
    names = arguments.only or list(HARNESSES)
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes, {', '.join(names)}", flush=True)
    failed = [name for name in names if not replay(name)]
    tried, spent_s, seed = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), arguments.seed
    end_s = time.monotonic() + 60 * arguments.minutes
    while (left := [name for name in names if name not in failed]) and time.monotonic() < end_s:
        for name in left:
            start_s = time.monotonic()
            until_s = min(end_s, start_s + TURN_S)
            try:
                tried[name] += explore(HARNESSES[name], seed, examples=ROUND_EXAMPLES, until_s=until_s)
            except Failure as failure:
                failed.append(name)
                traceback.print_exception(failure)
                print(f"{name}: broken, seed {seed}; kept as {keep(name, failure.data)}", flush=True)
            spent_s[name] += time.monotonic() - start_s
        seed += 1_000_000
    for name in names:
        rate = tried[name] / max(spent_s[name], 1e-9)
        verdict = "BROKEN" if name in failed else "held"
        print(f"{name:16} {verdict:7} {tried[name]:10,} inputs {rate:8,.0f} a second")
    return 1 if failed else 0


def replay(name):
    """Tries what is kept of a harness; returns whether it held."""
    for path in kept_inputs(name):
        try:
            HARNESSES[name].run(path.read_bytes())
        except Exception:  # noqa: BLE001 -- whatever it is, it is what is looked for
            traceback.print_exc()
            print(f"{name}: broken by {path}", flush=True)
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())

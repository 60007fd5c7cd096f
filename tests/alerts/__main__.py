"""The drill: `python -m tests.alerts`: breaks what each alert is about, sees it fire, heals, sees it clear.

A real Prometheus evaluates the shipped rules with all times divided by a factor, on a real deployment under
load. The exit code is 0 only if every alert fired and cleared.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from tests.alerts.faults import FAULTS
from tests.alerts.scene import Scene
from tests.deploy.prometheus import Prometheus
from tests.deploy.rules import alerts

QUIET_S = 10.0
"""Of load without a fault, before the first one."""


def main(arguments):
    """Runs the command; returns 0 if every alert fired and cleared."""
    parser = argparse.ArgumentParser(prog="python -m tests.alerts", description="the drill of the alerts")
    parser.add_argument("--factor", type=float, default=30.0, help="by which times are divided (30)")
    parser.add_argument(
        "--limit-s", type=float, default=120.0, help="for an alert to fire, and to clear (120)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ALERT", help="drill these, and what shares their fault"
    )
    parser.add_argument("--out", type=Path, default=Path("build/alerts.md"), help="the report")
    options = parser.parse_args(arguments)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="alerts-") as folder,
        Scene(Path(folder) / "s") as scene,
        Prometheus(Path(folder) / "p", scene.targets, factor=options.factor) as prometheus,
    ):
        time.sleep(QUIET_S)
        for names, (what, inject) in FAULTS.items():
            if options.only is None or set(names) & set(options.only):
                rows += _drill(scene, prometheus, names, what, inject, options.limit_s)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(to_markdown(rows, options.factor))
    print(options.out.read_text())
    return 0 if all(row["fired_s"] is not None and row["cleared_s"] is not None for row in rows) else 1


def _drill(scene, prometheus, names, what, inject, limit_s):
    """Drills the alerts of one fault; returns their rows."""
    _times(prometheus, names, limit_s, wants_firing=False)  # other faults may have had them fire
    with contextlib.ExitStack() as fault:
        fault.enter_context(inject(scene))
        fired = _times(prometheus, names, limit_s, wants_firing=True)
    prometheus.scrape(scene.targets)
    cleared = _times(prometheus, names, limit_s, wants_firing=False)
    rows = [
        {"alert": name, "what": what, "fired_s": fired.get(name), "cleared_s": cleared.get(name)}
        for name in names
    ]
    for row in rows:
        print(f"{row['alert']}: {row['what']}; fired {_s(row['fired_s'])}, cleared {_s(row['cleared_s'])}")
    sys.stdout.flush()
    return rows


def _times(prometheus, names, limit_s, *, wants_firing):
    """Returns the seconds until each alert fires, or no longer does; those that do not are left out."""
    started_s, times = time.monotonic(), {}
    while len(times) < len(names) and time.monotonic() - started_s < limit_s:
        firing = prometheus.firing()
        for name in names:
            if (name in firing) == wants_firing:
                times.setdefault(name, time.monotonic() - started_s)
        time.sleep(0.05)
    return times


def to_markdown(rows, factor):
    """Returns the report for people."""
    rules = alerts()
    lines = [
        "# Alerts",
        "",
        "In this drill, each alert's fault makes it fire, and healing the fault clears it. A real",
        f"Prometheus runs the rules of the package, with all windows and `for:` divided by {factor:g} (a",
        f"minute is {60 / factor:g} s) and a scrape every half second. It watches a replica under load, a",
        "store with a replica, and a server with two workers. `make alerts` writes this page;",
        "[runbooks.md](runbooks.md) says what to do.",
        "",
        "| alert | severity | fault | fires after, s | clears after, s |",
        "|---|---|---|---:|---:|",
    ]
    for row in rows:
        name = row["alert"]
        link = f"[{name}](runbooks.md#{name.lower()})"
        times = f"{_s(row['fired_s'])} | {_s(row['cleared_s'])}"
        lines.append(f"| {link} | {rules[name]['labels']['severity']} | {row['what']} | {times} |")
    lines += [
        "",
        "Times to fire count from the fault, and times to clear from its healing. The part of a time that",
        f"is the rule's own window takes {factor:g} times as long with the original rules.",
        "",
    ]
    if left_out := sorted(rules.keys() - {row["alert"] for row in rows}):
        lines += [f"Not in this run: {', '.join(left_out)}.", ""]
    return "\n".join(lines)


def _s(seconds):
    return "never" if seconds is None else f"{seconds:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

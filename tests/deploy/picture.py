"""Draws docs/dashboard.svg: `python -m tests.deploy.picture`. The dashboard's panels, from its own queries.

A real Prometheus scrapes a real server under load, on which a store is away for a moment and a second
writer gets in the way. Grafana draws these panels in its own manner; this is what is in them.
"""

import itertools
import json
import math
import tempfile
import threading
import time
from pathlib import Path
from xml.sax.saxutils import escape

import holdfast
from holdfast.demo.processes import ServerProcess
from holdfast.errors import HoldfastError
from tests.deploy.prometheus import Prometheus
from tests.deploy.rules import DASHBOARD, ROOT
from tests.rpc.conftest import MODEL
from tests.support.store_process import StoreProcess

ROWS = ("Traffic", "Latency by stage", "Sessions", "Memory and truth", "Store")
SECONDS, AWAY_AT_S, AWAY_S = 100, 55, 4
STEP_S = 1
WINDOW = "5s"
WRITERS = 24

WIDTH, UNIT_X, UNIT_Y, HEAD = 1200, 50, 22, 44
INK, FAINT, PAPER, PANEL = "#1e293b", "#64748b", "#f1f5f9", "#ffffff"
COLOURS = ("#0f766e", "#b45309", "#4338ca", "#be123c", "#15803d", "#0369a1", "#a21caf", "#64748b")
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def main():
    """Loads, scrapes, draws."""
    with tempfile.TemporaryDirectory(prefix="picture-") as name:
        folder = Path(name)
        with (
            StoreProcess(folder / "store") as store,
            ServerProcess(folder / "data", "--store", store.url) as server,
            Prometheus(folder / "prometheus", {"replica-1": server.http}, factor=10) as prometheus,
        ):
            began_s = time.time()
            _load(server, store)
            panels = [_filled(panel, prometheus, began_s + 10) for panel in _chosen()]
    (ROOT / "docs" / "dashboard.svg").write_text(draw(panels))


def _load(server, store):
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_write, args=(server, number, stopping)) for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(AWAY_AT_S)
    store.pause()
    time.sleep(AWAY_S)
    store.resume()
    time.sleep(SECONDS - AWAY_AT_S - AWAY_S)
    stopping.set()
    for thread in threads:
        thread.join()


def _write(server, number, stopping):
    """Steps a session of its own; now and then another one is begun, or somebody else's is stepped."""
    with holdfast.Client(server.address, timeout_s=20) as client:
        for count in itertools.count():
            session = client.open_session(f"s-{number}-{count}", model=MODEL)
            rival = client.open_session(f"s-{number}-{count}")
            for step in range(60):
                if stopping.wait(0.002 + 0.03 * math.sin(number) ** 2):
                    return
                session.step(b"def f" if step % 7 else b"import numpy", top_k=1)
            try:
                rival.step(b"?")
            except HoldfastError:
                session.delete()


def _chosen():
    """Yields the panels of ROWS that are drawn, each moved up to where the rows before it end."""
    top = 0
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for header, group in _rows(panels):
        if header["title"] not in ROWS:
            continue
        yield {**header, "y": top}
        group = [panel for panel in group if panel["type"] in ("stat", "timeseries")]
        first = min(panel["gridPos"]["y"] for panel in group)
        for panel in group:
            yield {**panel, "y": top + 1 + panel["gridPos"]["y"] - first}
        top += 1 + max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in group) - first


def _rows(panels):
    rows = []
    for panel in panels:
        if panel["type"] == "row":
            rows.append((panel, []))
        else:
            rows[-1][1].append(panel)
    return rows


def _filled(panel, prometheus, from_s):
    """Returns a panel with its series: name -> [(seconds, value), ...]."""
    series = {}
    for target in panel.get("targets", ()):
        query = target["expr"].replace("$job", "holdfast").replace("$instance", ".*")
        query = query.replace("$__rate_interval", WINDOW)
        for labels, points in prometheus.query_range(query, from_s, time.time(), STEP_S):
            name = target.get("legendFormat", "")
            for key, value in labels.items():
                name = name.replace(f"{{{{{key}}}}}", value)
            series[name] = [(at_s - from_s, value) for at_s, value in points if math.isfinite(value)]
    return {**panel, "series": series}


def draw(panels):
    """Returns the picture of panels that have their place and series."""
    height = HEAD + 16 + UNIT_Y * max(panel["y"] + panel["gridPos"]["h"] for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _text(16, 28, "Holdfast", 17, INK, 600),
        _text(
            WIDTH - 16, 28,
            f"the panels of deploy/grafana/dashboards/holdfast.json; the store is away for {AWAY_S} s",
            12, FAINT, anchor="end",
        ),
    ]  # fmt: skip
    for panel in panels:
        x, y = UNIT_X * panel["gridPos"]["x"], HEAD + UNIT_Y * panel["y"]
        if panel["type"] == "row":
            parts.append(_text(16, y + 16, panel["title"], 13, INK, 600))
            continue
        width, height = UNIT_X * panel["gridPos"]["w"] - 8, UNIT_Y * panel["gridPos"]["h"] - 8
        parts.append(f'<g transform="translate({x + 4} {y + 4})">')
        parts.append(f'<rect width="{width}" height="{height}" rx="4" fill="{PANEL}" stroke="#e2e8f0"/>')
        parts.append(_text(10, 18, panel["title"], 12, INK, 600))
        parts += (_stat if panel["type"] == "stat" else _lines)(panel, width, height)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _stat(panel, width, height):
    values = [points[-1][1] for points in panel["series"].values() if points]
    shown = figure(values[-1], _unit(panel)) if values else "-"
    return [_text(width / 2, height - 18, shown, 24, COLOURS[0], 600, anchor="middle")]


def _lines(panel, width, height):
    left, top, right, bottom = 52, 30, width - 12, height - 34
    values = [value for points in panel["series"].values() for _, value in points]
    most = max([*values, 0]) or 1.0
    end_s = max([at_s for points in panel["series"].values() for at_s, _ in points], default=1) or 1
    parts = []
    for share in (0, 0.5, 1):
        y = bottom - (bottom - top) * share
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#e2e8f0"/>')
        parts.append(_text(left - 6, y + 4, figure(most * share, _unit(panel)), 10, FAINT, anchor="end"))
    shown = sorted(
        ((name, points) for name, points in panel["series"].items() if points),
        key=lambda entry: -max(value for _, value in entry[1]),
    )[: len(COLOURS)]
    x = left
    for (name, points), colour in zip(shown, COLOURS, strict=False):
        path = " ".join(
            f"{left + (right - left) * at_s / end_s:.1f},{bottom - (bottom - top) * value / most:.1f}"
            for at_s, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        label = name or panel["title"]
        if x + 6 * len(label) < right:
            parts.append(f'<rect x="{x}" y="{height - 19}" width="8" height="3" fill="{colour}"/>')
            parts.append(_text(x + 12, height - 14, label, 10, FAINT))
        x += 24 + round(5.6 * len(label))
    return parts


def _unit(panel):
    return panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")


def figure(value, unit):
    """Returns a value as people read it."""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        for name in ("B", "KiB", "MiB", "GiB"):
            if value < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(x, y, text, size, colour, weight=400, anchor="start"):
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    main()

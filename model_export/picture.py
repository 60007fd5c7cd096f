"""Strip charts as SVG: lanes below one another over one axis of time, with shaded and named spans. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _GAP = 960, 130, 20, 70, 10
_NAME_CHAR = 6.2
"""Width of a character of a span's name, about."""
_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
_INK, _FAINT, _GRID = "#1e293b", "#64748b", "#e2e8f0"
OURS, BASELINE, SIGNAL = "#0f766e", "#c2410c", "#475569"
SHADES = ("#fde68a", "#bfdbfe", "#fecaca", "#ddd6fe", "#bbf7d0", "#fbcfe8", "#fed7aa", "#e2e8f0")


class Curve(NamedTuple):
    """A line in a lane.

    Attributes:
        values: One per point of time, evenly spaced over the whole axis.
        colour: Of the line.
    """

    values: Sequence[float]
    colour: str


class Lane(NamedTuple):
    """A row of the picture.

    Attributes:
        name: At the left.
        note: Below the name, e.g. the unit.
        curves: Drawn into it.
        low: Value at its lower edge.
        high: Value at its upper edge.
        height: In pixels.
        threshold: Drawn as a dotted line.
    """

    name: str
    note: str
    curves: Sequence[Curve]
    low: float
    high: float
    height: int = 46
    threshold: float | None = None


class Span(NamedTuple):
    """A shaded part of the axis, with its name on top; `start` and `stop` in units of the axis."""

    start: float
    stop: float
    name: str
    colour: str


def draw(title: str, lanes: Sequence[Lane], spans: Sequence[Span], *, end: float, unit: str) -> str:
    """Returns the picture.

    Args:
        title: On top.
        lanes: From top to bottom.
        spans: Behind all lanes.
        end: Where the axis ends; it begins at 0.
        unit: Of the axis.
    """
    bottom = _TOP + sum(lane.height + _GAP for lane in lanes)
    height = bottom + 34
    scale = (_WIDTH - _LEFT - _RIGHT) / end
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="{_FONT}">',
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        svg_text(20, 28, title, size=16, weight=600),
    ]
    for span in spans:
        left, width = _LEFT + span.start * scale, (span.stop - span.start) * scale
        parts.append(
            f'<rect x="{left:.1f}" y="{_TOP - 8}" width="{max(width, 1.5):.1f}" '
            f'height="{bottom - _TOP + 8}" fill="{span.colour}" opacity="0.55"/>'
        )
    parts += _names([(_LEFT + span.start * scale + 2, span.name) for span in spans])
    top = _TOP
    for lane in lanes:
        parts += _lane(lane, top)
        top += lane.height + _GAP
    parts += [
        svg_text(_LEFT + tick * scale, bottom + 16, f"{tick:g}", size=11, colour=_FAINT, anchor="middle")
        for tick in _ticks(end)
    ]
    parts.append(svg_text(20, bottom + 16, unit, size=11, colour=_FAINT))
    return "\n".join([*parts, "</svg>", ""])


def _names(names: Sequence[tuple[float, str]]) -> list[str]:
    """Returns names above the lanes; one that would run into the one before it stands higher."""
    parts, end, height = [], 0.0, _TOP - 13
    for left, name in names:
        height = _TOP - 26 if left < end and height == _TOP - 13 else _TOP - 13
        end = left + _NAME_CHAR * len(name)
        parts.append(svg_text(left, height, name, size=11, colour=_FAINT))
    return parts


def _ticks(end: float) -> list[float]:
    """Returns about six round numbers from 0 to the end."""
    least = end / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= least)
    return [step * number for number in range(int(end / step) + 1)]


def _lane(lane: Lane, top: int) -> list[str]:
    bottom = top + lane.height
    parts = [
        f'<path d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>',
        svg_text(20, top + 18, lane.name, weight=600),
        svg_text(20, top + 34, lane.note, size=11, colour=_FAINT),
    ]

    def height(value: float) -> float:
        part = (value - lane.low) / (lane.high - lane.low)
        return bottom - lane.height * min(1.0, max(0.0, part))

    if lane.threshold is not None:
        parts.append(
            f'<path d="M{_LEFT} {height(lane.threshold):.1f}H{_WIDTH - _RIGHT}" stroke="{_INK}" '
            'stroke-dasharray="2 3" opacity="0.6"/>'
        )
    for curve in lane.curves:
        step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(curve.values) - 1)
        points = " ".join(
            f"{_LEFT + index * step:.1f},{height(value):.1f}" for index, value in enumerate(curve.values)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{curve.colour}" stroke-width="1.3"/>'
        )
    return parts


def svg_text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 13,
    weight: int = 400,
    colour: str = _INK,
    anchor: str = "start",
) -> str:
    """Returns a line of text as an element of SVG."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )

"""The growth of an error as SVG: a line over steps, on a scale of powers of ten, under its bound. Pure."""

import math
from collections.abc import Sequence

from model_export.picture import svg_text

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 320, 70, 24, 58, 44
_SIZE = 11
_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
_INK, _FAINT, _LINE, _BOUND = "#1e293b", "#64748b", "#0f766e", "#b91c1c"
_POINTS = 250
"""So many of the steps are drawn, each the largest of its neighbours."""

_FLOOR = 1e-9


def draw(by_step: Sequence[float], bound: float, title: str) -> str:
    """Returns the picture."""
    size = max(1, -(-len(by_step) // _POINTS))
    peaks = [max(by_step[start : start + size]) for start in range(0, len(by_step), size)]
    seen = [max(value, _FLOOR) for value in (*peaks, bound)]
    low, high = math.floor(math.log10(min(seen))), math.ceil(math.log10(max(seen)))
    high = max(high, low + 1)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(value: float) -> float:
        return _TOP + height * (high - math.log10(max(value, _FLOOR))) / (high - low)

    points = " ".join(
        f"{_LEFT + width * at / max(1, len(peaks) - 1):.1f},{place(value):.1f}"
        for at, value in enumerate(peaks)
    )
    head, _, rest = title.partition("; ")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="{_FONT}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#ffffff"/>',
        svg_text(_LEFT, 24, f"Drift: {head}", size=14, weight=600),
        svg_text(_LEFT, 44, rest, colour=_FAINT, size=_SIZE),
    ]
    for power in range(low, high + 1):
        y = place(10.0**power)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e2e8f0"/>')
        parts.append(svg_text(_LEFT - 8, y + 4, f"1e{power}", colour=_FAINT, anchor="end", size=_SIZE))
    y = place(bound)
    parts += [
        f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_BOUND}" stroke-dasharray="5 4"/>',
        svg_text(_WIDTH - _RIGHT, y - 6, f"bound {bound:g}", colour=_BOUND, anchor="end", size=_SIZE),
        f'<polyline points="{points}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>',
        svg_text(_LEFT, _HEIGHT - 16, "step 1", colour=_FAINT, size=_SIZE),
        svg_text(
            _WIDTH - _RIGHT, _HEIGHT - 16, f"step {len(by_step)}", colour=_FAINT, anchor="end", size=_SIZE
        ),
    ]
    return "\n".join([*parts, "</svg>", ""])

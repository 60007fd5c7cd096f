"""Bars as SVG: groups of rows, a figure per column. Pure."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from benchmarks.results import Spread

_WIDTH, _LEFT, _GAP, _TOP = 960, 170, 24, 66
_ROW, _BAR, _HEADING, _VALUE_WIDTH = 22, 14, 34, 62
_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
_OURS, _OTHERS, _INK, _FAINT = "#0f766e", "#94a3b8", "#1e293b", "#64748b"


class Row(NamedTuple):
    """One contestant in a group.

    Attributes:
        name: At the left.
        spreads: One per column; None where there is none.
        is_ceiling: Drawn hollow, with a line through the other rows.
    """

    name: str
    spreads: Sequence[Spread | None]
    is_ceiling: bool


class Group(NamedTuple):
    """Rows that share their scales, column by column."""

    name: str
    rows: Sequence[Row]


def draw(title: str, columns: Sequence[str], groups: Sequence[Group]) -> str:
    """Returns the picture. Bars end at the median; the thin line goes from the least to the most."""
    height = _TOP + sum(_HEADING + _ROW * len(group.rows) for group in groups) + 20
    width = (_WIDTH - _LEFT - _GAP) / len(columns)
    lefts = [_LEFT + width * number for number in range(len(columns))]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="{_FONT}">',
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        _text(_GAP, 28, title, size=16, weight=600),
        *(_text(left, 54, column, colour=_FAINT) for left, column in zip(lefts, columns, strict=True)),
    ]
    top = float(_TOP)
    for group in groups:
        parts.append(f'<path d="M{_GAP} {top + 6}H{_WIDTH - _GAP}" stroke="#e2e8f0"/>')
        parts.append(_text(_GAP, top + 26, group.name, weight=600))
        parts += _rows(group.rows, top + _HEADING, lefts, width - _GAP - _VALUE_WIDTH)
        top += _HEADING + _ROW * len(group.rows)
    return "\n".join([*parts, "</svg>", ""])


def _rows(rows: Sequence[Row], top: float, lefts: Sequence[float], width: float) -> list[str]:
    parts = []
    for number, row in enumerate(rows):
        colour = _INK if row.name.startswith("holdfast") else _FAINT
        parts.append(_text(_LEFT - 12, top + _ROW * number + 15, row.name, colour=colour, anchor="end"))
    for column, left in enumerate(lefts):
        spreads = [row.spreads[column] for row in rows]
        longest = max((spread.high for spread in spreads if spread), default=0.0) or 1.0
        for number, (row, spread) in enumerate(zip(rows, spreads, strict=True)):
            if spread is not None:
                parts += _bar(row, spread, left, top + _ROW * number, width / longest)
                if row.is_ceiling:
                    x = left + spread.median * width / longest
                    line = f'd="M{x:.1f} {top}v{_ROW * len(rows)}" stroke="{_INK}"'
                    parts.append(f'<path {line} stroke-dasharray="2 3"/>')
    return parts


def _bar(row: Row, spread: Spread, left: float, top: float, scale: float) -> list[str]:
    length, y = spread.median * scale, top + (_ROW - _BAR) / 2
    fill = "none" if row.is_ceiling else _OURS if row.name.startswith("holdfast") else _OTHERS
    edge = f' stroke="{_FAINT}"' if row.is_ceiling else ""
    middle, end = y + _BAR / 2, left + spread.high * scale
    return [
        f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{fill}"{edge}/>',
        f'<path d="M{left + spread.low * scale:.1f} {middle}H{end:.1f}" stroke="{_INK}" opacity=".55"/>',
        _text(max(end, left + length) + 6, y + 11, _figure(spread.median)),
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    weight: int = 400,
    colour: str = _INK,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )

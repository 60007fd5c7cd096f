"""Bars as SVG: groups of rows, a figure per column. Pure."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from benchmarks.results import Spread

_WIDTH, _LEFT, _GAP, _TOP = 960, 170, 24, 66
_ROW, _BAR, _HEADING, _VALUE_WIDTH = 22, 14, 34, 62
_FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
_OURS, _OTHERS, _INK, _FAINT = "#0f766e", "#94a3b8", "#1e293b", "#64748b"
_DOTTED = f'stroke="{_INK}" stroke-dasharray="2 3"'


class Row(NamedTuple):
    """One contestant in a group.

    Attributes:
        name: At the left.
        spreads: One per column; None where there is none.
        is_ceiling: Drawn hollow, with a line past the other rows.
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
    tops = [top + _ROW * number for number in range(len(rows))]
    parts = [
        _text(_LEFT - 12, y + 15, row.name, colour=_INK if _is_ours(row) else _FAINT, anchor="end")
        for row, y in zip(rows, tops, strict=True)
    ]
    for column, left in enumerate(lefts):
        bars = [
            (row, spread, y)
            for row, y in zip(rows, tops, strict=True)
            if (spread := row.spreads[column]) is not None
        ]
        scale = width / max((spread.high for _, spread, _ in bars), default=1.0)
        parts += [_bar(row, spread, left, y, scale) for row, spread, y in bars]
        parts += [
            f'<path d="M{left + spread.median * scale:.1f} {top}v{_ROW * len(rows)}" {_DOTTED}/>'
            for row, spread, _ in bars
            if row.is_ceiling
        ]
        parts += [
            _text(left + spread.high * scale + 6, y + 15, _figure(spread.median)) for _, spread, y in bars
        ]
    return parts


def _bar(row: Row, spread: Spread, left: float, top: float, scale: float) -> str:
    y = top + (_ROW - _BAR) / 2
    fill = "none" if row.is_ceiling else _OURS if _is_ours(row) else _OTHERS
    edge = f' stroke="{_FAINT}"' if row.is_ceiling else ""
    low, middle, high = (left + value * scale for value in (spread.low, spread.median, spread.high))
    size = f'width="{middle - left:.1f}" height="{_BAR}" rx="2"'
    whisker = f'd="M{low:.1f} {y + _BAR / 2}H{high:.1f}" stroke="{_INK}" opacity=".55"'
    return f'<rect x="{left:.1f}" y="{y}" {size} fill="{fill}"{edge}/><path {whisker}/>'


def _is_ours(row: Row) -> bool:
    return row.name.startswith("holdfast")


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
    halo = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}" {halo}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'

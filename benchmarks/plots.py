"""Bar charts as SVG, by hand: no library, small files, legible on a light and a dark page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from .contestants import OURS
from .report import Table

_LEFT, _WIDTH, _RIGHT, _BAR, _TOP = 190, 420, 90, 22, 40
_OURS, _OTHERS, _INK = "#2f6fde", "#9aa5b1", "#7b8794"


def draw(tables: Iterable[Table], directory: Path) -> list[Path]:
    """Draw the columns that the tables name for it, those of one kind into one file; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, list[Table]] = {}
    for table in tables:
        kinds.setdefault(table.name.partition(".")[0], []).append(table)
    drawn = []
    for kind, group in kinds.items():
        path = directory / f"{kind}.svg"
        path.write_text(_drawing(group), encoding="utf-8")
        drawn.append(path)
    return drawn


def _drawing(tables: list[Table]) -> str:
    parts: list[str] = []
    height = 0
    for table in tables:
        for heading in table.chart:
            parts += _chart(table, heading, height)
            height += _TOP + _BAR * len(table.rows) + 10
    width = _LEFT + _WIDTH + _RIGHT
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" font-size="12" fill="{_INK}" role="img">'
    )
    return "\n".join([opening, *parts, "</svg>", ""])


def _chart(table: Table, heading: str, top: int) -> list[str]:
    column = list(table.columns).index(heading)
    values = [value if isinstance(value := row[column], (int, float)) else None for row in table.rows]
    longest = max((value for value in values if value is not None), default=0.0) or 1.0
    parts = [f'<text x="8" y="{top + 22}" font-size="13">{escape(table.title)} ({escape(heading)})</text>']
    for at, (row, value) in enumerate(zip(table.rows, values, strict=True)):
        name, y = str(row[0]), top + _TOP + at * _BAR
        colour = _OURS if name.startswith(OURS) else _OTHERS
        length = 0.5 if value is None else max(_WIDTH * value / longest, 0.5)
        shown = str(row[column]) if value is None else format(value, table.formats[column])
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{y + 2}" width="{length:.1f}" height="{_BAR - 6}" rx="2" fill="{colour}"/>',
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 14}">{escape(shown)}</text>',
        ]
    return parts

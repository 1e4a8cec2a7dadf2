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
    """Draw the columns that a table names for it; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for table in tables:
        for heading in table.chart:
            path = directory / f"{table.name}.svg"
            path.write_text(_chart(table, heading), encoding="utf-8")
            drawn.append(path)
    return drawn


def _chart(table: Table, heading: str) -> str:
    column = list(table.columns).index(heading)
    bars = [(str(row[0]), value) for row in table.rows if isinstance(value := row[column], (int, float))]
    longest = max((value for _, value in bars), default=1.0) or 1.0
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _BAR * len(bars) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" font-size="12" fill="{_INK}" role="img">',
        f"<title>{escape(table.title)}</title>",
        f'<text x="8" y="20" font-size="13">{escape(table.title)} ({escape(heading)})</text>',
    ]
    for at, (name, value) in enumerate(bars):
        y = _TOP + at * _BAR
        colour = _OURS if name.startswith(OURS) else _OTHERS
        length = max(_WIDTH * value / longest, 0.5)
        shown = format(value, table.formats[column])
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{y + 2}" width="{length:.1f}" height="{_BAR - 6}" rx="2" fill="{colour}"/>',
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 14}">{shown}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])

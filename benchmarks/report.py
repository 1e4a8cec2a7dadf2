"""Tables as values, and as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Cell = float | str | None


@dataclass(frozen=True, slots=True)
class Table:
    """What is printed, kept as JSON and drawn.

    Attributes:
        name: What ``--only`` calls it, and the part of it.
        columns: Their headings; the first belongs to the rows' names.
        formats: How the numbers of each column are written, as ``format`` has it.
        chart: The headings of the columns that are drawn.
    """

    name: str
    title: str
    columns: Sequence[str]
    formats: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list[list[Cell]])
    notes: str = ""
    chart: Sequence[str] = ()

    def text(self) -> str:
        """Return it as text."""
        lines = [list(self.columns), *([self._shown(cell, at) for at, cell in enumerate(row)] for row in self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        shown = ["  ".join(_justified(cell, widths[at], at) for at, cell in enumerate(line)).rstrip() for line in lines]
        rule = "-" * max(map(len, shown))
        return "\n".join([self.title, rule, shown[0], rule, *shown[1:], *([self.notes] if self.notes else []), ""])

    def _shown(self, cell: Cell, column: int) -> str:
        if cell is None:
            return "-"
        return cell if isinstance(cell, str) else format(cell, self.formats[column])


def _justified(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run.

    Attributes:
        quick: Few rounds; the figures say less.
        full: The 401 storms at full size.
        stacks: The client libraries.
        tell: Shows how far the run is.
    """

    quick: bool
    full: bool
    stacks: Sequence[str]
    tell: Callable[[str], None]

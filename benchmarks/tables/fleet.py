"""Token requests an hour, by the number of worker processes."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.measures.fleet import GAP, ROWS
from benchmarks.report import Cell, Options, Table

_WORKERS = (1, 2, 8, 32)


def run(options: Options) -> list[Table]:
    """Count them in simulated time."""
    hours = 0.1 if options.quick else 1.0
    table = Table(
        "fleet",
        "Token requests per hour by worker processes; 88Pay allows 100",
        ("", *(str(number) for number in _WORKERS)),
        ("", *(",.0f" for _ in _WORKERS)),
        chart=(str(_WORKERS[-1]),),
        notes=f"Simulated time; each worker makes one call every {GAP:g} s; no limit applies."
        " Without a store, each process has a token of its own."
        + (" Six minutes, times ten: the first token counts ten times." if options.quick else ""),
    )
    for row in ROWS:
        cells: list[Cell] = [row]
        for workers in _WORKERS:
            options.tell(f"{row}, {workers} workers")
            result, _ = harness.fresh(
                {"measure": "fleet:hour", "row": row, "workers": workers, "hours": hours}, timeout=1_200
            )
            cells.append(result["token requests"])
        table.rows.append(cells)
    return [table]

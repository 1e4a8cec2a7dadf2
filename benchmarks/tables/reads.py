"""Reading a cached token, without a call."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.measures.reads import FLOOR, ROWS
from benchmarks.report import Cell, Options, Table


def run(options: Options) -> list[Table]:
    """Measure one thread, eight threads that share a manager, and a task."""
    rounds, times = (3, 20_000) if options.quick else (25, 100_000)
    with harness.emulator() as emulator:
        service = harness.service(emulator)
        return [
            _table("one thread", "sync", {"measure": "reads:read", "threads": 1}, rounds, times, service, options),
            _table(
                "eight threads", "sync", {"measure": "reads:read", "threads": 8}, rounds, times // 8, service, options
            ),
            _table("awaited", "awaited", {"measure": "reads:aread"}, rounds, times, service, options),
        ]


def _table(
    name: str, kind: str, spec: dict[str, object], rounds: int, times: int, service: object, options: Options
) -> Table:
    jobs: list[harness.Job] = [(row, {**spec, "row": row, "service": service}) for row in ROWS[kind]]
    counted: dict[str, float] = {}
    if harness.valgrind() and "eight" not in name:  # how threads take turns is no matter of instructions
        counted = harness.instructions(jobs, "times", 500, 4_500, options.tell)
    results = harness.interleaved([(key, {**each, "times": times}) for key, each in jobs], rounds, options.tell)
    timed = {row: harness.medians(each) for row, each in results.items()}
    table = Table(
        f"reads.{name.replace(' ', '-')}",
        f"Reading a cached token: {name}",
        ("", "wall ns", "over the floor", "CPU ns", "instructions", "over the floor"),
        ("", ",.0f", ".2f", ",.0f", ",.0f", ".2f"),
        chart=("wall ns",),
    )
    for row in ROWS[kind]:
        count: list[Cell] = [counted[row], counted[row] / counted[FLOOR]] if counted else [None, None]
        wall, cpu = timed[row]["wall"], timed[row]["cpu"]
        table.rows.append([row, wall * 1e9, wall / timed[FLOOR]["wall"], cpu * 1e9, *count])
    return table

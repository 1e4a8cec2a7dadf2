"""A call with a token that is there, without any network."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.contestants import BARE, rows
from benchmarks.report import Cell, Options, Table

_NO_VALGRIND = "valgrind is not installed: no instructions were counted."


def run(options: Options) -> list[Table]:
    """Measure every row of every stack: instructions, wall and CPU time."""
    rounds, calls = (3, 300) if options.quick else (15, 2_000)
    with harness.emulator() as emulator:
        service = harness.service(emulator, in_memory=True)
        jobs: list[harness.Job] = [
            (f"{stack} {row}", {"measure": "calls:cached", "stack": stack, "row": row, "service": service})
            for stack in options.stacks
            for row in rows(stack)
        ]
        counted = {}
        if harness.valgrind():
            counted = harness.instructions(jobs, "calls", 50, 250 if options.quick else 1_050, options.tell)
        results = harness.interleaved([(key, {**spec, "calls": calls}) for key, spec in jobs], rounds, options.tell)
    return [
        _table(stack, counted, {key: harness.medians(each) for key, each in results.items()})
        for stack in options.stacks
    ]


def _table(stack: str, counted: dict[str, float], timed: dict[str, harness.Figures]) -> Table:
    table = Table(
        f"cached.{stack}",
        f"One call with a token that is there, no network: {stack}",
        ("", "instructions", "over bare", "ratio", "wall µs", "over bare", "CPU µs"),
        ("", ",.0f", "+,.0f", ".3f", ".1f", "+.1f", ".1f"),
        notes="" if counted else _NO_VALGRIND,
        chart=("ratio",) if counted else ("wall µs",),
    )
    bare = f"{stack} {BARE}"
    for row in rows(stack):
        key = f"{stack} {row}"
        count: list[Cell] = [None, None, None]
        if counted:
            count = [counted[key], counted[key] - counted[bare], counted[key] / counted[bare]]
        wall, cpu = timed[key]["wall"] * 1e6, timed[key]["cpu"] * 1e6
        table.rows.append([row, *count, wall, wall - timed[bare]["wall"] * 1e6, cpu])
    return table

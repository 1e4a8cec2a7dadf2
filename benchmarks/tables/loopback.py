"""A call with a token that is there, to a server in another process."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.contestants import STATIC, contestants_marks, rows
from benchmarks.report import Options, Table


def run(options: Options) -> list[Table]:
    """Measure every row of every client library: wall and CPU time."""
    rounds, calls = (3, 150) if options.quick else (15, 1_000)
    tables = []
    for stack in options.stacks:
        with harness.emulator() as emulator:
            service = harness.service(emulator)
            spec = {"measure": "calls:cached", "stack": stack, "calls": calls, "service": service}
            jobs: list[harness.Job] = [(row, {**spec, "row": row}) for row in rows(stack)]
            results = harness.interleaved(jobs, rounds, lambda text: options.tell(f"{stack}, {text}"))  # noqa: B023
        timed = {row: harness.medians(each) for row, each in results.items()}
        table = Table(
            f"loopback.{stack}",
            f"One request with a cached token, over loopback: {stack}",
            ("", "wall µs", "over static headers", "CPU µs", "sends"),
            ("", ".0f", ".3f", ".0f", ""),
            chart=("over static headers",),
            notes="The bare rows send no token and are answered 401. CPU is the client's.",
        )
        for row in rows(stack):
            wall, cpu = timed[row]["wall"] * 1e6, timed[row]["cpu"] * 1e6
            table.rows.append([row, wall, wall / timed[STATIC]["wall"] / 1e6, cpu, contestants_marks(row)])
        tables.append(table)
    return tables

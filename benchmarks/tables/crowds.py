"""A crowd that waits for one fetch."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.measures.crowds import ROWS
from benchmarks.report import Cell, Options, Table
from pay88_adapters.testing import Latency

_LATENCY = 2.0  # seconds that the token endpoint takes: until then all of the crowd wait


def run(options: Options) -> list[Table]:
    """Measure tasks and threads."""
    return [_table(kind, callers, options) for kind, callers in (("tasks", 10_000), ("threads", 1_000))]


def _table(kind: str, callers: int, options: Options) -> Table:
    table = Table(
        f"crowds.{kind}",
        f"{callers:,} {kind} wait for one fetch",
        ("", "ms from the first to the last", "CPU ms", "ms the event loop is blocked", "bytes each", "token requests"),
        ("", ",.1f", ",.0f", ",.1f", ",.0f", ",.0f"),
        chart=("ms from the first to the last",),
        notes="Medians. Memory is the most that tracemalloc counts, with the task or thread itself.",
    )
    rounds = 3 if options.quick else 9
    for row in ROWS:
        with harness.emulator() as emulator:
            emulator.faults.add(Latency(_LATENCY), on="token", times=None)
            spec = {"row": row, "callers": callers, "service": harness.service(emulator)}
            jobs = [(row, {"measure": f"crowds:{kind}", **spec})]
            figures = harness.medians(harness.interleaved(jobs, rounds, options.tell)[row])
            requested = emulator.journal.token_requests / rounds
            memory, _ = harness.fresh({"measure": "crowds:memory", "kind": kind, **spec})
        blocked = figures.get("blocked")
        cells: list[Cell] = [figures["last"] * 1e3, figures["cpu"] * 1e3, None if blocked is None else blocked * 1e3]
        table.rows.append([row, *cells, memory["bytes"], requested])
    return table

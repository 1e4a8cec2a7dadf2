"""Many merchants in one process: memory, threads, and finding a manager."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.measures.managers import ROWS
from benchmarks.report import Options, Table


def run(options: Options) -> list[Table]:
    """Measure each row once: memory is counted, not sampled."""
    count = 1_000 if options.quick else 10_000
    memory = Table(
        "managers.memory",
        f"{count:,} managers in one process, each with a token",
        ("", "bytes each", "threads each"),
        ("", ",.0f", ".3f"),
        chart=("bytes each",),
        notes="As tracemalloc counts them. Ours holds its budget too; authlib's is a whole session.",
    )
    for row in ROWS:
        options.tell(row)
        result, _ = harness.fresh({"measure": "managers:memory", "row": row, "count": count}, timeout=900)
        memory.rows.append([row, result["bytes"], result["threads"]])
    sizes = (1, 100, count)
    jobs: list[harness.Job] = [
        (name, {"measure": "managers:shared", "count": size, "times": 2_000})
        for size in sizes
        for name in (f"{size:,}", f"{size:,} again")
    ]
    results = harness.interleaved(jobs, 3 if options.quick else 9, options.tell)
    shared = Table(
        "managers.shared",
        "TokenManager.shared(…), by the number of managers in the process",
        ("", "wall µs"),
        ("", ".2f"),
        chart=("wall µs",),
    )
    for name, _ in sorted(jobs, key=lambda job: (job[1]["count"], job[0])):
        shared.rows.append([name, harness.medians(results[name])["wall"] * 1e6])
    return [memory, shared]

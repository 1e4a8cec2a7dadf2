"""What the import takes, beside that of the one library it needs."""

from __future__ import annotations

from benchmarks import harness
from benchmarks.report import Options, Table

_LIMITS = "limits"
_ROWS = {
    _LIMITS: "limits",
    "limits again": "limits",
    "pay88_adapters": "pay88_adapters",
    "google.auth.credentials": "google.auth.credentials",
    "botocore.credentials": "botocore.credentials",
    "azure.core": "azure.core.pipeline.policies",
    "authlib": "authlib.oauth2.client",
}


def run(options: Options) -> list[Table]:
    """Import each in fresh processes."""
    jobs: list[harness.Job] = [(row, {"measure": "imports:imported", "module": name}) for row, name in _ROWS.items()]
    results = harness.interleaved(jobs, 7 if options.quick else 31, options.tell)
    timed = {row: harness.medians(each) for row, each in results.items()}
    counted = {}
    if harness.valgrind():
        counting: list[harness.Job] = [(row, {**spec, "measure": "imports:counted"}) for row, spec in jobs]
        counted = harness.instructions(counting, "times", 0, 1, options.tell)
    table = Table(
        "imports",
        "import, from files that are compiled",
        ("", "wall ms", "over limits", "CPU ms", "instructions, millions", "over limits"),
        ("", ".1f", ".2f", ".1f", ",.0f", ".2f"),
        chart=("wall ms",),
    )
    for row in _ROWS:
        wall, cpu = timed[row]["wall"], timed[row]["cpu"]
        count = [counted[row] / 1e6, counted[row] / counted[_LIMITS]] if counted else [None, None]
        table.rows.append([row, wall * 1e3, wall / timed[_LIMITS]["wall"], cpu * 1e3, *count])
    return [table]

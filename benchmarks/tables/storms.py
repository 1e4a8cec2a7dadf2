"""Many callers at once: a cold start, and a storm of refusals."""

from __future__ import annotations

from typing import Any

from benchmarks import harness
from benchmarks.contestants import BARE, CONTROL, STATIC, is_async, rows
from benchmarks.report import Cell, Options, Table


def run(options: Options) -> list[Table]:
    """Count the token requests that the server saw, once for each row: there is no noise in it."""
    tables = []
    for stack in options.stacks:
        callers = (10_000 if is_async(stack) else 1_000) if options.full else 64
        who = f"{callers:,} {'tasks' if is_async(stack) else 'threads'}"
        table = Table(
            f"storms.{stack}",
            f"{who} at once, the token endpoint takes 200 ms: {stack}",
            ("", "token requests at a cold start", "calls that failed", "on a storm of 401s", "calls that failed"),
            ("", ",.0f", ",.0f", ",.0f", ",.0f"),
            chart=("token requests at a cold start",),
        )
        for row in rows(stack):
            if row in (BARE, CONTROL, STATIC):
                continue
            cells: list[Cell] = [row]
            for refused in (False, True):
                options.tell(f"{stack} {row}")
                cells += _counts(
                    {"measure": "storms:storm", "stack": stack, "row": row, "callers": callers, "refused": refused}
                )
            table.rows.append(cells)
        tables.append(table)
    return tables


def _counts(spec: dict[str, Any]) -> list[Cell]:
    try:
        result, _ = harness.fresh(spec)
    except (RuntimeError, harness.TooLong) as error:
        return [_reason(error), None]
    failed = sum(count for ended, count in result["ended"].items() if ended != "200")
    return [float(result["token requests"]), float(failed)]


def _reason(error: Exception) -> str:
    return "took too long" if isinstance(error, harness.TooLong) else "failed"

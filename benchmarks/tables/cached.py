"""A call with a token that is there, without any network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks import harness, stubs
from benchmarks.contestants import BARE, rows
from benchmarks.report import Cell, Options, Table

_NEW_IDS = ", new ids"
_NO_VALGRIND = "valgrind is not installed: no instructions were counted."


def run(options: Options) -> list[Table]:
    """Measure every row of every client library: instructions, wall and CPU time."""
    rounds, calls = (3, 300) if options.quick else (15, 2_000)
    with harness.emulator(lifetime=stubs.LIFETIME) as emulator:
        place = harness.service(emulator, lifetime=stubs.LIFETIME, in_memory=True)
        jobs = _jobs(options.stacks, place)
        counted = {}
        if harness.valgrind():
            new_ids = _jobs(options.stacks, {**place, "new_ids": True}, _NEW_IDS)
            seeds = 1 if options.quick else 5
            counted = harness.instructions([*jobs, *new_ids], "calls", 50, 250, options.tell, seeds=seeds)
        results = harness.interleaved([(key, {**spec, "calls": calls}) for key, spec in jobs], rounds, options.tell)
    return [
        _table(stack, counted, {key: harness.medians(each) for key, each in results.items()})
        for stack in options.stacks
    ]


def _jobs(stacks: Iterable[str], service: dict[str, Any], suffix: str = "") -> list[harness.Job]:
    return [
        (f"{stack} {row}{suffix}", {"measure": "calls:cached", "stack": stack, "row": row, "service": service})
        for stack in stacks
        for row in rows(stack)
    ]


def _table(stack: str, counted: dict[str, float], timed: dict[str, harness.Figures]) -> Table:
    table = Table(
        f"cached.{stack}",
        f"One request with a cached token, no network: {stack}",
        ("", "instructions", "over bare", "ratio", "ratio with new ids", "wall µs", "over bare", "CPU µs"),
        ("", ",.0f", "+,.0f", ".3f", ".3f", ".1f", "+.1f", ".1f"),
        notes="New ids: the URL of each call differs." if counted else _NO_VALGRIND,
        chart=("ratio",) if counted else ("wall µs",),
    )
    bare = f"{stack} {BARE}"
    for row in rows(stack):
        key = f"{stack} {row}"
        count: list[Cell] = [None, None, None, None]
        if counted:
            new_ids = counted[key + _NEW_IDS] / counted[bare + _NEW_IDS]
            count = [counted[key], counted[key] - counted[bare], counted[key] / counted[bare], new_ids]
        wall, cpu = timed[key]["wall"] * 1e6, timed[key]["cpu"] * 1e6
        table.rows.append([row, *count, wall, wall - timed[bare]["wall"] * 1e6, cpu])
    return table

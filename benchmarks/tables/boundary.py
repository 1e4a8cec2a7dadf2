"""Who waits for a token while calls come at a fixed rate."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from benchmarks import harness
from benchmarks.contestants import BARE, CONTROL, STATIC, rows
from benchmarks.report import Options, Table
from pay88_adapters.testing import Latency

_LATENCY = 0.2
_RATE = 100.0
_LIFETIME = 6.0  # a tenth of the lifetime at 88Pay; every margin is a tenth, too
_AGAIN = f"{STATIC} again"


def run(options: Options) -> list[Table]:
    """Measure each row once, the rows of a client library two at a time; in quick runs three, two refreshes long."""
    refreshes = 2 if options.quick else 10
    seconds = refreshes * _LIFETIME * 5 / 6
    tables = []
    for stack in options.stacks:
        who = [STATIC, _AGAIN, *(row for row in rows(stack) if row not in (BARE, CONTROL, STATIC))]
        with ThreadPoolExecutor(3 if options.quick else 2) as pool:
            results = dict(zip(who, pool.map(lambda row: _load(stack, row, seconds), who), strict=True))  # noqa: B023
        table = Table(
            f"boundary.{stack}",
            f"{_RATE:.0f} requests per second across {refreshes} refreshes, the token endpoint takes 200 ms: {stack}",
            ("", "waited", "p50 ms", "p99 ms", "p99.9 ms", "failed", "token requests"),
            ("", ",.0f", ".2f", ".1f", ".1f", ",.0f", ",.0f"),
            chart=("waited",),
            notes="Tokens live 6 s in place of 60, margins are a tenth too. A call waited if it took over 100 ms,"
            " began before a token was there and ended after it."
            + (" Three rows ran at a time: their latencies say little." if options.quick else ""),
        )
        for row in who:
            latencies, waited, failed, requests = results[row]
            table.rows.append(
                [
                    row,
                    float(waited),
                    *(_quantile(latencies, share) * 1e3 for share in (0.5, 0.99, 0.999)),
                    float(failed),
                    float(requests),
                ]
            )
        tables.append(table)
    return tables


def _load(stack: str, row: str, seconds: float) -> tuple[list[float], int, int, int]:
    with ExitStack() as stack_of:
        # Static headers are not replaced: theirs live on.
        fixed = row in (STATIC, _AGAIN)
        emulator = stack_of.enter_context(harness.emulator(lifetime=3_600.0 if fixed else _LIFETIME))
        emulator.faults.add(Latency(_LATENCY), on="token", times=None)
        service = harness.service(emulator, lifetime=_LIFETIME)
        named = STATIC if fixed else row
        spec = {"measure": "boundary:load", "stack": stack, "row": named, "rate": _RATE, "seconds": seconds}
        ahead = emulator.clock.now() - time.perf_counter()
        result: Any = harness.fresh({**spec, "service": service})[0]
        # When the responses with tokens arrived, but for the first.
        arrived = [entry.at - ahead + _LATENCY for entry in emulator.journal if entry.kind == "token"][1:]
        waited = [
            responded - due > _LATENCY / 2 and any(due < at <= responded for at in arrived)
            for due, responded in result["answered"]
        ]
        latencies = sorted(responded - due for due, responded in result["answered"])
        return latencies, sum(waited), len(result["failed"]), emulator.journal.token_requests


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0

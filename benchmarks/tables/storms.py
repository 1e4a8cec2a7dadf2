"""Many concurrent callers: a cold start, and a 401 storm."""

from __future__ import annotations

import threading
from contextlib import suppress

from benchmarks import harness
from benchmarks.contestants import BARE, CONTROL, STATIC, is_async, rows
from benchmarks.report import Cell, Options, Table
from pay88_adapters.testing import Latency

_LATENCY = 0.2  # seconds that the token endpoint takes
_TIMEOUT = 600.0


def run(options: Options) -> list[Table]:
    """Count the token requests that the server saw, once for each row: there is no noise in it."""
    harness.allow_many_sockets()
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
                cells += _counts(stack, row, callers, refused)
            table.rows.append(cells)
        tables.append(table)
    return tables


def _counts(stack: str, row: str, callers: int, refused: bool) -> list[Cell]:
    with harness.emulator() as emulator:
        emulator.faults.add(Latency(_LATENCY), on="token", times=None)
        service = harness.service(emulator)
        spec = {"measure": "storms:storm", "stack": stack, "row": row, "callers": callers, "warm": refused}
        before = [0]

        def referee() -> None:
            """Let all calls but the first arrive with the cached token; then reject it."""
            with suppress(TimeoutError), emulator.hold(on=lambda _: emulator.journal.calls > 1) as hold:
                hold.wait_for(callers, timeout=_TIMEOUT)
                before[0] = emulator.journal.token_requests
                emulator.service.revoke_current_tokens()

        watching = threading.Thread(target=referee)
        if refused:
            watching.start()
        try:
            ended: dict[str, int] = harness.fresh({**spec, "service": service}, timeout=_TIMEOUT)[0]
        except (RuntimeError, harness.TooLong) as error:
            return ["took too long" if isinstance(error, harness.TooLong) else "failed", None]
        finally:
            if refused:
                watching.join()
        failed = sum(count for how, count in ended.items() if how != "200")
        return [float(emulator.journal.token_requests - before[0]), float(failed)]

"""One call after another with a token that is there."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import contestant, is_async
from benchmarks.service import Service

from . import atimed, on_a_loop, timed

_WARM_UP = 50


def cached(stack: str, row: str, calls: int, service: dict[str, Any]) -> dict[str, float]:
    """Return what one call takes."""
    made, place = contestant(stack, row), Service(**service)
    expected = 200 if made.both or place.in_memory else 401

    if not is_async(stack):
        call = made.make(place)
        _check({call() for _ in range(_WARM_UP)}, expected)

        def run() -> None:
            for _ in range(calls):
                call()

        return timed(run, calls)

    async def main() -> dict[str, float]:
        call = made.make(place)
        _check({await call() for _ in range(_WARM_UP)}, expected)

        async def arun() -> None:
            for _ in range(calls):
                await call()

        return await atimed(arun, calls)

    result: dict[str, float] = on_a_loop(main)
    return result


def _check(statuses: set[int], expected: int) -> None:
    if statuses != {expected}:
        raise RuntimeError(f"the calls were answered {statuses}, not {expected}")

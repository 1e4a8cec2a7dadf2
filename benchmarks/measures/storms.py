"""Many concurrent callers: there is no token, or the token of all of them is rejected."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.contestants import Call, contestant, is_async
from benchmarks.service import Service

from . import on_a_loop


def storm(stack: str, row: str, callers: int, warm: bool, service: dict[str, Any]) -> dict[str, int]:
    """Make *callers* concurrent calls, after one alone if *warm*; return how many ended in which way."""
    made, place = contestant(stack, row), Service(**service)
    if is_async(stack):
        ended: Counter[str] = on_a_loop(lambda: _tasks(lambda: made.make(place), callers, warm))
        return dict(ended)
    return dict(_threads(made.make(place), callers, warm))


def _threads(call: Call, callers: int, warm: bool) -> Counter[str]:
    if warm:
        call()
    ended: list[str] = []
    together = threading.Barrier(callers)

    def caller() -> None:
        together.wait()
        try:
            ended.append(str(call()))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is how its call ended
            ended.append(type(error).__name__)

    threading.stack_size(256 * 1024)
    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(ended)


async def _tasks(make: Callable[[], Call], callers: int, warm: bool) -> Counter[str]:
    call = make()
    if warm:
        await call()
    results = await asyncio.gather(*(call() for _ in range(callers)), return_exceptions=True)
    return Counter(type(each).__name__ if isinstance(each, BaseException) else str(each) for each in results)

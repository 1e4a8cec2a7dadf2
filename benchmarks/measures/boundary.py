"""An open load, at a fixed rate however long the responses take, across many refreshes."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import count
from typing import Any

from benchmarks.contestants import Call, contestant, is_async
from benchmarks.service import Service

from . import on_a_loop

_THREADS = 64


def load(stack: str, row: str, rate: float, seconds: float, service: dict[str, Any]) -> dict[str, Any]:
    """Return when each call was due and when its response arrived, on ``time.perf_counter``, and the failures."""
    made, place = contestant(stack, row), Service(**service)
    due_in = [number / rate for number in range(int(rate * seconds))]
    if is_async(stack):
        result: dict[str, Any] = on_a_loop(lambda: _tasks(lambda: made.make(place), due_in))
        return result
    return _threads(made.make(place), due_in)


def _threads(call: Call, due_in: list[float]) -> dict[str, Any]:
    call()  # the first waits for a token
    responded: list[tuple[float, float]] = []
    failed: list[str] = []
    numbers, lock = count(), threading.Lock()
    begin = time.perf_counter() + 0.2

    def worker() -> None:
        while True:
            with lock:
                number = next(numbers)
            if number >= len(due_in):
                return
            due = begin + due_in[number]
            time.sleep(max(due - time.perf_counter(), 0))
            try:
                status = call()
            except Exception as error:  # noqa: BLE001 - whatever a library raises is how its call ended
                failed.append(type(error).__name__)
            else:
                responded.append((due, time.perf_counter()))
                if status != 200:
                    failed.append(str(status))

    threads = [threading.Thread(target=worker) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"answered": responded, "failed": failed}


async def _tasks(make: Any, due_in: list[float]) -> dict[str, Any]:
    call = make()
    await call()  # the first waits for a token
    responded: list[tuple[float, float]] = []
    failed: list[str] = []
    begin = time.perf_counter() + 0.2

    async def one(due: float) -> None:
        try:
            status = await call()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is how its call ended
            failed.append(type(error).__name__)
        else:
            responded.append((due, time.perf_counter()))
            if status != 200:
                failed.append(str(status))

    running = []
    for after in due_in:
        await asyncio.sleep(max(begin + after - time.perf_counter(), 0))
        running.append(asyncio.ensure_future(one(begin + after)))
    await asyncio.gather(*running)
    return {"answered": responded, "failed": failed}

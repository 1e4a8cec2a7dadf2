"""A crowd that waits for one fetch: what it costs to give all of them the token once its response is there."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.byhand import AsyncManager
from benchmarks.service import Grant, Service

from . import on_a_loop
from .reads import reader

ROWS = ("by hand", "pay88-adapters")
_SETTLED = 0.5  # seconds after which all of a crowd wait: the token endpoint must take longer
_BEAT = 0.001  # seconds


def tasks(row: str, callers: int, service: dict[str, Any]) -> dict[str, float]:
    """Let *callers* tasks wait for a token."""
    place = Service(**service)

    async def main() -> dict[str, float]:
        get, arrived, ended = _areader(row, place), [0.0], [0.0]

        async def caller() -> None:
            await get()
            arrived[0] = arrived[0] or time.perf_counter()
            ended[0] = time.perf_counter()

        crowd = [asyncio.ensure_future(caller()) for _ in range(callers)]
        await asyncio.sleep(_SETTLED)
        beating = asyncio.ensure_future(_longest_gap(lambda: ended[0] > 0 and all(task.done() for task in crowd)))
        cpu = time.process_time()
        await asyncio.gather(*crowd)
        cpu = time.process_time() - cpu
        return {"last": ended[0] - arrived[0], "cpu": cpu, "blocked": await beating}

    result: dict[str, float] = on_a_loop(main)
    return result


def threads(row: str, callers: int, service: dict[str, Any]) -> dict[str, float]:
    """Let *callers* threads wait for a token."""
    get, ended = reader(row, Service(**service)), list[float]()

    def caller() -> None:
        get()
        ended.append(time.perf_counter())

    threading.stack_size(256 * 1024)
    crowd = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in crowd:
        thread.start()
    cpu = time.process_time()
    for thread in crowd:
        thread.join()
    return {"last": max(ended) - min(ended), "cpu": time.process_time() - cpu}


def memory(kind: str, row: str, callers: int, service: dict[str, Any]) -> dict[str, float]:
    """Return the bytes that each of the waiting takes, beside a task or thread that waits for nothing of ours."""
    tracemalloc.start()
    {"tasks": tasks, "threads": threads}[kind](row, callers, service)
    return {"bytes": tracemalloc.get_traced_memory()[1] / callers}


async def _longest_gap(is_over: Callable[[], bool]) -> float:
    """Return the longest time that the event loop did not run this task, beyond its sleep."""
    longest, last = 0.0, time.perf_counter()
    while not is_over():
        await asyncio.sleep(_BEAT)
        now = time.perf_counter()
        longest, last = max(longest, now - last - _BEAT), now
    return longest


def _areader(row: str, service: Service) -> Callable[[], Awaitable[object]]:
    async def ask() -> Grant:
        return await asyncio.to_thread(service.ask)

    if row == "by hand":
        return AsyncManager(ask, service.margin).headers
    from benchmarks.contestants.ours import manager

    return manager(service).aget_token

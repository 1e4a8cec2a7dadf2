"""What a fresh process can measure."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any


def timed(run: Callable[[], object], times: int) -> dict[str, float]:
    """Return the wall and CPU seconds that one of *times* takes, where *run* does it that often."""
    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gc.enable()
    return {"wall": wall / times, "cpu": cpu / times}


async def atimed(run: Callable[[], Any], times: int) -> dict[str, float]:
    """Do the same with what is awaited."""
    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    await run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gc.enable()
    return {"wall": wall / times, "cpu": cpu / times}


def on_a_loop(main: Callable[[], Any]) -> Any:
    """Run a coroutine function on a loop; nothing is closed after it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(main())

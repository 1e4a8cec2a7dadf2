"""Events that crowds of tasks wait at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import trio
import trio.testing

from pay88_adapters.engine.runtime_trio import TrioEvent, TrioRuntime
from pay88_adapters.engine.runtimes import WOKEN_AT_ONCE, AsyncioEvent, AsyncioRuntime

_CROWD = 4 * WOKEN_AT_ONCE + 1
_LONG = 60.0  # seconds

Woken = list[int]
"""Number of tasks that continued between two turns of the event loop."""


def _on_asyncio(end_the_wait: Callable[[AsyncioEvent | TrioEvent], None]) -> Woken:
    async def main() -> Woken:
        event, woken = AsyncioRuntime(asyncio.get_running_loop()).event(), [0]

        async def waiter() -> None:
            await event.wait(_LONG)
            woken[-1] += 1

        crowd = [asyncio.create_task(waiter()) for _ in range(_CROWD)]
        await asyncio.sleep(0)
        end_the_wait(event)
        while not all(task.done() for task in crowd):
            await asyncio.sleep(0)
            woken.append(0)
        await event.wait(_LONG if event._is_set else 0.0)
        return woken

    return asyncio.run(main())


def _on_trio(end_the_wait: Callable[[AsyncioEvent | TrioEvent], None]) -> Woken:
    async def main() -> Woken:
        event, woken = TrioRuntime().event(), [0]

        async def waiter() -> None:
            await event.wait(_LONG)
            woken[-1] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(_CROWD):
                nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            end_the_wait(event)
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
                woken.append(0)
        await event.wait(_LONG if event._is_set else 0.0)
        return woken

    return trio.run(main)


@pytest.mark.parametrize("run", [_on_asyncio, _on_trio])
@pytest.mark.parametrize(
    "end_the_wait", [lambda event: event.set(), lambda event: event.notify()], ids=["set", "notify"]
)
def test_rule_17_a_crowd_of_tasks_is_woken_in_batches(
    run: Callable[[Callable[[AsyncioEvent | TrioEvent], None]], Woken],
    end_the_wait: Callable[[AsyncioEvent | TrioEvent], None],
) -> None:
    """So that its sockets and timers get their turn."""
    woken = run(end_the_wait)
    assert sum(woken) == _CROWD
    assert max(woken) <= 2 * WOKEN_AT_ONCE  # two batches may fall between two looks

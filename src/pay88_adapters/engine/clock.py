"""The clock that measures tokens, budgets and waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from pay88_adapters.core.arguments import check_number
from pay88_adapters.stores.realtime import monotonic

from .runtimes import AsyncRuntime, AsyncWaitEvent, ThreadEvent

T = TypeVar("T")


def _steady() -> Callable[[], float]:
    """Return the monotonic clock that counts suspended time, where the platform has one."""
    # A token kept across a suspend looks fresh to CLOCK_MONOTONIC on Linux. On macOS CLOCK_MONOTONIC counts suspended
    # time, and time.monotonic() may not.
    name = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC"}.get(sys.platform)
    clock_id: int | None = getattr(time, name, None) if name else None
    if clock_id is None:
        return monotonic
    try:
        time.clock_gettime(clock_id)
    except OSError:  # a kernel or sandbox without this clock
        return monotonic
    return partial(time.clock_gettime, clock_id)  # read for every request: no Python frame


class Clock:
    """A monotonic clock, and waits that it measures.

    Args:
        speed: Seconds of this clock in one real second. A test or a demo may run a manager and an emulator on one fast
            clock.
    """

    skips_pauses = False
    """Whether sleeping advances this clock instead."""

    def __init__(self, speed: float = 1.0) -> None:
        check_number("speed", speed, positive=True)
        self.speed = speed
        steady = _steady()
        self.now: Callable[[], float] = steady if speed == 1 else lambda: steady() * speed

    def wall(self) -> float:
        """Return the wall clock in seconds since the epoch, for the dates in responses."""
        return time.time()

    def real(self, seconds: float) -> float:
        """Return how many real seconds *seconds* of this clock last."""
        return seconds / self.speed

    def nap(self, seconds: float) -> float:
        """Return for how many real seconds to sleep before the next check whether *seconds* have passed."""
        return self.real(seconds)

    def wait(self, event: ThreadEvent, seconds: float) -> None:
        """Wait until *event* is set, at most *seconds* of this clock. It may return early: check the event."""
        event.wait(self.nap(seconds))

    async def wait_in_task(self, event: AsyncWaitEvent, seconds: float) -> None:
        """Do what :meth:`wait` does, in a task."""
        await event.wait(self.nap(seconds))

    def pause(self, seconds: float) -> None:
        """Let *seconds* of this clock pass."""
        event, until = ThreadEvent(), self.now() + seconds
        while (left := until - self.now()) > 0:
            self.wait(event, left)

    async def sleep(self, seconds: float, runtime: AsyncRuntime) -> None:
        """Like :meth:`pause`, in a task."""
        event, until = runtime.event(), self.now() + seconds
        while (left := until - self.now()) > 0:
            await self.wait_in_task(event, left)


def shared_on(clock: Clock, name: str, make: Callable[[], T]) -> T:
    """Return what all managers on *clock* share under this name. It is an attribute of the clock, and ends with it."""
    known: dict[str, T] = vars(clock)
    return known.get(name) or known.setdefault(name, make())

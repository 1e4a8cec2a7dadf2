"""A fake clock, which a test advances."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from pay88_adapters.core.arguments import check_finite
from pay88_adapters.engine.clock import Clock
from pay88_adapters.engine.runtimes import AsyncRuntime, AsyncWaitEvent, ThreadEvent, WaitEvent

_CHECK_INTERVAL = 0.25  # real seconds; advance() notifies waiters, but a subclass may show the time of another clock


class ManualClock(Clock):
    """A fake clock, which only :meth:`advance` moves. Waiters wake up once it has been advanced far enough.

    Network timeouts are in real seconds.

    Args:
        start: Initial time in seconds.
        auto_advance: Sleeping on it, such as a backoff delay or the latency of an emulator, advances the clock and
            returns immediately. Waiting for a pending fetch does not advance it.
        skips_pauses: Deprecated name of *auto_advance*.
    """

    def __init__(self, start: float = 1_000.0, *, auto_advance: bool = False, skips_pauses: bool = False) -> None:
        check_finite("start", start)
        super().__init__()
        self.skips_pauses = auto_advance or skips_pauses
        self._now = start
        self._moving = threading.Lock()
        self._alarms: dict[object, tuple[float, WaitEvent]] = {}
        self.now: Callable[[], float] = lambda: self._now

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now:g} s>"

    @property
    def waiting(self) -> int:
        """Number of threads and tasks that wait for this clock or for another event."""
        return len(self._alarms)

    def advance(self, seconds: float) -> None:
        """Move the clock forward by *seconds*, and wake the waiters whose time has come. Thread-safe."""
        check_finite("seconds", seconds)
        if seconds < 0:
            raise ValueError("a ManualClock cannot be moved back: pass 0 or more seconds to advance()")
        with self._moving:
            self._now += seconds
        for event in {event for until, event in list(self._alarms.values()) if until <= self._now}:
            event.notify()

    @contextmanager
    def _alarm(self, until: float, event: WaitEvent) -> Generator[None, None, None]:
        """Notify *event* once the clock shows *until*, or has come that far by now."""
        entry = object()
        self._alarms[entry] = until, event  # no lock: tasks that die with their loop leave anywhere
        if until <= self.now():
            event.notify()
        try:
            yield
        finally:
            del self._alarms[entry]

    def wait(self, event: ThreadEvent, seconds: float) -> None:
        until = self.now() + seconds
        with self._alarm(until, event):
            event.wait(_CHECK_INTERVAL, unless=lambda: until <= self.now())

    async def wait_in_task(self, event: AsyncWaitEvent, seconds: float) -> None:
        with self._alarm(self.now() + seconds, event):
            await event.wait(_CHECK_INTERVAL)

    def pause(self, seconds: float) -> None:
        if self.skips_pauses:
            self.advance(max(seconds, 0.0))
        else:
            super().pause(seconds)

    async def sleep(self, seconds: float, runtime: AsyncRuntime) -> None:
        if self.skips_pauses:
            self.advance(max(seconds, 0.0))
            await runtime.sleep(0)
        else:
            await super().sleep(seconds, runtime)

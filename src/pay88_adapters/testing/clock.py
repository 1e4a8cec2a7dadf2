"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from pay88_adapters.clock import Clock

_LOOK_AGAIN = 0.002  # real seconds; nothing tells a waiter that the clock was moved


class ManualClock(Clock):
    """A clock that only :meth:`advance` moves; whoever waits on it goes on when its time has come.

    Timeouts on a network are real ones all the same.

    Args:
        start: What the clock shows at first, in seconds.
        skips_pauses: Let whoever pauses on it, before another attempt for instance, move it by as much and go on
            at once. So does an emulator that is slow. Waiting for a token that is being fetched moves nothing.
    """

    def __init__(self, start: float = 1_000.0, *, skips_pauses: bool = False) -> None:
        super().__init__()
        self.skips_pauses = skips_pauses
        self._now = start
        self._moving = threading.Lock()
        self.now: Callable[[], float] = lambda: self._now

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now:g} s>"

    def advance(self, seconds: float) -> None:
        """Move the clock forward by *seconds*. Any thread may do so."""
        if seconds < 0:
            raise ValueError("a clock of this kind never goes back")
        with self._moving:
            self._now += seconds

    def nap(self, seconds: float) -> float:
        return _LOOK_AGAIN

    def pause(self, seconds: float) -> None:
        if self.skips_pauses:
            self.advance(max(seconds, 0.0))
        else:
            super().pause(seconds)

    async def sleep(self, seconds: float, sleep: Callable[[float], Awaitable[object]]) -> None:
        if self.skips_pauses:
            self.advance(max(seconds, 0.0))
            await sleep(0)
        else:
            await super().sleep(seconds, sleep)

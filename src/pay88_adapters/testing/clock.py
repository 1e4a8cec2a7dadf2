"""A clock that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable

from pay88_adapters.clock import Clock

_LOOK_AGAIN = 0.002  # real seconds; nothing tells a waiter that the clock was moved


class ManualClock(Clock):
    """A clock that only :meth:`advance` moves; whoever waits on it goes on when its time has come.

    Timeouts on a network are real ones all the same.

    Args:
        start: What the clock shows at first, in seconds.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        super().__init__()
        self._now = start
        self.now: Callable[[], float] = lambda: self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by *seconds*. One thread at a time may do so."""
        if seconds < 0:
            raise ValueError("a clock of this kind never goes back")
        self._now += seconds

    def nap(self, seconds: float) -> float:
        return _LOOK_AGAIN

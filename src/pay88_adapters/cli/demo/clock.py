"""A fast clock that a busy machine does not run away from."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from pay88_adapters.engine.clock import Clock

_TICK = 0.01  # real seconds between ticks
_LONGEST = 0.03  # real seconds that one tick makes up for; whatever is beyond that was a stall


class BusyClock(Clock):
    """Ticks *rate* times as fast as real time, and stands still while the whole machine does.

    On a clock that is merely fast, a machine that stalls for a second ages a token by ten, and what
    the demonstration then shows is the machine. Timeouts on the network are real ones all the same.

    Args:
        rate: How many of its seconds pass in one real second.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._shows = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pay88-demo-clock", daemon=True)
        self.now = lambda: self._shows

    def nap(self, seconds: float) -> float:
        return max(seconds / self.rate, _TICK)

    def passed(self, seconds: float) -> None:
        """Go on by what *seconds* of real time are worth. Only the clock's own thread does so."""
        self._shows += min(seconds, _LONGEST) * self.rate

    def __enter__(self) -> BusyClock:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(_TICK):
            now = time.monotonic()
            self.passed(now - before)
            before = now

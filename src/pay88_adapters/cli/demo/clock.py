"""A fast clock that stops while the machine stalls."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from pay88_adapters.engine.clock import Clock

_TICK = 0.01  # real seconds between ticks
_LONGEST = 0.03  # real seconds that one tick adds at most; more is a stall


class BusyClock(Clock):
    """A clock that runs *rate* times as fast as real time, and stops while the whole machine stalls.

    On a clock without the stop, a stall of one second ages a token by ten seconds, and the demo shows the machine
    instead of the package. Network timeouts are in real seconds.

    Args:
        rate: Speed-up factor.
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
        """Advance by *seconds* of real time. Only the clock's own thread calls this."""
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

"""A moving-window storage for ``limits``, in this process's memory and on the core's clock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from limits.storage import MovingWindowSupport, Storage

from pay88_adapters.forks import survive_forks


class Window(NamedTuple):
    """One limit on one key."""

    key: str
    limit: int
    expiry: float
    """Seconds that an entry counts."""


class MemoryStorage(Storage, MovingWindowSupport):
    """Entries in memory, one list of instants a key.

    The library's own ``MemoryStorage`` reads the wall clock, which can be set, and starts timer
    threads. This one reads the clock it is given, starts nothing, and takes several limits in one step.

    Args:
        now: The clock, in seconds.
    """

    STORAGE_SCHEME = None  # made by the package alone, never from a URL

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[str, list[float]] = {}
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self._lock = threading.Lock()

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def acquire_all(self, windows: Sequence[Window]) -> float:
        """Add an entry to every window, or to none.

        Returns:
            0 if the entries were added, else the seconds until they could be.
        """
        with self._lock:
            now = self._now()
            wait = max(self._wait(window, now) for window in windows)
            if wait == 0:
                for window in windows:
                    self._entries[window.key] = [*self._live(window, now), now]
            return wait

    def count(self, window: Window) -> int:
        """Return how many entries count in *window* now."""
        with self._lock:
            return len(self._live(window, self._now()))

    def _wait(self, window: Window, now: float) -> float:
        live = self._live(window, now)
        if len(live) < window.limit:
            return 0.0
        if not window.limit:
            return window.expiry
        # The window is closed at both ends: an entry still counts at the instant it leaves.
        return max(live[-window.limit] + window.expiry - now, 0.0) + 1e-3

    def _live(self, window: Window, now: float) -> list[float]:
        entries = self._entries.get(window.key, [])
        return entries[bisect_left(entries, now - window.expiry) :]

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add *amount* entries if they fit: the interface of ``limits``."""
        with self._lock:
            now = self._now()
            live = self._live(Window(key, limit, expiry), now)
            if len(live) + amount > limit:
                return False
            self._entries[key] = live + [now] * amount
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return when the oldest entry was added, and how many there are."""
        with self._lock:
            now = self._now()
            live = self._live(Window(key, limit, expiry), now)
            return (live[0] if live else now, len(live))

    def clear(self, key: str) -> None:
        """Forget the entries of *key*."""
        with self._lock:
            self._entries.pop(key, None)

    def reset(self) -> int:
        """Forget all entries; return how many keys there were."""
        with self._lock:
            keys = len(self._entries)
            self._entries.clear()
            return keys

    def check(self) -> bool:
        """Say that memory works."""
        return True

    def get(self, key: str) -> int:
        """Return how many entries *key* holds."""
        with self._lock:
            return len(self._entries.get(key, ()))

    def incr(self, key: str, expiry: int, amount: int = 1) -> NoReturn:
        raise NotImplementedError("this storage keeps moving windows only")

    def get_expiry(self, key: str) -> NoReturn:
        raise NotImplementedError("this storage keeps moving windows only")

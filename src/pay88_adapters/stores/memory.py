"""The store of one process, on the core's clock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import ClassVar

from pay88_adapters.forks import survive_forks

from .base import Acquired, Ages, BudgetStorage, Lead, Look, Window, wait_for
from .place import Place

_KEPT = 3_600.0  # seconds for which entries are kept at least: those of a limit of tomorrow's may be among them
_PRUNED_EVERY = 600.0  # seconds
_NEVER = float("-inf")


class MemoryStorage(BudgetStorage):
    """Entries in memory, one list of instants a key.

    The library's own ``MemoryStorage`` reads the wall clock, which can be set, and starts timer
    threads. This one reads the clock it is given, starts nothing, and takes several limits in one step.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[str, list[float]] = {}
        self._until: dict[str, float] = {}  # by key: when nothing of it is wanted any longer
        self._prune_at = _NEVER
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self._lock = threading.Lock()

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> Acquired:
        with self._lock:
            now = self._now()
            wait = max(wait_for(window, self._ages(window, now), amount) for window in windows)
            if wait == 0:
                for window in windows:
                    self._put(window, [*self._live(window, now), *([now] * amount)], now)
            return Acquired(wait, [self._ages(window, now) for window in windows])

    def add(self, window: Window, ages: Ages) -> None:
        with self._lock:
            now = self._now()
            self._put(window, sorted([*self._live(window, now), *(now - age for age in ages)]), now)

    def replace(self, window: Window, ages: Ages) -> None:
        """Forget what counted in *window*; these entries count from now on."""
        with self._lock:
            now = self._now()
            self._put(window, [now - age for age in ages], now)

    def holds_entries(self) -> bool:
        """Whether there is an entry that may still count."""
        with self._lock:
            now = self._now()
            return any(now < until for until in self._until.values())

    def _put(self, window: Window, entries: list[float], now: float) -> None:
        if entries:
            until = entries[-1] + max(window.expiry, _KEPT)
            self._entries[window.key] = entries
            self._until[window.key] = max(self._until.get(window.key, until), until)
        else:
            self._entries.pop(window.key, None)
            self._until.pop(window.key, None)
        if now >= self._prune_at:
            self._prune_at = now + _PRUNED_EVERY
            for key in [key for key, until in self._until.items() if until <= now]:
                del self._entries[key], self._until[key]

    def ages(self, window: Window) -> Ages:
        with self._lock:
            return self._ages(window, self._now())

    def _ages(self, window: Window, now: float) -> Ages:
        return [now - at for at in self._live(window, now)]

    def _live(self, window: Window, now: float) -> list[float]:
        entries = self._entries.get(window.key, [])
        return entries[bisect_left(entries, now - window.expiry) :]

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        with self._lock:
            now = self._now()
            live = self._live(Window(key, limit, expiry), now)
            return (live[0] if live else now, len(live))

    def clear(self, key: str) -> None:
        """Forget the entries of *key*."""
        with self._lock:
            self._entries.pop(key, None)
            self._until.pop(key, None)

    def reset(self) -> int:
        """Forget all entries; return how many keys there were."""
        with self._lock:
            keys = len(self._entries)
            self._entries.clear()
            self._until.clear()
            return keys

    def check(self) -> bool:
        """Say that memory works."""
        return True

    def get(self, key: str) -> int:
        """Return how many entries *key* holds."""
        with self._lock:
            return len(self._entries.get(key, ()))


class MemoryStore:
    """The default: what the managers of one process share."""

    blocking: ClassVar[bool] = False

    def __init__(self, now: Callable[[], float]) -> None:
        self.budget = MemoryStorage(now)
        self._now = now
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        self._prune_at = _NEVER
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on without the parent's threads: replace the lock, and let go of the leases they held."""
        self._lock = threading.Lock()
        for place in self._places.values():
            place.leased_until = 0.0

    def lead(self, key: str, *, owner: str, known: int, lease: float) -> Lead:
        with self._lock:
            return self._place(key).lead(self._now(), owner=owner, known=known, lease=lease)

    def publish(self, key: str, *, fence: int, content: str, keep: float, after: float = 0.0) -> bool:
        with self._lock:
            return self._place(key).publish(self._now(), fence=fence, content=content, keep=keep, after=after)

    def look(self, key: str) -> Look:
        with self._lock:
            return self._places.get(key, Place()).look(self._now())

    def _place(self, key: str) -> Place:
        now = self._now()
        if now >= self._prune_at:
            self._prune_at = now + _PRUNED_EVERY
            # A new place counts its fences from the clock, so that none is ever given out again.
            gone = [each for each, place in self._places.items() if now >= max(place.keep_until, place.leased_until)]
            for each in gone:
                del self._places[each]
        return self._places.setdefault(key, Place())

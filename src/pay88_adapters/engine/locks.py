"""Locks that managers share."""

from __future__ import annotations

import itertools
import threading

from .forks import survive_forks

_COUNT = 64  # more than there are threads that change states at the same time


class SharedLocks:
    """Reentrant locks that are held for microseconds, each by several owners: one of its own would be too large.

    A thread that holds one takes no other, unless something interrupts it: two threads could wait for each other.
    """

    def __init__(self) -> None:
        self._turns = itertools.count()
        self.after_fork()
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the locks: another thread may have held them. The owners take the new ones."""
        self._locks = tuple(threading.RLock() for _ in range(_COUNT))

    def next(self) -> threading.RLock:
        """Return the lock for another owner: all of them in turn."""
        return self._locks[next(self._turns) % _COUNT]

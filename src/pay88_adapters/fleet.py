"""The store that managers share, and what this process does without it (rules 4 and 24)."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from .clock import Clock
from .forks import survive_forks
from .stores.base import Acquired, Lead, Store, StoreError, Window
from .stores.memory import MemoryStorage

_log = logging.getLogger("pay88_adapters.store")

T = TypeVar("T")

_REST = 5.0  # seconds for which a store that failed is left alone
NO_LEASE = 0
"""The fence of whoever leads without a lease, because the store fails."""


class Fleet:
    """A store, from the point of view of one process. No operation raises :class:`StoreError`.

    Args:
        store: What is shared.
        clock: The managers'.
        share: Of the budget, for this process alone while the store fails.
    """

    def __init__(self, store: Store, clock: Clock, share: float) -> None:
        self.blocking = store.blocking
        self.alone = False
        self.budget = _Budget(self, store, clock, share)
        self._store = store
        self._clock = clock
        self._rests_until = float("-inf")
        self._turning = threading.Lock()
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self._turning = threading.Lock()

    def lead(self, key: str, *, owner: str, known: int, lease: float) -> Lead:
        """Do what :meth:`Store.lead` does; lead without a lease while the store fails."""

        def operation() -> Lead:
            self.budget.tell()  # here, because who never leads never asks for the shared budget
            return self._store.lead(key, owner=owner, known=known, lease=lease)

        return self.attempt(operation) or Lead(fence=NO_LEASE)

    def publish(self, key: str, *, fence: int, content: str, keep: float, after: float) -> bool:
        """Do what :meth:`Store.publish` does; nothing without a lease, or while the store fails."""
        if fence == NO_LEASE:
            return False

        def operation() -> bool:
            return self._store.publish(key, fence=fence, content=content, keep=keep, after=after)

        return bool(self.attempt(operation))

    def attempt(self, operation: Callable[[], T]) -> T | None:
        """Use the store; return ``None`` if it fails, and for a while after it did."""
        if self._clock.now() < self._rests_until:
            return None
        try:
            result = operation()
        except StoreError as exc:
            self._rests_until = self._clock.now() + _REST
            if self._turns(alone=True):
                _log.warning("the store fails (%s): this process goes on alone with a share of the budget", exc)
            return None
        if self.alone and self._turns(alone=False):
            _log.warning("the store is back: this process shares its token and budget again")
        return result

    def _turns(self, *, alone: bool) -> bool:
        with self._turning:  # managers of one process warn once together
            before, self.alone = self.alone, alone
            return before != alone


class _Budget(MemoryStorage):
    """What this process knows of the shared budget, and goes on with while the store fails.

    What it takes alone counts as much as *1 / share* entries: as if every other process took the same.
    """

    def __init__(self, fleet: Fleet, store: Store, clock: Clock, share: float) -> None:
        super().__init__(clock.now)
        self._fleet = fleet
        self._shared = store.budget
        self._weight = math.ceil(1 / share)
        self._untold: dict[Window, list[float]] = {}  # what the store has not seen, and when it was taken
        self._telling = threading.Lock()

    def after_fork(self) -> None:
        super().after_fork()
        self._telling = threading.Lock()
        self._untold.clear()  # the parent tells

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> Acquired:
        shared = self._fleet.attempt(lambda: self._acquire_shared(windows, amount))
        if shared is not None:
            for window, ages in zip(windows, shared.ages, strict=True):
                self.replace(window, ages)
            return shared
        alone = super().acquire_all(windows, amount * self._weight)
        if alone.wait == 0:
            with self._telling:
                now = self._now()
                for window in windows:
                    live = [at for at in self._untold.get(window, ()) if at >= now - window.expiry]
                    self._untold[window] = [*live, *([now] * amount)]
        return alone

    def tell(self) -> None:
        """Add to the store what was taken without it.

        Raises:
            StoreError: The store cannot be used. It will be told again what it may not have heard.
        """
        with self._telling:
            while self._untold:
                window, instants = next(iter(self._untold.items()))
                now = self._now()
                self._shared.add(window, [now - at for at in instants])
                del self._untold[window]

    def _acquire_shared(self, windows: Sequence[Window], amount: int) -> Acquired:
        self.tell()
        return self._shared.acquire_all(windows, amount)

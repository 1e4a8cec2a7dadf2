"""The store that managers share, and what this process does without it (rules 4 and 24)."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from .budget import TokenBudget
from .clock import Clock
from .forks import survive_forks
from .policy import TokenPolicy
from .stores.base import Acquired, Ages, Lead, Store, StoreError, Window, wait_for
from .stores.memory import MemoryStorage
from .threads import may_block

_log = logging.getLogger("pay88_adapters.store")

T = TypeVar("T")

PATIENCE = 4.0
"""Real seconds for which an operation of a store may take; longer, and the store fails."""

_REST = 5.0  # seconds for which a store that failed is left alone
_QUIET = 60.0  # seconds between two warnings about a store that comes and goes
_TOLD_AT_ONCE = 20  # windows that one operation tells the store of
_NEVER = float("-inf")
NO_LEASE = 0
"""The fence of whoever leads without a lease, because the store fails or cannot be waited for."""


class Fleet:
    """A store, from the point of view of one process. A store that fails raises nothing here.

    Args:
        store: What is shared.
        clock: The managers'.
        share: Of the budget, for this process alone while the store fails.
    """

    def __init__(self, store: Store, clock: Clock, share: float) -> None:
        self.blocking = store.blocking
        self.alone = False
        self.budget = _Budget(self, store, clock, share)
        self._budgets: WeakValueDictionary[tuple[TokenPolicy, str], TokenBudget] = WeakValueDictionary()
        self._store = store
        self._clock = clock
        self._failed_at = self._warned_at = _NEVER
        self._warned = False
        self._turning = threading.Lock()
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on without the parent's threads."""
        self._turning = threading.Lock()

    @property
    def store(self) -> Store:
        """The store that is shared."""
        return self._store

    def token_budget(self, policy: TokenPolicy, base_url: str) -> TokenBudget:
        """Return the budgets of the merchants at one base URL, for all managers with *policy*."""
        budget = self._budgets.get((policy, base_url))
        if budget is None:
            budget = self._budgets[policy, base_url] = TokenBudget(policy, self.budget, base_url)
        return budget

    def is_unused(self) -> bool:
        """Whether no manager uses this, and nothing that it knows of the budget counts any longer."""
        return not self._budgets and not self.budget.holds_entries()

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
        began_at = self._clock.now()
        if began_at < self._failed_at + _REST:
            return None
        try:
            result = bounded(operation) if self.blocking else operation()
        except Exception as exc:  # noqa: BLE001 - whatever a broken store makes of it, payments go on
            self._fails(str(exc) if isinstance(exc, StoreError) else type(exc).__name__)
            return None
        if self.alone:
            self._works(began_at)
        return result

    def _fails(self, problem: str) -> None:
        with self._turning:  # the managers of one process warn once together
            self._failed_at = now = self._clock.now()
            news = not self.alone and now >= self._warned_at + _QUIET
            self.alone = True
            if news:
                self._warned_at, self._warned = now, True
        if news:
            _log.warning("the store fails (%s): this process goes on alone with a share of the budget", problem)

    def _works(self, began_at: float) -> None:
        with self._turning:
            if began_at < self._failed_at or not self.alone:  # it began before the store failed
                return
            self.alone, warned, self._warned = False, self._warned, False
        if warned:
            _log.warning("the store is back: this process shares its token and budget again")


class _Operation(threading.Thread, Generic[T]):
    """An operation in a thread of its own, so that nobody has to wait for its end."""

    def __init__(self, operation: Callable[[], T]) -> None:
        super().__init__(name="pay88-store-operation", daemon=True)
        self._operation = operation
        self.result: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result.append(self._operation())
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self.error = exc


def bounded(operation: Callable[[], T]) -> T:
    """Return what *operation* does, in time: looking up a host's name, for one, knows no timeout.

    Raises:
        StoreError: It took longer than ``PATIENCE``, or no thread can be started.
    """
    thread = _Operation(operation)
    try:
        thread.start()
    except RuntimeError:  # there are too many, or the process ends
        if may_block():  # blocking this one blocks nobody else
            return operation()
        raise StoreError("cannot start a thread for the store operation") from None
    thread.join(PATIENCE)
    if thread.error is not None:
        raise thread.error
    if not thread.result:
        raise StoreError(f"no answer within {PATIENCE:g} s")
    return thread.result[0]


class _Budget(MemoryStorage):
    """What this process knows of the shared budget, and goes on with while the store fails.

    What it takes alone counts as much as *1 / share* entries: as if every other process took the same.
    """

    def __init__(self, fleet: Fleet, store: Store, clock: Clock, share: float) -> None:
        self._fleet = fleet
        self._shared = store.budget
        self._weight = math.ceil(1 / share)
        self._own: dict[Window, list[float]] = {}  # when what the store has not seen was taken
        self._told: dict[Window, list[float]] = {}  # and of what it has been told
        self._owning = threading.Lock()
        self._telling = threading.Lock()
        super().__init__(clock.now)

    def after_fork(self) -> None:
        super().after_fork()
        self._owning = threading.Lock()
        self._telling = threading.Lock()
        self._own.clear()  # the parent tells
        self._told.clear()

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> Acquired:
        def operation() -> Acquired:
            self.tell()
            return self._shared.acquire_all(windows, amount)

        shared = self._fleet.attempt(operation)
        if shared is None:
            return self._acquire_alone(windows, amount)
        for window, ages in zip(windows, shared.ages, strict=True):
            self.replace(window, ages)
        return shared

    def _acquire_alone(self, windows: Sequence[Window], amount: int) -> Acquired:
        with self._owning:
            waits = [wait_for(window, self._ages_alone(window), amount * self._weight_in(window)) for window in windows]
            if not any(waits):
                for window in windows:
                    self._own[window] = [*self._own_in(window), *([self._now()] * amount)]
            # The store may be back before there is room.
            return Acquired(min(max(waits), _REST), [self.ages(window) for window in windows])

    def ages(self, window: Window) -> Ages:
        own = [self._now() - at for at in self._own_in(window) for _ in range(self._weight_in(window))]
        return sorted([*super().ages(window), *own], reverse=True)

    def _ages_alone(self, window: Window) -> Ages:
        # Told, it counts once over there; but what the others took in the same time may still be untold.
        others = [self._now() - at for at in self._told_in(window) for _ in range(self._weight_in(window) - 1)]
        return sorted([*self.ages(window), *others], reverse=True)

    def _weight_in(self, window: Window) -> int:
        return min(self._weight, window.limit) or 1  # one fits into any window that is empty

    def holds_entries(self) -> bool:
        return bool(self._own) or super().holds_entries()

    def _own_in(self, window: Window) -> list[float]:
        return [at for at in self._own.get(window, ()) if at >= self._now() - window.expiry]

    def _told_in(self, window: Window) -> list[float]:
        return [at for at in self._told.get(window, ()) if at >= self._now() - window.expiry]

    def tell(self) -> None:
        """Add to the store what was taken without it.

        Raises:
            StoreError: The store cannot be used. It will be told again what it may not have heard.
        """
        if not self._own:
            return
        telling = self._telling  # one at a time, or the store would hear it twice
        if not telling.acquire(timeout=PATIENCE / 2):
            raise StoreError("it takes long to hear what was taken without it")
        try:
            self._tell()
        finally:
            telling.release()

    def _tell(self) -> None:
        for window in list(self._own)[:_TOLD_AT_ONCE]:
            instants = self._own_in(window)
            ages = [self._now() - at for at in instants]
            if ages:
                self._shared.add(window, ages)
            with self._owning:
                self.add(window, ages)
                self._told[window] = [*self._told_in(window), *instants]
                left = [at for at in self._own_in(window) if at not in instants]
                self._own.pop(window, None)
                if left:
                    self._own[window] = left

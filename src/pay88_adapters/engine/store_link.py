"""Access to a store that may fail or hang (rule 24)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from pay88_adapters.core.constants import NEVER
from pay88_adapters.stores.base import Store, StoreError
from pay88_adapters.stores.members import HORIZON
from pay88_adapters.stores.realtime import monotonic

from .clock import Clock
from .forks import survive_forks
from .threads import BackgroundThread, NoThread, may_block

_log = logging.getLogger("pay88_adapters.store")

T = TypeVar("T")

OPERATION_TIMEOUT = 4.0
"""Timeout of a store operation in real seconds. After that, the store counts as unavailable."""

RETRY_INTERVAL = 5.0
"""Seconds after a store failure before the next attempt."""

_SLOW = 0.5  # real seconds after which other operations wait for this one before they start
_WARNING_INTERVAL = 60.0  # seconds between two warnings about an unstable store


class _Outage:
    """Warns once when the first link to a store fails, and once when all of them work again."""

    def __init__(self) -> None:
        self._failing: frozenset[Link] = frozenset()
        self._warned_at = NEVER
        self._warned = False
        self.lock = threading.RLock()

    def begin(self, link: Link, now: float) -> bool:
        """Record that *link* fails; return whether to warn."""
        warn = not self._failing and now >= self._warned_at + _WARNING_INTERVAL
        self._failing |= {link}
        if warn:
            self._warned_at, self._warned = now, True
        return warn

    def end(self, link: Link) -> bool:
        """Record that *link* works again; return whether to say so."""
        self._failing -= {link}
        if self._failing:
            return False
        warned, self._warned = self._warned, False
        return warned


class Link:
    """Access to one store, which may fail.

    Args:
        store: The store.
        clock: The clock of the managers.
        other_part: The link to the other part of the store, if this one is for a part that may fail alone.
        limits: The limits in the store, of which a process has a share in degraded mode; for the log.
    """

    def __init__(
        self, store: Store, clock: Clock, *, other_part: Link | None = None, limits: str = "the token budget"
    ) -> None:
        self.store = store
        self._limits = limits
        self._outage: _Outage = _Outage() if other_part is None else other_part._outage
        self.failing = False
        self.failing_since = self.restored_at = NEVER
        self._outages: list[tuple[float, float]] = []  # the outages of the last hour
        self._clock = clock
        self._failed_at = NEVER
        self._running: set[_Operation[Any]] = set()
        survive_forks(self)

    def after_fork(self) -> None:
        """Continue without the parent's threads."""
        self._outage.lock = threading.RLock()
        self._running = set()

    @property
    def is_steady(self) -> bool:
        """Whether the store has not failed for an hour."""
        return not self.failing and self._clock.now() >= self.restored_at + HORIZON

    def outages_after(self, at: float) -> list[tuple[float, float]]:
        """Return the intervals without the store for a process that last reached it *at* that instant."""
        return [(max(since, at), until) for since, until in self._outages if until > at]

    @property
    def runs_here(self) -> bool:
        """Whether an operation runs in this thread."""
        return threading.current_thread() in self._running

    def attempt(self, operation: Callable[[Store], T]) -> T | None:
        """Use the store; return ``None`` if it fails, and for ``RETRY_INTERVAL`` seconds after a failure."""
        began_at = self._clock.now()
        if began_at < self._failed_at + RETRY_INTERVAL:
            return None
        try:
            result = self._run(operation)
        except Exception as exc:  # noqa: BLE001 - whatever a broken store makes of it, payments go on
            self._enter_degraded(_reason(exc))
            return None
        if self.failing:
            self._leave_degraded(began_at)
        return result

    def attempt_quietly(self, operation: Callable[[Store], object]) -> None:
        """Use the store unless it is failing or slow. Nothing depends on the operation: so an error has no effect."""
        if self.failing or any(each.is_slow for each in list(self._running)):
            return
        try:
            self._run(operation)
        except Exception as exc:  # noqa: BLE001 - as above
            _log.debug("store operation failed (%s)", _reason(exc))

    def _run(self, operation: Callable[[Store], T]) -> T:
        return self._run_with_timeout(operation) if self.store.blocking else operation(self.store)

    def _run_with_timeout(self, operation: Callable[[Store], T]) -> T:
        # A hanging operation blocks its thread, and the next one would, too.
        for slow in [each for each in list(self._running) if each.is_slow]:
            if slow.is_late or not slow.wait():
                raise StoreError("an earlier operation has not returned")
        return _Operation(partial(operation, self.store), self._running).result_in_time()

    def _enter_degraded(self, problem: str) -> None:
        with self._outage.lock:  # one warning for all managers of a process
            self._failed_at = now = self._clock.now()
            warn = not self.failing and self._outage.begin(self, now)
            if not self.failing:
                self.failing_since = now
            self.failing = True
        if warn:
            _log.warning(
                "store unavailable (%s): degraded mode, with a share of %s for this process", problem, self._limits
            )

    def _leave_degraded(self, began_at: float) -> None:
        with self._outage.lock:
            if began_at < self._failed_at or not self.failing:  # it began before the store failed
                return
            self.failing, warned = False, self._outage.end(self)
            self.restored_at = now = self._clock.now()
            recent = [each for each in self._outages if now - each[1] < HORIZON]
            self._outages = [*recent, (self.failing_since, now)]
        if warned:
            _log.warning("store available again: leaving degraded mode")


class _Operation(BackgroundThread, Generic[T]):
    """An operation in its own thread, so that a caller can stop waiting for it.

    Args:
        operation: The operation.
        unfinished: Contains this while the thread runs.
    """

    def __init__(self, operation: Callable[[], T], unfinished: set[_Operation[Any]]) -> None:
        super().__init__("pay88-store-operation")
        self._operation = operation
        self._done = threading.Event()  # created here: code that patches the standard library has done so by now
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._began_at = monotonic()
        self._unfinished = unfinished

    @property
    def is_slow(self) -> bool:
        """Whether it may be hanging."""
        return monotonic() > self._began_at + _SLOW

    @property
    def is_late(self) -> bool:
        """Whether no caller waits for it any longer."""
        return monotonic() >= self._began_at + OPERATION_TIMEOUT

    def run(self) -> None:
        self._unfinished.add(self)  # here, where no signal handler runs: one that is never started stays away
        try:
            self._result.append(self._operation())
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        finally:
            self._unfinished.discard(self)
            self._done.set()

    def wait(self) -> bool:
        """Wait for its end as long as any caller does; return whether it has ended."""
        return self._done.wait(max(self._began_at + OPERATION_TIMEOUT - monotonic(), 0.0))

    def result_in_time(self) -> T:
        """Return the result of the operation, or raise its error."""
        try:
            self.start()
        except NoThread:
            if may_block():  # blocking this thread blocks no other work
                return self._operation()
            raise StoreError("cannot start a thread for the store operation") from None
        self.wait()
        if self._error is not None:
            raise self._error
        if not self._result:
            raise StoreError(f"no response within {OPERATION_TIMEOUT:g} s")
        return self._result[0]


def run_with_timeout(operation: Callable[[], T]) -> T:
    """Return the result of *operation*, with a timeout: for example, the look-up of a host name has none.

    Raises:
        StoreError: It took longer than ``OPERATION_TIMEOUT``, or no thread can be started.
    """
    return _Operation(operation, set()).result_in_time()


def _reason(exc: Exception) -> str:
    # The message of any other exception may contain a secret.
    return str(exc) if isinstance(exc, StoreError) else type(exc).__name__

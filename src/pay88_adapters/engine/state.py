"""The state of one manager: its machine under a lock, and what requests read without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from pay88_adapters.core.constants import NEVER, UNAUTHORIZED
from pay88_adapters.core.errors import ConfigurationError, Failure
from pay88_adapters.core.events import Event, Listener, RefreshFailed, StoreDegraded, StoreRestored
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.pending import GRACE
from pay88_adapters.core.snapshot import Snapshot, record_key
from pay88_adapters.core.token import Token
from pay88_adapters.stores.memory import is_held_here

from .credentials import Credentials
from .event_log import log_bypass
from .listeners import LOG_ALONE, Listeners
from .runtimes import WaitEvent
from .settings import Settings
from .sharing import export_budget
from .stats import NO_REQUESTS, FetchCounters, RequestCounters
from .store_link import OPERATION_TIMEOUT

E = TypeVar("E", bound=WaitEvent)
T = TypeVar("T")
THREADS = "threads"
"""The key that all threads wait with: see :meth:`ManagerState.join`."""
_NOTHING: tuple[Token | None, float] = (None, NEVER)
_SAMPLE_FOR = 2.0  # seconds
_SAMPLE_AHEAD = 1.25  # times what a fetch can take: see Lifetimes
_REACTION = 0.5  # real seconds for a fetch to take its first step, and to react to being interrupted


class ManagerState:
    """The machine of one manager under its lock.

    The lock is held to decide and to queue, never across I/O. It is reentrant: a signal handler or a finalizer may
    interrupt its holder and use the manager. What that finds half done it neither waits for nor adds a fetch to.

    A process may have one for each of many merchants: what they can share, they share, and the rest is small.

    Args:
        settings: What the manager is made of.
        listeners: Called with each event.
    """

    __slots__ = (
        "_depth",
        "_dropped",
        "_knows_degraded",
        "_lock",
        "_machine",
        "_queued",
        "_record_key",
        "_waiting",
        "_woken",
        "closed",
        "counters",
        "current",
        "fast_path",
        "listeners",
        "merchant_id",
        "now",
        "request_counters",
        "settings",
        "settled_below",
    )

    def __init__(self, settings: Settings, listeners: Sequence[Listener] = ()) -> None:
        clock, store_client = settings.clock, settings.store_client
        self.settings = settings
        self.now = clock.now
        self.counters = FetchCounters()
        self.request_counters = NO_REQUESTS
        self.closed = False
        self.merchant_id = self._record_key = ""  # of the last credentials seen
        self.listeners = Listeners(listeners) if listeners else LOG_ALONE
        # An unresponsive store takes that long to fail, on a real clock.
        grace = GRACE + (OPERATION_TIMEOUT + 1.0) * clock.speed if store_client.blocking else GRACE
        reaction = _REACTION * clock.speed if clock.speed > 1 else _REACTION
        self._machine = TokenMachine(settings.policy, rotating=settings.rotating, grace=grace, reaction=reaction)
        self._lock = threading.RLock()
        self._depth = 0
        # Tuples, which are replaced without a call in between, at which a signal handler could add to them.
        self._queued: tuple[Event, ...] = ()  # for the log and the listeners
        self._dropped: tuple[Token, ...] = ()  # by what interrupts a transition
        self._waiting: dict[object, WaitEvent] | None = None  # most managers have no waiters at most times
        self._woken = 0  # ended fetches whose waiters have been woken
        self._knows_degraded = False  # whether the last event about the store was that it is degraded
        # What calls read without the lock, each in one piece: the token that may be used until an instant; the same for
        # API requests that need nothing else; and the status code from which on a response needs a decision.
        self.current = self.fast_path = _NOTHING
        self.settled_below = UNAUTHORIZED

    def after_fork(self) -> None:
        """Continue without the parent's threads, which may have held the lock or run a fetch.

        :class:`Fetches` calls it.
        """
        self._lock = threading.RLock()
        self._depth = 0
        self.settings.lifetimes.after_fork()
        self._waiting = None  # they belong to the parent
        self._queued = ()
        self._machine.pending.clear()
        self.current = self.fast_path = _NOTHING

    def cached(self) -> Token | None:
        """Return the token of the fast path, if valid. Takes no lock."""
        token, until = self.current
        return token if self.now() < until else None

    @property
    def awaiting_first_success(self) -> bool:
        """Whether the machine needs to know that its token was accepted."""
        return self.settled_below < UNAUTHORIZED

    def own_request_counters(self) -> RequestCounters:
        """Return counters to count with."""
        if self.request_counters is NO_REQUESTS:
            made = RequestCounters()
            with self._lock:  # no call in this block, as in the other ones outside of transitions
                if self.request_counters is NO_REQUESTS:
                    self.request_counters = made
        return self.request_counters

    @property
    def failed_fetches(self) -> int:
        """How many fetches have failed so far."""
        return self._machine.failed_fetches

    @property
    def pending(self) -> frozenset[int]:
        """The tickets of the fetches that the machine waits for."""
        return self._machine.pending_fetches

    @property
    def lock(self) -> threading.RLock:
        """The lock, for what changes along with the state, and does not block."""
        return self._lock

    @property
    def is_held_here(self) -> bool:
        """Whether this thread holds the lock: this code interrupts its holder."""
        return is_held_here(self._lock)

    @property
    def interrupts_itself(self) -> bool:
        """Whether this code interrupts a transition of its own thread. The lock must be held."""
        return self._depth > 1

    def transition(self, act: Callable[[TokenMachine, float], T], events: list[Event] | None = None) -> T:
        """Let *act* have the machine and the time, with the lock held; afterwards publish what calls may use.

        All that wait for a fetch that has ended are woken. After the lock has been released the listeners are called;
        or what happened is added to *events*, for a caller that has more to do before that.

        An exception may strike after any call, out of a signal handler: so the lock is released by C code alone, and
        what was left undone is done by the next transition.
        """
        queued: tuple[Event, ...] = ()
        try:
            with self._lock:
                depth = self._depth
                self._depth = depth + 1
                try:
                    return act(self._machine, self.now())
                finally:
                    try:
                        self._publish()
                    finally:
                        if not depth:
                            # In place: what interrupts a call would find the depth wrong, or keep it from being set.
                            queued, self._queued = self._queued, ()
                        self._depth = depth
        finally:
            if events is not None:
                events += queued
            elif queued:
                self.listeners.dispatch(queued)

    @property
    def has_overdue(self) -> bool:
        """Whether fetches have become overdue and have to be interrupted. Takes no lock."""
        return bool(self._machine.pending.overdue)

    def take_overdue(self) -> tuple[int, ...]:
        """Return the tickets of these fetches: each one once."""
        with self._lock:
            pending = self._machine.pending
            overdue, pending.overdue = pending.overdue, ()
        return overdue

    def _publish(self) -> None:
        machine = self._machine
        while self._dropped and not self.interrupts_itself:
            machine.discard_token(self._dropped[0])
            self._dropped = self._dropped[1:]
        self.settled_below = 0 if machine.awaiting_first_success else UNAUTHORIZED
        current = _NOTHING
        if not self.closed:
            now = self.now()
            token, until = machine.fast_path_token(now)
            current = token, self._fast_path_until(now, until)
        self.current = current
        self.fast_path = current if self.settings.request_limits is None else _NOTHING
        if machine.pending.ended != self._woken:
            self._wake()
            self._woken = machine.pending.ended  # not before: an interrupted call is repeated
        degraded = self.settings.store_client.degraded
        if degraded != self._knows_degraded:
            self._knows_degraded = degraded
            self.queue_event(StoreDegraded if degraded else StoreRestored)

    def _fast_path_until(self, now: float, until: float) -> float:
        """Return the next end of the fast path, which ends for good at *until*.

        Well before that, requests take the slow path for some seconds: it records which clients and event loops exist.
        """
        sample_at = until - _SAMPLE_AHEAD * self.settings.policy.trusted_after
        if now < sample_at:
            return sample_at
        if now < sample_at + _SAMPLE_FOR:
            return now
        return until

    def join(self, key: object, make: Callable[[], E]) -> E:
        """Return the event that the requests with this *key* wait at for the end of a fetch. The lock must be held.

        Args:
            key: One for all threads, and one for each event loop.
            make: Makes the event for the first of them.
        """
        waiting = self._waiting = self._waiting or {}
        event = waiting.get(key)
        if event is None:
            event = waiting[key] = make()
        return event  # type: ignore[return-value]  # one key, one kind of event

    def wake_threads(self) -> None:
        """Let the threads that wait for a fetch decide again, although none has ended."""
        with self._lock:
            waiting = self._waiting or {}
            event = waiting.get(THREADS)
            if event is not None:
                event.set()
                del waiting[THREADS]  # not before: an exception may strike at any call

    def _wake(self) -> None:
        if self._waiting is None:
            return
        for event in self._waiting.values():
            event.set()
        # Not before: an exception may strike at any call. One that joins meanwhile wakes early, and joins again.
        self._waiting = None

    def queue_event(self, kind: Callable[..., Event], *details: object) -> None:
        """Queue an event for the log and the listeners. The lock must be held."""
        if self.listeners.wants(kind):
            event = kind(self.settings.endpoint.base_url, self.merchant_id, *details)
            self._queued = (*self._queued, event)

    def record_key(self, credentials: Credentials) -> str:
        """Return the key of the record that managers with these credentials share: one object while it is the same."""
        key, known = record_key(self.settings.endpoint.base_url, credentials), self._record_key
        if key == known:
            return known
        self._record_key = key
        return key

    def snapshot(self, credentials: Credentials) -> tuple[Snapshot, float]:
        """Return what managers with the same credentials should know, and the time. Calls no listener."""
        entries = export_budget(self.settings, credentials)
        with self._lock:
            now = self.now()
            return self._machine.snapshot(self.record_key(credentials), entries), now

    def listen(self, listener: Listener) -> None:
        """Call *listener*, too, with each event from now on."""
        with self._lock:
            self.listeners = self.listeners.and_one(listener)

    def check_open(self) -> None:
        """Raise :class:`ConfigurationError` if the manager was closed."""
        if self.closed:
            raise ConfigurationError("this TokenManager is closed: create a new one")

    def record_failure(self, failure: Failure, now: float) -> None:
        """Note that a fetch ended without a token. The lock must be held."""
        self.counters.failed_fetches += 1
        self.counters.consecutive_failures += 1
        error = failure.error(self._machine.blocked_for(now))
        self.queue_event(RefreshFailed, error, self.counters.consecutive_failures)

    def record_token(self, kind: Callable[..., Event], *details: object, more: Sequence[object] = ()) -> None:
        """Note that there is a new token. The lock must be held."""
        self.queue_event(kind, *details, self.counters.consecutive_failures, *more)
        self.counters.consecutive_failures = 0

    def expires_in(self) -> float | None:
        """Return for how many seconds the token stays valid, if there is one. Takes no lock."""
        return self._machine.expires_in(self.now())

    def drop(self, token: Token) -> None:
        """Forget *token* if it is the current one; as soon as nothing that this code interrupts may be using it."""

        def drop(machine: TokenMachine, now: float) -> None:
            self._dropped = (*self._dropped, token)

        self.transition(drop)

    def record_bypass(self) -> None:
        """Count and log a request with a ``Bearer`` of its own (rule 14)."""
        counters = self.own_request_counters()
        with self._lock:
            counters.bypassed += 1
            first = counters.bypassed == 1
        log_bypass(self.settings.endpoint.base_url, self.merchant_id, first=first)

    def close(self) -> None:
        """Close the manager and notify the waiters."""
        self.closed = True
        with self._lock:
            self.current = self.fast_path = _NOTHING
            self._wake()

"""What the callers of one manager share: the machine under its lock, and the gates they wait at."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.errors import ConfigurationError, Failure
from pay88_adapters.core.events import Event, Listener, RefreshFailed, StoreDegraded, StoreRestored
from pay88_adapters.core.machine import GRACE, TokenMachine
from pay88_adapters.core.policy import TokenPolicy
from pay88_adapters.core.retry import DEFAULT, RetryPolicy
from pay88_adapters.core.snapshot import Snapshot, record_key
from pay88_adapters.core.token import Token
from pay88_adapters.stores.base import Entry

from .carriers import Carriers
from .clock import Clock
from .credentials import Credentials
from .event_log import Guarded, log, log_bypass, logs
from .fetches import Fetches
from .forks import survive_forks
from .request_limits import Guards
from .runtimes import Gate
from .store_client import PATIENCE, Fleet

T = TypeVar("T")
_NEVER = float("-inf")
_NOTHING: tuple[Token | None, float] = (None, _NEVER)
_LOOK = 2.0  # seconds
_LOOK_AHEAD = 1.25  # times what a fetch can take: see Carriers
_REACTION = 0.5  # real seconds for a fetch to take its first step, and to react to being interrupted
G = TypeVar("G", bound=Gate)


@dataclass(slots=True)
class Counters:
    """Counted off the cached path, under the state's lock."""

    token_requests: int = 0
    tokens: int = 0
    refreshes: int = 0
    failed_fetches: int = 0
    failed_in_a_row: int = 0
    refused: int = 0
    replayed: int = 0
    retried: int = 0
    waited: int = 0
    held: int = 0
    not_sent: int = 0
    bypassed: int = 0


class SharedState:
    """The machine of one manager under its lock, and what its callers share.

    The lock is held to decide and to queue, never across I/O. It is reentrant: a signal handler or a finalizer may
    interrupt its holder and use the manager. What that finds half done it neither waits for nor adds a fetch to.

    A process may have one for each of many merchants: what they can share, they share, and the rest is small.
    """

    __slots__ = (
        "__weakref__",
        "_degraded",
        "_depth",
        "_dropped",
        "_ended_fetches",
        "_gates",
        "_listeners",
        "_lock",
        "_machine",
        "_queued",
        "_to_open",
        "budget",
        "carriers",
        "clock",
        "closed",
        "counters",
        "draw",
        "endpoint",
        "fetches",
        "fleet",
        "guards",
        "merchant_id",
        "now",
        "policy",
        "published",
        "retry",
        "rotating",
        "unproven",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        policy: TokenPolicy,
        clock: Clock,
        fleet: Fleet,
        *,
        rotating: bool,
        retry: RetryPolicy = DEFAULT,
        guards: Guards | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.endpoint = endpoint
        self.policy = policy
        self.clock = clock
        self.now = clock.now
        self.rotating = rotating
        self.fleet = fleet
        self.budget = fleet.token_budget(policy, endpoint.base_url)
        self.retry = retry
        self.guards = guards
        self.counters = Counters()
        self.draw = random.random
        self.closed = False
        self.merchant_id = ""  # of the last credentials seen
        self.fetches = Fetches(self)
        self.carriers = Carriers()
        self._degraded = False
        # A store that does not answer takes that long to say so, on a real clock.
        grace = GRACE + ((PATIENCE + 1.0) * clock.speed if fleet.blocking else 0.0)
        self._machine = TokenMachine(policy, rotating=rotating, grace=grace, reaction=_REACTION * max(clock.speed, 1.0))
        self._lock = threading.RLock()
        self._depth = 0
        self._dropped: list[Token] = []  # by what interrupts a transition
        self._ended_fetches = 0
        self._gates: dict[object, Gate] = {}
        self._to_open: list[dict[object, Gate]] = []
        self._listeners = tuple(map(Guarded, listeners))
        self._queued: list[Event] = []
        # What calls read without the lock, each in one piece: the token they may use until an instant, and whether
        # the machine wants to hear that it was accepted.
        self.published = _NOTHING
        self.unproven = False
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on without the parent's threads: whoever held the lock or carried a fetch is not here."""
        self._lock = threading.RLock()
        self._depth = 0
        self.fetches.after_fork()
        self.carriers.after_fork()
        self._gates.clear()
        self._to_open.clear()
        self._queued.clear()
        self._machine.forget_flights()
        self.published = _NOTHING

    def cached(self) -> Token | None:
        """Return the token if calls may use it without asking. Takes no lock."""
        token, until = self.published
        return token if self.now() < until else None

    @property
    def failed_fetches(self) -> int:
        """How many fetches have failed so far."""
        return self._machine.failed_fetches

    @property
    def fetching(self) -> bool:
        """Whether a fetch is in progress, or its outcome on its way into the store. Takes no lock."""
        return self.fetches.in_progress or any(not self.fetches.knows(ticket) for ticket in self._machine.in_flight)

    @property
    def pending(self) -> frozenset[int]:
        """The tickets of the fetches that the machine waits for."""
        return self._machine.in_flight

    @property
    def interrupts_itself(self) -> bool:
        """Whether this code interrupts a transition of its own thread. The lock must be held."""
        return self._depth > 1

    def transition(self, act: Callable[[TokenMachine, float], T], events: list[Event] | None = None) -> T:
        """Let *act* have the machine and the time, with the lock held; afterwards publish what calls may use.

        Whoever waits for a fetch that has ended is woken. After the lock has been released the listeners are called;
        or what happened is added to *events*, for a caller that has more to do before that.

        An exception may strike after any call, out of a signal handler: so the lock is released by C code alone, and
        what was left undone is done by the next transition.
        """
        queued: list[Event] = []
        late: tuple[int, ...] = ()
        try:
            with self._lock:
                depth = self._depth
                self._depth = depth + 1
                try:
                    return act(self._machine, self.now())
                finally:
                    try:
                        self._publish()
                        late, self._machine.late = self._machine.late, ()
                    finally:
                        if not depth:
                            queued, self._queued = self._queued, []
                        self._depth = depth
        finally:
            if late:
                self.fetches.interrupt(late)
            if events is not None:
                events += queued
            elif queued:
                self.notify(queued)

    def _publish(self) -> None:
        machine = self._machine
        while self._dropped and not self.interrupts_itself:
            machine.token_dropped(self._dropped[-1])
            self._dropped.pop()
        self.unproven = machine.unproven
        if self.closed:
            self.published = _NOTHING
        else:
            now = self.now()
            token, until = machine.unasked(now)
            look_at = until - _LOOK_AHEAD * self.policy.trusted_after
            # For a moment, long before, requests ask all the same: so it is known which clients and loops live on.
            looks = look_at <= now < look_at + _LOOK
            self.published = token, look_at if now < look_at else now if looks else until
        if machine.ended_fetches != self._ended_fetches or self._to_open:
            self._ended_fetches = machine.ended_fetches
            self._open_gates()
        if self.fleet.alone != self._degraded:
            self._degraded = self.fleet.alone
            self.tell(StoreDegraded if self._degraded else StoreRestored)

    def _open_gates(self) -> None:
        # Nothing is called until they are listed: an exception cannot strike before.
        gates, self._gates = self._gates, {}
        self._to_open += [gates]
        for each in self._to_open:
            for gate in each.values():
                gate.open()
        self._to_open = []

    def tell(self, kind: Callable[..., Event], *details: object) -> None:
        """Let the listeners hear of an event, once the lock has been released. The lock must be held."""
        if self._listeners or logs(kind):
            self._queued.append(kind(self.endpoint.base_url, self.merchant_id, *details))

    def notify(self, events: Sequence[Event]) -> None:
        """Let the listeners hear of *events* now. No lock may be held, nor a lease that others wait for.

        Raises:
            BaseException: A listener raised what is no ``Exception``, such as a soft time limit of the caller's.
        """
        raised: BaseException | None = None
        for event in events:
            log(event)
            for listener in self._listeners:
                raised = listener(event) or raised
        if raised is not None:
            raise raised

    def notify_safely(self, events: Sequence[Event]) -> None:
        """Do what :meth:`notify` does, where there is no caller for what a listener raises: it is logged."""
        with suppress(BaseException):
            self.notify(events)

    def key(self, credentials: Credentials) -> str:
        """Name the record that managers with these credentials share. It does not give them away."""
        return record_key(self.endpoint.base_url, credentials)

    def snapshot(self, credentials: Credentials) -> tuple[Snapshot, float]:
        """Return what managers with the same credentials should know, and the time. Calls no listener."""
        spent = self.spent(credentials)
        with self._lock:
            now = self.now()
            return self._machine.snapshot(credentials.digest, spent), now

    def spent(self, credentials: Credentials) -> dict[str, dict[str, float]]:
        """Return when each unit of the budget was taken, as far as this process knows."""
        now = self.now()
        return {
            key: {entry.id: now - entry.age for entry in self.fleet.budget.known(key)}
            for key in self.budget.keys(credentials.merchant_id)
        }

    def learn(
        self, credentials: Credentials, spent: Mapping[str, Mapping[str, float]], now: float, seen: float
    ) -> tuple[float, float]:
        """Take over what somebody else knew of the budget at the instant *seen*; return its pressure and pace."""
        for key, keep in self.budget.keys(credentials.merchant_id).items():
            if key in spent:
                entries = [Entry(name, max(now - at, 0.0)) for name, at in spent[key].items()]
                self.fleet.budget.learn(key, entries, keep, seen)
                self.fleet.budget.miss(key, spent[key])
        return self.budget.pressure(credentials.merchant_id), self.budget.pace(credentials.merchant_id)

    def listen(self, listener: Listener) -> None:
        """Let another listener hear of what happens from now on."""
        with self._lock:
            self._listeners = (*self._listeners, Guarded(listener))

    def gate(self, key: object, make: Callable[[], G]) -> G:
        """Join the waiters of one event loop, or the threads. The lock must be held."""
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = make()
        return gate  # type: ignore[return-value]  # one key, one kind of gate

    def check_open(self) -> None:
        """Raise :class:`ConfigurationError` if the manager was closed."""
        if self.closed:
            raise ConfigurationError("this TokenManager is closed: make a new one")

    def fetch_failed(self, failure: Failure, now: float) -> None:
        """Note that a fetch ended without a token. The lock must be held."""
        self.counters.failed_fetches += 1
        self.counters.failed_in_a_row += 1
        error = failure.error(self._machine.blocked_for(now))
        self.tell(RefreshFailed, error, self.counters.failed_in_a_row)

    def token_came(self, kind: Callable[..., Event], *details: object) -> None:
        """Note that there is a new token. The lock must be held."""
        self.tell(kind, *details, self.counters.failed_in_a_row)
        self.counters.failed_in_a_row = 0

    def expires_in(self) -> float | None:
        """Return for how many seconds the token stays valid, if there is one. Takes no lock."""
        return self._machine.expires_in(self.now())

    def drop(self, token: Token) -> None:
        """Forget *token* if it is the current one; as soon as nothing that this code interrupts may be using it."""

        def drop(machine: TokenMachine, now: float) -> None:
            self._dropped.append(token)

        self.transition(drop)

    def bypassed(self) -> None:
        """Count and log a request with a ``Bearer`` of its own (rule 14)."""
        with self._lock:
            self.counters.bypassed += 1
            first = self.counters.bypassed == 1
        log_bypass(self.endpoint.base_url, self.merchant_id, first=first)

    def close(self) -> None:
        """Refuse everything from now on, and wake the waiters."""
        self.closed = True
        with self._lock:
            self.published = _NOTHING
            self._open_gates()


@dataclass(frozen=True, slots=True)
class Stats:
    """What a manager has done so far, and what it may still do.

    Attributes:
        token_requests: Token requests sent, failed ones included.
        tokens: Tokens received.
        refreshes: Fetches that were started beside the traffic, failed ones included.
        failed_fetches: Fetches that ended without a token.
        failed_in_a_row: How many of them since there was a new token.
        refused: Calls answered 401.
        replayed: Calls sent a second time after a 401.
        retried: Times that a call was sent again after it failed, or was told to slow down.
        waited: Calls that had to wait for a token.
        held: Calls that had to wait for room in the limits of calls (``pacing=True``).
        not_sent: Calls that got an error of this package and were not sent, or not once more.
        bypassed: Requests to 88Pay that went out as they were, for they had an ``Authorization: Bearer`` of their own;
            each attempt that the HTTP client library makes counts.
        budget_left: Token requests left, by limit.
        fetching: Whether a fetch is under way.
        token_expires_in: Seconds for which the token stays valid; ``None`` without one.
        circuits_open: Whether the circuit is open, by group of calls made so far (``breaker=``).
        store_degraded: Whether the store fails, and this process goes on alone.
    """

    token_requests: int
    tokens: int
    refreshes: int
    failed_fetches: int
    failed_in_a_row: int
    refused: int
    replayed: int
    retried: int
    waited: int
    held: int
    not_sent: int
    bypassed: int
    budget_left: Mapping[str, int]
    fetching: bool
    token_expires_in: float | None
    circuits_open: Mapping[str, bool]
    store_degraded: bool


CredentialsSource = Credentials | Callable[[], object]

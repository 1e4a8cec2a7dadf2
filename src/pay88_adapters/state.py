"""What the callers of one manager share: the machine under its lock, and the gates they wait at."""

from __future__ import annotations

import itertools
import random
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from .clock import Clock
from .credentials import Credentials
from .endpoint import Endpoint
from .errors import ConfigurationError, Failure
from .event_log import Guarded, log, logs
from .events import Event, Listener, RefreshFailed, StoreDegraded, StoreRestored
from .fleet import NO_LEASE, PATIENCE, Fleet
from .forks import fork_id, survive_forks
from .guards import Guards
from .machine import GRACE, TokenMachine
from .policy import TokenPolicy
from .retry import DEFAULT, RetryPolicy
from .runtimes import Gate
from .snapshot import record_key
from .stores.base import Entry, Lead
from .token import Token

T = TypeVar("T")
_NEVER = float("-inf")
_NOTHING: tuple[Token | None, float] = (None, _NEVER)
_numbers = itertools.count(1)
_LEASE_GRACE = 2.0  # seconds
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


class SharedState:
    """One lock, held to decide and to queue, and never while acting.

    A process may have one for each of many merchants: what they can share, they share, and the rest is small.
    """

    __slots__ = (
        "__weakref__",
        "_alone",
        "_gates",
        "_leases",
        "_listeners",
        "_lock",
        "_machine",
        "_number",
        "_seen",
        "_untold",
        "budget",
        "clock",
        "closed",
        "counters",
        "draw",
        "endpoint",
        "fleet",
        "guards",
        "merchant_id",
        "now",
        "policy",
        "published",
        "retry",
        "under_way",
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
        self.fleet = fleet
        self.budget = fleet.token_budget(policy, endpoint.base_url)
        self.retry = retry
        self.guards = guards
        self.counters = Counters()
        self.draw = random.random
        self.closed = False
        self.merchant_id = ""  # of the last credentials seen
        self._seen = ("", 0)  # the record in the store that was seen or published last: its key and version
        self._number = next(_numbers)
        self._alone = False
        # By the tickets of all fetches that have not come to their end: whether one cannot wait for a lease.
        self.under_way: dict[int, bool] = {}
        self._leases: dict[int, tuple[Credentials, int, float]] = {}
        # A store that does not answer takes that long to say so, on a real clock.
        grace = GRACE + ((PATIENCE + 1.0) * clock.speed if fleet.blocking else 0.0)
        self._machine = TokenMachine(policy, rotating=rotating, grace=grace)
        self._lock = threading.Lock()
        self._gates: dict[object, Gate] = {}
        self._listeners = tuple(map(Guarded, listeners))
        self._untold: list[Event] = []
        # What calls read without the lock, each in one piece: the token they may use until an instant, and whether
        # the machine wants to hear that it was accepted.
        self.published = _NOTHING
        self.unproven = False
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on without the parent's threads: whoever held the lock or carried a fetch is not here."""
        self._lock = threading.Lock()
        self.under_way.clear()
        self._leases.clear()
        self._gates.clear()
        self._untold.clear()
        self._machine.forget_flights()
        self.published = _NOTHING

    @property
    def _owner(self) -> str:
        return f"{fork_id()}-{self._number}"

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
        """Whether a fetch is under way, or its outcome on its way into the store."""
        return bool(self.under_way or self._machine.in_flight)

    @contextmanager
    def deciding(self, news: list[Event] | None = None) -> Generator[tuple[TokenMachine, float], None, None]:
        """Hold the lock; give the machine and the time; afterwards publish what calls may use.

        After the lock has been let go, whoever waited for a fetch that has ended is woken, and then the
        listeners hear of what happened; or it is added to *news*, for whoever has more to do before that.
        """
        gates: dict[object, Gate] = {}
        with self._lock:
            flying = len(self._machine.in_flight)
            now = self.clock.now()
            try:
                yield self._machine, now
            finally:
                self.unproven = self._machine.unproven
                self.published = _NOTHING if self.closed else self._machine.unasked(now)
                if len(self._machine.in_flight) < flying:
                    gates, self._gates = self._gates, {}
                if self.fleet.alone != self._alone:
                    self._alone = self.fleet.alone
                    self.tell(StoreDegraded if self._alone else StoreRestored)
                untold, self._untold = self._untold, []
        for gate in gates.values():
            gate.open()
        if news is None:
            self.notify(untold)
        else:
            news += untold

    def tell(self, kind: Callable[..., Event], *details: object) -> None:
        """Let the listeners hear of an event, once the lock has been let go. The lock must be held."""
        if self._listeners or logs(kind):
            self._untold.append(kind(self.endpoint.base_url, self.merchant_id, *details))

    def notify(self, events: Sequence[Event]) -> None:
        """Let the listeners hear of *events* now. No lock may be held, nor a lease that others wait for."""
        for event in events:
            log(event)
            for listener in self._listeners:
                listener(event)

    def listen(self, listener: Listener) -> None:
        """Let another listener hear of what happens from now on."""
        with self._lock:
            self._listeners = (*self._listeners, Guarded(listener))

    def key(self, credentials: Credentials) -> str:
        """Name the record that managers with these credentials share. It does not give them away."""
        return record_key(self.endpoint.base_url, credentials)

    def lead(self, ticket: int, credentials: Credentials) -> Lead:
        """Ask the store to be the one who fetches (rule 4). May block."""
        if self.under_way.get(ticket):
            return Lead(fence=NO_LEASE)
        key = self.key(credentials)
        # Seconds more than a fetch can take, for the operations of the store itself.
        lease = self.policy.longest_fetch + _LEASE_GRACE
        seen, version = self._seen
        led = self.fleet.lead(key, owner=self._owner, known=version if seen == key else 0, lease=lease)
        if led.record is not None:
            self._seen = key, led.record.version
        if led.fence:
            self._leases[ticket] = (credentials, led.fence, self.clock.now())
            if ticket not in self.under_way:  # whoever wanted to know is gone
                self.ended(ticket)
        return led

    def take_lease(self, ticket: int) -> Callable[[], object]:
        """Return what publishes the outcome of a fetch and ends its lease, if it has one."""
        lease = self._leases.pop(ticket, None)
        return self.publication(*lease) if lease else bool

    def publication(self, credentials: Credentials, fence: int, led_at: float) -> Callable[[], None]:
        """Return what tells the others, with what is known now, and lets another one lead. It may block."""
        spent = self.spent(credentials)
        now = self.clock.now()
        with self._lock:  # and no more than that: others wait for the lease, and listeners may take their time
            snapshot = self._machine.snapshot(credentials.digest, spent)
        key, content, keep = self.key(credentials), snapshot.dump(now), snapshot.lasts(now)

        def publish() -> None:
            if self.fleet.publish(key, fence=fence, content=content, keep=keep, after=now - led_at):
                self._seen = key, fence

        return publish

    def spent(self, credentials: Credentials) -> dict[str, dict[str, float]]:
        """Return when each unit of the budget was taken, as far as this process knows."""
        now = self.clock.now()
        return {
            key: {entry.id: now - entry.age for entry in self.fleet.budget.known(key)}
            for key in self.budget.keys(credentials.merchant_id)
        }

    def learn(
        self, credentials: Credentials, spent: Mapping[str, Mapping[str, float]], now: float, seen: float
    ) -> float:
        """Take over what somebody else knew of the budget at the instant *seen*; return the pressure on it."""
        for key, keep in self.budget.keys(credentials.merchant_id).items():
            if key in spent:
                entries = [Entry(name, max(now - at, 0.0)) for name, at in spent[key].items()]
                self.fleet.budget.learn(key, entries, keep, seen)
                self.fleet.budget.miss(key, spent[key])
        return self.budget.pressure(credentials.merchant_id)

    def gate(self, key: object, make: Callable[[], G]) -> G:
        """Join the waiters of one event loop, or the threads. The lock must be held."""
        assert self._lock.locked()
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = make()
        return gate  # type: ignore[return-value]  # one key, one kind of gate

    def check_open(self) -> None:
        """Raise :class:`ConfigurationError` if the manager was closed."""
        if self.closed:
            raise ConfigurationError("this TokenManager is closed: make a new one")

    def carried_by_this_thread(self) -> bool:
        """Whether a task of this thread's event loop carries a fetch, so that blocking here blocks it.

        Any manager's fetch that shares the store: it may hold the lease that this one would wait for.
        """
        here = threading.get_ident()
        return any(
            thread == here and (state := carrier()) is not None and ticket in state.under_way
            for (_, ticket), (carrier, thread) in list(self.fleet.carried.items())
        )

    def carry(self, ticket: int) -> None:
        """Note that a task of this thread's event loop carries a fetch."""
        self.under_way.setdefault(ticket, False)
        self.fleet.carried[id(self), ticket] = (weakref.ref(self), threading.get_ident())

    def put_down(self, ticket: int) -> None:
        """Note that it no longer does."""
        self.fleet.carried.pop((id(self), ticket), None)

    def ended(self, ticket: int) -> None:
        """Note that nobody carries a fetch any longer; give back the lease that it may have."""
        self.under_way.pop(ticket, None)
        lease = self._leases.pop(ticket, None)
        if lease is None:
            return
        publish = self.publication(*lease)
        if not self.fleet.blocking:
            publish()
            return
        with suppress(RuntimeError):  # the interpreter ends: the lease will, too
            threading.Thread(target=publish, name="pay88-lease", daemon=True).start()

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
        """Return for how many seconds the token stays valid, if there is one."""
        now = self.clock.now()
        with self._lock:
            token, _ = self._machine.unasked(now)
        left = 0.0 if token is None else token.requested_at + token.expires_in - now
        return left if left > 0 else None

    def drop(self, token: Token) -> None:
        """Forget *token* if it is the current one."""
        with self.deciding() as (machine, _):
            machine.token_dropped(token)

    def close(self) -> None:
        """Refuse everything from now on, and wake whoever waits."""
        with self._lock:
            self.closed = True
            self.published = _NOTHING
            gates, self._gates = self._gates, {}
        for gate in gates.values():
            gate.open()


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
    budget_left: Mapping[str, int]
    fetching: bool
    token_expires_in: float | None
    circuits_open: Mapping[str, bool]
    store_degraded: bool


CredentialsSource = Credentials | Callable[[], object]

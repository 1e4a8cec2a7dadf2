"""Simulated processes of several hosts: the real core and a real store, on a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator
from itertools import count
from typing import Any, ClassVar

from pay88_adapters import Credentials, Pay88Error, TokenPolicy
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.wire import TokenResponse
from pay88_adapters.engine.effects import (
    AcquireTokenFlow,
    LoadCredentials,
    SendTokenRequest,
    StartFetch,
    StoreOperation,
    WaitForFetch,
)
from pay88_adapters.engine.fetch_flow import fetch_token
from pay88_adapters.engine.fetches import Fetches, FetchRun
from pay88_adapters.engine.settings import Settings
from pay88_adapters.engine.state import ManagerState
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.engine.token_flow import TokenAcquisition, WaitBudget
from pay88_adapters.stores.base import EntryStorage, LeaseResult, Store, StoreView
from pay88_adapters.testing import ManualClock
from pay88_adapters.testing.messages import TOKEN_PATH, Request
from pay88_adapters.testing.service import Service

CREDENTIALS = Credentials("sk_test_fleet", "MCH-COL-FLEET")


class Counted:
    """A store that counts the lease attempts."""

    blocking: ClassVar[bool] = False
    separate_calls: ClassVar[bool] = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.operations = 0

    @property
    def budget(self) -> EntryStorage:
        return self._store.budget

    def after_fork(self) -> None:
        self._store.after_fork()

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        self.operations += 1
        return self._store.try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease)

    def remove_member(self, member: str) -> None:
        self.operations += 1
        self._store.remove_member(member)

    def publish(self, key: str, *, fencing_token: int, content: str, ttl: float, write_delay: float = 0.0) -> bool:
        self.operations += 1
        return self._store.publish(key, fencing_token=fencing_token, content=content, ttl=ttl, write_delay=write_delay)

    def peek(self, key: str) -> StoreView:
        return self._store.peek(key)


class Simulation:
    """Workers that share a store, the service, and time."""

    def __init__(self, make_store: Callable[[ManualClock], Store], workers: int, seed: int, gap: float) -> None:
        self.clock = ManualClock()
        self.rng = random.Random(seed)
        self.store = Counted(make_store(self.clock))
        self.service = Service(
            api_key=str(CREDENTIALS.api_key), merchant_id=CREDENTIALS.merchant_id, rng=random.Random(seed)
        )
        self.sent: list[float] = []
        self.failed: list[tuple[float, Pay88Error]] = []
        self.waited = 0.0  # the longest
        self.late = 0  # calls that waited, other than the first of a worker
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        for _ in range(workers):
            worker = Worker(self, gap)
            self.after(self.rng.random() * gap, worker.call)

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._due, (self.clock.now() + seconds, next(self._order), happen))

    def run(self, seconds: float) -> Simulation:
        """Let time pass."""
        end = self.clock.now() + seconds
        while self._due and self._due[0][0] <= end:
            at, _, happen = heapq.heappop(self._due)
            self.clock.advance(max(at - self.clock.now(), 0.0))
            happen()
        return self

    def respond(self) -> TokenResponse:
        """Return the response to a token request."""
        now = self.clock.now()
        self.sent.append(now)
        fields = {"x-api-key": str(CREDENTIALS.api_key), "x-merchant-id": CREDENTIALS.merchant_id}
        respond = self.service.handle(Request("POST", TOKEN_PATH, fields), now, now)
        return TokenResponse(respond.status, dict(respond.headers), respond.body)


class SimulatedEvent:
    """Wakes its waiters in simulated time: *after* calls a function so many seconds later."""

    def __init__(self, after: Callable[[float, Callable[[], None]], object]) -> None:
        self._after = after
        self.waiting: list[Callable[[], None]] = []

    def set(self) -> None:
        for wake in self.waiting:
            self._after(0.0, wake)

    def notify(self) -> None:
        """Do nothing: the simulated clock has no real waiters."""


class Worker:
    """One process with a manager; calls come at random, *gap* seconds apart."""

    def __init__(self, simulation: Simulation, gap: float) -> None:
        self._simulation, self._gap = simulation, gap
        policy = TokenPolicy()
        fleet = StoreClient(simulation.store, simulation.clock, policy.fallback_share)
        endpoint = Endpoint.parse("https://api-sandbox.88pay.io")
        settings = Settings(endpoint, policy, simulation.clock, fleet, rotating=False, random=simulation.rng.random)
        self.state = ManagerState(settings)
        self.fetches = Fetches(self.state, CREDENTIALS)
        self._calls = 0

    def call(self) -> None:
        """Make a request, and plan the next one that does not find a token immediately."""
        self._calls += 1
        if self.state.cached() is not None:
            self._plan()
            return
        sequence = TokenAcquisition(
            self.fetches,
            lambda: self.state.join("all", lambda: SimulatedEvent(self._simulation.after)),
            wait_budget=WaitBudget(self.state.settings.policy.max_wait),
        ).run()
        self._resume(sequence, self._simulation.clock.now())

    def _plan(self) -> None:
        # The requests until then use the cached token: they would change nothing.
        _, until = self.state.fast_path
        rest = max(until - self._simulation.clock.now(), 0.0)
        self._simulation.after(rest + self._simulation.rng.expovariate(1 / self._gap), self.call)

    def _resume(self, sequence: AcquireTokenFlow, since: float, respond: object = None) -> None:
        simulation = self._simulation
        try:
            effect = sequence.send(respond)
        except StopIteration:
            self._ended(since)
            return
        except Pay88Error as error:
            simulation.failed.append((simulation.clock.now(), error))
            self._ended(since)
            return
        if isinstance(effect, StartFetch):
            run = FetchRun(effect.ticket)
            self.fetches.begin(run)
            self._step(fetch_token(self.fetches, run, lambda: True), run, None)
            self._resume(sequence, since, run)
            return
        woken = False

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                self._resume(sequence, since)

        assert isinstance(effect, WaitForFetch)  # this clock skips no pauses
        event: Any = effect.event
        event.waiting.append(wake)
        simulation.after(effect.seconds, wake)

    def _ended(self, since: float) -> None:
        waited = self._simulation.clock.now() - since
        if waited > 0:
            self._simulation.waited = max(self._simulation.waited, waited)
            self._simulation.late += self._calls > 1
        self._plan()

    def _step(self, sequence: Generator[Any, Any, None], run: FetchRun, respond: object) -> None:
        simulation = self._simulation
        try:
            effect = sequence.send(respond)
        except StopIteration:
            self.fetches.end(run)
            return
        match effect:
            case LoadCredentials():
                self._step(sequence, run, CREDENTIALS)
            case StoreOperation(operation):
                result = operation()
                simulation.after(simulation.rng.uniform(0.0005, 0.005), lambda: self._step(sequence, run, result))
            case SendTokenRequest():
                response = simulation.respond()
                simulation.after(simulation.rng.uniform(0.05, 0.4), lambda: self._step(sequence, run, response))
            case _:
                seconds = effect.seconds  # of a Pause
                simulation.after(seconds, lambda: self._step(sequence, run, None))

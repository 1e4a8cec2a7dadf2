"""Fleets of simulated processes: the real core and a real store, on a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator
from itertools import count
from typing import Any, ClassVar

from pay88_adapters import Credentials, Pay88Error, TokenPolicy
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.wire import TokenReply
from pay88_adapters.engine.fetches import FetchRun
from pay88_adapters.engine.flows import (
    Acquirer,
    Acquisition,
    AskCredentials,
    Consult,
    Hold,
    Patience,
    Post,
    Start,
    fetch,
)
from pay88_adapters.engine.state import SharedState
from pay88_adapters.engine.store_client import Fleet
from pay88_adapters.stores.base import BudgetStorage, Lead, Look, Store
from pay88_adapters.testing import ManualClock
from pay88_adapters.testing.service import TOKEN_PATH, Received, Service

CREDENTIALS = Credentials("sk_test_fleet", "MCH-COL-FLEET")


class Counted:
    """A store that counts how often its record is asked for."""

    blocking: ClassVar[bool] = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.operations = 0

    @property
    def budget(self) -> BudgetStorage:
        return self._store.budget

    def after_fork(self) -> None:
        self._store.after_fork()

    def lead(self, key: str, *, owner: str, known: int, lease: float) -> Lead:
        self.operations += 1
        return self._store.lead(key, owner=owner, known=known, lease=lease)

    def publish(self, key: str, *, fence: int, content: str, keep: float, after: float = 0.0) -> bool:
        self.operations += 1
        return self._store.publish(key, fence=fence, content=content, keep=keep, after=after)

    def look(self, key: str) -> Look:
        return self._store.look(key)


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

    def answer(self) -> TokenReply:
        """Answer a token request."""
        now = self.clock.now()
        self.sent.append(now)
        fields = {"x-api-key": str(CREDENTIALS.api_key), "x-merchant-id": CREDENTIALS.merchant_id}
        answer = self.service.handle(Received("POST", TOKEN_PATH, fields), now, now)
        return TokenReply(answer.status, dict(answer.headers), answer.body)


class _Gate:
    """Wakes who waits, in simulated time."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.waiting: list[Callable[[], None]] = []

    def open(self) -> None:
        for wake in self.waiting:
            self._simulation.after(0.0, wake)

    def stir(self) -> None:
        """Nobody waits at it on the clock."""


class Worker:
    """One process with a manager; calls come at random, *gap* seconds apart."""

    def __init__(self, simulation: Simulation, gap: float) -> None:
        self._simulation, self._gap = simulation, gap
        policy = TokenPolicy()
        fleet = Fleet(simulation.store, simulation.clock, policy.fallback_share)
        endpoint = Endpoint.parse("https://api-sandbox.88pay.io")
        self.state = SharedState(endpoint, policy, simulation.clock, fleet, rotating=False)
        self.state.draw = simulation.rng.random
        self._calls = 0

    def call(self) -> None:
        """Make a call, and plan the next one that does not find a token at once."""
        self._calls += 1
        if self.state.cached() is not None:
            self._plan()
            return
        sequence = Acquirer(
            self.state,
            lambda: self.state.gate("all", lambda: _Gate(self._simulation)),
            patience=Patience(self.state.policy.max_wait),
        ).run()
        self._go_on(sequence, self._simulation.clock.now())

    def _plan(self) -> None:
        # The calls until then find the token without asking: they would change nothing.
        _, until = self.state.published
        rest = max(until - self._simulation.clock.now(), 0.0)
        self._simulation.after(rest + self._simulation.rng.expovariate(1 / self._gap), self.call)

    def _go_on(self, sequence: Acquisition, since: float, answer: object = None) -> None:
        simulation = self._simulation
        try:
            effect = sequence.send(answer)
        except StopIteration:
            self._ended(since)
            return
        except Pay88Error as error:
            simulation.failed.append((simulation.clock.now(), error))
            self._ended(since)
            return
        if isinstance(effect, Start):
            run = FetchRun(effect.ticket)
            self.state.fetches.begin(run)
            self._step(fetch(self.state, run, lambda: True), run, None)
            self._go_on(sequence, since, run)
            return
        woken = False

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                self._go_on(sequence, since)

        assert isinstance(effect, Hold)  # this clock skips no pauses
        gate: Any = effect.gate
        gate.waiting.append(wake)
        simulation.after(effect.seconds, wake)

    def _ended(self, since: float) -> None:
        waited = self._simulation.clock.now() - since
        if waited > 0:
            self._simulation.waited = max(self._simulation.waited, waited)
            self._simulation.late += self._calls > 1
        self._plan()

    def _step(self, sequence: Generator[Any, Any, None], run: FetchRun, answer: object) -> None:
        simulation = self._simulation
        try:
            effect = sequence.send(answer)
        except StopIteration:
            self.state.fetches.end(run)
            return
        match effect:
            case AskCredentials():
                self._step(sequence, run, CREDENTIALS)
            case Consult(operation):
                result = operation()
                simulation.after(simulation.rng.uniform(0.0005, 0.005), lambda: self._step(sequence, run, result))
            case Post():
                reply = simulation.answer()
                simulation.after(simulation.rng.uniform(0.05, 0.4), lambda: self._step(sequence, run, reply))
            case _:
                seconds = effect.seconds  # of a Pause
                simulation.after(seconds, lambda: self._step(sequence, run, None))

"""Simulated processes, each with its managers: they carry out what the real flows yield."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pay88_adapters import Credentials, Pay88Error, Token, TokenPolicy
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.errors import ClientClosed
from pay88_adapters.core.history import Acquisition, StorageResult
from pay88_adapters.core.retry import RetryPolicy
from pay88_adapters.engine.effects import (
    AcquireTokenFlow,
    DrainResponse,
    LoadCredentials,
    SendTokenRequest,
    Sleep,
    StartFetch,
    StoreOperation,
    WaitForFetch,
)
from pay88_adapters.engine.fetch_flow import fetch_token
from pay88_adapters.engine.fetches import Fetches, FetchRun
from pay88_adapters.engine.request_flow import run_request
from pay88_adapters.engine.settings import Settings
from pay88_adapters.engine.state import ManagerState
from pay88_adapters.engine.store_client import StoreClient
from pay88_adapters.engine.token_flow import TokenAcquisition, WaitBudget
from support.fleets import SimulatedEvent
from support.simulation.remote import Remote, SimulatedClock
from support.simulation.scenario import APART, EASES_OFF, EPSILON, MERCHANT, PROBING, TICK, URL, WORKERS

if TYPE_CHECKING:
    from support.simulation.world import World

T = TypeVar("T")


class ApiCall:
    """A call of the API, as the exchange sees it."""

    method: ClassVar[str] = "GET"
    path: ClassVar[str] = "/api/echo"
    retry: ClassVar[RetryPolicy | None] = None
    token_timeout: ClassVar[float | None] = None
    total_timeout: ClassVar[float | None] = None

    def __init__(self, began_at: float, *, probes: float | None = None) -> None:
        self.began_at = began_at
        self.probes = probes
        """When the call failed whose ``retry_after`` this one takes at its word."""
        self.is_closed = False

    def status(self, response: int, /) -> int:
        return response

    def headers(self, response: int) -> Mapping[str, str]:
        return {}

    def token_used(self, response: int, token: Token) -> Token:
        return token

    def replayable(self) -> bool:
        return True


class Manager:
    """One TokenManager and its traffic."""

    def __init__(self, process: Process, *, idle: bool) -> None:
        world = process.world
        self.process, self.world, self._idle = process, world, idle
        self._rng = random.Random(process.rng.random())
        fleet = process.fleet
        endpoint, rotating, rng = Endpoint.parse(URL), world.rotates, self._rng
        settings = Settings(endpoint, process.policy, process.clock, fleet, rotating, random=rng.random)
        self.state = ManagerState(settings)
        self.fetches = Fetches(self.state, lambda: Credentials(world.key, MERCHANT))
        self._planned = 0
        self._probing = False
        self._under_way = 0
        self._failed_at = 0.0

    # --- traffic

    def begin(self, within: float) -> None:
        """Let the first call come *within* so many seconds."""
        self.process.soon(self._rng.random() * within, self.tick)

    def tick(self) -> None:
        """Make a call, and plan the next one."""
        if self._under_way < WORKERS:
            self.call()
        if not self._idle:
            self.plan()

    def plan(self) -> None:
        """Plan the next call that can change anything: those that find a token on the fast path do not."""
        self._planned += 1
        planned = self._planned
        token, until = self.state.fast_path
        rest = 0.0
        if token is not None and not self.state.awaiting_first_success and not self.world.rejects(token):
            rest = max(until - self.state.now(), 0.0)
            if rest:
                self.world.judge_token(token, self.world.now + rest - EPSILON)

        def tick() -> None:
            if planned == self._planned:
                self.tick()

        if self.world.now < self._failed_at + EASES_OFF:
            rest = max(rest, APART)
        self.process.soon(rest + self._rng.expovariate(1 / self.world.scenario.gap), tick)

    def wake(self) -> None:
        """Be idle no longer."""
        if self._idle:
            self._idle = False
            self.plan()

    def replan(self) -> None:
        """Plan the next call again, because it may change more than the one that was planned."""
        if self._planned:
            self.plan()

    # --- calls

    def call(self, probes: float | None = None) -> None:
        """Make a call."""
        state = self.state
        self.world.outcome.calls += 1
        self._under_way += 1
        call = ApiCall(self.world.now, probes=probes)
        dependencies = (call,) if self.world.scenario.young else (self,)
        patience = WaitBudget(self.process.policy.max_wait)

        def acquired() -> AcquireTokenFlow:
            gate = lambda: state.join("all", lambda: SimulatedEvent(self.process.soon))  # noqa: E731 - the sequence's own callback
            return TokenAcquisition(self.fetches, gate, wait_budget=patience, dependencies=dependencies).run()

        self._resume(call, run_request(state, call, acquired, state.now(), patience))

    def _resume(self, call: ApiCall, sequence: Generator[Any, Any, int], result: object = None) -> None:
        if call.is_closed:
            return
        try:
            effect = sequence.send(result)
        except StopIteration as stop:
            self._ended(call, stop.value)
            return
        except Pay88Error as error:
            self._failed_at = self.world.now
            self._ended(call, error)
            return
        process = self.process
        match effect:
            case StartFetch():
                run = FetchRun(effect.ticket)
                self.fetches.begin(run)
                if self.world.scenario.young and self._rng.random() < 0.05:  # its client is closed, too early
                    process.soon(self._rng.uniform(0.0, 0.6), lambda: self._close(call, sequence, run))
                process.soon(0.0, lambda: self._step(run, fetch_token(self.fetches, run, lambda: True), None))
                self._resume(call, sequence, run)
            case Token():
                status = self.world.respond_to_call(effect)
                process.soon(self._rng.uniform(0.02, 0.1), lambda: self._resume(call, sequence, status))
            case WaitForFetch(gate, seconds):
                self._hold(call, sequence, gate, seconds)
            case Sleep(seconds):
                process.soon(seconds, lambda: self._resume(call, sequence))
            case DrainResponse():
                self._resume(call, sequence)
            case _:
                raise AssertionError(effect)

    def _ended(self, call: ApiCall, how: int | Pay88Error) -> None:
        self._under_way -= 1
        self.world.judge_call(self, call, how)

    def _hold(self, call: ApiCall, sequence: Generator[Any, Any, int], gate: Any, seconds: float) -> None:
        woken = False

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                self._resume(call, sequence)

        self.world.outcome.waited += 1
        gate.waiting.append(wake)
        self.process.soon(max(seconds, TICK), wake)

    def probe(self, retry_after: float) -> None:
        """Take an error at its word: call again when it said."""
        if self._probing or self.world.scenario.members > PROBING:
            return
        self._probing, failed_at = True, self.world.now

        def again() -> None:
            self._probing = False
            self.call(failed_at)

        self.process.soon(retry_after + 0.05, again)

    # --- fetches

    def _close(self, call: ApiCall, sequence: Generator[Any, Any, int], run: FetchRun) -> None:
        """Let a call be given up, with the client that carries its fetch."""
        if run.ticket in self.state.pending:
            call.is_closed = self.world.has_closed_clients = True
            sequence.close()
            self._under_way -= 1
            run.is_dead = lambda: True
            self.process.instantly(lambda: self.fetches.abandon(run, ClientClosed("the client was closed")))

    def _step(self, run: FetchRun, sequence: Generator[Any, Any, None], result: object) -> None:
        if run.is_dead():
            return
        process = self.process

        def resume(result: object = None) -> None:
            self._step(run, sequence, result)

        try:
            effect = sequence.send(result)
        except StopIteration:
            process.instantly(lambda: self.fetches.end(run))
            return
        match effect:
            case LoadCredentials():
                key = self.world.key  # a moment later it may be another one
                process.soon(self._rng.uniform(0.0, 0.05), lambda: resume(Credentials(key, MERCHANT)))
            case StoreOperation(operation):
                process.consult(operation, resume)
            case SendTokenRequest(request):
                self.world.post(process, request, resume, run)
            case _:
                process.soon(effect.seconds, resume)  # of a Sleep


class Process:
    """One process, from its start until it ends."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.rng = random.Random(world.rng.random())
        self.clock = SimulatedClock(world, self.rng.uniform(-5_000.0, 5_000.0))
        self.alive = True
        self.paused_until = 0.0
        self.stall = ("", 0.0)
        self.dies_leading = False
        self.born_at = world.now
        self.policy = TokenPolicy(limits=world.limits, fallback_share=world.scenario.share)
        self.grant = ("", 0.0, False)
        self.set_aside_at = float("-inf")  # when it was last denied what may have been used by who is idle
        self.cooldown_until: list[tuple[float, float]] = []
        self.managers: list[Manager] = []
        host = number % world.scenario.hosts
        remote = Remote(self, world.store, lambda: world.reachable(number))
        spare = (
            Remote(self, world.spares[host], lambda: world.spare_reachable(host)) if world.scenario.fallback else None
        )
        self.fleet = StoreClient(remote, self.clock, world.scenario.share, spare, f"host {host}")
        self.fleet.token_entries.acquire = self._noted(self.fleet.token_entries.acquire)  # type: ignore[assignment,method-assign]
        idle = number < world.scenario.idle
        self.managers = [Manager(self, idle=idle) for _ in range(world.scenario.managers)]
        # The core has set its timeouts by now. Nothing here blocks.
        for each in (remote, spare):
            if each is not None:
                each.blocking = False  # type: ignore[misc]
        self.fleet.blocking = False

    def _noted(self, acquisition: Callable[[Acquisition], StorageResult]) -> Callable[[Acquisition], StorageResult]:
        def noted(wanted: Acquisition) -> StorageResult:
            result = acquisition(wanted)
            if not result.wait:
                self.grant = (wanted.ids[0], self.world.now, not self.fleet.degraded)
            elif "not all processes have reported" in result.reason:
                self.set_aside_at = self.world.now
            return result

        return noted

    def soon(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen in this process, *seconds* from now, or once it runs again."""

        def guarded() -> None:
            if not self.alive:
                return
            if self.world.now < self.paused_until:
                self.world.at(self.paused_until, guarded)
            else:
                happen()

        self.world.at(self.world.now + seconds, guarded)

    def delay(self, side: str) -> float:
        """Return how long something is on its way between this process and a store, that is stopped meanwhile."""
        where, lasts = self.stall
        if where != side:
            return self.rng.uniform(0.0002, 0.004)
        self.stall = ("", 0.0)
        self.paused_until = max(self.paused_until, self.world.now + lasts)
        self.world.trouble(lasts)
        return lasts

    def consult(self, operation: Callable[[], T], then: Callable[[T], None]) -> None:
        """Carry out an operation on a store: it is sent now, executed later, and the result arrives later still."""
        asked_at = self.world.now
        before = self.delay("before")

        def act() -> None:
            self.clock.shift = asked_at - self.world.now
            try:
                result = operation()
            finally:
                took, self.clock.shift = max(self.clock.shift, 0.0), 0.0
            self.soon(took, lambda: then(result))

        self.soon(before, act)

    def instantly(self, act: Callable[[], object]) -> None:
        """Do something that may use the store, in no time."""
        try:
            act()
        finally:
            self.clock.shift = 0.0

    def leads(self) -> None:
        """Note that this process has a lease."""
        if self.dies_leading:
            self.dies_leading = False
            self.world.trouble(0.5)
            self.world.at(self.world.now + self.rng.uniform(0.0, 0.5), self.world.crash_of(self))

    def known(self) -> set[str]:
        """Return the ids of the units that it knows."""
        return {entry.id for entry in self.fleet.local_copy.known(self.world.budget_key)}

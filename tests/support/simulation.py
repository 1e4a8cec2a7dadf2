"""A fleet, its store, the network and 88Pay in simulated time: the real core, on a clock that jumps between events.

Nothing here is a thread or sleeps. A process of the fleet is driven through the real sequences; what they yield is
carried out by :class:`Process`. Between a question to the store and its answer time passes, and everything else may
happen: so the clock of a process shows, in the middle of an operation, what it would show at that point.
"""

from __future__ import annotations

import heapq
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from itertools import count
from typing import Any, ClassVar, NamedTuple, TypeVar

from pay88_adapters import Credentials, Pay88Error, Token, TokenBudgetExhausted, TokenPolicy
from pay88_adapters.clock import Clock
from pay88_adapters.core.endpoint import Endpoint
from pay88_adapters.core.errors import ClientClosed
from pay88_adapters.core.history import Claim, ClaimResult, Cooldown, History
from pay88_adapters.core.retry import RetryPolicy
from pay88_adapters.core.wire import TokenRequest, TokenResponse
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
from pay88_adapters.engine.store_link import OPERATION_TIMEOUT
from pay88_adapters.engine.token_flow import TokenAcquisition, WaitBudget
from pay88_adapters.stores.base import BudgetStorage, LeaseResult, Store, StoreError, StoreView
from pay88_adapters.stores.members import AT_FIRST
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore
from pay88_adapters.testing.messages import TOKEN_PATH, Received
from pay88_adapters.testing.service import Service

T = TypeVar("T")

URL = "https://api-sandbox.88pay.io"
MERCHANT = "MCH-COL-FLEET"
LIFETIME = 60.0
HOUR = 3_600.0
DOCUMENTED = ((10, 60.0), (100, HOUR))
START = 10_000.0
GUARD = TokenPolicy().fetch_timeout
ALONE = ("store down", "partition", "emptied", "failover", "old copy", "deploy")
"""Faults after which more of the budget may be spent than one process would have spent."""
RECOVERY = 70.0
"""Seconds after the last fault from which on no call fails: the life of a token, and until a store is tried again."""
_UNDER_WAY = 10.0  # seconds for which what began during a fault may be under way
_TELLING = 1.0  # seconds in which a process tells the store that the service asked to wait
_CLOSE = 2.0  # seconds by which an error may be wrong about when it is worth while to come back
_WORKERS = 3  # calls that a manager has under way at most
_PROBING = 16  # members at most, that take errors at their word: in larger fleets there are enough calls
_EASES_OFF = 15.0  # seconds after an error in which calls are further apart
_APART = 10.0  # seconds, then
_EPSILON = 1e-6
_TICK = 1e-4  # seconds: no timer is more exact


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        at: Seconds after the beginning.
        kind: What: see :data:`KINDS`.
        lasts: For how many seconds.
        who: Which member it happens to, where it happens to one.
        amount: How much: a probability, or seconds.
        how: In which way.
    """

    at: float
    kind: str
    lasts: float = 0.0
    who: int = 0
    amount: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class Scenario:
    """A fleet, and what goes wrong.

    Attributes:
        seed: Of all chance.
        members: How many processes.
        hours: For how long they run.
        gap: Mean seconds from one call of a manager to the next.
        limits: Of the token budget.
        hosts: On how many hosts, which have a fallback store each if *fallback* is true.
        managers: How many a process has.
        churn: Mean seconds that a process lives; 0 for ever. Another one takes its place.
        young: Whether each call has an HTTP client and an event loop of its own, which end with it.
        idle: How many members make no call, but for the first.
        share: Each one's of the budget while the store fails, if it is set by hand.
        faults: What goes wrong.
    """

    seed: int = 0
    members: int = 1
    hours: float = 1.0
    gap: float = 1.0
    limits: tuple[str, ...] = ("10/minute", "100/hour")
    hosts: int = 1
    fallback: bool = False
    managers: int = 1
    churn: float = 0.0
    young: bool = False
    idle: int = 0
    share: float | None = None
    faults: tuple[Fault, ...] = ()


class Violation(NamedTuple):
    """A rule that was broken."""

    at: float
    rule: str
    what: str


@dataclass(frozen=True)
class Request:
    """A token request, as the service received it."""

    at: float
    process: Process
    unit: str
    granted_at: float
    known: bool  # whether its process had ever reached the store
    through_store: bool  # whether the store granted it
    cut_off: bool  # whether its process alone could not reach the store


@dataclass
class Outcome:
    """What came of it."""

    scenario: Scenario
    violations: list[Violation] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    waited: int = 0
    failed: list[tuple[float, Pay88Error]] = field(default_factory=list)
    rejected: int = 0
    spent: int = 0
    """Calls that failed because the budget was spent before, in good faith."""
    forgotten: int = 0
    """Units of the budget that nobody is left to know of."""

    def sent(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Return when token requests arrived, in seconds after the beginning."""
        return [each.at - START for each in self.requests if since <= each.at - START < until]


class SimulatedClock(Clock):
    """What one process reads: it began at any number, and *shift* is where an operation of the store has got to."""

    def __init__(self, world: World, offset: float) -> None:
        super().__init__()
        self.shift = 0.0
        self.now: Callable[[], float] = lambda: world.now + offset + self.shift


class Remote:
    """The way of one process to a store."""

    blocking: ClassVar[bool] = True

    def __init__(self, process: Process, store: MemoryStore, reachable: Callable[[], str]) -> None:
        self.process, self._store, self._reachable = process, store, reachable
        self.budget: BudgetStorage = _RemoteBudget(self)

    def after_fork(self) -> None:
        """Nothing here forks."""

    def ask(self, question: Callable[[MemoryStore], T]) -> T:
        """Let the question travel, and the answer; or one of them get lost."""
        clock = self.process.clock
        clock.shift = max(clock.shift, 0.0)
        match self._reachable():
            case "refused":
                clock.shift += 0.002
                raise StoreError("connection refused")
            case "hangs":
                clock.shift += OPERATION_TIMEOUT
                raise StoreError("no answer")
            case "deaf":
                question(self._store)
                clock.shift += OPERATION_TIMEOUT
                raise StoreError("no answer")
            case _:
                pass
        answer = question(self._store)
        clock.shift += self.process.delay("after")
        return answer

    def try_acquire_lease(self, key: str, *, owner: str, known: int, lease: float) -> LeaseResult:
        led = self.ask(lambda store: store.try_acquire_lease(key, owner=owner, known=known, lease=lease))
        if led.fencing_token:
            self.process.leads()
        return led

    def publish(self, key: str, *, fencing_token: int, content: str, keep: float, after: float = 0.0) -> bool:
        return self.ask(
            lambda store: store.publish(key, fencing_token=fencing_token, content=content, keep=keep, after=after)
        )

    def peek(self, key: str) -> StoreView:
        return self.ask(lambda store: store.peek(key))


class _RemoteBudget(MemoryStorage):
    def __init__(self, remote: Remote) -> None:
        super().__init__(lambda: 0.0)
        self._remote = remote

    def claim(self, claim: Claim) -> ClaimResult:
        return self._remote.ask(lambda store: store.budget.claim(claim))

    def merge(self, key: str, entries: History, keep: float) -> None:
        self._remote.ask(lambda store: store.budget.merge(key, entries, keep))

    def history(self, key: str) -> History:
        return self._remote.ask(lambda store: store.budget.history(key))

    def bar(self, key: str, bar: Cooldown) -> None:
        self._remote.ask(lambda store: store.budget.bar(key, bar))

    def cooldown(self, key: str) -> Cooldown | None:
        return self._remote.ask(lambda store: store.budget.cooldown(key))


class SimulatedStore(MemoryStore):
    """The shared store. It can be set back to what it once was."""

    def copy(self) -> tuple[Any, ...]:
        """Return all that it holds."""
        budget = self.budget
        return dict(budget._histories), dict(budget._bars), dict(self._places), dict(self._members)

    def restore(self, copy: tuple[Any, ...]) -> None:
        """WaitForFetch what it held then."""
        histories, bars, places, members = map(dict, copy)
        self.budget._histories, self.budget._bars = histories, bars
        self._places, self._members = places, members

    def units(self, key: str) -> set[str]:
        """Return the ids of the units it knows of."""
        return {entry.id for entry in self.budget.history(key)}


class _Gate:
    """Wakes who waits, in simulated time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.waiting: list[Callable[[], None]] = []

    def set(self) -> None:
        for wake in self.waiting:
            self._process.soon(0.0, wake)

    def notify(self) -> None:
        """Nobody waits at it on a real clock."""


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
        self.fetches = Fetches(self.state)
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
        if self._under_way < _WORKERS:
            self.call()
        if not self._idle:
            self.plan()

    def plan(self) -> None:
        """Plan the next call that can change anything: those that find a token without asking do not."""
        self._planned += 1
        planned = self._planned
        token, until = self.state.fast_path
        rest = 0.0
        if token is not None and not self.state.awaiting_first_success and not self.world.rejects(token):
            rest = max(until - self.state.now(), 0.0)
            if rest:
                self.world.judge_token(token, self.world.now + rest - _EPSILON)

        def tick() -> None:
            if planned == self._planned:
                self.tick()

        if self.world.now < self._failed_at + _EASES_OFF:
            rest = max(rest, _APART)
        self.process.soon(rest + self._rng.expovariate(1 / self.world.scenario.gap), tick)

    def wake(self) -> None:
        """Be idle no longer."""
        if self._idle:
            self._idle = False
            self.plan()

    def replan(self) -> None:
        """StoreView again: the next call is no more one like the others."""
        if self._planned:
            self.plan()

    # --- calls

    def call(self, probes: float | None = None) -> None:
        """Make a call."""
        state = self.state
        self.world.outcome.calls += 1
        self._under_way += 1
        call = ApiCall(self.world.now, probes=probes)
        carriers = (call,) if self.world.scenario.young else (self,)
        patience = WaitBudget(self.process.policy.max_wait)

        def acquired() -> AcquireTokenFlow:
            gate = lambda: state.waiters.join("all", lambda: _Gate(self.process))  # noqa: E731 - the sequence's own callback
            return TokenAcquisition(self.fetches, gate, wait_budget=patience, carriers=carriers).run()

        self._go_on(call, run_request(state, call, acquired, state.now()))

    def _go_on(self, call: ApiCall, sequence: Generator[Any, Any, int], answer: object = None) -> None:
        if call.is_closed:
            return
        try:
            effect = sequence.send(answer)
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
                run = FetchRun(effect.ticket, cannot_wait=effect.cannot_wait)
                self.fetches.begin(run)
                if self.world.scenario.young and self._rng.random() < 0.05:  # its client is closed, too early
                    process.soon(self._rng.uniform(0.0, 0.6), lambda: self._close(call, sequence, run))
                process.soon(0.0, lambda: self._step(run, fetch_token(self.fetches, run, lambda: True), None))
                self._go_on(call, sequence, run)
            case Token():
                status = self.world.answer_call(effect)
                process.soon(self._rng.uniform(0.02, 0.1), lambda: self._go_on(call, sequence, status))
            case WaitForFetch(gate, seconds):
                self._hold(call, sequence, gate, seconds)
            case Sleep(seconds):
                process.soon(seconds, lambda: self._go_on(call, sequence))
            case DrainResponse():
                self._go_on(call, sequence)
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
                self._go_on(call, sequence)

        self.world.outcome.waited += 1
        gate.waiting.append(wake)
        self.process.soon(max(seconds, _TICK), wake)

    def probe(self, retry_after: float) -> None:
        """Take an error at its word: call again when it said."""
        if self._probing or self.world.scenario.members > _PROBING:
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
            call.is_closed = True
            sequence.close()
            self._under_way -= 1
            run.is_dead = lambda: True
            self.process.instantly(lambda: self.fetches.abandon(run, ClientClosed("the client was closed")))

    def _step(self, run: FetchRun, sequence: Generator[Any, Any, None], answer: object) -> None:
        if run.is_dead():
            return
        process = self.process

        def go_on(result: object = None) -> None:
            self._step(run, sequence, result)

        try:
            effect = sequence.send(answer)
        except StopIteration:
            process.instantly(lambda: self.fetches.end(run))
            return
        match effect:
            case LoadCredentials():
                key = self.world.key  # a moment later it may be another one
                process.soon(self._rng.uniform(0.0, 0.05), lambda: go_on(Credentials(key, MERCHANT)))
            case StoreOperation(operation):
                process.consult(operation, go_on)
            case SendTokenRequest(request):
                self.world.post(process, request, go_on, run)
            case _:
                process.soon(effect.seconds, go_on)  # of a Sleep


class Process:
    """One process of the fleet, from its start to its end."""

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
        self.barred_until: list[tuple[float, float]] = []
        self.managers: list[Manager] = []
        host = number % world.scenario.hosts
        remote = Remote(self, world.store, lambda: world.reachable(number))
        spare = (
            Remote(self, world.spares[host], lambda: world.spare_reachable(host)) if world.scenario.fallback else None
        )
        self.fleet = StoreClient(remote, self.clock, world.scenario.share, spare, f"host {host}")
        self.fleet.budget.claim = self._noted(self.fleet.budget.claim)  # type: ignore[assignment,method-assign]
        idle = number < world.scenario.idle
        self.managers = [Manager(self, idle=idle) for _ in range(world.scenario.managers)]
        # The core has set its timeouts by now. Nothing here blocks.
        for each in (remote, spare):
            if each is not None:
                each.blocking = False  # type: ignore[misc]
        self.fleet.blocking = False

    def _noted(self, claim: Callable[[Claim], ClaimResult]) -> Callable[[Claim], ClaimResult]:
        def noted(wanted: Claim) -> ClaimResult:
            answer = claim(wanted)
            if not answer.wait:
                self.grant = (wanted.ids[0], self.world.now, not self.fleet.degraded)
            elif "not all processes have reported" in answer.reason:
                self.set_aside_at = self.world.now
            return answer

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
        """Carry out an operation on a store: it asks now, the store acts later, and the answer comes later still."""
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

    def asks_soon(self) -> bool:
        """Whether it asks the store within the life of a token: not while it waits for the budget."""
        return any(each.state._machine.blocked_for(self.clock.now()) < LIFETIME for each in self.managers)

    def known(self) -> set[str]:
        """Return the ids of the units it knows of."""
        return {entry.id for entry in self.fleet.budget.known(self.world.budget_key)}


class World:
    """Everything there is, and what is judged."""

    def __init__(self, scenario: Scenario, make_store: Callable[[Clock], Store] | None = None) -> None:
        self.scenario = scenario
        self.now = START
        self.rng = random.Random(scenario.seed)
        self.outcome = Outcome(scenario)
        self.limits = scenario.limits
        self.key = "sk_test_first"
        self.rotates = any(fault.kind == "rotation" for fault in scenario.faults)
        self.service = Service(
            api_key=self.key, merchant_id=MERCHANT, token_limits=(), call_limits=(), rng=random.Random(scenario.seed)
        )
        self.store = SimulatedStore(lambda: self.now + 500_000.0)
        self.spares = [MemoryStore(lambda: self.now + 900_000.0) for _ in range(scenario.hosts)]
        self.storms: list[float] = []
        self.wall = 1.7e9
        self._revoked = 0
        self._deaths: list[float] = []
        self._attempts: list[float] = []  # when units were used, whether the service got the request or not
        self._faults: list[Fault] = []  # that are in force
        self._troubles: list[tuple[float, float]] = []
        self._limited: deque[tuple[float, str]] = deque()
        self._copies: dict[Fault, tuple[Any, ...]] = {}
        self._lost: dict[str, float] = {}  # units that the store has lost, and when
        self._forgotten: set[str] = set()  # and that nobody is left to tell it of
        self._bars: list[list[float]] = []  # that the store knows: since when, until when, until when it knows
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._recent: deque[Request] = deque()
        self.processes: list[Process] = []
        self.budget_key = ""
        for fault in scenario.faults:
            self._plan(fault)
        for number in range(scenario.members):
            self.processes.append(self._start(number, within=max(scenario.gap, 1.0)))
        self.budget_key = self.processes[0].managers[0].state.settings.budget.key(MERCHANT)

    # --- time

    def at(self, instant: float, happen: Callable[[], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._due, (instant, next(self._order), happen))

    def run(self) -> Outcome:
        """Let it all happen."""
        end = START + self.scenario.hours * HOUR
        while self._due and self._due[0][0] <= end:
            self.now, _, happen = heapq.heappop(self._due)
            happen()
        self.now = end
        self._judge_unity(end)
        self.outcome.forgotten = len(self._forgotten)
        return self.outcome

    # --- processes

    def _start(self, number: int, within: float) -> Process:
        process = Process(self, number)
        for manager in process.managers:
            manager.begin(within)
        if self.scenario.churn:
            self.at(self.now + process.rng.expovariate(1 / self.scenario.churn), self.crash_of(process))
        return process

    def crash_of(self, process: Process, restarts_in: float = 0.0) -> Callable[[], None]:
        """Return what ends a process."""

        def crash() -> None:
            if not process.alive:
                return
            process.alive = False
            self._deaths.append(self.now)
            self._forget(process.known() & self._lost.keys())
            self.at(self.now + restarts_in, lambda: self._restart(process.number))

        return crash

    def _restart(self, number: int) -> None:
        self.processes[number] = self._start(number, within=1.0)

    # --- faults

    def _plan(self, fault: Fault) -> None:
        at = START + fault.at
        if fault.kind in ("failover", "old copy"):
            self.at(at - fault.amount, lambda: self._copies.update({fault: self.store.copy()}))
        self.at(at, lambda: self._begin(fault))
        if fault.kind not in ("limited", "crash while leading", "stall"):  # whose time is known when they happen
            self._troubles.append((at, at + fault.lasts))

    def _begin(self, fault: Fault) -> None:
        self.outcome.injected[fault.kind] += 1
        process = self.processes[fault.who % len(self.processes)]
        match fault.kind:
            case "crash":
                self.crash_of(process, fault.lasts)()
            case "crash while leading":
                process.dies_leading = True
            case "pause":
                process.paused_until = max(process.paused_until, self.now + fault.lasts)
            case "stall":
                process.stall = (fault.how, fault.lasts)
            case "emptied":
                self._lose(lambda: self.store.restore(({}, {}, {}, {})))
            case "failover" | "old copy":
                self._lose(lambda: self.store.restore(self._copies[fault]))
            case "wall clock":
                self.wall += fault.amount
            case "rotation":
                self._rotate(dies=fault.how == "dies")
            case "revoked":
                self._revoke()
            case "awake":
                self._wake()
            case "limited":
                self._limited.append((fault.amount, fault.how))
            case "deploy":
                self.limits = tuple(fault.how.split(";"))
                for number, each in enumerate(self.processes):
                    self.at(self.now + number * fault.lasts / len(self.processes), self.crash_of(each))
            case _:
                self._faults.append(fault)
                self.at(self.now + fault.lasts, lambda: self._end(fault))
                if fault.kind == "storm":
                    self.storms.append(fault.amount)
                    self._replan()

    def _end(self, fault: Fault) -> None:
        self._faults.remove(fault)
        if fault.kind == "storm":
            self.storms.remove(fault.amount)

    def _replan(self) -> None:
        for process in self.processes:
            for manager in process.managers:
                manager.replan()

    def _wake(self) -> None:
        for process in self.processes:
            for manager in process.managers:
                manager.wake()

    def _rotate(self, *, dies: bool) -> None:
        old, self.key = self.key, f"sk_test_{self.now:.3f}"
        self.service.accept_credentials(self.key, MERCHANT)
        if dies:
            self.service.reject_credentials(old)
            self._revoke()

    def _revoke(self) -> None:
        self.service.refuse_current_tokens()
        self._revoked = self.service.issued
        self._replan()

    def _lose(self, how: Callable[[], object]) -> None:
        before, bars = self.store.units(self.budget_key), self.store.budget.cooldown(self.budget_key)
        how()
        lost = before - self.store.units(self.budget_key)
        self._lost |= dict.fromkeys(lost, self.now)
        self._forget(lost)
        if bars is not None and self.store.budget.cooldown(self.budget_key) is None:
            for bar in self._bars:
                bar[2] = min(bar[2], self.now)

    def _forget(self, units: set[str]) -> None:
        """Note which of these units no process is left to know of that can tell the store."""
        known = self.store.units(self.budget_key)
        for each in self.processes:
            if each.alive and not self.reachable(each.number) and self.now >= each.paused_until and each.asks_soon():
                known |= each.known()
        self._forgotten |= units - known

    def _is_cut_off(self, number: int) -> bool:
        down = any(fault.kind == "store down" for fault in self._faults)
        return bool(self.reachable(number)) and not down

    def reachable(self, number: int) -> str:
        """Return "" if the store answers a process, or else what happens instead."""
        for fault in self._faults:
            if fault.kind == "store down" or (fault.kind == "partition" and fault.who % len(self.processes) == number):
                return fault.how
        return ""

    def spare_reachable(self, host: int) -> str:
        """Return the same for the fallback store of a host."""
        down = any(fault.kind == "fallback down" and fault.who % self.scenario.hosts == host for fault in self._faults)
        return "refused" if down else ""

    def trouble(self, lasts: float) -> None:
        """Note that something goes wrong from now on for so many seconds."""
        self._troubles.append((self.now, self.now + lasts))

    def calm(self, since: float, until: float) -> bool:
        """Whether nothing goes wrong all that time."""
        return all(end <= since or begin > until for begin, end in self._troubles)

    # --- the service

    def post(
        self,
        process: Process,
        request: TokenRequest,
        then: Callable[[TokenResponse | Exception], None],
        run: FetchRun,
    ) -> None:
        """Let a token request travel, and its answer."""
        unit, granted_at, through_store = process.grant
        self._attempts.append(self.now)
        deadline, rng = self.now + request.timeout, process.rng
        cut_off = not through_store and self._is_cut_off(process.number)
        sent = Request(0.0, process, unit, granted_at, process.fleet.share.was_told, through_store, cut_off)

        def fail(how: str, at: float) -> None:
            error = TimeoutError("timed out") if how == "hangs" else ConnectionError(how)
            process.soon(max(min(at, deadline) - self.now, 0.0), lambda: then(error))

        def arrive() -> None:
            outages = [fault for fault in self._faults if fault.kind in ("outage", "flaky")]
            outages = [fault for fault in outages if fault.kind == "outage" or rng.random() < fault.amount]
            ways = [fault.how for fault in outages]
            if "refused" in ways:
                fail("refused", self.now)
                return
            self._record(sent)
            if "hangs" in ways:
                fail("hangs", deadline)
                return
            reply = self._answer_token(request, ways)
            took = rng.uniform(0.02, 0.3) if rng.random() < 0.95 else rng.uniform(0.3, 2.0)
            if self.now + took >= deadline:
                fail("hangs", deadline)
                return
            process.soon(took, lambda: self._receive(process, reply, then, run))

        self.at(self.now + rng.uniform(0.002, 0.1), arrive)

    def _answer_token(self, request: TokenRequest, ways: list[str]) -> TokenResponse:
        fields = {name.lower(): str(value) for name, value in request.headers.items()}
        received = Received("POST", TOKEN_PATH, fields)
        if self._limited:
            seconds, how = self._limited.popleft()
            self.trouble(seconds)
            answer = self.service.error(429, received, self.now, self.wall + self.now, event="limited")
            said = formatdate(self.wall + self.now + seconds + 0.999, usegmt=True) if how == "date" else f"{seconds:g}"
            return TokenResponse(429, {**dict(answer.headers), "Retry-After": said}, answer.body)
        if ways:
            answer = self.service.error(503, received, self.now, self.wall + self.now)
        else:
            answer = self.service.handle(received, self.now, self.wall + self.now)
        return TokenResponse(answer.status, dict(answer.headers), answer.body)

    def _receive(
        self,
        process: Process,
        reply: TokenResponse,
        then: Callable[[TokenResponse | Exception], None],
        run: FetchRun,
    ) -> None:
        if reply.status == 429 and not run.is_dead():
            until = self._troubles[-1][1]
            process.barred_until.append((self.now, until))
            process.soon(_TELLING, lambda: self._hear_of_bar(process, until))
        then(reply)

    def _hear_of_bar(self, process: Process, until: float) -> None:
        """The store has to know by now, if it could be reached."""
        if not self.reachable(process.number):
            self._bars.append([self.now, until, float("inf")])

    def rejects(self, token: Token) -> bool:
        """Whether a call with *token* may be answered 401."""
        serial, _ = self.service.trace(
            Received("GET", "/", {"authorization": f"Bearer {token.access_token}"}), self.now
        )
        return bool(self.storms) or serial is None or serial <= self._revoked

    def answer_call(self, token: Token) -> int:
        """ClaimResult a call of the API."""
        self.judge_token(token, self.now)
        headers = {"authorization": f"Bearer {token.access_token}", "x-session-id": token.session_id}
        if any(self.rng.random() < storm for storm in self.storms):
            return 401
        return self.service.handle(Received("GET", "/api/echo", headers), self.now, self.wall).status

    # --- what is judged

    def violate(self, rule: str, what: str) -> None:
        """Note that a rule was broken."""
        self.outcome.violations.append(Violation(round(self.now - START, 3), rule, what))

    def judge_token(self, token: Token, at: float) -> None:
        """Rule 1: no call is sent with a token past its life."""
        headers = {"authorization": f"Bearer {token.access_token}"}
        _, age = self.service.trace(Received("GET", "/api/echo", headers), at)
        if age is None or age >= LIFETIME:
            self.violate("token", f"a call is sent with a token {age} s old")

    def _record(self, sent: Request) -> None:
        request = replace(sent, at=self.now)
        self.outcome.requests.append(request)
        self._recent.append(request)
        while self._recent[0].at <= self.now - HOUR - GUARD:
            self._recent.popleft()
        own = tuple((item.amount, float(item.get_expiry())) for item in request.process.policy.rate_limits())
        unknown = self._forgotten | self._untold()
        counted = [each for each in self._recent if each.known and not each.cut_off and each.unit not in unknown]
        for amount, seconds in own if request.known and not request.cut_off else ():
            found = sum(each.at > self.now - seconds for each in counted)
            if found > amount:
                self.violate("budget", f"{found} token requests in {seconds:g} s: at most {amount}")
        if request.cut_off and request.known:
            self._judge_cut_off(request, {seconds: amount for amount, seconds in own})
        if not (request.known or self.scenario.fallback):
            self._judge_newborn(request)
        self._judge_bar(request)

    def _untold(self) -> set[str]:
        """Return the units that the store has lost and that those who know of them have not told it yet.

        They tell it when they ask it next. Whoever asks before them cannot know: what a failover costs at most is what
        was used in the time that it lost.
        """
        lost = {unit for unit, at in self._lost.items() if self.now < at + RECOVERY}
        return lost - self.store.units(self.budget_key) if lost else lost

    def _judge_newborn(self, request: Request) -> None:
        """Rule 24: what never reached the store takes a quarter of each limit, and one at least.

        It knows neither how many more there are like it nor what was used before it was born: so four of them stay
        within the budget together, and more than that only with a ``fallback_share`` or a fallback store. Their token
        requests are left out where the budget of all is judged.
        """
        process, part = request.process, self.scenario.share or 1 / AT_FIRST
        own = [each.at for each in self._recent if each.process is process and not each.known]
        for item in process.policy.rate_limits():
            found = sum(at > self.now - item.get_expiry() for at in own)
            if found > max(item.amount * part, 1):
                self.violate("newborn", f"{found} token requests in {item.get_expiry()} s, with {part:g} of {item}")

    def _judge_cut_off(self, request: Request, limits: Mapping[float, int]) -> None:
        """Rule 24: who alone is cut off takes its share and no more, whatever the others do meanwhile."""
        fleet = request.process.fleet
        parts = fleet.share.parts(fleet.link.failing_since)
        host = request.process.number % self.scenario.hosts if self.scenario.fallback else None
        together = [
            each
            for each in self._recent
            if each.cut_off and (each.process is request.process or each.process.number % self.scenario.hosts == host)
        ]
        for seconds, amount in limits.items():
            found = sum(each.at > self.now - seconds for each in together)
            if found * parts > amount:
                self.violate("share", f"{found} token requests in {seconds:g} s, with one part in {parts} of {amount}")

    def _judge_bar(self, request: Request) -> None:
        """Rule 10: nobody sends a token request before ``Retry-After``, who can know of it."""
        heard = [until for at, until in request.process.barred_until if at <= request.granted_at]
        if request.through_store:
            heard += [until for at, until, kept in self._bars if at < request.granted_at <= kept]
        if heard and self.now < max(heard):
            self.violate("429", f"a token request {max(heard) - self.now:.3f} s before the end of Retry-After")

    def judge_call(self, manager: Manager, call: ApiCall, ended: int | Pay88Error) -> None:
        """Every call ends, in time, with a response or an error that tells the truth."""
        process, policy = manager.process, manager.process.policy
        took = self.now - call.began_at
        if took > policy.max_wait + 1.0 and process.paused_until <= call.began_at:
            self.violate("wait", f"a call took {took:.1f} s")
        if isinstance(ended, int):
            if ended == 401:
                self.outcome.rejected += 1
                if self.calm(call.began_at - RECOVERY, self.now) and not self.storms:
                    self.violate("401", "a call was answered 401, and nothing was wrong")
            return
        self.outcome.failed.append((self.now - START, ended))
        name = f"{type(ended).__name__}: {ended}"
        after = ended.retry_after
        longest = max(item.get_expiry() for item in policy.rate_limits()) + policy.fetch_timeout
        if after is None or not 0 <= after <= max(longest, policy.max_retry_after):
            self.violate("retry_after", f"it is {after}: {name}")
            return
        if self._is_spent(process, call, ended):
            self.outcome.spent += 1
        elif self.calm(call.began_at - self._lingers(ended), self.now):
            self.violate("recovery", f"a call failed, and nothing was wrong: {name} (retry_after={after:.1f})")
        elif call.probes is not None and after > _CLOSE and self.calm(call.probes - self._settles(ended), self.now):
            waited = call.began_at - call.probes
            self.violate(
                "lie", f"it was worth while to retry after {waited:.1f} s, an error said: {name} ({after:.1f})"
            )
        manager.probe(after)

    def _lingers(self, error: Pay88Error) -> float:
        """Return for how long after the end of a fault an error may still be due to it.

        A process that has a token notices that the store is back when it needs another one, and others as late.
        """
        return 2 * RECOVERY if isinstance(error, TokenBudgetExhausted) else RECOVERY

    def _settles(self, error: Pay88Error) -> float:
        """Return how long after a fault an error has to be right about when it is worth while to come back.

        What others try while a fault lasts bars all of them once more: so it counts from when the error was raised.
        """
        return 2 * RECOVERY if isinstance(error, TokenBudgetExhausted) else _UNDER_WAY

    def _is_spent(self, process: Process, call: ApiCall, error: Pay88Error) -> bool:
        """Whether the budget is spent indeed, since processes went on alone, or with more than they have now.

        Or may be, for all that is known, by a process that has ended since the store knew it. A process that ends in
        the middle of a fetch also takes a token with it that was paid for, and that nobody can get from it.
        """
        ago = self.now - START - HOUR - 2 * GUARD
        alone = [each for each in self.scenario.faults if each.kind in ALONE and each.at + each.lasts > ago]
        if not error.retryable or not (alone or self._deaths):
            return False
        if self.scenario.idle and process.set_aside_at >= call.began_at - _UNDER_WAY:
            return True  # there is one that makes no call, and may have made some
        if any(each.at - HOUR < death - START < each.at + each.lasts for each in alone for death in self._deaths):
            return True
        limits = [(item.amount, item.get_expiry() + GUARD + 1.0) for item in process.policy.rate_limits()]
        used = [at for at in self._attempts if at <= call.began_at]
        stored = [
            self.now - entry.age for entry in self.store.budget.history(self.budget_key)
        ]  # some without a request
        return any(
            sum(at > call.began_at - seconds for at in units) >= amount
            for amount, seconds in limits
            for units in (used, stored)
        )

    def _judge_unity(self, end: float) -> None:
        """Rule 4: once nothing is wrong, all of them ask for what one would."""
        if self.scenario.churn or self.scenario.young:
            return
        since = max([START, *(until for _, until in self._troubles)]) + 3 * RECOVERY
        sent = [each for each in self.outcome.requests if each.at >= since]
        if end - since >= 600 and len(sent) > (end - since) / 44.0 + 2:
            self.violate("unity", f"{len(sent)} token requests in {end - since:.0f} s in which nothing was wrong")


@contextmanager
def _silence() -> Generator[None, None, None]:
    logger = logging.getLogger("pay88_adapters")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def simulate(scenario: Scenario) -> Outcome:
    """Let a scenario happen."""
    with _silence():
        return World(scenario).run()

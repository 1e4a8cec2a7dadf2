"""Every interleaving of events at the machine, to a depth; and random ones far deeper.

The machine and the budget are the real ones. :class:`Model` plays callers, carriers of fetches, the
token endpoint and the API one event at a time, and knows no order among them: whatever can happen in
a state, happens in some branch. Time jumps to the next instant at which anything could change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from conftest import Report
from pay88_adapters import Token, TokenPolicy
from pay88_adapters.budget import Grant, TokenBudget
from pay88_adapters.errors import (
    CredentialsRejected,
    Failure,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.machine import Fail, Fetch, TokenMachine, Use, Wait
from pay88_adapters.snapshot import Snapshot
from pay88_adapters.stores.base import Entry
from pay88_adapters.stores.memory import MemoryStorage
from pay88_adapters.testing.windows import largest_window

BROKEN = Failure(TokenEndpointUnavailable, "broken", status=503, retryable=True)
ODD = Failure(TokenEndpointUnavailable, "odd", status=404)
NONSENSE = Failure(TokenResponseInvalid, "nonsense", status=200, retryable=True)
REJECTED = Failure(CredentialsRejected, "rejected", status=401)
LIMITED = Failure(TokenRateLimited, "limited", status=429, retry_after=15.0, retryable=True)
GONE = Failure(TokenEndpointUnavailable, "its loop was closed", retryable=True)
FAILURES = (BROKEN, ODD, REJECTED, LIMITED)
FOUND = ("a token", "an old token", "a limit", "a failure")

INSTANTS = ("_barred_until", "_asked_until", "_ordinary_at", "_forced_at")
COUNTED_APART = ("_policy", "_last_ticket", "failed_fetches", "_held", "_flights")
NEVER = float("-inf")


class Caller(NamedTuple):
    """One caller; which one is of no importance."""

    doing: str = "idle"  # or "deciding", "waiting", "calling"
    deadline: float = 0.0
    seen: int = 0
    until: float = 0.0
    token: Token | None = None
    replayed: bool = False


class Carrier(NamedTuple):
    """What carries one fetch."""

    ticket: int
    stage: str = "credentials"  # then "store" if there is one, "budget", "answer", "pause"
    at: float = 0.0  # when its request was sent, or its pause ends
    then: str = "budget"  # what comes after the pause
    digest: str = ""


Event = Callable[["Model"], None]
Entries = dict[str, list[float]]


@cache
def token(serial: int, sent_at: float, expires_in: float) -> Token:
    """Return the token with a number."""
    return Token(f"token-{serial}", f"session-{serial}", expires_in, sent_at)


class World:
    """What does not change along a path: the policy, and a budget whose entries are put in and taken out."""

    def __init__(self, *, rotating: bool = False, shared: bool = False, **policy: Any) -> None:
        self.shared = shared
        self.policy = TokenPolicy(**policy)
        self.limits = self.policy.rate_limits()
        self.rotating = rotating
        self.now = 0.0
        self._storage = MemoryStorage(lambda: self.now)
        self._budget = TokenBudget(self.policy, self._storage, "https://api.example")

    def acquire(self, entries: Entries, now: float, *, extra: bool) -> tuple[Grant, Entries]:
        """Take a unit; return the answer, and what the storage holds now."""
        self.now, storage = now, self._storage
        storage.reset()
        for key, instants in entries.items():
            storage.merge(key, [Entry(str(number), now - at) for number, at in enumerate(instants)], 0.0)
        grant = self._budget.acquire("M", extra=extra)
        keys = self._budget.keys("M")
        return grant, {key: [now - each.age for each in storage.history(key)] for key in keys}


class Model:
    """One state of everything."""

    def __init__(self, world: World, callers: int = 1) -> None:
        self.world = world
        self.machine = TokenMachine(world.policy, rotating=world.rotating)
        self.now = 0.0
        self.callers = [Caller()] * callers
        self.carriers: list[Carrier] = []
        self.entries: Entries = {}
        self.published: tuple[Token | None, float] = (None, NEVER)
        self.digest = "first"
        self.sent: list[float] = []
        self.serial = 0
        self.usable: Token | None = None  # the newest token, if nobody took it away
        self.silent_until = NEVER  # the token endpoint asked for that
        self.rejected: dict[str, float] = {}

    def clone(self) -> Model:
        """Return a state that can go another way."""
        other = object.__new__(Model)
        other.__dict__.update(self.__dict__)
        other.machine = copy.copy(self.machine)
        other.machine._flights = {ticket: replace(each) for ticket, each in self.machine._flights.items()}
        other.callers, other.carriers = list(self.callers), list(self.carriers)
        other.sent, other.rejected = list(self.sent), dict(self.rejected)
        return other

    def key(self) -> object:
        """Name the state: equal keys, equal futures. Instants count from now."""
        machine, now = self.machine, self.now
        held = machine._held
        return (
            *(
                getattr(machine, name) - now if name in INSTANTS else getattr(machine, name)
                for name in TokenMachine.__slots__
                if name not in COUNTED_APART
            ),
            held and (held.refresh_at - now, held.reuse_until - now, held.usable_until - now),
            tuple(
                (ticket - machine._last_ticket, each.due_at - now, each.forced, each.attempts, each.failure)
                for ticket, each in machine._flights.items()
            ),
            tuple(
                sorted(
                    (
                        each.doing,
                        each.deadline - now,
                        machine.failed_fetches > each.seen,
                        each.until - now,
                        held is not None and each.token == held.token,
                        each.replayed,
                    )
                    if each.doing != "idle"
                    else ()
                    for each in self.callers
                )
            ),
            tuple(
                (each.ticket - machine._last_ticket, each.stage, each.at - now, each.digest, each.then)
                for each in self.carriers
            ),
            tuple(tuple(at - now for at in entries) for entries in self.entries.values()),
            self.digest,
            (self.published[0] is None, self.published[1] - now),
            # What the checks remember; what was sent is in the budget's entries, too.
            (self.usable is None, held is not None and self.usable == held.token, self.serial > 0),
            max(self.silent_until - now, 0.0),
            tuple((digest, max(until - now, 0.0)) for digest, until in sorted(self.rejected.items())),
        )

    # --- what can happen

    def events(self) -> Iterator[tuple[str, Event]]:
        """Give everything that can happen now. Callers in the same state stand for one another."""
        seen: set[Caller] = set()
        for index, caller in enumerate(self.callers):
            if caller in seen:
                continue
            seen.add(caller)
            match caller.doing:
                case "idle":
                    yield "a call comes", partial(Model.come, index=index)
                case "deciding":
                    yield "a caller decides", partial(Model.decide, index=index)
                case "calling":
                    yield "a call is answered 200", partial(Model.answered, index=index)
                    yield "a call is answered 401", partial(Model.refused, index=index)
                case _:
                    pass  # it waits
        for index, carrier in enumerate(self.carriers):
            match carrier.stage:
                case "credentials":
                    yield "credentials arrive", partial(Model.credentials, index=index)
                    yield "the credentials callable raises", partial(Model.no_credentials, index=index)
                case "store":
                    yield "the lease is ours", partial(Model.lead, index=index)
                    yield "somebody else leads", partial(Model.wait_for_another, index=index)
                    for found, name in enumerate(FOUND):
                        yield f"somebody else has found {name}", partial(Model.consult, index=index, found=found)
                case "budget":
                    yield "the budget is asked", partial(Model.attempt, index=index)
                case "answer":
                    for lifetime in (60.0, 1.0):
                        yield (
                            f"a token for {lifetime:g} s arrives",
                            partial(Model.arrive, index=index, lifetime=lifetime),
                        )
                    if self.serial:
                        yield (
                            "the same token arrives again",
                            partial(Model.arrive, index=index, lifetime=60.0, again=True),
                        )
                    for failure in FAILURES:
                        yield f"the answer is {failure.message}", partial(Model.fail, index=index, failure=failure)
                    yield "the carrier is lost", partial(Model.abandon, index=index)
                    yield "the carrier is never heard of again", partial(Model.vanish, index=index)
                    if carrier.at == self.now:
                        yield "the answer takes a while", partial(Model.pass_time, seconds=2.0)
                case _:
                    if self.now >= carrier.at:
                        yield f"on to the {carrier.then}", partial(Model.go_on, index=index)
        if self.usable is not None:
            yield "the token is invalidated", Model.invalidate
        if self.world.rotating and self.digest == "first":
            yield "the key is rotated", Model.rotate
        boundary = min((at for at in self.boundaries() if at > self.now), default=None)
        if boundary is not None:
            yield "time passes", partial(Model.pass_time, seconds=boundary - self.now)

    def boundaries(self) -> Iterator[float]:
        """Give the instants at which something could change by itself."""
        machine, policy = self.machine, self.world.policy
        if machine._held is not None:
            yield machine._held.refresh_at
            yield machine._held.reuse_until
            yield machine._held.usable_until - policy.expiry_skew
            yield machine._held.usable_until
        yield machine._barred_until
        yield machine._ordinary_at + machine._interval()
        yield machine._forced_at + machine._spacing
        yield machine._forced_at + policy.rejection_cooldown
        yield from (flight.due_at for flight in machine._flights.values())
        yield from (caller.until for caller in self.callers if caller.doing == "waiting")
        yield from (carrier.at for carrier in self.carriers if carrier.stage == "pause")

    # --- callers

    def come(self, index: int, wait: float = 20.0) -> None:
        """A call arrives: the cached path first, as the exchange does."""
        self._acquire(index, replayed=False, wait=wait)

    def _acquire(self, index: int, *, replayed: bool, wait: float = 20.0) -> None:
        cached, until = self.published
        caller = Caller("deciding", self.now + wait, self.machine.failed_fetches, replayed=replayed)
        if cached is not None and self.now < until:
            self._hand(index, caller, cached)
        else:
            self.callers[index] = caller
            self.decide(index)

    def decide(self, index: int, **more: Any) -> None:
        """A caller asks the machine."""
        caller = self.callers[index]
        with_flights = len(self.machine.in_flight)
        decision = self.machine.decide(self.now, seen=caller.seen, deadline=caller.deadline, **more)
        self._settle(with_flights)
        match decision:
            case Use(given, refresh):
                if refresh is not None:
                    self.carriers.append(Carrier(refresh))
                self._hand(index, caller, given)
            case Fetch(ticket):
                self.carriers.append(Carrier(ticket))
            case Wait(until):
                assert self.now < until <= caller.deadline, "rule 6: never longer than max_wait"
                self.callers[index] = caller._replace(doing="waiting", until=until)
            case Fail(failure, retry_after):
                assert retry_after >= 0
                assert failure.message
                assert self.usable is None or self.now >= self._usable_until(self.usable), (
                    "rule 6: an error, and there is a usable token"
                )
                self.callers[index] = Caller()

    def _hand(self, index: int, caller: Caller, given: Token) -> None:
        assert self.now < self._usable_until(given), "rule 6: handed a token past its end"
        assert self.usable is not None, "handed a token that was taken away"
        self.callers[index] = Caller("calling", token=given, replayed=caller.replayed)

    def _usable_until(self, given: Token) -> float:
        # Where less than two seconds are granted, half of them are used whatever the skew.
        return given.requested_at + max(given.expires_in - self.world.policy.expiry_skew, given.expires_in / 2)

    def answered(self, index: int) -> None:
        """The API accepts the token."""
        used = self.callers[index].token
        assert used is not None
        if self.machine.unproven:
            self._told(lambda: self.machine.token_accepted(used))
        self.callers[index] = Caller()

    def refused(self, index: int) -> None:
        """The API answers 401."""
        caller = self.callers[index]
        used = caller.token
        assert used is not None
        again = self._told(lambda: self.machine.token_refused(used, self.now))
        if again and not caller.replayed:
            self._acquire(index, replayed=True)
        else:
            self.callers[index] = Caller()

    def invalidate(self) -> None:
        """The user throws the current token away."""
        dropped, self.usable = self.usable, None
        assert dropped is not None
        self._told(lambda: self.machine.token_dropped(dropped))

    # --- fetches

    def credentials(self, index: int) -> None:
        """The credentials are there."""
        carrier = self.carriers[index]
        if self._told(lambda: self.machine.credentials_arrived(carrier.ticket, self.digest, self.now)):
            stage = "store" if self.world.shared else "budget"
            self.carriers[index] = carrier._replace(stage=stage, digest=self.digest)
        else:
            del self.carriers[index]

    def lead(self, index: int) -> None:
        """The store gives the lease to this fetch."""
        if self._told(lambda: self.machine.still_there(self.carriers[index].ticket, self.now)):
            self.carriers[index] = self.carriers[index]._replace(stage="budget")
        else:
            del self.carriers[index]

    def wait_for_another(self, index: int) -> None:
        """The store has given it to somebody else."""
        carrier = self.carriers[index]
        if self._told(lambda: self.machine.still_there(carrier.ticket, self.now, pause=1.0)):
            self.carriers[index] = carrier._replace(stage="pause", at=self.now + 1.0, then="store")
        else:
            del self.carriers[index]

    def consult(self, index: int, found: int) -> None:
        """The store holds what somebody else has found out."""
        carrier, now = self.carriers[index], self.now
        heard = carrier.ticket in self.machine.in_flight
        match list(FOUND)[found]:
            case "a token":
                self.serial += 1
                arrived = token(self.serial, now - 1.0, 60.0)
                told = Snapshot(arrived, ordinary_at=now - 1.0)
                if heard and (self.usable is None or self.usable.requested_at <= now - 1.0):
                    self.usable = arrived
            case "an old token":
                self.serial += 1
                arrived = token(self.serial, now - 55.0, 60.0)
                told = Snapshot(arrived, ordinary_at=now - 55.0)
                if heard and (self.usable is None or self.usable.requested_at <= now - 55.0):
                    self.usable = arrived
            case "a limit":
                told = Snapshot(bar=LIMITED, barred_until=now + 15.0)
                self.silent_until = max(now + 15.0, self.silent_until) if heard else self.silent_until
            case _:
                told = Snapshot(bar=BROKEN, barred_until=now + 2.0, failures=2)
        if not self._told(lambda: self.machine.consulted(carrier.ticket, told, now, digest=carrier.digest)):
            del self.carriers[index]

    def go_on(self, index: int) -> None:
        """A pause has ended."""
        carrier = self.carriers[index]
        self.carriers[index] = carrier._replace(stage=carrier.then, then="budget")
        if carrier.then == "budget":
            self.attempt(index)

    def no_credentials(self, index: int) -> None:
        """There are none."""
        ticket = self.carriers.pop(index).ticket
        self._told(lambda: self.machine.fetch_failed(ticket, GONE, self.now))

    def attempt(self, index: int) -> None:
        """The budget decides about the next request."""
        carrier = self.carriers[index]
        if self._told(lambda: self.machine.stopped(carrier.ticket, self.now)):
            del self.carriers[index]
            return
        extra = self.machine.next_is_extra(carrier.ticket, self.now)
        grant, self.entries = self.world.acquire(self.entries, self.now, extra=extra)
        if not self._told(lambda: self.machine.budget_answered(carrier.ticket, grant, self.now, extra=extra)):
            del self.carriers[index]
            return
        assert grant.granted, "rule 5: sent without a unit"
        assert self.now >= self.silent_until, "rule 10: sent before Retry-After"
        assert self.now >= self.rejected.get(carrier.digest, NEVER), "rule 9: sent with rejected credentials"
        self.sent.append(self.now)
        for item in self.world.limits:
            assert largest_window(self.sent, item.get_expiry()) <= item.amount, "rule 5: the budget is passed"
        self.carriers[index] = carrier._replace(stage="answer", at=self.now)

    def arrive(self, index: int, lifetime: float, *, again: bool = False) -> None:
        """The answer is a token."""
        carrier = self.carriers.pop(index)
        self.serial += not again
        arrived = token(self.serial, carrier.at, lifetime)
        if carrier.ticket in self.machine.in_flight and self.now < self._usable_until(arrived):
            self.usable = arrived
        self._told(lambda: self.machine.token_arrived(carrier.ticket, arrived, self.now))

    def fail(self, index: int, failure: Failure) -> None:
        """The answer is no token."""
        carrier = self.carriers.pop(index)
        machine, now = self.machine, self.now
        heard = carrier.ticket in machine.in_flight
        if heard and failure.kind is CredentialsRejected and machine._refused:
            self.usable = None  # the service says no on both sides
        pause = self._told(
            lambda: machine.attempt_failed(carrier.ticket, failure, now, draw=0.5, digest=carrier.digest)
        )
        if pause is not None:
            self.carriers.insert(index, carrier._replace(stage="pause", at=now + pause))
        elif heard and failure.kind is TokenRateLimited:
            self.silent_until = now + min(failure.retry_after or 0.0, self.world.policy.max_retry_after)
        elif heard and failure.kind is CredentialsRejected:
            self.rejected[carrier.digest] = now + self.world.policy.rejection_cooldown

    def abandon(self, index: int) -> None:
        """The task that carries the fetch ends, and says so."""
        ticket = self.carriers.pop(index).ticket
        self._told(lambda: self.machine.fetch_abandoned(ticket, GONE, self.now))

    def vanish(self, index: int) -> None:
        """It ends, and says nothing."""
        del self.carriers[index]

    # --- everything else

    def rotate(self) -> None:
        """There is a new key."""
        self.digest = "second"

    def pass_time(self, seconds: float) -> None:
        """Time passes; who has waited long enough looks again."""
        self.now += seconds
        for index, caller in enumerate(self.callers):
            if caller.doing == "waiting" and self.now >= caller.until:
                self.callers[index] = caller._replace(doing="deciding")

    def _told(self, event: Callable[[], Any]) -> Any:
        with_flights = len(self.machine.in_flight)
        answer = event()
        self._settle(with_flights)
        return answer

    def _settle(self, with_flights: int) -> None:
        """Do what the manager does after each event: publish, and wake who waits when a fetch has ended."""
        self.published = self.machine.unasked(self.now)
        if len(self.machine.in_flight) < with_flights:
            self.callers = [
                each._replace(doing="deciding") if each.doing == "waiting" else each for each in self.callers
            ]

    # --- what holds in every state

    def check(self) -> None:
        """Raise where a rule does not hold."""
        machine = self.machine
        in_flight = machine.in_flight
        assert len(in_flight) <= 1, "rule 3: two fetches in flight"
        for caller in self.callers:
            if caller.doing == "waiting":
                assert self.now < caller.until, "rule 17: a caller waits for an instant that has passed"
                assert in_flight or caller.until <= machine._barred_until, "rule 17: they wait, and nobody leads"
        cached, until = self.published
        if cached is not None:
            assert until <= self._usable_until(cached), "rule 6: published past its end"


def explore(start: Model, depth: int) -> tuple[int, int, int]:
    """Go every way from *start*; return how many states, transitions and interleavings there are."""
    numbers = {start.key(): 0}
    successors: list[list[int]] = []
    frontier: list[tuple[Model, Any]] = [(start, None)]
    for _ in range(depth):
        reached: list[tuple[Model, Any]] = []
        for state, path in frontier:
            successors.append([])
            for name, event in state.events():
                after, step = state.clone(), (path, name)
                try:
                    event(after)
                    after.check()
                except AssertionError as exc:
                    raise AssertionError(f"{exc}, after: {trail(step)}") from exc
                key = after.key()
                number = numbers.get(key)
                if number is None:
                    number = numbers[key] = len(numbers)
                    reached.append((after, step))
                successors[-1].append(number)
        frontier = reached
    return len(numbers), sum(map(len, successors)), interleavings(successors, depth)


def trail(step: Any) -> str:
    """Write out how a state was reached."""
    names: list[str] = []
    while step is not None:
        step, name = step
        names.append(name)
    return "; ".join(reversed(names))


def interleavings(successors: list[list[int]], depth: int) -> int:
    """Count the sequences of *depth* events."""
    ways = {0: 1}
    for _ in range(depth):
        further: dict[int, int] = {}
        for state, count in ways.items():
            for successor in successors[state]:
                further[successor] = further.get(successor, 0) + count
        ways = further
    return sum(ways.values())


def warm(world: World, callers: int) -> Model:
    """Return a state with a fresh token, and every caller in the middle of a call with it."""
    model = Model(world, callers)
    model.come(0)
    model.credentials(0)
    model.attempt(0)
    model.arrive(0, 60.0)
    model.callers = [Caller()] * callers
    for index in range(callers):
        model.come(index)
    return model


EXPLORATIONS: dict[str, tuple[Callable[[], Model], int]] = {
    "four callers, cold": (lambda: Model(World(), 4), 8),
    "four callers with one token": (lambda: warm(World(), 4), 8),
    "one caller, deep": (lambda: Model(World()), 11),
    "credentials rotate": (lambda: Model(World(rotating=True), 2), 9),
    "hardly any budget": (lambda: Model(World(limits=("1/minute", "3/hour"), forced_reserve=1), 2), 9),
    "no budget to speak of": (lambda: Model(World(limits=("1000/second",), forced_reserve=1000), 2), 9),
    "two callers of a fleet": (lambda: Model(World(shared=True), 2), 9),
    "impatient callers": (lambda: Model(World(max_wait=2.0, limits=("2/minute",)), 3), 8),
}


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", EXPLORATIONS)
def test_rules_03_to_12_hold_in_every_interleaving(which: str, report: Report) -> None:
    """One fetch in flight; whoever waits, somebody leads; no token past its end; no error while there is one.

    And never past the budget, before ``Retry-After`` or with credentials that were just rejected.
    """
    start, depth = EXPLORATIONS[which]
    states, transitions, ways = explore(start(), depth)
    report(f"{states:,} states, {transitions:,} transitions, {ways:,} interleavings of {depth} events")
    assert states > 10_000


class AnyOrder(RuleBasedStateMachine):
    """The same model, driven at random through long stories with times and answers of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(World(rotating=True, shared=True, limits=("4/minute", "12/hour"), forced_reserve=4), 4)

    @rule(pick=st.integers(0, 1000))
    def happen(self, pick: int) -> None:
        """Do one of the things that can happen."""
        events = list(self.model.events())
        _, event = events[pick % len(events)]
        event(self.model)
        self.model.check()

    @rule(seconds=st.floats(0, 90, allow_subnormal=False))
    def pass_time(self, seconds: float) -> None:
        """Time passes, to no particular instant."""
        self.model.pass_time(seconds)
        self.model.check()

    @rule(pick=st.integers(0, 3), wait=st.floats(0, 20))
    def come(self, pick: int, wait: float) -> None:
        """A call that cannot wait as long as others."""
        if self.model.callers[pick].doing == "idle":
            self.model.come(pick, wait)
            self.model.check()

    @precondition(lambda self: any(each.stage == "answer" for each in self.model.carriers))
    @rule(answer=st.floats(0.01, 300) | st.sampled_from([*FAILURES, NONSENSE, replace(LIMITED, retry_after=9000.0)]))
    def hear(self, answer: float | Failure) -> None:
        """An answer of any kind."""
        index = next(index for index, each in enumerate(self.model.carriers) if each.stage == "answer")
        if isinstance(answer, Failure):
            self.model.fail(index, answer)
        else:
            self.model.arrive(index, answer)
        self.model.check()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(deadline=None, max_examples=150, stateful_step_count=80)

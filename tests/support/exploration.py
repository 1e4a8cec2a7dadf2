"""Every interleaving of events around a machine: a model of its callers and carriers, and what holds in each state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

from pay88_adapters import Token, TokenPolicy
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import Fail, Fetch, Use, Wait
from pay88_adapters.core.errors import (
    CredentialsRejected,
    Failure,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.fetch_machine import FetchMachine
from pay88_adapters.core.forced_refreshes import spacing
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.snapshot import Snapshot
from pay88_adapters.engine.budget import TokenBudget
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

PARTS = ("pending", "cooldown", "forced")
INSTANTS = ("until", "requested_until", "_refreshed_at", "last_at", "reserve_used_at")
COUNTED_APART = ("last_ticket", "failed_fetches", "ended", "_token", "_deadlines", "by_ticket", *PARTS)
REACTION = 0.5
YOUNG = 0.0  # the age of a client or an event loop that is seen for the first time
NEVER = float("-inf")


class Caller(NamedTuple):
    """One caller; which one is of no importance."""

    doing: str = "idle"  # or "deciding", "waiting", "calling"
    deadline: float = 0.0
    seen: int = 0
    until: float = 0.0
    token: Token | None = None
    replayed: bool = False
    dependency_age: float = float("inf")
    own: int | None = None  # the fetch that it has started
    bereft: bool = False  # that has died with what it borrowed from this caller


class Carrier(NamedTuple):
    """What carries one fetch."""

    ticket: int
    stage: str = "start"  # then "credentials", "store" if there is one, "budget", "granted", "response", "pause"
    at: float = 0.0  # when its unit was granted, its request was sent, or its pause ends
    then: str = "budget"  # what comes after the pause
    digest: str = ""
    interrupted: bool = False
    ordinary_before: float | None = None  # when the last ordinary request was sent, before this fetch's first


Event = Callable[["Model"], None]
Entries = dict[str, tuple[Any, ...]]  # the histories of a storage, by key: all instants, then all ids


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

    def acquire(self, entries: Entries, now: float, *, extra: bool) -> tuple[AcquireResult, Entries]:
        """Take a unit; return the response, and what the storage holds now."""
        self.now, self._storage._histories = now, dict(entries)
        grant = self._budget.acquire("M", from_reserve=extra)
        return grant, self._storage._histories


class Model:
    """One state of everything."""

    def __init__(self, world: World, callers: int = 1) -> None:
        self.world = world
        self.machine = TokenMachine(world.policy, rotating=world.rotating, reaction=REACTION)
        self.now = 0.0
        self.callers = [Caller()] * callers
        self.carriers: list[Carrier] = []
        self.entries: Entries = {}
        self.fast_path: tuple[Token | None, float] = (None, NEVER)
        self.digest = "first"
        self.sent: list[float] = []
        self.serial = 0
        self.usable: Token | None = None  # the newest token, unless it was discarded
        self.silent_since = self.silent_until = NEVER  # the cooldown that the token endpoint demanded
        self.ended = 0  # ended fetches that the callers have been notified of
        self.rejected: dict[str, float] = {}

    def clone(self) -> Model:
        """Return a state that can go another way."""
        other = object.__new__(Model)
        other.__dict__.update(self.__dict__)
        other.machine = copy.copy(self.machine)
        for part in PARTS:
            setattr(other.machine, part, copy.copy(getattr(self.machine, part)))
        other.machine.pending.by_ticket = {
            ticket: replace(each) for ticket, each in self.machine.pending.by_ticket.items()
        }
        other.callers, other.carriers = list(self.callers), list(self.carriers)
        other.sent, other.rejected = list(self.sent), dict(self.rejected)
        return other

    def key(self) -> object:
        """Name the state: equal keys, equal futures. Instants count from now."""
        machine, now = self.machine, self.now
        held = machine._cached
        return (
            *(
                getattr(part, name) - now if name in INSTANTS else getattr(part, name)
                for part in (machine, machine.pending, machine.cooldown, machine.forced)
                for name in (FetchMachine.__slots__ if part is machine else part.__slots__)
                if name not in COUNTED_APART
            ),
            held and (held.refresh_at - now, held.reuse_until - now, held.usable_until - now),
            tuple(
                (
                    ticket - machine.pending.last_ticket,
                    each.due_at - now,
                    max(each.wait_until - now, 0.0),
                    (
                        each.forced,
                        each.foreground,
                        each.started,
                        each.interrupted,
                        each.awaiting_credentials,
                        each.attempts,
                        each.failure,
                    ),
                    each.refreshed_before and each.refreshed_before - now,
                )
                for ticket, each in machine.pending.by_ticket.items()
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
                        each.dependency_age,
                        -1 if each.own is None else each.own - machine.pending.last_ticket,
                        each.bereft,
                    )
                    if each.doing != "idle"
                    else ()
                    for each in self.callers
                )
            ),
            tuple(
                (
                    (each.ticket - machine.pending.last_ticket, each.stage, each.at - now, each.digest, each.then),
                    (each.interrupted, each.ordinary_before and each.ordinary_before - now),
                )
                for each in self.carriers
            ),
            tuple(tuple(at - now for at in entries[: len(entries) // 2]) for entries in self.entries.values()),
            self.digest,
            (self.fast_path[0] is None, self.fast_path[1] - now),
            # What the checks remember; what was sent is in the budget's entries, too.
            (self.usable is None, held is not None and self.usable == held.token, self.serial > 0),
            (max(self.silent_until - now, 0.0), *(each.at >= self.silent_since for each in self.carriers)),
            machine.pending.ended != self.ended,
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
                    cached, until = self.fast_path
                    if cached is None or self.now >= until:  # or else it does not matter
                        yield "a call of a new client comes", partial(Model.come, index=index, dependency_age=YOUNG)
                case "deciding":
                    yield "a caller decides", partial(Model.decide, index=index)
                case "calling":
                    yield "a call gets a 200", partial(Model.responded, index=index)
                    yield "a call gets a 401", partial(Model.refused, index=index)
                case _:
                    pass  # it waits
        for index, carrier in enumerate(self.carriers):
            yield "what carries a fetch dies, and that is noticed", partial(Model.abandon, index=index)
            if carrier.ticket in self.machine.pending_fetches:
                yield "what carries a fetch dies, and that is not noticed", partial(Model.vanish, index=index)
            if carrier.interrupted:
                yield "it is interrupted", partial(Model.break_off, index=index)
            match carrier.stage:
                case "start":
                    yield "a fetch takes its first step", partial(Model.begin, index=index)
                case "credentials":
                    yield "credentials arrive", partial(Model.credentials, index=index)
                    yield "the credentials callable raises", partial(Model.no_credentials, index=index)
                case "store":
                    yield "the lease is ours", partial(Model.lead, index=index)
                    yield "another process has the lease", partial(Model.wait_for_another, index=index)
                    for found, name in enumerate(FOUND):
                        yield f"another process has found {name}", partial(Model.consult, index=index, found=found)
                case "budget":
                    yield "a unit is acquired", partial(Model.attempt, index=index)
                    for seconds in (self.world.policy.fetch_timeout / 2, 100.0):
                        yield (
                            f"a unit is acquired, and the process stopped for {seconds:g} s",
                            partial(Model.attempt, index=index, stopped=seconds),
                        )
                case "granted":
                    yield "the request is sent", partial(Model.send, index=index)
                case "response":
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
                        yield f"the response is {failure.message}", partial(Model.fail, index=index, failure=failure)
                    if carrier.at == self.now:
                        yield "the response takes a while", partial(Model.pass_time, seconds=2.0)
                case _:
                    if self.now >= carrier.at:
                        yield f"on to the {carrier.then}", partial(Model.resume, index=index)
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
        if machine._cached is not None:
            yield machine._cached.refresh_at
            yield machine._cached.reuse_until
            yield machine._cached.usable_until - policy.expiry_skew
            yield machine._cached.usable_until
        yield machine.cooldown.until
        yield machine._refreshed_at + machine._interval()
        yield machine.forced.reserve_used_at + spacing(policy, machine._reserve_used)
        yield machine.forced.last_at + policy.rejection_cooldown
        yield from (flight.due_at for flight in machine.pending.by_ticket.values())
        yield from (caller.until for caller in self.callers if caller.doing == "waiting")
        yield from (carrier.at for carrier in self.carriers if carrier.stage == "pause")
        yield from (flight.wait_until for flight in machine.pending.by_ticket.values())

    # --- callers

    def come(self, index: int, wait: float = 20.0, dependency_age: float = float("inf")) -> None:
        """A call arrives: the cached path first, as the exchange does."""
        self._acquire(index, replayed=False, wait=wait, dependency_age=dependency_age)

    def _acquire(self, index: int, *, replayed: bool, wait: float = 20.0, dependency_age: float = float("inf")) -> None:
        cached, until = self.fast_path
        seen = self.machine.failed_fetches
        caller = Caller("deciding", self.now + wait, seen, replayed=replayed, dependency_age=dependency_age)
        if cached is not None and self.now < until:
            self._hand(index, caller, cached)
        else:
            self.callers[index] = caller
            self.decide(index)

    def decide(self, index: int, **more: Any) -> None:
        """The machine decides for a request."""
        caller = self.callers[index]
        decision = self.machine.decide(
            self.now,
            known_failures=caller.seen,
            deadline=caller.deadline,
            dependency_age=caller.dependency_age,
            own=caller.own,
            cannot_fetch=GONE if caller.bereft else None,
            **more,
        )
        self._settle()
        match decision:
            case Use(given, refresh):
                if refresh is not None:
                    assert caller.dependency_age > YOUNG, "rule 2: a refresh beside a call that may end before it"
                    self.carriers.append(Carrier(refresh))
                self._hand(index, caller, given)
            case Fetch(ticket):
                assert not caller.bereft, "rule 16: it cannot start another one"
                self.carriers.append(Carrier(ticket))
                self.callers[index] = caller._replace(own=ticket)
            case Wait(until):
                assert self.now < until <= caller.deadline, "rule 6: never longer than max_wait"
                # One call at most waits although it has a token: the one that refreshes it.
                assert not self._has_fresh(caller) or caller.own in self.machine.pending_fetches, (
                    "rule 2: it need not wait"
                )
                self.callers[index] = caller._replace(doing="waiting", until=until)
            case Fail(failure, retry_after):
                assert retry_after >= 0
                assert failure.message
                assert self.usable is None or self.now >= self._usable_until(self.usable), (
                    "rule 6: an error, and there is a usable token"
                )
                self.callers[index] = Caller()

    def _has_fresh(self, caller: Caller) -> bool:
        held = self.machine._cached
        return held is not None and not self.machine._rejected and self.now < held.reuse_until

    def _hand(self, index: int, caller: Caller, given: Token) -> None:
        assert self.now < self._usable_until(given), "rule 6: handed a token past its end"
        assert self.usable is not None, "handed a token that was taken away"
        self.callers[index] = Caller(
            "calling", token=given, replayed=caller.replayed, dependency_age=caller.dependency_age
        )

    def _usable_until(self, given: Token) -> float:
        # Where less than two seconds are granted, half of them are used whatever the skew.
        return given.requested_at + max(given.expires_in - self.world.policy.expiry_skew, given.expires_in / 2)

    def responded(self, index: int) -> None:
        """The API accepts the token."""
        used = self.callers[index].token
        assert used is not None
        if self.machine.awaiting_first_success:
            self._reported(lambda: self.machine.on_accepted(used))
        self.callers[index] = Caller()

    def refused(self, index: int) -> None:
        """The API returns a 401."""
        caller = self.callers[index]
        used = caller.token
        assert used is not None
        again = self._reported(lambda: self.machine.on_unauthorized(used, self.now))
        if again and not caller.replayed:
            self._acquire(index, replayed=True, dependency_age=caller.dependency_age)
        else:
            self.callers[index] = Caller()

    def invalidate(self) -> None:
        """The user throws the current token away."""
        dropped, self.usable = self.usable, None
        assert dropped is not None
        self._reported(lambda: self.machine.discard_token(dropped))

    # --- fetches

    def begin(self, index: int) -> None:
        """It takes its first step, however late."""
        carrier = self.carriers[index]
        if self._reported(lambda: self.machine.on_fetch_started(carrier.ticket, self.now)):
            self.carriers[index] = carrier._replace(stage="credentials")
            if not self.world.rotating:
                self.credentials(index)
        else:
            del self.carriers[index]

    def credentials(self, index: int) -> None:
        """The credentials are there."""
        carrier = self.carriers[index]
        if self._reported(lambda: self.machine.on_credentials(carrier.ticket, self.digest, self.now)):
            stage = "store" if self.world.shared else "budget"
            self.carriers[index] = carrier._replace(stage=stage, digest=self.digest)
        else:
            del self.carriers[index]

    def lead(self, index: int) -> None:
        """The store gives the lease to this fetch."""
        if self._reported(lambda: self.machine.heartbeat(self.carriers[index].ticket, self.now)):
            self.carriers[index] = self.carriers[index]._replace(stage="budget")
        else:
            del self.carriers[index]

    def wait_for_another(self, index: int) -> None:
        """The store has given it to another client."""
        carrier = self.carriers[index]
        if self._reported(lambda: self.machine.heartbeat(carrier.ticket, self.now, pause=1.0)):
            self.carriers[index] = carrier._replace(stage="pause", at=self.now + 1.0, then="store")
        else:
            del self.carriers[index]

    def consult(self, index: int, found: int) -> None:
        """The store holds what another client has found out."""
        carrier, now = self.carriers[index], self.now
        received = carrier.ticket in self.machine.pending_fetches
        match list(FOUND)[found]:
            case "a token":
                self.serial += 1
                arrived = token(self.serial, now - 1.0, 60.0)
                reported = Snapshot(arrived, refreshed_at=now - 1.0)
                if received and (self.usable is None or self.usable.requested_at <= now - 1.0):
                    self.usable = arrived
            case "an old token":
                self.serial += 1
                arrived = token(self.serial, now - 55.0, 60.0)
                reported = Snapshot(arrived, refreshed_at=now - 55.0)
                if received and (self.usable is None or self.usable.requested_at <= now - 55.0):
                    self.usable = arrived
            case "a limit":
                reported = Snapshot(cooldown_reason=LIMITED, cooldown_until=now + 15.0)
                if received:
                    self.silent_since, self.silent_until = now, max(now + 15.0, self.silent_until)
            case _:
                reported = Snapshot(cooldown_reason=BROKEN, cooldown_until=now + 2.0, failures=2)
        if not self._reported(
            lambda: self.machine.merge_snapshot(carrier.ticket, reported, now, digest=carrier.digest)
        ):
            del self.carriers[index]

    def resume(self, index: int) -> None:
        """A pause has ended."""
        carrier = self.carriers[index]
        self.carriers[index] = carrier._replace(stage=carrier.then, then="budget")
        if carrier.then == "budget":
            self.attempt(index)

    def no_credentials(self, index: int) -> None:
        """There are none."""
        ticket = self.carriers.pop(index).ticket
        self._reported(lambda: self.machine.on_fetch_failed(ticket, GONE, self.now))

    def attempt(self, index: int, stopped: float = 0.0) -> None:
        """The budget decides about the next attempt; it is sent immediately, or after a stop of the process."""
        carrier = self.carriers[index]
        if self._reported(lambda: self.machine.stopped(carrier.ticket, self.now)):
            del self.carriers[index]
            return
        extra = self.machine.uses_reserve(carrier.ticket, self.now)
        before = self.machine._refreshed_at
        grant, self.entries = self.world.acquire(self.entries, self.now, extra=extra)
        self._reported(lambda: self.machine.on_budget_result(carrier.ticket, grant, self.now, from_reserve=extra))
        if carrier.ticket not in self.machine.pending_fetches:
            del self.carriers[index]
            return
        assert grant.granted, "rule 5: sent without a unit"
        if not extra:
            carrier = carrier._replace(ordinary_before=before)
        self.carriers[index] = carrier._replace(stage="granted", at=self.now)
        if stopped:
            self.pass_time(stopped)
        else:
            self.send(index)

    def send(self, index: int) -> None:
        """The request is sent, unless its unit was granted too long ago."""
        carrier = self.carriers[index]
        if self.now - carrier.at > self.world.policy.fetch_timeout / 2:
            self._reported(lambda: self.machine.on_grant_expired(carrier.ticket))
            if carrier.ticket in self.machine.pending_fetches:
                self._check_undone(carrier)
            self.carriers[index] = carrier._replace(stage="budget")
            return
        assert self.now >= self.rejected.get(carrier.digest, NEVER), "rule 9: sent with rejected credentials"
        # A limit that becomes known while another fetch has its unit does not revoke that unit.
        assert carrier.at >= self.silent_since or self.now >= self.silent_until, "rule 10: sent before Retry-After"
        self.sent.append(self.now)
        for item in self.world.limits:
            assert largest_window(self.sent, item.get_expiry()) <= item.amount, "rule 5: the budget is passed"
        self.carriers[index] = carrier._replace(stage="response", at=self.now)

    def arrive(self, index: int, lifetime: float, *, again: bool = False) -> None:
        """The response is a token, which is used even if its fetch was given up, unless there is a newer one."""
        carrier = self.carriers.pop(index)
        self.serial += not again
        arrived = token(self.serial, carrier.at, lifetime)
        held = self.machine._cached
        newest = held is None or held.token.requested_at < arrived.requested_at
        if (newest or carrier.ticket in self.machine.pending_fetches) and self.now < self._usable_until(arrived):
            self.usable = arrived
        self._reported(lambda: self.machine.on_token(carrier.ticket, arrived, self.now, digest=carrier.digest))

    def fail(self, index: int, failure: Failure) -> None:
        """The response is no token."""
        carrier = self.carriers.pop(index)
        machine, now = self.machine, self.now
        received = carrier.ticket in machine.pending_fetches
        if received and failure.kind is CredentialsRejected and machine._rejected:
            self.usable = None  # the service says no on both sides
        pause = self._reported(
            lambda: machine.on_attempt_failed(carrier.ticket, failure, now, jitter=0.5, digest=carrier.digest)
        )
        if pause is not None:
            self.carriers.insert(index, carrier._replace(stage="pause", at=now + pause))
        elif failure.kind is TokenRateLimited:
            until = now + min(failure.retry_after or 0.0, self.world.policy.max_retry_after)
            self.silent_since, self.silent_until = now, max(until, self.silent_until)
        elif received and failure.kind is CredentialsRejected:
            self.rejected[carrier.digest] = now + self.world.policy.rejection_cooldown

    def break_off(self, index: int) -> None:
        """An overdue thread is interrupted: its attempt has failed."""
        self.carriers[index] = self.carriers[index]._replace(interrupted=False)
        if self.carriers[index].stage == "response":
            self.fail(index, BROKEN)
        elif self.carriers[index].stage == "credentials":
            self.no_credentials(index)

    def abandon(self, index: int) -> None:
        """What carries the fetch ends, and that is noticed: no failure of the service, and no use of the reserve."""
        carrier = self.carriers.pop(index)
        machine = self.machine
        flight = machine.pending.by_ticket.get(carrier.ticket)
        blameless = flight is not None and flight.failure is None
        before = machine.cooldown.reason, machine.cooldown.until, machine._failures, machine.failed_fetches
        self._reported(lambda: machine.on_fetch_abandoned(carrier.ticket, self.now))
        self._bereave(carrier.ticket)
        if blameless:
            after = machine.cooldown.reason, machine.cooldown.until, machine._failures, machine.failed_fetches
            assert after == before, "rule 16: a cooldown, or a failure, because of a carrier"
            self._check_undone(carrier)

    def _check_undone(self, carrier: Carrier) -> None:
        if carrier.ordinary_before is not None:
            assert self.machine._refreshed_at <= carrier.ordinary_before, "rule 16: the next one draws on the reserve"

    def vanish(self, index: int) -> None:
        """It ends, and says nothing."""
        self._bereave(self.carriers.pop(index).ticket)

    def _bereave(self, ticket: int) -> None:
        self.callers = [each._replace(bereft=True) if each.own == ticket else each for each in self.callers]

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

    def _reported(self, event: Callable[[], Any]) -> Any:
        response = event()
        self._settle()
        return response

    def _settle(self) -> None:
        """Do what the manager does after each event: publish, interrupt, and wake who waits when a fetch has ended."""
        machine = self.machine
        self.fast_path = machine.fast_path_token(self.now)
        late, machine.pending.overdue = machine.pending.overdue, ()
        if late:
            self.carriers = [each._replace(interrupted=True) if each.ticket in late else each for each in self.carriers]
        if machine.pending.ended != self.ended:
            self.ended = machine.pending.ended
            self.callers = [
                each._replace(doing="deciding") if each.doing == "waiting" else each for each in self.callers
            ]

    # --- what holds in every state

    def check(self) -> None:
        """Raise where a rule does not hold."""
        machine = self.machine
        in_flight = machine.pending_fetches
        assert len(in_flight) <= 1, "rule 3: two fetches in flight"
        for caller in self.callers:
            if caller.doing == "waiting":
                assert self.now < caller.until, "rule 17: a caller waits for an instant that has passed"
                assert in_flight or caller.until <= machine.cooldown.until, (
                    "rule 17: they wait, and no fetch is pending"
                )
        cached, until = self.fast_path
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
    model.begin(0)
    model.attempt(0)
    model.arrive(0, 60.0)
    model.callers = [Caller()] * callers
    for index in range(callers):
        model.come(index)
    return model


def aging(world: World, callers: int) -> Model:
    """Return a state with a token whose refresh is due, and no requests."""
    model = warm(world, callers)
    model.callers = [Caller()] * callers
    model.pass_time(46.0)
    return model


EXPLORATIONS: dict[str, tuple[Callable[[], Model], int]] = {
    "four callers, cold": (lambda: Model(World(), 4), 6),
    "four callers with one token": (lambda: warm(World(), 4), 6),
    "one caller, deep": (lambda: Model(World()), 9),
    "credentials rotate": (lambda: Model(World(rotating=True), 2), 7),
    "hardly any budget": (lambda: Model(World(limits=("1/minute", "3/hour"), forced_reserve=1), 2), 7),
    "no budget to speak of": (lambda: Model(World(limits=("1000/second",), forced_reserve=1000), 2), 7),
    "a refresh is due": (lambda: aging(World(), 3), 6),
    "two callers of a fleet": (lambda: Model(World(shared=True), 2), 7),
    "impatient callers": (lambda: Model(World(max_wait=2.0, limits=("2/minute",)), 3), 6),
}

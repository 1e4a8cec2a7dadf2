"""Workers, their store, the network and 88Pay in simulated time: the real core, on a clock that jumps between events.

Nothing here is a thread or sleeps. A process is driven through the real flows; what they yield is carried out by
:class:`Process`. Time passes between an operation of the store and its result, and everything else may happen. So the
clock of a process shows, in the middle of an operation, what it would show at that point.
"""

from __future__ import annotations

import heapq
import logging
import random
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from itertools import count
from typing import Any

from pay88_adapters import Pay88Error, Token, TokenBudgetExhausted
from pay88_adapters.clock import Clock
from pay88_adapters.core.wire import TokenRequest, TokenResponse
from pay88_adapters.engine.fetches import FetchRun
from pay88_adapters.stores.base import Store
from pay88_adapters.stores.members import FIRST_DIVISOR
from pay88_adapters.stores.memory import MemoryStore
from pay88_adapters.testing.messages import TOKEN_PATH
from pay88_adapters.testing.messages import Request as ReceivedRequest
from pay88_adapters.testing.service import Service
from support.simulation.process import ApiCall, Manager, Process
from support.simulation.remote import SimulatedStore
from support.simulation.scenario import (
    ALONE,
    CLOSE,
    GUARD,
    HOUR,
    LIFETIME,
    MERCHANT,
    RECOVERY,
    REPORTING,
    START,
    UNDER_WAY,
    Fault,
    Outcome,
    Request,
    Scenario,
    Violation,
)


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
        self.has_closed_clients = False
        self._attempts: list[float] = []  # when units were used, whether the service got the request or not
        self._faults: list[Fault] = []  # that are in force
        self._troubles: list[tuple[float, float]] = []
        self._limited: deque[tuple[float, str]] = deque()
        self._copies: dict[Fault, tuple[Any, ...]] = {}
        self._lost: dict[str, float] = {}  # units that the store has lost, and when
        self._forgotten: set[str] = set()  # and that no process can report any longer
        self._cooldowns: list[list[float]] = []  # that the store knows: since when, until when, until when it knows
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
            cleanly = process.rng.random() < 0.5
            self.at(
                self.now + process.rng.expovariate(1 / self.scenario.churn), self.crash_of(process, cleanly=cleanly)
            )
        return process

    def crash_of(self, process: Process, restarts_in: float = 0.0, *, cleanly: bool = False) -> Callable[[], None]:
        """Return what ends a process."""

        def crash() -> None:
            if not process.alive:
                return
            if cleanly and self.now >= process.paused_until:
                process.instantly(process.fleet.at_exit)
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
            case "failover" if fault.how != "lags":
                self._lose(lambda: self.store.fail_over(self._copies[fault]))
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
                    end = self.crash_of(each, cleanly=fault.amount > 0)
                    self.at(self.now + number * fault.lasts / len(self.processes), end)
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
        before, cooldowns = self.store.units(self.budget_key), self.store.budget.cooldown(self.budget_key)
        how()
        lost = before - self.store.units(self.budget_key)
        self._lost |= dict.fromkeys(lost, self.now)
        self._forget(lost)
        if cooldowns is not None and self.store.budget.cooldown(self.budget_key) is None:
            for cooldown in self._cooldowns:
                cooldown[2] = min(cooldown[2], self.now)

    def _forget(self, units: set[str]) -> None:
        """Note which of these units no process can report to the store."""
        known = self.store.units(self.budget_key)
        for each in self.processes:
            if each.alive and not self.reachable(each.number) and self.now >= each.paused_until:
                known |= each.known()
        self._forgotten |= units - known

    def _is_cut_off(self, number: int) -> bool:
        down = any(fault.kind == "store down" for fault in self._faults)
        return bool(self.reachable(number)) and not down

    def reachable(self, number: int) -> str:
        """Return "" if the store responds to a process, or else what happens instead."""
        for fault in self._faults:
            if fault.kind == "store down" or (fault.kind == "partition" and fault.who % len(self.processes) == number):
                return fault.how
        return ""

    def spare_reachable(self, host: int) -> str:
        """Return the same for the fallback store of a host."""
        down = any(fault.kind == "fallback down" and fault.who % self.scenario.hosts == host for fault in self._faults)
        return "refused" if down else ""

    def trouble(self, lasts: float) -> None:
        """Note that there is a fault from now on for so many seconds."""
        self._troubles.append((self.now, self.now + lasts))

    def calm(self, since: float, until: float) -> bool:
        """Whether there is no fault all that time."""
        return all(end <= since or begin > until for begin, end in self._troubles)

    # --- the service

    def post(
        self,
        process: Process,
        request: TokenRequest,
        then: Callable[[TokenResponse | Exception], None],
        run: FetchRun,
    ) -> None:
        """Deliver a token request, and its response."""
        unit, granted_at, through_store = process.grant
        self._attempts.append(self.now)
        deadline, rng = self.now + request.timeout, process.rng
        cut_off = not through_store and self._is_cut_off(process.number)
        sent = Request(0.0, process, unit, granted_at, process.fleet.share.has_joined, through_store, cut_off)

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
            reply = self._respond_token(request, ways)
            took = rng.uniform(0.02, 0.3) if rng.random() < 0.95 else rng.uniform(0.3, 2.0)
            if self.now + took >= deadline:
                fail("hangs", deadline)
                return
            process.soon(took, lambda: self._receive(process, reply, then, run))

        self.at(self.now + rng.uniform(0.002, 0.1), arrive)

    def _respond_token(self, request: TokenRequest, ways: list[str]) -> TokenResponse:
        fields = {name.lower(): str(value) for name, value in request.headers.items()}
        received = ReceivedRequest("POST", TOKEN_PATH, fields)
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
            process.cooldown_until.append((self.now, until))
            process.soon(REPORTING, lambda: self._learn_cooldown(process, until))
        then(reply)

    def _learn_cooldown(self, process: Process, until: float) -> None:
        """The store has to know by now, if it could be reached."""
        if not self.reachable(process.number):
            self._cooldowns.append([self.now, until, float("inf")])

    def rejects(self, token: Token) -> bool:
        """Whether a call with *token* may get a 401."""
        serial, _ = self.service.trace(
            ReceivedRequest("GET", "/", {"authorization": f"Bearer {token.access_token}"}), self.now
        )
        return bool(self.storms) or serial is None or serial <= self._revoked

    def respond_to_call(self, token: Token) -> int:
        """Respond to an API request."""
        self.judge_token(token, self.now)
        headers = {"authorization": f"Bearer {token.access_token}", "x-session-id": token.session_id}
        if any(self.rng.random() < storm for storm in self.storms):
            return 401
        return self.service.handle(ReceivedRequest("GET", "/api/echo", headers), self.now, self.wall).status

    # --- what is judged

    def violate(self, rule: str, what: str) -> None:
        """Note that a rule was broken."""
        self.outcome.violations.append(Violation(round(self.now - START, 3), rule, what))

    def judge_token(self, token: Token, at: float) -> None:
        """Rule 1: no call is sent with a token past its life."""
        headers = {"authorization": f"Bearer {token.access_token}"}
        _, age = self.service.trace(ReceivedRequest("GET", "/api/echo", headers), at)
        if age is None or age >= LIFETIME:
            self.violate("token", f"a call is sent with a token {age} s old")

    def _record(self, sent: Request) -> None:
        request = replace(sent, at=self.now)
        self.outcome.requests.append(request)
        self._recent.append(request)
        while self._recent[0].at <= self.now - HOUR - GUARD:
            self._recent.popleft()
        own = tuple((item.amount, float(item.get_expiry())) for item in request.process.policy.rate_limits())
        unknown = self._forgotten | self._unreported()
        counted = [each for each in self._recent if each.known and not each.cut_off and each.unit not in unknown]
        for amount, seconds in own if request.known and not request.cut_off else ():
            found = sum(each.at > self.now - seconds for each in counted)
            if found > amount:
                self.violate("budget", f"{found} token requests in {seconds:g} s: at most {amount}")
        if request.cut_off and request.known:
            self._judge_cut_off(request, {seconds: amount for amount, seconds in own})
        if not (request.known or self.scenario.fallback):
            self._judge_newborn(request)
        self._judge_cooldown(request)

    def _unreported(self) -> set[str]:
        """Return the units that the store has lost and that the processes with them have not reported yet.

        They report them with their next operation. Another process before that does not know them: a failover costs at
        most the units of the time that it lost.
        """
        lost = {unit for unit, at in self._lost.items() if self.now < at + RECOVERY}
        return lost - self.store.units(self.budget_key) if lost else lost

    def _judge_newborn(self, request: Request) -> None:
        """Rule 24: what never reached the store takes a quarter of each limit, and one at least.

        It knows neither the number of such processes nor what was used before its start. So four stay within the
        budget together, and more than that only with a ``fallback_share`` or a fallback store. Their token requests are
        left out where the budget of all is judged.
        """
        process, part = request.process, self.scenario.share or 1 / FIRST_DIVISOR
        own = [each.at for each in self._recent if each.process is process and not each.known]
        for item in process.policy.rate_limits():
            found = sum(at > self.now - item.get_expiry() for at in own)
            if found > max(item.amount * part, 1):
                self.violate("newborn", f"{found} token requests in {item.get_expiry()} s, with {part:g} of {item}")

    def _judge_cut_off(self, request: Request, limits: Mapping[float, int]) -> None:
        """Rule 24: who alone is cut off takes its share and no more, whatever the others do meanwhile."""
        fleet = request.process.fleet
        divisor = fleet.share.divisor(fleet.link.failing_since)
        host = request.process.number % self.scenario.hosts if self.scenario.fallback else None
        together = [
            each
            for each in self._recent
            if each.cut_off and (each.process is request.process or each.process.number % self.scenario.hosts == host)
        ]
        for seconds, amount in limits.items():
            found = sum(each.at > self.now - seconds for each in together)
            if found * divisor > amount:
                self.violate("share", f"{found} token requests in {seconds:g} s, the share is 1/{divisor} of {amount}")

    def _judge_cooldown(self, request: Request) -> None:
        """Rule 10: no process that can know ``Retry-After`` sends a token request before."""
        ends = [until for at, until in request.process.cooldown_until if at <= request.granted_at]
        if request.through_store:
            ends += [until for at, until, kept in self._cooldowns if at < request.granted_at <= kept]
        if ends and self.now < max(ends):
            self.violate("429", f"a token request {max(ends) - self.now:.3f} s before the end of Retry-After")

    def judge_call(self, manager: Manager, call: ApiCall, ended: int | Pay88Error) -> None:
        """Every call ends, in time, with a response or an error that is right."""
        process, policy = manager.process, manager.process.policy
        took = self.now - call.began_at
        if took > policy.max_wait + 1.0 and process.paused_until <= call.began_at:
            self.violate("wait", f"a call took {took:.1f} s")
        if isinstance(ended, int):
            if ended == 401:
                self.outcome.rejected += 1
                if self.calm(call.began_at - RECOVERY, self.now) and not self.storms:
                    self.violate("401", "a call got a 401, and nothing was wrong")
            return
        self.outcome.failed.append((self.now - START, ended))
        name = f"{type(ended).__name__}: {ended}"
        after = ended.retry_after
        longest = max(item.get_expiry() for item in policy.rate_limits()) + policy.fetch_timeout
        if after is None or not 0 <= after <= max(longest, policy.max_retry_after):
            self.violate("retry_after", f"it is {after}: {name}")
            return
        if self._is_exhausted(process, call, ended):
            self.outcome.used += 1
        elif self.calm(call.began_at - self._lingers(ended), self.now):
            self.violate("recovery", f"a call failed, and nothing was wrong: {name} (retry_after={after:.1f})")
        elif call.probes is not None and after > CLOSE and self.calm(call.probes - self._settles(ended), self.now):
            waited = call.began_at - call.probes
            self.violate(
                "lie", f"it was worth while to retry after {waited:.1f} s, an error said: {name} ({after:.1f})"
            )
        manager.probe(after)

    def _lingers(self, error: Pay88Error) -> float:
        """Return for how long after the end of a fault an error may still be due to it.

        A process that has a token notices that the store has recovered when it needs another one, and others as late.
        """
        return 2 * RECOVERY if isinstance(error, TokenBudgetExhausted) else RECOVERY

    def _settles(self, error: Pay88Error) -> float:
        """Return how long after a fault an error has to be right about when a retry can succeed.

        A failed attempt during a fault starts another cooldown: so it counts from when the error was raised.
        """
        return 2 * RECOVERY if isinstance(error, TokenBudgetExhausted) else UNDER_WAY

    def _is_exhausted(self, process: Process, call: ApiCall, error: Pay88Error) -> bool:
        """Whether the budget is exhausted indeed, by processes in degraded mode, or with larger limits than now.

        Or may be, for all that is known, by a process that has ended since the store knew it. A process that ends in
        the middle of a fetch also takes a token with it that was paid for. So does an HTTP client that is closed then:
        the fetch that replaces it needs another unit, and limits of 80 an hour have none to spare.
        """
        ago = self.now - START - HOUR - 2 * GUARD
        alone = [each for each in self.scenario.faults if each.kind in ALONE and each.at + each.lasts > ago]
        if not error.retryable or not (alone or self._deaths or self.has_closed_clients):
            return False
        if self.scenario.idle and process.set_aside_at >= call.began_at - UNDER_WAY:
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
        """Rule 4: once nothing is wrong, all of them fetch what one would."""
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

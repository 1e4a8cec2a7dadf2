"""The rules that hold whatever happens, over hours of virtual time.

The machine and the budget are the real ones. The manager, the network and 88Pay are played by
:class:`World`, which knows nothing of threads: whatever happens at one instant happens in some order.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pay88_adapters import Token, TokenBudgetExhausted, TokenEndpointUnavailable, TokenPolicy, TokenRateLimited
from pay88_adapters.core.decisions import Fail, Fetch, Use, Wait
from pay88_adapters.core.errors import CredentialsRejected, Failure, TokenResponseInvalid
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.engine.budget import TokenBudget
from pay88_adapters.stores.memory import MemoryStorage
from pay88_adapters.testing.windows import largest_window
from support.sample import examples

HOUR = 3600.0
POLICY = TokenPolicy()
DIGEST = "digest"

BROKEN = Failure(TokenEndpointUnavailable, "broken", status=503, retryable=True)
ODD = Failure(TokenEndpointUnavailable, "odd", status=404)
NONSENSE = Failure(TokenResponseInvalid, "nonsense", status=200, retryable=True)
REJECTED = Failure(CredentialsRejected, "rejected", status=401)
LOST = Failure(TokenEndpointUnavailable, "lost", retryable=True)


def limited(seconds: float) -> Failure:
    """Return what a 429 becomes."""
    return Failure(TokenRateLimited, "limited", status=429, retry_after=seconds, retryable=True)


@dataclass
class Reply:
    """What becomes of one token request."""

    after: float = 0.1
    outcome: Failure | float | None = 60.0  # a failure, the lifetime of a token, or lost


@dataclass(eq=False)
class Call:
    """One managed call."""

    came_at: float
    deadline: float
    seen: int
    decisions: int = 0
    replayed: bool = False
    until: float = 0.0
    on_flight: bool = False
    own: int | None = None


@dataclass
class World:
    """Everything around the machine.

    Args:
        service: What a token request sent at an instant leads to.
        rejects: Whether the API answers 401, asked for each sending of a call.
        rng: The draws for jitter.
        call_takes: Seconds from the sending of a call to its response.
        policy: Of the machine and the budget.
    """

    service: Callable[[float], Reply] = field(default=lambda at: Reply())
    rejects: Callable[[float, Token], bool] = field(default=lambda at, token: False)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    call_takes: float = 0.05
    dies: Callable[[float], float | None] = field(default=lambda at: None)
    """After how many seconds what carries a fetch dies, asked for each; zero: before its first step."""
    noticed: bool = True
    """Whether it is noticed at once that it has died, or only when the fetch is overdue."""
    young: bool = False
    """Whether each call has a client and an event loop of its own, which end with it."""

    policy: TokenPolicy = POLICY

    def __post_init__(self) -> None:
        self.now = 0.0
        self.machine = TokenMachine(self.policy, reaction=0.5)
        self.budget = TokenBudget(self.policy, MemoryStorage(lambda: self.now), "https://api.example")
        self.cached: tuple[Token | None, float] = (None, 0.0)
        self.sent: list[float] = []
        self.extras: list[float] = []
        self.tokens: list[float] = []  # when one came
        self.failed: list[tuple[float, Fail]] = []
        self.handed_401: list[float] = []
        self.waited: list[float] = []
        self.accepted = 0
        self.ordinary_denied = 0
        self._waiting: set[Call] = set()
        self._dead: set[int] = set()
        self._ended = 0
        self._order = count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    # --- time

    def at(self, instant: float, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._due, (instant, next(self._order), happen))

    def run(self, until: float) -> World:
        """Let time pass."""
        while self._due and self._due[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._due)
            happen()
            if not self._due or self._due[0][0] > self.now:
                self._check()
        self.now = until
        return self

    def _check(self) -> None:
        assert len(self.machine.pending_fetches) <= 1, "rule 3: two fetches in flight"
        for call in self._waiting:
            assert call.until > self.now, "a call was not woken"
            assert self.machine.pending_fetches or not call.on_flight, "rule 17: they wait, and no fetch is pending"

    # --- calls

    def calls(self, gaps: Iterator[float], start: float = 0.0) -> World:
        """Let a call come after each gap."""

        def come() -> None:
            self.call()
            for gap in gaps:
                self.at(self.now + gap, come)
                break

        self.at(start, come)
        return self

    def call(self) -> None:
        """Let a call come now."""
        self._acquire(Call(self.now, self.now + self.policy.max_wait, self.machine.failed_fetches))

    def _acquire(self, call: Call) -> None:
        token, until = self.cached
        if token is not None and self.now < until:
            self._send(call, token)
            return
        while True:
            call.decisions += 1
            assert call.decisions <= 50, "rule 12: a call goes round in circles"
            decision = self.machine.decide(
                self.now,
                known_failures=call.seen,
                deadline=call.deadline,
                dependency_age=0.0 if self.young else float("inf"),
                own=call.own,
                cannot_fetch=LOST if call.own in self._dead else None,
            )
            self._settle()
            if isinstance(decision, Use):
                if decision.refresh is not None:
                    assert not self.young, "rule 2: a refresh on what ends with its call"
                    self._start(decision.refresh)
                self._send(call, decision.token)
                return
            if isinstance(decision, Fetch):
                call.own = decision.ticket
                self._start(decision.ticket)
                continue
            if isinstance(decision, Fail):
                assert decision.retry_after >= 0
                self.failed.append((self.now, decision))
                return
            self._wait(call, decision)
            return

    def _wait(self, call: Call, decision: Wait) -> None:
        assert self.now < decision.until <= call.deadline, "rule 6: never longer than max_wait"
        call.until, call.on_flight = decision.until, bool(self.machine.pending_fetches)
        self._waiting.add(call)
        if call.decisions <= 2:
            self.waited.append(self.now)
        self.at(decision.until, lambda: self._wake(call, decision.until))

    def _wake(self, call: Call, until: float | None = None) -> None:
        if call in self._waiting and (until is None or until == call.until):
            self._waiting.remove(call)
            self._acquire(call)

    def _send(self, call: Call, token: Token) -> None:
        age = self.now - token.requested_at
        # Where less than two seconds are granted, half of them are used whatever the skew.
        assert age < max(token.expires_in - self.policy.expiry_skew, token.expires_in / 2), "rule 6: a token too old"

        def responded() -> None:
            if not self.rejects(self.now, token):
                self._report(lambda: self.machine.on_accepted(token))
                self.accepted += 1
            elif self._reported(lambda: self.machine.on_unauthorized(token, self.now)) and not call.replayed:
                self._acquire(
                    Call(self.now, self.now + self.policy.max_wait, self.machine.failed_fetches, replayed=True)
                )
            else:
                self.handed_401.append(self.now)

        self.at(self.now + self.call_takes, responded)

    # --- fetches

    def _start(self, ticket: int) -> None:
        after = self.dies(self.now)
        if after is not None:
            self.at(self.now + after, lambda: self._die(ticket))
        self.at(self.now, lambda: self._depart(ticket))

    def _die(self, ticket: int) -> None:
        self._dead.add(ticket)
        if self.noticed:
            self._report(lambda: self.machine.on_fetch_abandoned(ticket, self.now))

    def _depart(self, ticket: int) -> None:
        if ticket in self._dead or not self._reported(lambda: self.machine.on_fetch_started(ticket, self.now)):
            return
        if self._reported(lambda: self.machine.on_credentials(ticket, DIGEST, self.now)):
            self._attempt(ticket)

    def _attempt(self, ticket: int) -> None:
        if ticket in self._dead or self._reported(lambda: self.machine.stopped(ticket, self.now)):
            return
        extra = self.machine.uses_reserve(ticket, self.now)
        grant = self.budget.acquire("M", from_reserve=extra)
        self.ordinary_denied += not grant.granted and not extra
        self._reported(lambda: self.machine.on_budget_result(ticket, grant, self.now, from_reserve=extra))
        if ticket not in self.machine.pending_fetches:
            return
        self.sent.append(self.now)
        if extra:
            self.extras.append(self.now)
        sent_at, reply = self.now, self.service(self.now)
        outcome = reply.outcome
        if outcome is not None:
            self.at(sent_at + reply.after, lambda: self._respond(ticket, sent_at, outcome))

    def _respond(self, ticket: int, sent_at: float, outcome: Failure | float) -> None:
        if ticket in self._dead:
            return
        if not isinstance(outcome, Failure):
            token = Token(f"token-{sent_at}", f"session-{sent_at}", outcome, sent_at)
            self._report(lambda: self.machine.on_token(ticket, token, self.now))
            self.tokens.append(self.now)
            return
        pause = self._reported(
            lambda: self.machine.on_attempt_failed(ticket, outcome, self.now, jitter=self.rng.random(), digest=DIGEST)
        )
        if isinstance(pause, float):
            self.at(self.now + pause, lambda: self._attempt(ticket))

    # --- what the manager does after each event

    def _reported(self, event: Callable[[], object]) -> object:
        answer = event()
        self._settle()
        return answer

    _report = _reported

    def _settle(self) -> None:
        self.cached, self.machine.pending.overdue = self.machine.fast_path_token(self.now), ()
        if self.machine.pending.ended != self._ended:
            self._ended = self.machine.pending.ended
            for call in sorted(self._waiting, key=lambda call: call.came_at):
                self.at(self.now, lambda call=call: self._wake(call))  # type: ignore[misc]


def every(seconds: float) -> Iterator[float]:
    """Return gaps that are all the same."""
    while True:
        yield seconds


def at_random(rng: random.Random, mean: float) -> Iterator[float]:
    """Return gaps of a Poisson process."""
    while True:
        yield rng.expovariate(1 / mean)


def outages(*spans: tuple[float, float], reply: Reply) -> Callable[[float], Reply]:
    """Return a service that returns *response* during each span, and well at all other times."""
    return lambda at: reply if any(start <= at < end for start, end in spans) else Reply()


def failures(world: World, kind: type[Exception] = Exception) -> list[float]:
    """Return when calls failed for want of a token."""
    return [at for at, fail in world.failed if issubclass(fail.failure.kind, kind)]


def check_budget(world: World) -> None:
    """Rule 5, by an independent count."""
    assert largest_window(world.sent, 60.0) <= 10
    assert largest_window(world.sent, HOUR) <= 100


REFUSED = Reply(0.05, BROKEN)
TIMEOUT = Reply(POLICY.fetch_timeout, BROKEN)
OUTAGES = [REFUSED, TIMEOUT, Reply(0.2, ODD), Reply(0.2, NONSENSE), Reply(0.3, None), Reply(0.1, 0.05)]
OUTAGE_IDS = ["5xx", "timeouts", "404", "nonsense", "lost", "expired on its way"]


@st.composite
def weather(draw: st.DrawFn) -> tuple[World, float]:
    """Draw a world with everything going wrong now and then, and how long calls are apart in it."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    gap = draw(st.sampled_from([0.3, 1.0, 2.5, 7.0, 20.0, 50.0]))
    failing, limiting, slow, lost, rejecting = (
        draw(st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0]) | st.floats(0, 0.3)) for _ in range(5)
    )
    lifetime = draw(st.sampled_from([60.0, 60.0, 60.0, 30.0, 15.0, 1.0, 300.0]))
    flaps = [draw(st.floats(1, 400)), draw(st.floats(1, 400))]
    flapping = draw(st.booleans())

    def service(at: float) -> Reply:
        after = rng.uniform(0.01, 0.6) if rng.random() >= slow * 0.5 else rng.uniform(0.6, 9.0)
        if rng.random() < lost * 0.3:
            return Reply(outcome=None)
        if flapping and at % sum(flaps) < flaps[0]:
            return replace(REFUSED, after=after)
        if rng.random() < failing:
            return Reply(after, rng.choice([BROKEN, ODD, NONSENSE, REJECTED]))
        if rng.random() < limiting * 0.3:
            return Reply(after, limited(rng.choice([1.0, 30.0, 60.0, 600.0])))
        if after > POLICY.fetch_timeout and rng.random() < 0.5:
            return Reply(POLICY.fetch_timeout, BROKEN)  # the other half arrives after it was given up
        return Reply(after, lifetime)

    return World(service, lambda at, token: rng.random() < rejecting, rng), gap


@given(weather())
@settings(deadline=None, max_examples=examples(60))
def test_rule_05_the_budget_holds_in_any_weather(drawn: tuple[World, float]) -> None:
    """An hour and a half of errors, 429s, slow, late and lost answers, random 401s and flapping outages.

    Never more than 10 token requests in 60 s nor 100 in an hour; one in flight; no request gets a
    token that has expired, goes round in circles, waits beyond ``max_wait`` or waits while no fetch is pending.
    """
    world, gap = drawn
    world.calls(at_random(world.rng, gap)).run(1.5 * HOUR)

    check_budget(world)
    assert largest_window(world.extras, HOUR) <= POLICY.forced_reserve, "rule 8"


@given(
    seed=st.integers(0, 2**32),
    longest=st.sampled_from([0.5, 1.0, 1.9]),
    latency=st.floats(0.01, 3.0),
)
@settings(deadline=None, max_examples=examples(12))
def test_rule_02_steady_load_costs_eighty_requests_an_hour_and_no_call_waits(
    seed: int, longest: float, latency: float
) -> None:
    """Calls at random gaps for two hours: only those before the first token wait for one."""
    rng = random.Random(seed)
    world = World(lambda at: Reply(latency))
    world.calls(rng.uniform(0.1, longest) for _ in count()).run(2 * HOUR)

    assert largest_window(world.sent, HOUR) <= 80
    assert not world.failed
    assert all(at <= latency for at in world.waited)


@pytest.mark.parametrize("gap", [0.1, 1.0, 9.9])
def test_rule_02_the_refresh_comes_every_forty_five_seconds(gap: float) -> None:
    """With calls at fixed gaps the requests are at least 45 s apart, and at most one gap more."""
    world = World().calls(every(gap)).run(HOUR)

    apart = [later - earlier for earlier, later in pairwise(world.sent)]
    assert min(apart) >= 45 - 1e-6
    assert max(apart) <= 45 + gap + 1e-6


def check_limits(world: World) -> None:
    """Rule 5, by an independent count that grants a request its ``fetch_timeout`` on the way."""
    for item in world.policy.rate_limits():
        assert largest_window(world.sent, item.get_expiry() + world.policy.fetch_timeout) <= item.amount


SUSTAINABLE = [
    *[(f"{amount}/hour",) for amount in (62, 64, 70, 76, 80, 100)],
    *[("10/minute", f"{amount}/hour") for amount in (62, 64, 70, 76, 80, 100)],
    ("2/minute", "1500/day"),
    ("6/5minutes;70/hour",),
]


@pytest.mark.parametrize("rate", [1, 6, pytest.param(50, marks=pytest.mark.deep)])
@pytest.mark.parametrize("limits", SUSTAINABLE, ids=";".join)
def test_rule_02_ordinary_traffic_never_exhausts_the_budget(limits: tuple[str, ...], rate: int) -> None:
    """Three hours with limits that sustain a token after the other: no request is denied, and no call fails.

    Calls wait for a token only where a token's last moment is the refresh's first.
    """
    latency = 0.2
    world = World(lambda at: Reply(latency), policy=TokenPolicy(limits=limits)).calls(every(1 / rate)).run(3 * HOUR)

    assert not world.failed
    assert world.ordinary_denied == 0
    assert not world.extras
    check_limits(world)
    apart = [later - earlier for earlier, later in pairwise(world.sent)]
    assert max(apart) <= 59 + 1 / rate
    if rate > 1:
        assert len(world.waited) <= latency * rate + 1, "at the cold start"


@given(
    amount=st.integers(62, 130),
    minutes=st.sampled_from([60, 60, 30, 120]),
    seed=st.integers(0, 2**32),
    longest=st.sampled_from([0.4, 1.9, 15.0, 100.0]),
    latency=st.floats(0.01, 0.5),
    failing=st.sampled_from([0.0, 0.0, 0.02]),
)
@settings(deadline=None, max_examples=examples(30))
def test_rule_02_limits_that_sustain_the_traffic_are_never_the_reason(
    amount: int, minutes: int, seed: int, longest: float, latency: float, failing: float
) -> None:
    """Calls at random, and a token request that fails now and then: no call fails for want of budget."""
    rng = random.Random(seed)
    policy = TokenPolicy(limits=(f"{amount * minutes // 60 + 1}/{minutes}minutes",))
    world = World(lambda at: Reply(latency, BROKEN if rng.random() < failing else 60.0), rng=rng, policy=policy)
    world.calls(rng.uniform(0.1, longest) for _ in count()).run(3 * HOUR)

    assert failures(world, TokenBudgetExhausted) == []
    assert world.failed == [] or failing
    check_limits(world)


@pytest.mark.parametrize("rate", [1, 5])
@pytest.mark.parametrize(
    "limits",
    [("1/minute",), ("5/5minutes", "62/hour"), ("50/hour",), ("30/hour",), ("10/minute", "2/hour")],
    ids=";".join,
)
def test_rule_06_with_too_few_requests_for_all_tokens_calls_fail_only_when_they_must(
    limits: tuple[str, ...], rate: int
) -> None:
    """While a unit is left, there is a token; without one, they hear to the moment when there is one again."""
    world = World(policy=TokenPolicy(limits=limits)).calls(every(1 / rate)).run(3 * HOUR)

    check_limits(world)
    for at, fail in world.failed:
        assert fail.failure.kind is TokenBudgetExhausted
        waits = list[float]()
        for item in world.policy.rate_limits():
            before = [sent for sent in world.sent if sent <= at]
            if len(before) >= item.amount:
                waits.append(before[-item.amount] + item.get_expiry() + world.policy.fetch_timeout - at)
        assert fail.retry_after == pytest.approx(max(waits), abs=0.01)
        assert fail.retry_after > world.policy.max_wait


REVOKED_EVERY = 90.0


@pytest.mark.parametrize("rate", [1, 2, 5, 10])
@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_rule_08_tokens_that_are_revoked_every_ninety_seconds(rate: int, offset: float) -> None:
    """Forty times an hour for three hours: ordinary refreshes cure what the reserve does not, in a moment."""

    def revoked(at: float, token: Token) -> bool:
        return token.requested_at < (at - offset) // REVOKED_EVERY * REVOKED_EVERY + offset

    world = World(lambda at: Reply(0.2), rejects=revoked).calls(every(1 / rate)).run(3 * HOUR)

    assert not world.failed
    assert len(world.handed_401) <= 0.02 * 3 * HOUR * rate
    assert largest_window(world.extras, HOUR) <= POLICY.forced_reserve
    check_limits(world)


@example(period=20.0, rate=1, offset=0.0)
@given(period=st.floats(20, 400), rate=st.sampled_from([1, 3]), offset=st.floats(0, 50))
@settings(deadline=None, max_examples=examples(15), phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_rule_08_what_the_reserve_has_is_used(period: float, rate: int, offset: float) -> None:
    """However often tokens are revoked: an hour with many 401s is one in which the reserve was of no more use."""

    def revoked(at: float, token: Token) -> bool:
        return token.requested_at < (at - offset) // period * period + offset

    world = World(lambda at: Reply(0.2), rejects=revoked).calls(every(1 / rate)).run(2 * HOUR)

    assert not world.failed
    assert largest_window(world.extras, HOUR) <= POLICY.forced_reserve
    handed = sum(at > HOUR for at in world.handed_401)
    used = sum(at > HOUR for at in world.extras)
    assert used >= 0.7 * POLICY.forced_reserve or handed <= 0.03 * HOUR * rate
    check_limits(world)


@pytest.mark.parametrize("limits", SUSTAINABLE, ids=";".join)
@pytest.mark.parametrize("bad", ["every other", "all"])
def test_rule_08_a_401_storm_starves_no_ordinary_refresh(limits: tuple[str, ...], bad: str) -> None:
    """Whatever the limits leave for a reserve: no call fails for want of a token, and refreshes are spaced out."""
    turn = count()
    world = World(
        lambda at: Reply(0.2), lambda at, token: bad == "all" or bool(next(turn) % 2), policy=TokenPolicy(limits=limits)
    )
    world.calls(every(0.5)).run(3 * HOUR)

    assert not world.failed
    assert largest_window(world.extras, HOUR) <= POLICY.forced_reserve
    check_limits(world)
    # A second, two, four … between the first ones, so that the last of them comes minutes after the first.
    assert largest_window(world.extras, 60.0) <= 6
    assert largest_window(world.extras, 600.0) <= 11


@pytest.mark.parametrize("round_robin", [True, False], ids=["round robin", "random"])
@pytest.mark.parametrize("hours", [1, 4])
def test_rule_08_one_bad_node_of_two_never_exhausts_the_budget(round_robin: bool, hours: int) -> None:
    """Every second request is rejected, at one call a second: ordinary refreshes continue, and no call fails."""
    turn, rng = count(), random.Random(8)
    world = World(rejects=lambda at, token: bool(next(turn) % 2 if round_robin else rng.random() < 0.5))
    world.calls(every(1.0)).run(hours * HOUR)

    assert failures(world) == []
    assert world.ordinary_denied == 0
    assert world.accepted >= 0.4 * hours * HOUR
    assert largest_window(world.extras, HOUR) <= POLICY.forced_reserve
    check_budget(world)


def test_rule_08_a_service_that_rejects_everything_costs_little_more_than_the_ordinary_refresh() -> None:
    """All calls get 401 for three hours; the callers get them, and the budget stays."""
    world = World(rejects=lambda at, token: True).calls(every(1.0)).run(3 * HOUR)

    assert failures(world) == []
    assert world.ordinary_denied == 0
    assert len(world.handed_401) >= 3 * HOUR - 5
    check_budget(world)


@given(
    length=st.sampled_from([1.0, 10.0, 59.0, 61.0, 600.0, HOUR, 2 * HOUR]) | st.floats(1, 2 * HOUR),
    begins=st.floats(0, 100),
    how=st.sampled_from(OUTAGES),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=examples(40))
def test_rule_11_after_an_outage_of_any_length_a_token_comes_within_a_refresh_interval(
    length: float, begins: float, how: Reply, seed: int
) -> None:
    """Whatever the outage looks like: the budget has not been exhausted when it ends."""
    ends = begins + length
    world = World(outages((begins, ends), reply=how), rng=random.Random(seed))
    world.calls(every(1.0)).run(ends + HOUR)

    interval = POLICY.reuse_for - POLICY.refresh_ahead
    recovered = next(at for at in world.tokens if at >= ends)
    slack = POLICY.fetch_timeout + 1 + 1 + 0.1  # one last attempt, given up; the next call; a good response
    assert recovered <= ends + interval + slack
    assert failures(world, TokenBudgetExhausted) == []
    assert world.ordinary_denied == 0
    assert not [at for at in failures(world) if at > recovered]
    check_budget(world)


@pytest.mark.parametrize("how", OUTAGES, ids=OUTAGE_IDS)
def test_rule_11_an_outage_is_probed_at_most_once_a_refresh_interval_in_the_end(how: Reply) -> None:
    """After ten minutes of it the probes are as rare as ordinary refreshes, and calls fail at once."""
    world = World(outages((60.0, 3 * HOUR), reply=how)).calls(every(1.0)).run(2 * HOUR)

    late = [at for at in world.sent if at > 660]
    assert min(later - earlier for earlier, later in pairwise(late)) >= 45
    assert len(failures(world)) > HOUR
    assert largest_window(world.sent, HOUR) <= 100


@given(seed=st.integers(0, 2**16), up=st.floats(5, 200), down=st.floats(5, 200))
@settings(deadline=None, max_examples=examples(20))
def test_rule_11_a_flapping_endpoint_leaves_budget_for_each_good_response(seed: int, up: float, down: float) -> None:
    """Up and down in turn for two hours: no ordinary request is ever denied."""
    world = World(lambda at: Reply() if at % (up + down) < up else REFUSED, rng=random.Random(seed))
    world.calls(every(1.0)).run(2 * HOUR)

    assert world.ordinary_denied == 0
    check_budget(world)


@pytest.mark.parametrize("wait", [1.0, 30.0, 60.0, 600.0, 5_000.0])
def test_rule_10_nothing_is_sent_before_retry_after(wait: float) -> None:
    """Every 429 is followed by at least ``Retry-After`` seconds of silence, an hour at most."""
    rng = random.Random(10)
    limited_at: list[float] = []

    def service(at: float) -> Reply:
        if rng.random() < 0.5:
            limited_at.append(at + 0.1)
            return Reply(0.1, limited(wait))
        return Reply()

    world = World(service).calls(every(1.0)).run(3 * HOUR)

    silence = min(wait, POLICY.max_retry_after)
    assert limited_at
    for reported in limited_at:
        assert not [at for at in world.sent if reported <= at < reported + silence - 1e-6]


@pytest.mark.parametrize("lifetime", [0.25, 0.5, 1.0, 5.0, 15.0, 30.0])
def test_rule_12_short_lived_tokens_cause_no_loop(lifetime: float) -> None:
    """However short tokens live, the limits hold and every call ends."""
    world = World(lambda at: Reply(0.1, lifetime)).calls(every(0.5)).run(HOUR)

    check_budget(world)
    assert world.accepted > 0


@pytest.mark.parametrize("lifetime", [1.0, 15.0, 30.0])
def test_rule_12_a_spell_of_short_lived_tokens_is_over_when_it_is_over(lifetime: float) -> None:
    """A quarter of an hour of them does not use up the hour's budget: afterwards no call fails."""
    world = World(lambda at: Reply(0.1, lifetime if 100 < at < 1_000 else 60.0)).calls(every(0.5)).run(HOUR)

    interval = POLICY.reuse_for - POLICY.refresh_ahead
    assert not [at for at in failures(world) if at > 1_000 + interval + 1]
    check_budget(world)


@pytest.mark.parametrize("carrier", ["lost", "late"])
def test_rule_17_lost_fetches_are_replaced(carrier: str) -> None:
    """Every fifth fetch is lost, or too late: two hours in which no call fails."""
    turn = count()
    bad = Reply(9.0, None if carrier == "lost" else 60.0)
    world = World(lambda at: bad if next(turn) % 5 == 4 else Reply()).calls(every(1.0)).run(2 * HOUR)

    assert not world.failed
    assert world.ordinary_denied == 0
    check_budget(world)


@st.composite
def deaths(draw: st.DrawFn) -> World:
    """Draw a world with a good service, in which one fetch in ten dies somewhere on its way."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    latency = draw(st.sampled_from([0.01, 0.3, 2.0]))

    spared = 0  # several that fall silent, one after the other, are an outage

    def dies(at: float) -> float | None:
        nonlocal spared
        spared = max(spared - 1, 0)
        if spared or rng.random() > 0.12:
            return None
        spared = 3
        return rng.choice([0.0, 0.0, 0.5, 1.0, 2.0]) * latency

    noticed, young = draw(st.booleans()), draw(st.booleans())
    return World(lambda at: Reply(latency), rng=rng, dies=dies, noticed=noticed, young=young)


@given(deaths())
@settings(deadline=None, max_examples=examples(30))
def test_rule_16_a_carrier_that_dies_costs_no_call_and_nothing_of_the_reserve(world: World) -> None:
    """Two hours: what carries a fetch dies before its first step, or under it, noticed at once or when it is overdue.

    Only the call that carried it may hear of that, and only if there is no usable token.
    """
    world.calls(at_random(world.rng, 1.0)).run(2 * HOUR)

    assert [fail for _, fail in world.failed if fail.failure is not LOST] == []
    assert world.extras == []
    assert world.machine.failed_fetches == 0
    assert world.machine.blocked_for(world.now) == 0
    check_budget(world)


@pytest.mark.parametrize("latency", [0.01, 0.7, 3.0])
def test_rule_02_one_call_waits_for_each_refresh_where_nothing_outlives_a_call(latency: float) -> None:
    """A call a second for two hours, each with a client of its own: no error, and nothing is wasted."""
    world = World(lambda at: Reply(latency), young=True).calls(every(1.0)).run(2 * HOUR)

    assert not world.failed
    assert world.extras == []
    assert largest_window(world.sent, HOUR) <= 80
    assert len(world.tokens) in (len(world.sent), len(world.sent) - 1)  # the last one may be on its way
    assert len([at for at in world.waited if at > latency]) <= len(world.sent)

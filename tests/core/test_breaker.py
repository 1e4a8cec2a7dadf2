"""The circuit breaker (rule 23): every transition, and walks against a model that only counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pay88_adapters import BreakerPolicy, ConfigurationError
from pay88_adapters.core.breaker import Breaker, ClosedPermit, Permit, Rejected, TrialPermit
from support.sample import examples

POLICY = BreakerPolicy(failure_threshold=3, window=10, open_for=20)


def passage(breaker: Breaker, now: float) -> Permit:
    """Return what lets a call pass that must pass."""
    response = breaker.try_acquire(now)
    assert not isinstance(response, Rejected)
    return response


def opened(at: float = 0.0) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(POLICY)
    results = [breaker.failed(passage(breaker, at), at) for _ in range(3)]
    assert results == [False, False, True]
    return breaker


@pytest.mark.parametrize(
    ("failures", "opens"),
    [
        ([0], False),
        ([0, 0], False),
        ([0, 0, 0], True),
        ([0, 5, 10], True),  # all three within the window, which is closed at both ends
        ([0, 5, 10.1], False),
        ([0, 1, 11, 11.5], False),  # two and two
        ([0, 1, 11, 11.5, 12], True),
        ([0, 9, 18, 27, 36, 45], False),  # without end, as long as they are rare
        ([0, 9, 18, 19], True),  # full all the time: what is too old does not count
    ],
)
def test_rule_23_only_as_many_failures_within_the_window_open_it(failures: list[float], opens: bool) -> None:
    """It opens with the last of them, and not one earlier."""
    breaker = Breaker(POLICY)
    results = [breaker.failed(passage(breaker, at), at) for at in failures]
    assert results == [False] * (len(failures) - 1) + [opens]
    assert breaker.is_open is opens


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_rule_23_the_threshold_is_the_policys(threshold: int) -> None:
    """One failure is enough where the policy says so."""
    breaker = Breaker(BreakerPolicy(failure_threshold=threshold))
    assert [breaker.failed(passage(breaker, 0), 0) for _ in range(threshold)][-1]


def test_rule_23_successes_do_not_make_up_for_failures() -> None:
    """Half of the calls fail: that is a service that fails."""
    breaker = Breaker(POLICY)
    for now in (0.0, 1.0, 2.0):
        assert not breaker.succeeded(passage(breaker, now))
        breaker.failed(passage(breaker, now), now)
    assert breaker.is_open


def test_rule_23_open_for_so_long_and_then_one_probe() -> None:
    """Every rejection says how long; the first call after that is the trial request, and no other call is sent."""
    breaker = opened()
    assert breaker.try_acquire(0) == Rejected(20)
    assert breaker.try_acquire(19.5) == Rejected(0.5)
    assert breaker.try_acquire(20) == TrialPermit(1)
    assert breaker.try_acquire(20) == Rejected(20), "until the probe counts as lost"
    assert breaker.try_acquire(30) == Rejected(10)


def test_rule_23_a_probe_that_succeeds_closes_it() -> None:
    """What failed before is forgotten."""
    breaker = opened()
    assert breaker.succeeded(passage(breaker, 20))
    assert not breaker.is_open
    assert isinstance(breaker.try_acquire(20), ClosedPermit)
    assert [breaker.failed(passage(breaker, 21), 21) for _ in range(3)] == [False, False, True]


def test_rule_23_a_probe_that_fails_keeps_it_open() -> None:
    """For as long again, counted from then; and then comes the next one."""
    breaker = opened()
    assert breaker.failed(passage(breaker, 25), 26)
    assert breaker.try_acquire(26) == Rejected(20)
    assert breaker.try_acquire(46) == TrialPermit(2)


def test_rule_23_an_abandoned_probe_lets_another_one_pass() -> None:
    """It says nothing of the service."""
    breaker = opened()
    breaker.release(passage(breaker, 20))
    assert breaker.is_open
    assert breaker.try_acquire(20) == TrialPermit(2)
    assert breaker.try_acquire(21) == Rejected(19)


def test_rule_23_a_trial_request_that_never_ends_is_replaced() -> None:
    """If it ends later, it does not decide any more."""
    breaker = opened()
    lost = passage(breaker, 20)
    assert breaker.try_acquire(40) == TrialPermit(2)
    assert not breaker.succeeded(lost)
    assert not breaker.failed(lost, 41)
    breaker.release(lost)
    assert breaker.try_acquire(41) == Rejected(19)
    assert breaker.succeeded(TrialPermit(2))


def test_rule_23_what_a_probe_has_decided_it_does_not_decide_again() -> None:
    """A trial request has one outcome."""
    breaker = opened()
    probe = passage(breaker, 20)
    assert breaker.failed(probe, 20)
    assert not breaker.succeeded(probe)
    assert not breaker.failed(probe, 30)
    breaker.release(probe)
    assert breaker.try_acquire(30) == Rejected(10)


@pytest.mark.parametrize("now", [5.0, 20.0, 25.0], ids=["open", "due", "half-open"])
def test_rule_23_calls_sent_before_it_opened_change_nothing(now: float) -> None:
    """However they end."""
    breaker = Breaker(POLICY)
    early = passage(breaker, 0)
    for _ in range(3):
        breaker.failed(passage(breaker, 0), 0)
    probe = passage(breaker, 20) if now > 20 else None
    assert not breaker.succeeded(early)
    assert not breaker.failed(early, now)
    breaker.release(early)
    assert breaker.is_open
    if probe is None:
        assert breaker.try_acquire(20) == TrialPermit(1)
    else:
        assert breaker.try_acquire(now) == Rejected(15)
        assert breaker.succeeded(probe)


def test_rule_23_calls_sent_before_it_opened_do_not_open_it_again() -> None:
    """Requests that time out after the trial request has ended were sent before the circuit opened."""
    breaker = Breaker(POLICY)
    crowd = [passage(breaker, 0) for _ in range(10)]
    for early in crowd[:3]:
        breaker.failed(early, 1)
    lost, probe = passage(breaker, 21), passage(breaker, 41)
    assert breaker.succeeded(probe)
    assert not any(breaker.failed(late, 42) for late in [*crowd[3:], lost, probe])
    assert not breaker.is_open
    assert [breaker.failed(passage(breaker, 43), 43) for _ in range(3)] == [False, False, True]


NUMBERS: list[Any] = [0, -1, math.nan, math.inf, 86_401, True, "30", None]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["failure_threshold", "window", "open_for"])
def test_a_policy_that_makes_no_sense_is_rejected(name: str, value: Any) -> None:
    """The error names the wrong value."""
    with pytest.raises(ConfigurationError, match=name):
        BreakerPolicy(**{name: value})


def test_a_policy_counts_in_whole_failures() -> None:
    """Half a failure is none; half a second is a duration."""
    with pytest.raises(ConfigurationError, match="failure_threshold"):
        BreakerPolicy(failure_threshold=2.5)  # type: ignore[arg-type]
    assert BreakerPolicy(window=0.5, open_for=0.5) == BreakerPolicy(5, 0.5, 0.5)


@dataclass(eq=False)
class Sent:
    """A call under way, as the model sees it."""

    passage: Permit
    round: int
    """How often the circuit had opened and closed before."""
    probe: bool


@dataclass
class Model:
    """What the rule says, with nothing forgotten."""

    failures: list[float] = field(default_factory=list)
    """Since the circuit closed."""
    round: int = 0
    open_until: float | None = None
    probe: Sent | None = None
    probe_at: float = 0.0


class Walk(RuleBasedStateMachine):
    """Requests are sent, succeed, fail, and are cancelled and lost in any order."""

    @initialize(threshold=st.integers(1, 3), window=st.sampled_from([1, 8, 60]), open_for=st.sampled_from([1, 8, 60]))
    def begin(self, threshold: int, window: int, open_for: int) -> None:
        self.policy = BreakerPolicy(threshold, window, open_for)
        self.breaker = Breaker(self.policy)
        self.model = Model()
        self.now = 0
        self.sent: list[Sent] = []

    @rule(seconds=st.sampled_from([1, 8, 9, 60]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    def held(self) -> bool:
        """Whether a trial request is in progress that is not lost."""
        return self.model.probe is not None and self.now < self.model.probe_at + self.policy.open_for

    @rule()
    def a_call_comes(self) -> None:
        model, response = self.model, self.breaker.try_acquire(self.now)
        if model.open_until is None:
            assert isinstance(response, ClosedPermit)
            self.sent.append(Sent(response, model.round, probe=False))
        elif self.now < model.open_until:
            assert response == Rejected(model.open_until - self.now)
        elif self.held():
            assert response == Rejected(model.probe_at + self.policy.open_for - self.now)
        else:
            assert isinstance(response, TrialPermit)
            model.probe, model.probe_at = Sent(response, model.round, probe=True), self.now
            self.sent.append(model.probe)

    @rule()
    def a_call_comes_and_fails(self) -> None:
        self.a_call_comes()
        self.a_call_ends(-1, works=False)

    @rule(which=st.integers(-3, 3), works=st.booleans())
    def a_call_ends(self, which: int, works: bool) -> None:
        if not self.sent:
            return
        model, call = self.model, self.sent.pop(which % len(self.sent))
        decides = model.open_until is not None and call is model.probe
        if works:
            assert self.breaker.succeeded(call.passage) is decides
            if decides:
                self.model = Model(round=model.round + 1)
            return
        if model.open_until is None and not call.probe and call.round == model.round:
            model.failures.append(self.now)
            recent = [at for at in model.failures if at >= self.now - self.policy.window]
            opens = len(recent) >= self.policy.failure_threshold
        else:
            opens = decides
        assert self.breaker.failed(call.passage, self.now) is opens
        if opens:
            model.open_until, model.probe = self.now + self.policy.open_for, None

    @rule(which=st.integers(-3, 3))
    def a_call_is_cancelled(self, which: int) -> None:
        if not self.sent:
            return
        call = self.sent.pop(which % len(self.sent))
        self.breaker.release(call.passage)
        if call is self.model.probe:
            self.model.probe = None

    @invariant()
    def it_is_as_open_as_the_model(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.is_open is (self.model.open_until is not None)


Walk.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=60, deadline=None)
TestWalk = Walk.TestCase

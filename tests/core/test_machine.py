"""The machine's table row by row, and each rule about tokens at its boundaries."""

from __future__ import annotations

from typing import Any

import pytest

from pay88_adapters import (
    CredentialsRejected,
    Token,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import ACTIONS, Action, Decision, EndpointState, Fail, Fetch, TokenState, Use, Wait
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.failures import BUDGET_EXHAUSTED
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.snapshot import Snapshot

POLICY = TokenPolicy()
YES = AcquireResult(True, 0.0, 0.0)
ONE = "digest of the first key"
TWO = "digest of the second key"

BROKEN = Failure(TokenEndpointUnavailable, "503", status=503, retryable=True)
ODD = Failure(TokenEndpointUnavailable, "404", status=404)
NONSENSE = Failure(TokenResponseInvalid, "not JSON", status=200, retryable=True)
REJECTED = Failure(CredentialsRejected, "401", status=401)
GONE = Failure(TokenEndpointUnavailable, "cancelled", retryable=True)


def limited(seconds: float) -> Failure:
    """Return what a 429 becomes."""
    return Failure(TokenRateLimited, "429", status=429, retry_after=seconds, retryable=True)


def no(retry_in: float, reserve_used: float = 1.0) -> AcquireResult:
    """Return a refusal of the budget."""
    return AcquireResult(False, retry_in, reserve_used)


def used(count: int, of: int = 20) -> AcquireResult:
    """Return a grant after which *count* units of the reserve are used."""
    return AcquireResult(True, 0.0, count / of)


def token(sent_at: float = 0.0, expires_in: float = 60.0, name: str | None = None) -> Token:
    """Return a token of its own for each instant."""
    name = str(sent_at) if name is None else name
    return Token(f"token-{name}", f"session-{name}", expires_in, sent_at)


class Driven:
    """A machine, and what the manager does around it in one step each."""

    def __init__(self, *, rotating: bool | None = None, **policy: Any) -> None:
        known = {} if rotating is None else {"rotating": rotating}
        self.machine = TokenMachine(TokenPolicy(**policy), **known)
        self.extra: bool | None = None

    def ask(self, now: float, *, known_failures: int | None = None, wait: float = 20.0, **more: Any) -> Decision:
        """Decide for a call that came at *now* unless *seen* says otherwise."""
        known = self.machine.failed_fetches if known_failures is None else known_failures
        return self.machine.decide(now, known_failures=known, deadline=now + wait, **more)

    def lead(self, now: float) -> int:
        """Ask; insist on a ticket."""
        decision = self.ask(now)
        ticket = decision.ticket if isinstance(decision, Fetch) else getattr(decision, "refresh", None)
        assert ticket is not None, f"no fetch at {now}, but {decision}"
        return int(ticket)

    def send(self, ticket: int, now: float, grant: AcquireResult = YES, digest: str = ONE) -> bool:
        """Take the ticket to where its request goes out; return whether it may."""
        if not self.machine.on_credentials(ticket, digest, now):
            return False
        return self.attempt(ticket, now, grant)

    def attempt(self, ticket: int, now: float, grant: AcquireResult = YES) -> bool:
        """Ask the budget for one attempt."""
        self.extra = self.machine.uses_reserve(ticket, now)
        return self.machine.on_budget_result(ticket, grant, now, from_reserve=self.extra)

    def get(self, now: float, expires_in: float = 60.0, grant: AcquireResult = YES, name: str | None = None) -> Token:
        """Fetch a token that comes at once."""
        ticket = self.lead(now)
        assert self.send(ticket, now, grant)
        new = token(now, expires_in, name)
        self.machine.on_token(ticket, new, now)
        return new

    def fail(
        self, ticket: int, now: float, failure: Failure, *, jitter: float = 0.0, digest: str = ONE
    ) -> float | None:
        """Let the attempt fail."""
        return self.machine.on_attempt_failed(ticket, failure, now, jitter=jitter, digest=digest)

    def lose(self, now: float, failure: Failure = ODD) -> None:
        """Fetch, and fail."""
        ticket = self.lead(now)
        assert self.send(ticket, now)
        assert self.fail(ticket, now, failure) is None


def holding(expires_in: float = 60.0, **policy: Any) -> Driven:
    """Return a machine that got a token at second 0."""
    driven = Driven(**policy)
    driven.get(0.0, expires_in)
    return driven


# The table


@pytest.mark.parametrize(
    ("age", "answers"),
    [
        (TokenState.FRESH, [Action.USE, Action.USE, Action.USE]),
        (TokenState.AGING, [Action.REFRESH, Action.USE, Action.USE]),
        (TokenState.STALE, [Action.FETCH, Action.WAIT, Action.USE]),
        (TokenState.REJECTED, [Action.FETCH, Action.WAIT, Action.USE]),
        (TokenState.ABSENT, [Action.FETCH, Action.WAIT, Action.WAIT_OR_FAIL]),
    ],
)
def test_the_table_is_total_and_says_this(age: TokenState, answers: list[Action]) -> None:
    """Every age meets every state of the token endpoint."""
    assert list(ACTIONS) == list(TokenState)
    assert ACTIONS[age] == dict(
        zip((EndpointState.FREE, EndpointState.BUSY, EndpointState.COOLDOWN), answers, strict=True)
    )


AGES = {"FRESH": 10.0, "AGING": 46.0, "STALE": 52.0, "REJECTED": 10.0, "ABSENT": 60.0}


def in_cell(age: str, source: str) -> tuple[Driven, float]:
    """Return a machine in one cell of the table, and the time there."""
    driven, now = holding(), AGES[age]
    if source == "FREE":
        if age == "REJECTED":
            assert driven.machine.on_unauthorized(token(), now)
        return driven, now
    if age in ("FRESH", "REJECTED"):  # only somebody who cannot wait fetches beside a fresh token
        assert driven.machine.on_unauthorized(token(), now)
        ticket = driven.lead(now)
        if age == "FRESH":
            assert driven.send(ticket, now)
            driven.machine.on_token(ticket, token(name="another"), now)
            other = driven.ask(now, min_validity=55.0)
            assert isinstance(other, Fetch)
            ticket = other.ticket
    else:
        ticket = driven.lead(now)
    if source == "COOLDOWN":
        assert driven.send(ticket, now)
        assert driven.fail(ticket, now, ODD) is None
    return driven, now


@pytest.mark.parametrize("source", ["FREE", "BUSY", "COOLDOWN"])
@pytest.mark.parametrize("age", list(AGES))
def test_every_cell_of_the_table_is_what_a_call_gets(age: str, source: str) -> None:
    """The machine, brought into each cell, does what the cell says."""
    driven, now = in_cell(age, source)

    decision = driven.ask(now + 0.1)

    expected = ACTIONS[TokenState[age]][EndpointState[source]]
    if expected in (Action.USE, Action.REFRESH):
        assert isinstance(decision, Use)
        assert (decision.refresh is not None) == (expected is Action.REFRESH)
    else:
        assert type(decision) is {Action.FETCH: Fetch, Action.WAIT: Wait, Action.WAIT_OR_FAIL: Fail}[expected]


@pytest.mark.parametrize("source", ["FREE", "BUSY", "COOLDOWN"])
@pytest.mark.parametrize("age", list(AGES))
def test_what_is_used_without_asking_is_what_asking_would_have_given(age: str, source: str) -> None:
    """The cached path knows no rule of its own: as long as it lasts, a call is told the same."""
    driven, now = in_cell(age, source)

    cached, until = driven.machine.fast_path_token(now)
    until = min(until, now + POLICY.fetch_timeout)  # later on, what is in flight here counts as lost

    for at in (now, (now + until) / 2, until - 1e-6):
        if now <= at < until:
            assert driven.ask(at) == Use(cached)  # type: ignore[arg-type]


def test_while_a_fetch_is_in_flight_the_token_is_used_without_asking_until_somebody_has_to_look() -> None:
    """Until its window ends, or the fetch would count as lost."""
    driven = holding()
    driven.lead(45.0)
    assert driven.machine.fast_path_token(45.5) == (token(), 50.0)

    driven = holding()
    assert isinstance(driven.ask(30.0, min_validity=50.0), Fetch)
    assert driven.machine.fast_path_token(30.5) == (token(), 36.0)


def test_while_none_can_be_fetched_the_token_is_used_without_asking_until_one_can_and_is_due() -> None:
    """A fresh one until its refresh is due; a refused one until the bar lifts, and no longer."""
    driven = holding()
    decision = driven.ask(20.0, min_validity=50.0)
    assert isinstance(decision, Fetch)
    assert driven.send(decision.ticket, 20.0)
    assert driven.fail(decision.ticket, 20.0, ODD) is None
    assert driven.machine.fast_path_token(20.5) == (token(), 45.0)

    driven = holding()
    assert driven.machine.on_unauthorized(token(), 0.1)
    assert not driven.send(driven.lead(0.2), 0.2, no(0.5))
    assert driven.machine.fast_path_token(0.3) == (token(), 0.7)


# Reuse


def test_rule_01_the_window_is_closed_at_its_beginning_and_open_at_its_end() -> None:
    """Reused until just before second 50; from second 50 on a new one is fetched."""
    driven = holding()
    assert driven.ask(0.0) == Use(token())
    ticket = driven.lead(45.0)
    assert driven.ask(49.999) == Use(token())
    assert driven.ask(50.0) == Wait(until=51.0)
    driven.machine.on_fetch_abandoned(ticket, 50.0)
    assert isinstance(driven.ask(50.0), Fetch)


@pytest.mark.parametrize(
    ("expires_in", "window"),
    [
        (60.0, 50.0),
        (300.0, 50.0),
        (59.0, 49.0),
        (30.0, 20.0),
        (25.0, 15.0),
        (20.0, 10.0),
        (19.9, 9.95),
        (15.0, 7.5),
        (1.0, 0.5),
    ],
)
def test_rule_01_the_window_follows_what_the_service_grants(expires_in: float, window: float) -> None:
    """``expires_in - margin``; half of it where less than twice the margin is granted; never over 50."""
    driven = holding(expires_in)
    driven.lead(window - 1e-4)  # the refresh beside the call
    assert driven.ask(window - 1e-4) == Use(token(0.0, expires_in))
    assert not isinstance(driven.ask(window + 1e-9), Use)


def test_rule_01_age_counts_from_the_moment_the_request_was_sent() -> None:
    """A token that took four seconds to come is four seconds old."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    driven.machine.on_token(ticket, token(0.0), 4.0)
    assert driven.machine.fast_path_token(4.0) == (token(), 45.0)


# Refresh ahead


def test_rule_02_one_call_starts_the_refresh_and_all_go_on() -> None:
    """From second 45 on one call is told to fetch beside; the next ones use the token and nothing else."""
    driven = holding()
    assert driven.ask(44.999) == Use(token())
    first = driven.ask(45.0)
    assert isinstance(first, Use)
    assert first.refresh is not None
    assert [driven.ask(45.0 + tenth / 10) for tenth in range(49)] == [Use(token())] * 49


@pytest.mark.parametrize(("expires_in", "refresh_at"), [(60.0, 45.0), (20.0, 7.5), (15.0, 5.625), (1.0, 0.375)])
def test_rule_02_the_refresh_takes_at_most_a_quarter_of_the_window(expires_in: float, refresh_at: float) -> None:
    """The last five seconds, or the last quarter of a window shorter than twenty."""
    driven = holding(expires_in)
    assert driven.machine.fast_path_token(0.0) == (token(0.0, expires_in), refresh_at)


@pytest.mark.parametrize(
    ("pace", "refresh_at", "reuse_until"),
    [(0.0, 45.0, 50.0), (44.0, 45.0, 50.0), (47.25, 47.25, 52.25), (54.0, 54.0, 59.0), (58.2, 58.2, 59.0)],
)
def test_rule_02_the_refresh_point_moves_later_as_the_budget_shrinks(
    pace: float, refresh_at: float, reuse_until: float
) -> None:
    """Through the reuse window, and at last into what rule 6 allows."""
    driven = Driven()
    driven.get(0.0, grant=AcquireResult(True, 0.0, 0.0, pace=pace))
    assert driven.machine.fast_path_token(1.0) == (token(), refresh_at)
    assert isinstance(driven.ask(refresh_at), Use)
    assert driven.ask(reuse_until - 0.001) == Use(token())
    assert not isinstance(driven.ask(reuse_until), Use)


def test_rule_02_a_token_is_used_to_its_end_where_the_limits_sustain_no_more() -> None:
    """With 50 requests an hour one lasts 72 seconds; the next is requested as soon as this one is of no use."""
    driven = Driven()
    driven.get(0.0, grant=AcquireResult(True, 0.0, 0.0, pace=72.0))
    assert driven.machine.fast_path_token(1.0) == (token(), 59.0)
    ticket = driven.lead(59.0)
    assert driven.machine.uses_reserve(ticket, 59.0) is False


def test_rule_08_what_comes_sooner_than_the_limits_sustain_is_extra() -> None:
    """Ordinary requests are as far apart as the budget says."""
    driven = Driven()
    driven.get(0.0, grant=AcquireResult(True, 0.0, 0.0, pace=58.2))
    assert driven.machine.on_unauthorized(token(), 50.0)
    ticket = driven.lead(50.0)
    assert driven.machine.uses_reserve(ticket, 58.1) is True
    assert driven.machine.uses_reserve(ticket, 58.2) is False


# Single flight


def test_rule_03_a_cold_start_hands_out_one_ticket() -> None:
    """A thousand calls: the first fetches, the others wait until the fetch would count as lost, or less."""
    driven = Driven()
    assert driven.ask(0.0) == Fetch(1)
    assert driven.send(1, 0.0)
    others = [driven.ask(0.0) for _ in range(999)]
    assert others == [Wait(until=6.0)] * 999
    assert driven.ask(0.0, wait=2.5) == Wait(until=2.5)


def test_rule_03_who_cannot_wait_sends_its_own() -> None:
    """``alone``: waiting would block the very fetch. Once is enough: then it waits like everybody."""
    driven = Driven()
    driven.lead(0.0)
    assert driven.ask(0.0, must_fetch=True) == Fetch(2)
    assert isinstance(driven.ask(0.0), Wait)
    assert len(driven.machine.pending_fetches) == 2


# Budget


def test_rule_05_a_denied_attempt_is_not_sent_and_bars_until_it_can_be() -> None:
    """Nobody asks again before the budget said so; a call that can wait until then waits for it."""
    driven = Driven()
    assert driven.send(driven.lead(0.0), 0.0, no(12.0)) is False
    assert driven.ask(0.0) == Wait(until=12.0)
    assert driven.ask(11.999, wait=5.0) == Wait(until=12.0)
    assert isinstance(driven.ask(12.0), Fetch)


def test_rule_05_a_call_waits_for_a_unit_that_comes_with_its_last_moment() -> None:
    """The bar lifts exactly at its deadline: that is soon enough, and a moment later is not."""
    driven = Driven()
    driven.send(driven.lead(0.0), 0.0, no(12.0))
    assert driven.ask(0.0, wait=12.0) == Wait(until=12.0)
    assert isinstance(driven.ask(0.0, wait=11.999), Fail)


def test_rule_05_a_call_that_cannot_wait_so_long_fails_at_once_and_hears_how_long() -> None:
    """Twelve seconds to go and ten to wait: ``TokenBudgetExhausted`` with ``retry_after``, measured now."""
    driven = Driven()
    driven.send(driven.lead(0.0), 0.0, no(12.0))
    decision = driven.ask(1.0, wait=10.0)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is TokenBudgetExhausted
    assert decision.retry_after == pytest.approx(11.0)


def test_rule_05_a_retry_without_a_unit_ends_the_fetch_with_the_failure_it_had() -> None:
    """The caller hears of the 503, not of the budget."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    assert driven.fail(ticket, 0.0, BROKEN, jitter=0.5) == 0.125
    assert driven.attempt(ticket, 0.125, no(40.0, reserve_used=0.0)) is False
    assert driven.ask(0.125, known_failures=0) == Fail(BROKEN, 1.0)


def test_rule_05_a_denied_forced_refresh_bars_no_longer_than_until_the_ordinary_one() -> None:
    """The reserve may be spent for an hour; the ordinary refresh comes at second 45 all the same."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 10.0)
    ticket = driven.lead(10.0)
    assert driven.send(ticket, 10.0, no(3_000.0)) is False
    assert driven.extra
    assert driven.ask(44.9) == Use(token())
    assert isinstance(driven.ask(45.0), Fetch)


def test_rule_05_a_denied_forced_refresh_bars_as_long_as_there_is_no_room_for_the_ordinary_one() -> None:
    """With one request an hour, second 45 would only bring another refusal: callers are told when it helps."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 10.0)
    ticket = driven.lead(10.0)
    assert driven.send(ticket, 10.0, no(3_000.0)._replace(refresh_allowed_in=500.0)) is False
    assert not isinstance(driven.ask(59.0), Fetch)
    decision = driven.ask(61.0)
    assert isinstance(decision, Fail)
    assert (decision.failure, decision.retry_after) == (BUDGET_EXHAUSTED, 449.0)
    assert isinstance(driven.ask(510.0), Fetch)


# Degrade


def barred_by(why: str, driven: Driven, now: float) -> None:
    """Let a fetch fail in one of the ways that bar the next."""
    ticket = driven.lead(now)
    if why == "budget":
        assert not driven.send(ticket, now, no(100.0))
        return
    assert driven.send(ticket, now)
    failure = {"429": limited(100.0), "rejected": REJECTED, "outage": ODD, "nonsense": NONSENSE}[why]
    while (pause := driven.fail(ticket, now, failure)) is not None:
        assert driven.attempt(ticket, now + pause)


WHYS = {
    "budget": TokenBudgetExhausted,
    "429": TokenRateLimited,
    "rejected": CredentialsRejected,
    "outage": TokenEndpointUnavailable,
    "nonsense": TokenResponseInvalid,
}


@pytest.mark.parametrize("why", WHYS)
def test_rule_06_a_stale_token_is_attached_while_none_can_be_fetched(why: str) -> None:
    """Past its window and not past ``expires_in - expiry_skew``, a token is better than an error."""
    driven = holding(rejection_cooldown=100)
    barred_by(why, driven, 49.9 if why in ("outage", "nonsense") else 45.0)

    assert driven.ask(50.0) == Use(token())
    if why in ("outage", "nonsense"):  # the cool-down of a second is over: one probe each time
        barred_by(why, driven, 51.0)
        barred_by(why, driven, 53.5)
        barred_by(why, driven, 58.0)
    assert driven.ask(58.999) == Use(token())
    assert driven.machine.fast_path_token(58.5) == (token(), 59.0)
    decision = driven.ask(59.0)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is WHYS[why]


def test_rule_06_who_waits_with_a_usable_token_leaves_with_it_before_it_expires() -> None:
    """A fetch that takes too long: the caller goes on with the old token, one skew before its end."""
    driven = holding()
    assert driven.send(driven.lead(55.0), 55.0)
    assert driven.ask(55.0) == Wait(until=58.0)
    assert driven.machine.decide(58.0, known_failures=0, deadline=75.0) == Use(token())


def test_rule_06_who_has_no_more_time_leaves_with_the_usable_token() -> None:
    """At its deadline a caller prefers a token past its window to an error."""
    driven = holding()
    assert driven.send(driven.lead(51.0), 51.0)
    assert driven.machine.decide(51.0, known_failures=0, deadline=52.0) == Wait(until=52.0)
    assert driven.machine.decide(52.0, known_failures=0, deadline=52.0) == Use(token())


def test_rule_06_a_call_waits_no_longer_than_its_deadline() -> None:
    """With nothing to attach, it fails the moment its time is up."""
    driven = Driven()
    driven.send(driven.lead(0.0), 0.0)
    assert driven.machine.decide(0.0, known_failures=0, deadline=3.0) == Wait(until=3.0)
    decision = driven.machine.decide(3.0, known_failures=0, deadline=3.0)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is TokenEndpointUnavailable
    assert decision.retry_after > 0


@pytest.mark.parametrize("why", WHYS)
def test_rule_06_a_wish_for_a_longer_life_never_costs_the_token_there_is(why: str) -> None:
    """``min_validity`` asks for a fetch; where none can be made, the older token is the answer, at once."""
    driven = holding()
    assert driven.ask(20.0, min_validity=38.9) == Use(token())
    barred_by(why, driven, 45.0)
    assert driven.ask(45.1, min_validity=30.0) == Use(token())


def test_rule_06_a_wish_for_a_longer_life_fetches_one() -> None:
    """The token at hand would not last: one fetch; its failure leaves the old token to be used."""
    driven = holding()
    decision = driven.ask(20.0, min_validity=39.0)
    assert isinstance(decision, Fetch)
    assert driven.send(decision.ticket, 20.0)
    assert driven.extra
    assert driven.fail(decision.ticket, 20.0, ODD) is None
    assert driven.ask(20.0, known_failures=0, min_validity=39.0) == Use(token())


def test_rule_06_whoever_has_a_token_never_waits_for_an_error() -> None:
    """No answer in time: a token that would not last long, or that was refused, is better than none."""
    driven = holding()
    assert isinstance(driven.ask(20.0, min_validity=39.0), Fetch)
    assert driven.ask(21.0, wait=0.0, min_validity=39.0) == Use(token())

    driven = holding()
    assert driven.machine.on_unauthorized(token(), 20.0)
    driven.send(driven.lead(20.0), 20.0)
    assert isinstance(driven.ask(21.0, wait=1.0), Wait)
    assert driven.ask(21.0, wait=0.0) == Use(token())


def test_rule_06_a_wish_for_a_longer_life_is_waited_for() -> None:
    """Who asked for one does not leave early with the token that is about to expire."""
    driven = holding()
    assert driven.send(driven.lead(55.0), 55.0)
    assert driven.ask(55.0, min_validity=10.0) == Wait(until=61.0)
    assert isinstance(driven.ask(58.0, min_validity=10.0), Wait)


# Refusals


def test_rule_10_a_fetch_ends_where_another_was_told_to_wait() -> None:
    """One that pauses, or that came alone, sends nothing after a 429; nor after one that was heard of too late."""
    driven = Driven()
    first = driven.lead(0.0)
    assert driven.send(first, 0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert not driven.machine.stopped(second.ticket, 0.0)
    driven.fail(first, 0.0, limited(30.0))
    assert driven.machine.stopped(second.ticket, 29.9)
    assert not driven.machine.pending_fetches
    third = driven.lead(30.0)
    assert not driven.machine.stopped(third, 30.0)
    assert driven.machine.stopped(second.ticket, 30.0), "it is gone"

    lost = Driven()
    late = lost.lead(0.0)
    assert lost.send(late, 0.0)
    assert isinstance(lost.ask(6.0), Fetch)
    assert lost.fail(late, 6.0, limited(30.0)) is None
    assert lost.machine.stopped(2, 7.0)
    assert isinstance(lost.ask(7.0), Fail)


def test_rule_04_what_others_found_out_is_taken_over() -> None:
    """A young token ends the fetch; an old one is held, and the fetch goes on; a bar is everybody's."""
    driven = Driven()
    ticket = driven.lead(100.0)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token(50.0)), 100.0, digest=ONE)
    assert driven.ask(100.0, wait=0.0) == Use(token(50.0)), "old, and better than none"
    assert not driven.machine.merge_snapshot(ticket, Snapshot(token(90.0), refreshed_at=90.0), 100.0, digest=ONE)
    assert driven.ask(100.0) == Use(token(90.0))
    assert not driven.machine.pending_fetches

    again = driven.lead(135.0)
    assert driven.send(again, 135.0)
    driven.extra = driven.machine.uses_reserve(again, 134.9)
    assert driven.extra, "rule 8: 44.9 seconds after somebody else's ordinary request"

    for bar, failed in ((BROKEN, 1), (limited(9.0), 0)):
        driven = Driven()
        ticket = driven.lead(0.0)
        assert not driven.machine.merge_snapshot(
            ticket, Snapshot(cooldown_reason=bar, cooldown_until=8.0, failures=4), 0.0, digest=ONE
        )
        assert driven.machine.failed_fetches == failed
        answer = driven.ask(1.0, wait=1.0)
        assert isinstance(answer, Fail)
        assert (answer.failure, answer.retry_after) == (bar, 7.0)
        driven.lose(8.0)
        cooldown = driven.ask(8.0, wait=0.0)
        assert isinstance(cooldown, Fail)
        assert cooldown.retry_after == 16.0


def test_rule_04_a_bar_that_has_ended_bars_nobody() -> None:
    """At the very instant, too: the fetch goes on, and nothing has failed."""
    driven = Driven()
    ticket = driven.lead(8.0)
    assert driven.machine.merge_snapshot(
        ticket, Snapshot(cooldown_reason=BROKEN, cooldown_until=8.0, failures=4), 8.0, digest=ONE
    )
    assert driven.machine.pending_fetches == {ticket}
    assert driven.machine.failed_fetches == 0


def test_rule_04_what_failed_elsewhere_answers_who_waited_here() -> None:
    """Also a call that hears of it after the bar has ended."""
    driven = Driven()
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=BROKEN, cooldown_until=8.0), 0.0, digest=ONE
    )
    assert driven.ask(8.0, known_failures=0) == Fail(BROKEN, 0.0)
    assert isinstance(driven.ask(8.0), Fetch)


def test_rule_09_credentials_that_were_rejected_elsewhere_are_not_sent_from_here() -> None:
    """The rejection is about those that the others know; any others are tried at once."""
    driven = Driven(rotating=True)
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=REJECTED, cooldown_until=30.0), 0.0, digest=ONE
    )
    assert driven.machine.failed_fetches == 1
    assert not driven.machine.on_credentials(driven.lead(1.0), ONE, 1.0)
    assert driven.machine.on_credentials(driven.lead(2.0), TWO, 2.0)


def test_rule_04_a_fetch_that_was_given_up_takes_nothing_over() -> None:
    """Whoever replaced it decides."""
    driven = Driven()
    late = driven.lead(0.0)
    ticket = driven.lead(6.0)
    assert not driven.machine.merge_snapshot(late, Snapshot(token(6.0)), 6.0, digest=ONE)
    assert driven.machine.fast_path_token(6.0)[0] is None
    assert driven.machine.pending_fetches == {ticket}


def test_rule_04_a_token_is_taken_over_for_as_long_as_it_would_have_lasted() -> None:
    """At the instant of its refresh it is held, and the fetch goes on; at the end of its life it is nothing."""
    driven = Driven()
    ticket = driven.lead(45.0)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token()), 45.0, digest=ONE)
    assert driven.machine.fast_path_token(45.0)[0] == token()
    driven = Driven()
    assert driven.machine.merge_snapshot(driven.lead(59.0), Snapshot(token()), 59.0, digest=ONE)
    assert driven.machine.fast_path_token(59.0)[0] is None


def test_rule_07_another_token_of_the_same_instant_replaces_a_refused_one() -> None:
    """It is not the one that was refused, and not older."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 1.0)
    other = token(name="another")
    assert not driven.machine.merge_snapshot(driven.lead(1.0), Snapshot(other), 1.0, digest=ONE)
    assert driven.ask(1.0) == Use(other)


def test_rule_04_others_are_told_what_concerns_them() -> None:
    """The token of their credentials, an outage or a 429, the failures in a row, and what is known of the budget."""
    spent = {"window": {"entry": 0.0}}
    driven = holding()
    assert driven.machine.snapshot(ONE, spent) == Snapshot(token(), refreshed_at=0.0, budget_entries=spent)
    assert driven.machine.snapshot(TWO, spent) == Snapshot(refreshed_at=0.0, budget_entries=spent)
    driven.lose(45.0)
    assert driven.machine.snapshot(ONE, spent) == Snapshot(token(), ODD, 46.0, 1, 45.0, spent)
    assert driven.machine.snapshot(TWO, spent) == Snapshot(None, ODD, 46.0, 1, 45.0, spent)

    driven = Driven()
    assert not driven.machine.merge_snapshot(driven.lead(0.0), Snapshot(token()), 0.0, digest=TWO)
    assert driven.machine.snapshot(TWO, spent).token == token()
    assert driven.machine.snapshot(ONE, spent).token is None


def test_rule_09_others_are_told_of_a_rejection_of_their_own_credentials() -> None:
    """And of no other."""
    driven = Driven()
    driven.lose(0.0, REJECTED)
    told = driven.machine.snapshot(ONE, {})
    assert (told.cooldown_reason, told.cooldown_until) == (REJECTED, 30.0)
    told = driven.machine.snapshot(TWO, {})
    assert (told.cooldown_reason, told.cooldown_until) == (None, float("-inf"))


def test_rule_05_others_are_not_told_that_the_budget_is_spent() -> None:
    """They share it: it tells them."""
    driven = Driven()
    assert not driven.send(driven.lead(0.0), 0.0, no(12.0))
    told = driven.machine.snapshot(ONE, {})
    assert (told.cooldown_reason, told.cooldown_until) == (None, float("-inf"))


def test_rule_10_a_429_that_others_were_told_bars_no_longer_than_our_own() -> None:
    """At most ``max_retry_after``; nothing has failed here."""
    driven = Driven()
    bar = limited(9_000.0)
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=bar, cooldown_until=9_000.0), 0.0, digest=ONE
    )
    assert driven.machine.failed_fetches == 0
    assert driven.ask(0.0) == Fail(bar, 3_600.0)
    driven = Driven()
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=bar, cooldown_until=30.0), 0.0, digest=ONE
    )
    assert driven.ask(0.0) == Fail(bar, 30.0)


def test_rule_02_the_pace_of_the_budget_is_kept_by_those_who_follow() -> None:
    """As the hour's budget goes, whoever takes a token over refreshes it later, too."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert not driven.machine.merge_snapshot(ticket, Snapshot(token()), 0.0, digest=ONE, pace=54.0)
    assert driven.ask(53.9) == Use(token())
    assert isinstance(driven.ask(54.0), Use)
    assert driven.machine.pending_fetches


def test_rule_04_a_token_that_was_refused_is_not_taken_over_again() -> None:
    """Nor one that is older than ours; nobody is told of a refused one."""
    driven = holding()
    assert driven.machine.snapshot(ONE, {}).token == token()
    assert driven.machine.on_unauthorized(token(), 1.0)
    assert driven.machine.snapshot(ONE, {}).token is None
    ticket = driven.lead(1.0)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token()), 1.0, digest=ONE)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token(-9.0)), 1.0, digest=ONE)
    assert driven.machine.pending_fetches == {ticket}


def test_rule_07_the_first_refusal_is_replaced_at_once_by_one_fetch() -> None:
    """The token is not used again by anyone; one fetches, the others wait, all are replayed."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 1.0)
    assert driven.machine.fast_path_token(1.0)[0] is None
    ticket = driven.lead(1.0)
    assert driven.send(ticket, 1.0)
    assert isinstance(driven.ask(1.0), Wait)
    driven.machine.on_token(ticket, token(1.0), 1.1)
    assert driven.ask(1.1) == Use(token(1.0))


def test_rule_07_a_newer_token_is_not_dropped_for_an_older_one() -> None:
    """A late 401 for the token before: send it again with the one there is, and fetch nothing."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 1.0)
    newer = driven.get(1.0)
    assert driven.machine.on_unauthorized(token(), 2.0)
    assert driven.ask(2.0) == Use(newer)


def test_rule_07_a_401_for_a_token_that_is_gone_is_replayed_if_there_is_or_can_be_another() -> None:
    """With a newer token whatever else holds; without one unless none can be fetched."""
    old = token(name="older")
    driven = holding()
    barred_by("429", driven, 45.0)
    assert driven.machine.on_unauthorized(old, 46.0), "the newer token is held"
    assert driven.machine.on_unauthorized(old, 58.9)
    assert not driven.machine.on_unauthorized(old, 59.0), "it has expired, and there will be no other"

    driven = Driven()
    assert driven.machine.on_unauthorized(old, 0.0), "one may be requested"
    driven.lead(0.0)
    assert driven.machine.on_unauthorized(old, 0.0), "one is in flight"


def test_rule_07_refused_during_the_refresh_beside_is_replayed_with_its_token() -> None:
    """What is in flight already serves: nothing forced is spent."""
    driven = holding()
    ticket = driven.lead(45.0)
    assert driven.send(ticket, 45.0)
    assert driven.machine.on_unauthorized(token(), 45.1)
    assert isinstance(driven.ask(45.1), Wait)
    assert not driven.machine.awaiting_first_success


def test_rule_08_a_thousand_refusals_cost_one_ticket() -> None:
    """All are to be replayed, and one fetch is under way."""
    driven = holding()
    assert [driven.machine.on_unauthorized(token(), 1.0) for _ in range(1_000)] == [True] * 1_000
    decisions = [driven.ask(1.0) for _ in range(1_000)]
    assert sum(isinstance(each, Fetch) for each in decisions) == 1
    (ticket,) = driven.machine.pending_fetches
    assert driven.send(ticket, 1.0)
    assert driven.extra


@pytest.mark.parametrize(
    ("count", "spacing"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (8, 128.0), (9, 180.0), (17, 180.0)]
)
def test_rule_08_forced_refreshes_are_spaced_out_by_what_is_left_of_the_reserve(count: int, spacing: float) -> None:
    """A second apart at first, twice as long with each that counts, at last evenly over the hour."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 0.0)
    current = token()
    for now in range(0, int(spacing), 45):
        current = driven.get(now, grant=used(count), name=f"at {now}")
    assert not driven.machine.on_unauthorized(current, spacing - 0.25)
    assert driven.machine.on_unauthorized(current, spacing)


def test_rule_08_the_last_of_the_reserve_is_for_the_retries_within_a_fetch() -> None:
    """Two of twenty, where a fetch has three attempts; while they count, no refresh is forced."""
    driven = holding()
    driven.get(45.0, grant=used(17))
    assert driven.machine.on_unauthorized(token(45.0), 46.0)
    driven.get(46.0, grant=used(18))
    driven.get(91.0, grant=used(18))
    assert not driven.machine.on_unauthorized(token(91.0), 92.0)
    driven.get(10_000.0, grant=used(18))
    assert not driven.machine.on_unauthorized(token(10_000.0), 10_001.0)
    driven.get(10_045.0, grant=used(17))
    assert driven.machine.on_unauthorized(token(10_045.0), 10_046.0)


def test_rule_08_what_the_ordinary_request_pays_for_is_not_spaced_out() -> None:
    """A forced refresh as late as the next ordinary request costs the reserve nothing, whatever is left of it."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 30.0)
    newer = driven.get(30.0, grant=used(20))
    driven.machine.on_accepted(newer)
    assert not driven.machine.on_unauthorized(newer, 44.9)
    assert driven.machine.on_unauthorized(newer, 45.0)
    assert driven.machine.uses_reserve(driven.lead(45.0), 45.0) is False


def storm(driven: Driven, start: float, count: int) -> float:
    """Let each new token be refused as soon as the spacing allows; return the time of the last."""
    now = start
    for so_far, spacing in enumerate([0.0, 1.0, 2.0, 4.0, 8.0][:count], 1):
        now += spacing
        current, _ = driven.machine.fast_path_token(now)
        assert current is not None
        assert driven.machine.on_unauthorized(current, now)
        driven.get(now, grant=used(so_far))
    return now


def test_rule_08_after_three_in_a_row_the_callers_get_the_401() -> None:
    """Until ``rejection_cooldown`` is over nothing is spent; the token is attached all the same."""
    driven = holding()
    last = storm(driven, 0.0, 3)
    current, _ = driven.machine.fast_path_token(last)
    assert current is not None
    assert not driven.machine.on_unauthorized(current, last + 10.0)
    assert driven.ask(last + 10.0) == Use(current)
    assert not driven.machine.on_unauthorized(current, last + 29.9)
    assert driven.machine.on_unauthorized(current, last + 30.0)


def test_rule_08_after_that_time_three_more_are_allowed() -> None:
    """A new row begins with the first one after ``rejection_cooldown``."""
    driven = holding()
    now = storm(driven, 0.0, 3) + 30.0
    for so_far, spacing in enumerate((0.0, 8.0, 16.0), 4):
        now += spacing
        current, _ = driven.machine.fast_path_token(now)
        assert current is not None
        assert driven.machine.on_unauthorized(current, now)
        driven.get(now, grant=used(so_far))
    current, _ = driven.machine.fast_path_token(now)
    assert current is not None
    assert not driven.machine.on_unauthorized(current, now + 29.9)


def test_rule_08_a_refused_token_past_its_window_costs_no_forced_refresh() -> None:
    """It would be replaced anyhow: from the very end of its window on."""
    driven = holding(max_forced_refreshes=0)
    assert not driven.machine.on_unauthorized(token(), 49.999)
    assert driven.machine.on_unauthorized(token(), 50.0)
    assert not driven.machine.awaiting_first_success


def test_rule_08_a_reserve_of_one_is_a_reserve() -> None:
    """The smallest there is pays for one forced refresh."""
    assert holding(forced_reserve=1).machine.on_unauthorized(token(), 1.0)


def test_rule_08_an_accepted_call_ends_the_row() -> None:
    """The fourth is allowed, once its spacing has passed, if a call was accepted in between."""
    driven = Driven()
    assert not driven.machine.awaiting_first_success
    driven.get(0.0)
    last = storm(driven, 0.0, 3)
    current, _ = driven.machine.fast_path_token(last)
    assert current is not None
    assert driven.machine.awaiting_first_success
    driven.machine.on_accepted(token(0.0))  # an older one proves nothing
    assert driven.machine.awaiting_first_success
    driven.machine.on_accepted(current)
    assert not driven.machine.awaiting_first_success
    assert not driven.machine.on_unauthorized(current, last + 3.9)
    assert driven.machine.on_unauthorized(current, last + 4.0)


def test_rule_08_a_token_that_aged_out_ends_the_row() -> None:
    """The ordinary refresh brings a token that nobody has refused yet."""
    driven = holding(rejection_cooldown=1_000)
    last = storm(driven, 0.0, 3)
    newer = driven.get(last + 45.0)
    assert driven.machine.on_unauthorized(newer, last + 46.0)


def test_rule_08_a_token_that_somebody_fetched_alone_ends_the_row() -> None:
    """It was not fetched because of a refusal either."""
    driven = holding(rejection_cooldown=1_000)
    now = storm(driven, 0.0, 3) + 52.0
    driven.lead(now)
    decision = driven.ask(now, must_fetch=True)
    assert isinstance(decision, Fetch)
    assert driven.machine.awaiting_first_success
    driven.machine.on_token(decision.ticket, token(now), now)
    assert not driven.machine.awaiting_first_success


@pytest.mark.parametrize("policy", [{"max_forced_refreshes": 0}, {"forced_reserve": 0}])
def test_rule_08_forced_refreshes_can_be_turned_off(policy: dict[str, int]) -> None:
    """None at all: every 401 is handed to the caller."""
    driven = holding(**policy)
    assert not driven.machine.on_unauthorized(token(), 1.0)
    assert not driven.machine.on_unauthorized(token(), 44.0)
    assert driven.ask(44.0) == Use(token())


def test_rule_08_only_a_first_attempt_as_late_as_the_ordinary_refresh_is_ordinary() -> None:
    """Retries, forced refreshes and trial requests consume the reserve."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0)
    assert driven.extra is False
    driven.fail(ticket, 0.1, BROKEN, jitter=0.5)
    assert driven.attempt(ticket, 0.2)
    assert driven.extra is True
    driven.machine.on_fetch_abandoned(ticket, 0.3)  # an attempt had failed: that counts
    assert driven.send(driven.lead(1.4), 1.4)
    assert driven.extra is True
    driven.machine.on_fetch_abandoned(2, 1.5)
    assert driven.send(driven.lead(45.0), 45.0)
    assert driven.extra is False


def test_rule_16_a_fetch_whose_carrier_dies_consumes_nothing_of_the_reserve() -> None:
    """The next one takes its place: it is an ordinary one, however soon it comes."""
    driven = Driven()
    for now in (0.0, 0.4, 0.8, 1.2):
        ticket = driven.lead(now)
        assert driven.send(ticket, now)
        assert driven.extra is False
        assert driven.machine.on_fetch_abandoned(ticket, now + 0.1) is None
    assert driven.machine.failed_fetches == 0


def test_rule_05_a_grant_that_has_become_too_old_gives_its_place_back() -> None:
    """Nothing was sent on it: the attempt that takes its place is the first one, and an ordinary one."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0)
    driven.machine.on_grant_expired(ticket)
    assert driven.attempt(ticket, 100.0)
    assert driven.extra is False


def test_rule_08_a_retry_draws_on_the_reserve_however_late_it_comes() -> None:
    """Also once the ordinary refresh would be due; and so does whoever has been given up as lost."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 44.0)
    ticket = driven.lead(44.0)
    assert driven.send(ticket, 44.0)
    assert driven.fail(ticket, 44.9, BROKEN, jitter=0.8) is not None
    assert driven.attempt(ticket, 45.1)
    assert driven.extra is True
    assert driven.machine.uses_reserve(99, 100.0) is True


def test_rule_08_tokens_that_live_longer_make_ordinary_requests_rarer() -> None:
    """What comes sooner than the refresh of the token at hand is no ordinary request."""
    driven = holding(300.0, reuse_for=200)
    decision = driven.ask(100.0, min_validity=250.0)
    assert isinstance(decision, Fetch)
    assert driven.machine.uses_reserve(decision.ticket, 194.9) is True
    assert driven.machine.uses_reserve(decision.ticket, 195.0) is False


def test_rule_08_while_none_can_be_fetched_a_401_is_handed_over() -> None:
    """With a bar in force a replay would only meet the same token."""
    driven = holding()
    barred_by("429", driven, 45.0)
    assert not driven.machine.on_unauthorized(token(), 46.0)
    assert driven.ask(46.0) == Use(token())


# The token endpoint's answers


def test_rule_09_a_rejection_ends_the_fetch_and_fails_calls_at_once() -> None:
    """No retry; for thirty seconds the same error without a request; then one tries again."""
    driven = Driven()
    driven.lose(0.0, REJECTED)
    assert driven.ask(0.0, known_failures=0) == Fail(REJECTED, 30.0)
    assert driven.ask(29.0) == Fail(REJECTED, 1.0)
    assert driven.send(driven.lead(30.0), 30.0), "with the same credentials"


def test_rule_09_refused_on_both_sides_there_is_no_token() -> None:
    """A 401 from the API and one from the token endpoint: the old token is no use to anyone."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 1.0)
    driven.lose(1.0, REJECTED)
    assert driven.ask(1.0) == Fail(REJECTED, 30.0)


def test_rule_09_rotating_credentials_are_asked_again_and_not_sent_again() -> None:
    """During the cool-down each call asks for them; while they are the same, that is all it does."""
    driven = Driven(rotating=True)
    driven.lose(0.0, REJECTED)
    for now in (1.0, 2.0):
        seen = driven.machine.failed_fetches
        ticket = driven.lead(now)
        assert not driven.machine.on_credentials(ticket, ONE, now), "and no unit is asked for"
        assert driven.ask(now, known_failures=seen) == Fail(REJECTED, 30.0 - now)


def test_rule_09_changed_credentials_are_tried_at_once() -> None:
    """A new key ends the cool-down."""
    driven = Driven(rotating=True)
    driven.lose(0.0, REJECTED)
    ticket = driven.lead(1.0)
    assert driven.send(ticket, 1.0, digest=TWO)
    driven.machine.on_token(ticket, token(1.0), 1.1)
    assert driven.ask(1.1) == Use(token(1.0))
    assert driven.machine.fast_path_token(1.1) == (token(1.0), 46.0)


@pytest.mark.parametrize(
    ("failure", "kind", "until"),
    [
        (limited(10.0), TokenRateLimited, 11.0),
        (ODD, TokenEndpointUnavailable, 2.0),
        (REJECTED, CredentialsRejected, 31.0),
    ],
)
def test_rule_09_what_happens_to_changed_credentials_counts_from_then_on(
    failure: Failure, kind: type[Exception], until: float
) -> None:
    """The rejection of the old ones hides neither a 429 nor an outage that met the new ones."""
    driven = Driven(rotating=True)
    driven.lose(0.0, REJECTED)
    ticket = driven.lead(1.0)
    assert driven.send(ticket, 1.0, digest=TWO)
    assert driven.fail(ticket, 1.0, failure, digest=TWO) is None
    decision = driven.ask(1.1, wait=0.5)
    if failure is REJECTED:
        assert isinstance(decision, Fetch)
        assert not driven.send(decision.ticket, 1.1, digest=TWO)
        decision = driven.ask(1.1, known_failures=0)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is kind
    assert decision.retry_after == pytest.approx(until - 1.1)


@pytest.mark.parametrize(("asked", "silent"), [(10.0, 10.0), (60.0, 60.0), (3_600.0, 3_600.0), (1e9, 3_600.0)])
def test_rule_10_a_429_bars_for_as_long_as_it_says(asked: float, silent: float) -> None:
    """At most ``max_retry_after``; calls that can wait for it do, the others hear how long."""
    driven = Driven()
    driven.lose(0.0, limited(asked))
    decision = driven.ask(0.0)
    if silent <= 20.0:
        assert decision == Wait(until=silent)
    else:
        assert isinstance(decision, Fail)
        assert (decision.failure.kind, decision.retry_after) == (TokenRateLimited, silent)
    assert not isinstance(driven.ask(silent - 0.001), Fetch)
    assert isinstance(driven.ask(silent), Fetch)


def test_rule_10_the_longer_of_two_bars_counts() -> None:
    """Who could not wait failed after somebody was told 429: its shorter cool-down changes nothing."""
    driven = Driven()
    first = driven.lead(0.0)
    assert driven.send(first, 0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(second.ticket, 0.0)
    driven.fail(first, 1.0, limited(60.0))
    driven.fail(second.ticket, 1.0, ODD)
    assert isinstance(driven.ask(60.0, wait=0.5), Fail)
    assert isinstance(driven.ask(61.0), Fetch)


@pytest.mark.parametrize(("failure", "barred"), [(limited(60.0), True), (ODD, False)])
def test_rule_10_what_a_token_proves_is_not_that_more_may_be_asked_for(failure: Failure, barred: bool) -> None:
    """Of two fetches one fails, the other brings a token: an outage is over then, a 429 is not."""
    driven = Driven()
    first = driven.lead(0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(first, 0.0)
    assert driven.fail(first, 0.1, failure) is None
    assert driven.machine.on_credentials(second.ticket, ONE, 0.2)
    assert driven.machine.on_budget_result(second.ticket, YES, 0.2, from_reserve=True)
    driven.machine.on_token(second.ticket, token(0.2), 0.3)
    assert driven.machine.on_unauthorized(token(0.2), 0.4) is not barred


def test_rule_10_a_429_is_not_lifted_by_credentials_that_nobody_rejected() -> None:
    """Only a rejection is about the credentials."""
    driven = Driven(rotating=True)
    first = driven.lead(0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(first, 0.0)
    assert driven.fail(first, 0.1, limited(60.0)) is None
    driven.machine.on_credentials(second.ticket, TWO, 0.2)
    driven.machine.on_fetch_abandoned(second.ticket, 0.3)
    decision = driven.ask(0.3)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is TokenRateLimited
    assert decision.retry_after == pytest.approx(59.8)


def test_rule_10_a_429_is_not_retried_inside_the_fetch() -> None:
    """Neither is a rejection, nor an answer that is none of 88Pay's."""
    for failure in (limited(1.0), REJECTED, ODD):
        driven = Driven()
        ticket = driven.lead(0.0)
        driven.send(ticket, 0.0)
        assert driven.fail(ticket, 0.0, failure, jitter=0.5) is None
        assert not driven.machine.pending_fetches


@pytest.mark.parametrize("failure", [BROKEN, NONSENSE], ids=["rule 11", "rule 12"])
def test_rule_11_a_fetch_has_three_attempts_with_full_jitter(failure: Failure) -> None:
    """The pause is the draw's share of a bound that doubles; after the third attempt that was all."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    assert driven.fail(ticket, 0.0, failure, jitter=0.5) == 0.125
    assert driven.attempt(ticket, 0.125)
    assert driven.fail(ticket, 0.125, failure, jitter=0.999) == pytest.approx(0.5 * 0.999)
    assert driven.attempt(ticket, 1.0)
    assert driven.fail(ticket, 1.0, failure, jitter=0.5) is None
    assert driven.ask(1.0, known_failures=0) == Fail(failure, 1.0)


def test_rule_11_the_pauses_are_capped() -> None:
    """However many attempts the policy gives, no bound exceeds ``backoff_cap``."""
    driven = Driven(fetch_attempts=50, backoff_base=1, backoff_cap=4)
    ticket = driven.lead(0.0)
    driven.machine.on_credentials(ticket, ONE, 0.0)
    pauses: list[float | None] = []
    for _ in range(49):
        assert driven.attempt(ticket, 0.0)
        pauses.append(driven.fail(ticket, 0.0, BROKEN, jitter=0.5))
    assert pauses == [0.5, 1.0, *[2.0] * 47]


def test_rule_11_the_cool_down_grows_to_the_refresh_interval_with_one_probe_each_time() -> None:
    """1, 2, 4 … 32, 45, 45 seconds; each time one attempt, not three."""
    driven, now, pauses = Driven(), 0.0, []
    driven.lose(now, ODD)
    for _ in range(9):
        decision = driven.ask(now)
        assert isinstance(decision, Fail)
        pauses.append(decision.retry_after)
        assert isinstance(driven.ask(now + decision.retry_after - 0.001), Fail)
        now += decision.retry_after
        driven.lose(now, BROKEN)  # retryable, and yet the only attempt
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 45, 45, 45])


def test_rule_11_a_token_starts_it_all_anew() -> None:
    """After a success a fetch has its attempts again, and the first cool-down is short."""
    driven = Driven()
    for now in (0.0, 2.0, 6.0):
        driven.lose(now, ODD)
    driven.get(20.0)
    ticket = driven.lead(65.0)
    driven.send(ticket, 65.0)
    assert driven.fail(ticket, 65.0, BROKEN, jitter=0.5) == 0.125
    assert driven.attempt(ticket, 66.0)
    assert driven.fail(ticket, 66.0, ODD) is None
    assert driven.ask(66.5) == Use(token(20.0))
    assert driven.machine.fast_path_token(66.0) == (token(20.0), 67.0)


def test_rule_11_with_the_last_of_the_budget_the_cool_down_is_long_from_the_start() -> None:
    """An outage that begins with nothing left is probed once a refresh interval."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0, AcquireResult(True, 0.0, 1.0))
    assert driven.fail(ticket, 0.0, ODD) is None
    assert driven.ask(0.0) == Fail(ODD, 45.0)


def test_rule_11_only_who_waited_hears_of_a_failure_late() -> None:
    """A failed fetch answers the calls that came before it ended, even after its cool-down."""
    driven = Driven()
    driven.lose(0.0, ODD)
    assert driven.ask(5.0, known_failures=0) == Fail(ODD, 0.0)
    assert isinstance(driven.ask(5.0), Fetch)


def test_rule_11_credentials_that_cannot_be_had_count_as_a_failed_fetch() -> None:
    """Their error is the callers' answer, and it has a cool-down."""
    driven = Driven(rotating=True)
    driven.machine.on_fetch_failed(driven.lead(0.0), ODD, 0.5)
    assert driven.ask(0.5, known_failures=0) == Fail(ODD, 1.0)
    assert isinstance(driven.ask(1.5), Fetch)


@pytest.mark.parametrize("arrives", [1.0, 3.0])
def test_rule_12_a_token_that_expired_on_its_way_is_a_failure(arrives: float) -> None:
    """Just now or long ago: it is never handed out, and has a cool-down like any nonsense."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    driven.machine.on_token(ticket, token(0.0, 2.0), arrives)
    decision = driven.ask(arrives, known_failures=0)
    assert isinstance(decision, Fail)
    assert (decision.failure.kind, decision.retry_after) == (TokenResponseInvalid, 1.0)
    assert (decision.failure.status, decision.failure.retryable) == (200, True)
    assert isinstance(driven.ask(arrives + 0.5), Fail)
    assert driven.machine.failed_fetches == 1


def test_rule_12_the_same_token_sent_again_causes_no_loop() -> None:
    """It is refused again; the next forced refresh waits for its spacing."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 1.0)
    same = Token("token-0.0", "session-0.0", 60.0, 1.0)
    ticket = driven.lead(1.0)
    driven.send(ticket, 1.0)
    driven.machine.on_token(ticket, same, 1.1)
    assert driven.ask(1.1) == Use(same)
    assert [driven.machine.on_unauthorized(token(), 1.2) for _ in range(100)] == [False] * 100
    assert driven.ask(1.2) == Use(same)


def test_rule_12_tokens_that_live_shorter_do_not_make_more_requests_ordinary() -> None:
    """However soon they age, what comes sooner than 45 seconds after the last draws on the reserve."""
    driven = holding(15.0)
    ticket = driven.lead(6.0)
    assert driven.send(ticket, 6.0)
    assert driven.extra is True
    driven.machine.on_token(ticket, token(6.0, 15.0), 6.1)
    assert driven.send(driven.lead(45.0), 45.0)
    assert driven.extra is False


# Lost fetches


def test_rule_16_when_the_leader_is_gone_the_next_caller_leads() -> None:
    """A cancelled fetch is nobody's failure: whoever asks next fetches."""
    driven = Driven()
    driven.machine.on_fetch_abandoned(driven.lead(0.0), 0.5)
    assert driven.ask(0.5, known_failures=0) == Fetch(2)
    driven.machine.on_fetch_abandoned(2, 0.6)
    assert driven.ask(0.6, known_failures=0) == Fetch(3)


def test_rule_16_however_often_carriers_die_the_next_request_leads() -> None:
    """That is no outage of the service: no cooldown, no failure."""
    driven = Driven()
    for ticket in range(1, 9):
        assert driven.ask(0.0, known_failures=0) == Fetch(ticket)
        assert driven.machine.on_fetch_abandoned(ticket, 0.0) is None
    assert driven.machine.failed_fetches == 0


def test_rule_11_a_carrier_that_dies_after_a_failed_attempt_leaves_its_failure() -> None:
    """Or else a client for each request would meet a failing service again and again, without a cooldown."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0)
    assert driven.fail(ticket, 0.1, BROKEN, jitter=0.5) is not None
    assert driven.machine.on_fetch_abandoned(ticket, 0.2) == BROKEN
    assert driven.ask(0.2, known_failures=0) == Fail(BROKEN, 1.0)


def test_rule_17_a_fetch_not_heard_of_in_time_is_led_by_somebody_else() -> None:
    """A second after its timeout it counts as lost; who waits is told to come back at that very moment."""
    driven = Driven()
    assert driven.send(driven.lead(0.0), 0.0)
    assert driven.ask(0.0) == Wait(until=6.0)
    assert driven.ask(5.999, wait=1.0) == Wait(until=6.0)
    assert driven.ask(6.0, known_failures=0) == Fetch(2)


def test_rule_17_fetches_that_keep_getting_lost_count_as_an_outage() -> None:
    """Like those that keep dying, with an error of their own."""
    driven = Driven()
    assert [driven.lead(now) for now in (0.0, 6.0, 12.0)] == [1, 2, 3]
    decision = driven.ask(18.0, known_failures=0)
    assert isinstance(decision, Fail)
    assert (decision.failure.kind, decision.failure.retryable) == (TokenEndpointUnavailable, True)
    assert decision.retry_after == 1.0


def test_rule_17_a_fetch_that_says_for_how_long_is_waited_for() -> None:
    """Its time counts from the end of the pause; without one, from now; and one that was given up has none."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.machine.heartbeat(ticket, 1.0, pause=3.0)
    assert driven.ask(1.0) == Wait(until=10.0)
    assert driven.machine.heartbeat(ticket, 2.0)
    assert driven.ask(2.0) == Wait(until=8.0)
    assert driven.ask(8.0, known_failures=0) == Fetch(2)
    assert not driven.machine.heartbeat(ticket, 8.0)


def test_rule_17_each_attempt_has_its_own_time() -> None:
    """The pause and the next timeout count anew."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    assert driven.fail(ticket, 5.0, BROKEN, jitter=0.8) == pytest.approx(0.2)
    assert driven.ask(5.0) == Wait(until=pytest.approx(11.2))  # type: ignore[arg-type]
    assert driven.attempt(ticket, 5.2)
    assert driven.ask(5.2) == Wait(until=pytest.approx(11.2))  # type: ignore[arg-type]


def late_events(driven: Driven, ticket: int, now: float) -> None:
    """Everything that a lost fetch may still say."""
    machine = driven.machine
    assert machine.on_credentials(ticket, ONE, now) is False
    assert machine.on_attempt_failed(ticket, REJECTED, now, jitter=0.5, digest=ONE) is None
    assert machine.on_budget_result(ticket, YES, now, from_reserve=True) is False
    machine.on_fetch_failed(ticket, ODD, now)
    machine.on_fetch_abandoned(ticket, now)
    machine.on_token(ticket, token(1.0, name="late"), now)


def test_rule_16_the_token_of_a_lost_fetch_is_used_where_there_is_no_newer_one() -> None:
    """It was paid for; the fetch that has taken its place goes on."""
    driven = Driven()
    lost = driven.lead(0.0)
    assert driven.send(lost, 0.0)
    ticket = driven.lead(6.0)
    driven.machine.on_token(lost, token(0.0), 7.0, digest=ONE)
    assert driven.ask(7.0) == Use(token())
    assert driven.machine.pending_fetches == {ticket}


def test_rule_17_late_results_of_a_lost_fetch_change_nothing() -> None:
    """Neither a failure nor an older token of it counts, and it cannot send any more."""
    driven = Driven()
    lost = driven.lead(0.0)
    assert driven.send(lost, 0.0)
    ticket = driven.lead(6.0)
    assert driven.send(ticket, 6.0)
    driven.machine.on_token(ticket, token(6.0), 6.1)
    before = driven.machine.fast_path_token(7.0), driven.machine.pending_fetches, driven.machine.failed_fetches

    late_events(driven, lost, 7.0)

    assert (
        driven.machine.fast_path_token(7.0),
        driven.machine.pending_fetches,
        driven.machine.failed_fetches,
    ) == before
    assert driven.ask(7.0, known_failures=0) == Use(token(6.0))


def test_rule_19_slow_credentials_are_waited_for() -> None:
    """A secrets manager may take longer than a token request: the fetch is not given up meanwhile."""
    driven = Driven(rotating=True)
    ticket = driven.lead(0.0)
    assert isinstance(driven.ask(20.9), Wait)
    assert driven.machine.on_credentials(ticket, ONE, 20.9)
    assert driven.ask(20.9) == Wait(until=pytest.approx(26.9))  # type: ignore[arg-type]
    assert driven.attempt(ticket, 25.0)
    assert driven.ask(25.0) == Wait(until=31.0)


def test_rule_19_credentials_that_never_come_are_not_waited_for() -> None:
    """A second after the longest wait of any call, somebody else asks for them."""
    driven = Driven(rotating=True)
    driven.lead(0.0)
    assert driven.ask(20.999) == Wait(until=21.0)
    assert driven.ask(21.0) == Fetch(2)


def test_rule_19_who_has_no_more_time_hears_what_it_was_waiting_for() -> None:
    """The credentials, or the token endpoint: not the same failure."""
    rotating, fixed = Driven(rotating=True), Driven()
    ticket = rotating.lead(0.0)
    fixed.lead(0.0)
    no_answer = fixed.ask(0.0, wait=0.0)
    assert isinstance(no_answer, Fail)
    assert rotating.ask(0.0, wait=0.0) != no_answer
    assert rotating.machine.on_credentials(ticket, ONE, 0.0)
    assert rotating.ask(0.0, wait=0.0) == no_answer


# Invalidation


def test_invalidate_forgets_the_current_token_and_no_other() -> None:
    """The next call fetches; the request draws on the reserve."""
    driven = holding()
    driven.machine.discard_token(token(name="another"))
    assert driven.ask(1.0) == Use(token())
    driven.machine.discard_token(token())
    assert driven.machine.fast_path_token(1.0)[0] is None
    assert driven.send(driven.lead(1.0), 1.0)
    assert driven.extra is True


def test_rule_07_a_token_that_was_invalidated_is_not_taken_over_again() -> None:
    """Not even from the record that this manager itself was about to publish; another token is."""
    driven = holding()
    driven.machine.discard_token(token())
    ticket = driven.lead(1.0)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token()), 1.0, digest="")
    assert driven.machine.fast_path_token(1.0)[0] is None
    assert not driven.machine.merge_snapshot(ticket, Snapshot(token(name="another")), 1.0, digest="")
    assert driven.machine.fast_path_token(1.0)[0] == token(name="another")

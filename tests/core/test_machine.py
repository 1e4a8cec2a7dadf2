"""The machine's table row by row, and each rule about tokens at its boundaries."""

from __future__ import annotations

import pytest

from pay88_adapters import (
    CredentialsRejected,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import ACTIONS, Action, EndpointState, Fail, Fetch, TokenState, Use, Wait
from pay88_adapters.core.failures import BUDGET_EXHAUSTED, INTERRUPTING, NO_TOKEN_YET
from support.driven import (
    BROKEN,
    ODD,
    Driven,
    holding,
    no,
    start_cooldown,
    token,
)

POLICY = TokenPolicy()


@pytest.mark.parametrize(
    ("age", "actions"),
    [
        (TokenState.FRESH, [Action.USE, Action.USE, Action.USE]),
        (TokenState.AGING, [Action.REFRESH, Action.USE, Action.USE]),
        (TokenState.STALE, [Action.FETCH, Action.WAIT, Action.USE]),
        (TokenState.REJECTED, [Action.FETCH, Action.WAIT, Action.USE]),
        (TokenState.ABSENT, [Action.FETCH, Action.WAIT, Action.WAIT_OR_FAIL]),
    ],
)
def test_the_table_is_total_and_says_this(age: TokenState, actions: list[Action]) -> None:
    """Every age meets every state of the token endpoint."""
    assert list(ACTIONS) == list(TokenState)
    assert ACTIONS[age] == dict(
        zip((EndpointState.FREE, EndpointState.BUSY, EndpointState.COOLDOWN), actions, strict=True)
    )


AGES = {"FRESH": 10.0, "AGING": 46.0, "STALE": 52.0, "REJECTED": 10.0, "ABSENT": 60.0}


def in_cell(age: str, source: str) -> tuple[Driven, float]:
    """Return a machine in one cell of the table, and the time there."""
    driven, now = holding(), AGES[age]
    if source == "FREE":
        if age == "REJECTED":
            assert driven.machine.on_unauthorized(token(), now)
        return driven, now
    if age in ("FRESH", "REJECTED"):  # only a request that cannot wait fetches beside a fresh token
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
def test_the_fast_path_returns_what_a_decision_would(age: str, source: str) -> None:
    """The fast path has no rule of its own: as long as it lasts, the decision is the same."""
    driven, now = in_cell(age, source)

    cached, until = driven.machine.fast_path_token(now)
    until = min(until, now + POLICY.fetch_timeout)  # later on, what is in flight here counts as lost

    for at in (now, (now + until) / 2, until - 1e-6):
        if now <= at < until:
            assert driven.ask(at) == Use(cached)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["FREE", "BUSY", "COOLDOWN"])
@pytest.mark.parametrize("age", list(AGES))
def test_rule_17_what_interrupts_the_manager_gets_the_current_token(age: str, source: str) -> None:
    """Whatever the state of the token endpoint: it neither starts a fetch nor waits for one."""
    driven, now = in_cell(age, source)
    pending = driven.machine.pending_fetches

    decision = driven.ask(now + 0.1, cannot_wait=True)

    if age == "ABSENT":
        assert decision == Fail(INTERRUPTING, 0.0)
    else:
        assert isinstance(decision, Use)
        assert decision.refresh is None
    assert driven.machine.pending_fetches == pending


@pytest.mark.parametrize("source", ["FREE", "BUSY", "COOLDOWN"])
@pytest.mark.parametrize("age", list(AGES))
def test_rule_16_a_request_of_a_closed_client_starts_no_fetch(age: str, source: str) -> None:
    """It uses the cached token, or waits for a pending fetch. Without a token it fails for its own reason."""
    driven, now = in_cell(age, source)
    starts_one = ACTIONS[TokenState[age]][EndpointState[source]] in (Action.REFRESH, Action.FETCH)

    decision = driven.ask(now + 0.1, cannot_fetch=BROKEN)

    if not starts_one:
        assert decision == driven.ask(now + 0.1)
    elif age == "ABSENT":
        assert decision == Fail(BROKEN, 0.0)
    else:
        assert decision == Use(token())
    assert bool(driven.machine.pending_fetches) == (source == "BUSY")


def test_while_a_fetch_is_pending_the_fast_path_ends_when_the_fetch_has_to_be_checked() -> None:
    """Until its window ends, or the fetch would count as lost."""
    driven = holding()
    driven.lead(45.0)
    assert driven.machine.fast_path_token(45.5) == (token(), 50.0)

    driven = holding()
    assert isinstance(driven.ask(30.0, min_validity=50.0), Fetch)
    assert driven.machine.fast_path_token(30.5) == (token(), 36.0)


def test_during_a_cooldown_the_fast_path_ends_when_a_fetch_is_possible_and_due() -> None:
    """A fresh one until its refresh is due; a rejected one until the cooldown ends, and no longer."""
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
    driven.lead(window - 1e-4)  # the background refresh
    assert driven.ask(window - 1e-4) == Use(token(0.0, expires_in))
    assert not isinstance(driven.ask(window + 1e-9), Use)


def test_rule_01_age_counts_from_the_moment_the_request_was_sent() -> None:
    """A token that took four seconds to come is four seconds old."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    driven.machine.on_token(ticket, token(0.0), 4.0)
    assert driven.machine.fast_path_token(4.0) == (token(), 45.0)


def test_rule_02_one_call_starts_the_refresh_and_all_continue() -> None:
    """From second 45 on, one request starts the background refresh; the next ones only use the token."""
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


def test_rule_02_a_token_is_used_until_it_expires_where_the_limits_sustain_no_more() -> None:
    """With 50 requests an hour one lasts 72 seconds; the next is requested as soon as this one is of no use."""
    driven = Driven()
    driven.get(0.0, grant=AcquireResult(True, 0.0, 0.0, pace=72.0))
    assert driven.machine.fast_path_token(1.0) == (token(), 59.0)
    ticket = driven.lead(59.0)
    assert driven.machine.uses_reserve(ticket, 59.0) is False


@pytest.mark.parametrize(
    ("dependency_age", "now", "starts"),
    [
        (15.75, 45.0, "background"),  # the longest fetch: three attempts of 5 s, and backoff delays of 0.25 s and 0.5 s
        (15.74, 45.0, "none"),
        (15.74, 45.99, "none"),
        (0.0, 46.0, "foreground"),
        (0.0, 49.99, "foreground"),
    ],
)
def test_rule_02_a_client_that_may_be_gone_soon_refreshes_in_the_foreground(
    dependency_age: float, now: float, starts: str
) -> None:
    """Not in the first fifth of the refresh window: a request with a lasting client may come."""
    driven = holding()
    decision = driven.ask(now, dependency_age=dependency_age)
    if starts == "foreground":
        assert decision == Fetch(2)
    else:
        assert decision == Use(token(), 2 if starts == "background" else None)
    for fetch in driven.machine.pending.by_ticket.values():
        assert (fetch.foreground, fetch.forced) == (starts == "foreground", False)


def test_rule_02_only_the_request_that_refreshes_in_the_foreground_waits() -> None:
    """For one timeout, and no longer than its own deadline. Then it uses the current token."""
    driven = holding()
    decision = driven.ask(46.0, dependency_age=0.0)
    assert isinstance(decision, Fetch)
    assert driven.send(decision.ticket, 46.0)
    assert driven.ask(46.0, own=decision.ticket) == Wait(until=51.0)
    assert driven.ask(46.0, own=decision.ticket, wait=3.0) == Wait(until=49.0)
    assert driven.machine.decide(49.0, known_failures=0, deadline=49.0, own=decision.ticket) == Use(token())
    for own in (None, 1, 99):
        assert driven.ask(46.0, own=own) == Use(token())
    driven.machine.on_token(decision.ticket, token(46.0), 47.0)
    assert driven.ask(47.0, own=decision.ticket) == Use(token(46.0))


def test_a_token_expires_when_the_service_said() -> None:
    """Counted from its request, whether it is still reused or not."""
    driven = Driven()
    assert driven.machine.expires_in(0.0) is None
    driven.get(10.0)
    assert [driven.machine.expires_in(now) for now in (10.0, 69.5, 70.0, 80.0)] == [60.0, 0.5, None, None]


def test_rule_08_what_comes_sooner_than_the_limits_sustain_is_extra() -> None:
    """Ordinary requests are as far apart as the budget says."""
    driven = Driven()
    driven.get(0.0, grant=AcquireResult(True, 0.0, 0.0, pace=58.2))
    assert driven.machine.on_unauthorized(token(), 50.0)
    ticket = driven.lead(50.0)
    assert driven.machine.uses_reserve(ticket, 58.1) is True
    assert driven.machine.uses_reserve(ticket, 58.2) is False


def test_rule_03_a_cold_start_hands_out_one_ticket() -> None:
    """A thousand calls: the first fetches, the others wait until the fetch would count as lost, or less."""
    driven = Driven()
    assert driven.ask(0.0) == Fetch(1)
    assert driven.send(1, 0.0)
    others = [driven.ask(0.0) for _ in range(999)]
    assert others == [Wait(until=6.0)] * 999
    assert driven.ask(0.0, wait=2.5) == Wait(until=2.5)


def test_rule_03_who_cannot_wait_sends_its_own() -> None:
    """``cannot_wait``: waiting would block the very fetch. It sends one request; after that it waits."""
    driven = Driven()
    driven.lead(0.0)
    assert driven.ask(0.0, must_fetch=True) == Fetch(2)
    assert isinstance(driven.ask(0.0), Wait)
    assert len(driven.machine.pending_fetches) == 2


def test_rule_05_a_denied_attempt_is_not_sent_and_starts_a_cooldown_until_it_can_be() -> None:
    """No token request is sent before the budget allows one. A request that can wait until then waits."""
    driven = Driven()
    assert driven.send(driven.lead(0.0), 0.0, no(12.0)) is False
    assert driven.ask(0.0) == Wait(until=12.0)
    assert driven.ask(11.999, wait=5.0) == Wait(until=12.0)
    assert isinstance(driven.ask(12.0), Fetch)


def test_rule_05_a_call_waits_for_a_unit_that_comes_with_its_last_moment() -> None:
    """The cooldown ends exactly at its deadline: that is soon enough, and a moment later is not."""
    driven = Driven()
    driven.send(driven.lead(0.0), 0.0, no(12.0))
    assert driven.ask(0.0, wait=12.0) == Wait(until=12.0)
    assert isinstance(driven.ask(0.0, wait=11.999), Fail)


def test_rule_05_a_call_that_cannot_wait_so_long_fails_fast_with_the_wait() -> None:
    """Twelve seconds to go and ten to wait: ``TokenBudgetExhausted`` with ``retry_after``, measured now."""
    driven = Driven()
    driven.send(driven.lead(0.0), 0.0, no(12.0))
    decision = driven.ask(1.0, wait=10.0)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is TokenBudgetExhausted
    assert decision.retry_after == pytest.approx(11.0)


def test_rule_05_a_retry_without_a_unit_ends_the_fetch_with_the_failure_it_had() -> None:
    """The error is the 503, not the exhausted budget."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.send(ticket, 0.0)
    assert driven.fail(ticket, 0.0, BROKEN, jitter=0.5) == 0.125
    assert driven.attempt(ticket, 0.125, no(40.0, reserve_used=0.0)) is False
    assert driven.ask(0.125, known_failures=0) == Fail(BROKEN, 1.0)


def test_rule_05_the_cooldown_of_a_denied_forced_refresh_ends_with_the_regular_one() -> None:
    """The reserve may be exhausted for an hour; the regular refresh starts at second 45 all the same."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 10.0)
    ticket = driven.lead(10.0)
    assert driven.send(ticket, 10.0, no(3_000.0)) is False
    assert driven.extra
    assert driven.ask(44.9) == Use(token())
    assert isinstance(driven.ask(45.0), Fetch)


def test_rule_05_the_cooldown_of_a_denied_forced_refresh_lasts_while_the_budget_is_exhausted() -> None:
    """With one token request per hour, second 45 would only be denied again: the error names the time that helps."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 10.0)
    ticket = driven.lead(10.0)
    assert driven.send(ticket, 10.0, no(3_000.0)._replace(refresh_allowed_in=500.0)) is False
    assert not isinstance(driven.ask(59.0), Fetch)
    decision = driven.ask(61.0)
    assert isinstance(decision, Fail)
    assert (decision.failure, decision.retry_after) == (BUDGET_EXHAUSTED, 449.0)
    assert isinstance(driven.ask(510.0), Fetch)


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
    start_cooldown(why, driven, 49.9 if why in ("outage", "nonsense") else 45.0)

    assert driven.ask(50.0) == Use(token())
    if why in ("outage", "nonsense"):  # the cooldown of a second is over: one trial request each time
        start_cooldown(why, driven, 51.0)
        start_cooldown(why, driven, 53.5)
        start_cooldown(why, driven, 58.0)
    assert driven.ask(58.999) == Use(token())
    assert driven.machine.fast_path_token(58.5) == (token(), 59.0)
    decision = driven.ask(59.0)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is WHYS[why]


def test_rule_06_who_waits_with_a_usable_token_leaves_with_it_before_it_expires() -> None:
    """A fetch that takes too long: the request continues with the stale token, one skew before its expiry."""
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


@pytest.mark.parametrize("sent", [False, True], ids=["before its unit", "with its request sent"])
def test_rule_06_a_call_fails_for_what_it_has_waited_for(sent: bool) -> None:
    """The budget was exhausted all the time; whether it still is, the next fetch is about to see."""
    driven = Driven()
    driven.send(driven.lead(0.0), 0.0, grant=no(5.0))
    ticket = driven.lead(5.0)
    if sent:
        driven.send(ticket, 5.0)
    decision = driven.machine.decide(5.1, known_failures=0, deadline=5.1)
    assert isinstance(decision, Fail)
    assert decision.failure.kind is (TokenEndpointUnavailable if sent else TokenBudgetExhausted)
    assert decision.retry_after > 0


def test_rule_06_a_call_does_not_fail_for_a_cooldown_that_has_ended() -> None:
    """An outage is over when the next fetch has started; an exhausted budget is no reason ``max_wait`` later."""
    driven = Driven()
    driven.lose(0.0)
    driven.lead(1.0)
    assert driven.ask(1.1, wait=0.0) == Fail(NO_TOKEN_YET, 1.0)
    for now, reason in ((24.99, BUDGET_EXHAUSTED), (25.0, NO_TOKEN_YET)):
        driven = Driven()
        assert not driven.send(driven.lead(0.0), 0.0, grant=no(5.0))
        driven.lead(20.0)
        assert driven.ask(now, wait=0.0) == Fail(reason, 1.0)


@pytest.mark.parametrize("why", WHYS)
def test_rule_06_min_validity_never_costs_the_current_token(why: str) -> None:
    """``min_validity`` starts a fetch. If none can start, the result is the older token, immediately."""
    driven = holding()
    assert driven.ask(20.0, min_validity=38.9) == Use(token())
    start_cooldown(why, driven, 45.0)
    assert driven.ask(45.1, min_validity=30.0) == Use(token())


def test_rule_06_a_wish_for_a_longer_life_fetches_one() -> None:
    """The cached token would expire too early: one fetch. If it fails, the old token stays in use."""
    driven = holding()
    decision = driven.ask(20.0, min_validity=39.0)
    assert isinstance(decision, Fetch)
    assert driven.send(decision.ticket, 20.0)
    assert driven.extra
    assert driven.fail(decision.ticket, 20.0, ODD) is None
    assert driven.ask(20.0, known_failures=0, min_validity=39.0) == Use(token())


def test_rule_06_a_call_with_a_token_never_waits_for_an_error() -> None:
    """No response in time: a token with a short remaining lifetime, or a rejected one, is better than none."""
    driven = holding()
    assert isinstance(driven.ask(20.0, min_validity=39.0), Fetch)
    assert driven.ask(21.0, wait=0.0, min_validity=39.0) == Use(token())

    driven = holding()
    assert driven.machine.on_unauthorized(token(), 20.0)
    driven.send(driven.lead(20.0), 20.0)
    assert isinstance(driven.ask(21.0, wait=1.0), Wait)
    assert driven.ask(21.0, wait=0.0) == Use(token())


def test_rule_06_a_wish_for_a_longer_life_is_waited_for() -> None:
    """A request with that wish does not use the token that is about to expire."""
    driven = holding()
    assert driven.send(driven.lead(55.0), 55.0)
    assert driven.ask(55.0, min_validity=10.0) == Wait(until=61.0)
    assert isinstance(driven.ask(58.0, min_validity=10.0), Wait)

"""Rules 9 to 12, 16 and 17: what the results of fetches mean, and fetches that are lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pay88_adapters import (
    CredentialsRejected,
    Token,
    TokenEndpointUnavailable,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import Fail, Fetch, Use, Wait
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.failures import BUDGET_EXHAUSTED
from pay88_adapters.core.machine import TokenMachine
from pay88_adapters.core.snapshot import Snapshot
from support.driven import (
    BROKEN,
    NONSENSE,
    ODD,
    ONE,
    REJECTED,
    TWO,
    YES,
    Driven,
    holding,
    limited,
    no,
    token,
)


def test_rule_09_a_rejection_ends_the_fetch_and_calls_fail_fast() -> None:
    """No retry; for thirty seconds the same error without a request; then one tries again."""
    driven = Driven()
    driven.lose(0.0, REJECTED)
    assert driven.ask(0.0, known_failures=0) == Fail(REJECTED, 30.0)
    assert driven.ask(29.0) == Fail(REJECTED, 1.0)
    assert driven.send(driven.lead(30.0), 30.0), "with the same credentials"


def test_rule_09_rejected_on_both_sides_there_is_no_token() -> None:
    """A 401 from the API and one from the token endpoint: the old token is no use to anyone."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 1.0)
    driven.lose(1.0, REJECTED)
    assert driven.ask(1.0) == Fail(REJECTED, 30.0)


def test_rule_09_a_credentials_provider_is_called_again_and_not_retried() -> None:
    """During the cooldown each request loads the credentials; while they are the same, it sends nothing."""
    driven = Driven(rotating=True)
    driven.lose(0.0, REJECTED)
    for now in (1.0, 2.0):
        seen = driven.machine.failed_fetches
        ticket = driven.lead(now)
        assert not driven.machine.on_credentials(ticket, ONE, now), "and no unit is acquired"
        assert driven.ask(now, known_failures=seen) == Fail(REJECTED, 30.0 - now)


def test_rule_09_changed_credentials_are_tried_immediately() -> None:
    """A new key ends the cooldown."""
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


@pytest.mark.parametrize(("requested", "silent"), [(10.0, 10.0), (60.0, 60.0), (3_600.0, 3_600.0), (1e9, 3_600.0)])
def test_rule_10_the_cooldown_of_a_429_lasts_as_long_as_it_demands(requested: float, silent: float) -> None:
    """At most ``max_retry_after``. Requests that can wait that long wait; the rest get the seconds in the error."""
    driven = Driven()
    driven.lose(0.0, limited(requested))
    decision = driven.ask(0.0)
    if silent <= 20.0:
        assert decision == Wait(until=silent)
    else:
        assert isinstance(decision, Fail)
        assert (decision.failure.kind, decision.retry_after) == (TokenRateLimited, silent)
    assert not isinstance(driven.ask(silent - 0.001), Fetch)
    assert isinstance(driven.ask(silent), Fetch)


def test_rule_10_a_429_that_demands_nothing_starts_no_cooldown() -> None:
    """A request that was waiting for it fetches next."""
    driven = Driven()
    driven.lose(5.0, replace(limited(1.0), retry_after=None))
    assert driven.machine.blocked_for(5.0) == 0.0
    assert driven.machine.snapshot(ONE, {}).cooldown_until == 5.0
    assert isinstance(driven.ask(5.0), Fetch)


def test_rule_10_the_longer_of_two_cooldowns_counts() -> None:
    """A fetch fails after another got a 429: its shorter cooldown changes nothing."""
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


@pytest.mark.parametrize(("digest", "ends"), [(ONE, True), (TWO, False)])
def test_rule_03_a_fetch_ends_where_another_has_requested_a_token_since(digest: str, ends: bool) -> None:
    """With the same credentials. A token that was requested before that fetch began may be the one to replace."""
    driven = Driven()
    driven.get(0.0)
    first = driven.lead(51.0)
    assert driven.machine.on_credentials(first, ONE, 51.0)
    assert not driven.machine.stopped(first, 51.0), "the token is older"
    second = driven.ask(52.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(second.ticket, 52.0, digest=digest)
    driven.machine.on_token(second.ticket, token(52.0), 52.1)
    assert driven.machine.stopped(first, 52.2) is ends
    assert bool(driven.machine.pending_fetches) is not ends


@pytest.mark.parametrize("change", ["401", "discarded", "aging"])
def test_rule_03_a_fetch_continues_where_the_token_since_is_of_no_use(change: str) -> None:
    """It was rejected or discarded, or is due to be refreshed."""
    driven = Driven()
    first = driven.lead(0.0)
    assert driven.machine.on_credentials(first, ONE, 0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(second.ticket, 0.0)
    driven.machine.on_token(second.ticket, token(0.0), 0.1)
    if change == "401":
        assert driven.machine.on_unauthorized(token(0.0), 0.2)
    elif change == "discarded":
        driven.machine.discard_token(token(0.0))
    assert not driven.machine.stopped(first, 46.0 if change == "aging" else 0.2)


def test_rule_16_a_request_with_a_fetch_in_progress_does_not_fail_with_another() -> None:
    """The other is that of a call which blocks the first one, and fails where the first one works."""
    driven = Driven()
    first = driven.lead(0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    driven.machine.on_fetch_failed(second.ticket, ODD, 0.1)
    assert isinstance(driven.ask(0.2, known_failures=0, own=second.ticket), Fail)
    assert isinstance(driven.ask(0.2, known_failures=0, own=first), Wait)
    assert driven.send(first, 0.3)
    driven.fail(first, 0.4, ODD)
    assert isinstance(driven.ask(0.5, known_failures=0, own=first), Fail)


@pytest.mark.parametrize(("failure", "in_cooldown"), [(limited(60.0), True), (ODD, False)])
def test_rule_10_a_token_does_not_end_the_cooldown_of_a_429(failure: Failure, in_cooldown: bool) -> None:
    """Of two fetches one fails, the other brings a token: an outage is over then, a 429 is not."""
    driven = Driven()
    first = driven.lead(0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(first, 0.0)
    assert driven.fail(first, 0.1, failure) is None
    assert driven.machine.on_credentials(second.ticket, ONE, 0.2)
    assert driven.machine.on_budget_result(second.ticket, YES, 0.2, from_reserve=True) is None
    driven.machine.on_token(second.ticket, token(0.2), 0.3)
    assert driven.machine.on_unauthorized(token(0.2), 0.4) is not in_cooldown


def test_rule_10_changed_credentials_do_not_end_the_cooldown_of_a_429() -> None:
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
    """Neither is a rejection, nor a response that is none of 88Pay's."""
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


def test_rule_11_the_cooldown_grows_to_the_refresh_interval_with_one_trial_request_each_time() -> None:
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


def test_rule_11_a_token_resets_the_cooldown() -> None:
    """After a success, a fetch has all its attempts again, and the first cooldown is short."""
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


def test_rule_05_an_exhausted_budget_is_checked_once_a_minute() -> None:
    """Each result replaces the one before, and the error says when there is a unit."""
    driven = Driven()
    assert not driven.send(driven.lead(0.0), 0.0, no(1_000.0))
    assert driven.ask(59.0) == Fail(BUDGET_EXHAUSTED, 941.0)
    assert not driven.send(driven.lead(60.0), 60.0, no(100.0))
    assert driven.ask(60.0) == Fail(BUDGET_EXHAUSTED, 100.0)
    assert not driven.send(driven.lead(120.0), 120.0, no(10.0))
    assert isinstance(driven.ask(120.0, wait=10.0), Wait)
    driven.lose(130.0)
    assert driven.ask(130.0) == Fail(ODD, 1.0), "what counts is the last result of all"


def test_rule_11_with_the_last_of_the_budget_the_cooldown_is_long_from_the_start() -> None:
    """An outage that begins with nothing left is probed once a refresh interval."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0, AcquireResult(True, 0.0, 1.0))
    assert driven.fail(ticket, 0.0, ODD) is None
    assert driven.ask(0.0) == Fail(ODD, 45.0)


@pytest.mark.parametrize(
    ("now", "reserve_used", "cooldown"),
    [(30.0, 0.5, 1.0), (30.0, 0.6, 9.0), (30.0, 1.0, 15.0), (44.5, 1.0, 1.0), (50.0, 0.6, 1.0)],
)
def test_rule_11_half_of_the_reserve_is_left_to_the_time_until_the_next_regular_refresh(
    now: float, reserve_used: float, cooldown: float
) -> None:
    """From half of it on, the cooldown grows to a refresh interval of 45 s. It ends when the regular refresh is due."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), now)
    ticket = driven.lead(now)
    grant = AcquireResult(True, 0.0, reserve_used)
    assert driven.machine.on_credentials(ticket, ONE, now)
    assert driven.machine.on_budget_result(ticket, grant, now, from_reserve=True) is None
    assert driven.fail(ticket, now, ODD) is None
    assert driven.machine.blocked_for(now) == pytest.approx(cooldown)


def test_rule_18_a_bug_of_the_client_is_what_waiting_calls_get() -> None:
    """It is no outage: there is no cooldown, and the next request fetches."""
    bug = Failure(TokenEndpointUnavailable, "the client raised KeyError", is_bug=True)
    driven = Driven()
    driven.lose(0.0, bug)
    assert driven.ask(0.0, known_failures=0) == Fail(bug, 0.0)
    assert isinstance(driven.ask(0.0), Fetch)


def test_rule_11_only_a_waiting_call_gets_a_late_failure() -> None:
    """A failed fetch fails the requests that came before its end, even after its cooldown."""
    driven = Driven()
    driven.lose(0.0, ODD)
    assert driven.ask(5.0, known_failures=0) == Fail(ODD, 0.0)
    assert isinstance(driven.ask(5.0), Fetch)


def test_rule_11_credentials_that_cannot_be_had_count_as_a_failed_fetch() -> None:
    """The provider's error is the error of the requests, and starts a cooldown."""
    driven = Driven(rotating=True)
    driven.machine.on_fetch_failed(driven.lead(0.0), ODD, 0.5)
    assert driven.ask(0.5, known_failures=0) == Fail(ODD, 1.0)
    assert isinstance(driven.ask(1.5), Fetch)


@pytest.mark.parametrize("arrives", [1.0, 3.0])
def test_rule_12_a_token_that_expired_on_its_way_is_a_failure(arrives: float) -> None:
    """Just expired or long ago: it is never used, and starts a cooldown like any invalid response."""
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


def test_rule_12_the_same_token_in_two_responses_causes_no_loop() -> None:
    """It is rejected again; the next forced refresh waits for its spacing."""
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


def test_rule_16_when_the_leader_is_cancelled_the_next_caller_fetches() -> None:
    """A cancelled fetch is no failure: the next request fetches."""
    driven = Driven()
    driven.machine.on_fetch_abandoned(driven.lead(0.0), 0.5)
    assert driven.ask(0.5, known_failures=0) == Fetch(2)
    driven.machine.on_fetch_abandoned(2, 0.6)
    assert driven.ask(0.6, known_failures=0) == Fetch(3)


def test_rule_16_however_often_clients_are_closed_the_next_request_fetches() -> None:
    """That is no outage of the service: no cooldown, no failure."""
    driven = Driven()
    for ticket in range(1, 9):
        assert driven.ask(0.0, known_failures=0) == Fetch(ticket)
        assert driven.machine.on_fetch_abandoned(ticket, 0.0) is None
    assert driven.machine.failed_fetches == 0


def test_rule_16_a_client_whose_pool_was_full_waits_for_another_one() -> None:
    """Until it can start a fetch again, or its deadline; a fetch of another client ends its wait."""
    driven = Driven()
    full: dict[str, Any] = {"known_failures": 0, "cannot_fetch": BROKEN, "can_fetch_from": 5.0}
    assert driven.ask(0.0, **full) == Wait(5.0)
    assert driven.ask(0.0, wait=3.0, **full) == Wait(3.0)
    assert driven.ask(3.0, wait=0.0, **full) == Fail(BROKEN, 2.0)
    assert driven.ask(3.0, wait=0.0, **{**full, "can_fetch_from": None}) == Fail(BROKEN, 0.0)
    assert driven.ask(0.0, known_failures=0) == Fetch(1)
    driven.machine.on_token(1, token(0.0), 0.1)
    assert isinstance(driven.ask(0.2, **full), Use)
    assert isinstance(driven.ask(4.9, min_validity=59.0, **full), Use), "better than none"
    assert driven.ask(70.0, **full) == Fetch(2)


def test_rule_05_a_pool_that_stays_full_leaves_budget_for_others() -> None:
    """The pauses grow, up to the interval of regular refreshes."""
    policy = TokenPolicy()
    assert [policy.full_pool_pause(times) for times in range(6)] == [5, 10, 20, 40, 50, 50]
    assert policy.full_pool_pause(10_000) == 50


def test_rule_11_a_carrier_that_dies_after_a_failed_attempt_leaves_its_failure() -> None:
    """Or else a client for each request would meet a failing service again and again, without a cooldown."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0)
    assert driven.fail(ticket, 0.1, BROKEN, jitter=0.5) is not None
    assert driven.machine.on_fetch_abandoned(ticket, 0.2) == BROKEN
    assert driven.ask(0.2, known_failures=0) == Fail(BROKEN, 1.0)


def test_rule_11_a_fetch_that_is_lost_after_a_failed_attempt_leaves_its_failure() -> None:
    """It was about to retry."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0)
    assert driven.fail(ticket, 1.0, BROKEN) == 0.0
    assert driven.ask(6.9) == Wait(until=7.0)
    assert driven.ask(7.0, known_failures=0) == Fail(BROKEN, 1.0)


def test_rule_17_a_token_ends_the_row_of_lost_fetches() -> None:
    """Two more may be lost before they count as an outage."""
    driven = Driven()
    assert [driven.lead(now) for now in (0.0, 6.0)] == [1, 2]
    driven.get(12.0)
    assert [driven.lead(now) for now in (80.0, 86.0, 92.0)] == [4, 5, 6]
    assert isinstance(driven.ask(98.0, known_failures=0), Fail)


def test_rule_17_the_first_step_of_a_fetch_extends_its_deadline() -> None:
    """It is expected immediately where it is observed. Then the fetch has its timeout."""
    machine = TokenMachine(TokenPolicy(), reaction=0.5)
    assert machine.decide(0.0, known_failures=0, deadline=20.0) == Fetch(1)
    assert machine.decide(0.0, known_failures=0, deadline=20.0) == Wait(until=0.5)
    assert machine.on_fetch_started(1, 0.25)
    assert machine.decide(0.25, known_failures=0, deadline=20.0) == Wait(until=6.25)


@pytest.mark.parametrize(
    ("now", "state", "forced"), [(0.0, "absent", False), (30.0, "rejected", True), (46.0, "aging", False)]
)
def test_rule_16_a_fetch_that_was_given_up_may_start_late(now: float, state: str, forced: bool) -> None:
    """If a token is wanted and no other fetch has taken its place. It is what a new one would be."""
    driven = Driven() if state == "absent" else holding()
    if state == "rejected":
        assert driven.machine.on_unauthorized(token(), now)
    ticket = driven.lead(now)
    driven.machine.on_fetch_abandoned(ticket, now)
    assert driven.machine.on_fetch_started(ticket, now + 1.0)
    assert driven.machine.pending_fetches == {ticket}
    fetch = driven.machine.pending.by_ticket[ticket]
    assert (fetch.forced, fetch.foreground, fetch.started) == (forced, False, True)
    assert driven.machine.pending.next_due_at == now + 7.0
    assert driven.send(ticket, now + 1.0)


@pytest.mark.parametrize("why", ["another fetch", "a fresh token", "a cooldown"])
def test_rule_16_a_fetch_that_was_given_up_does_not_start_late_for_nothing(why: str) -> None:
    """Another fetch has taken its place, a token has arrived, or none may be requested."""
    driven = Driven()
    ticket = driven.lead(0.0)
    driven.machine.on_fetch_abandoned(ticket, 0.0)
    if why == "another fetch":
        driven.lead(0.0)
    elif why == "a fresh token":
        driven.get(0.0)
    else:
        driven.lose(0.0)
    pending = driven.machine.pending_fetches
    assert not driven.machine.on_fetch_started(ticket, 0.5)
    assert driven.machine.pending_fetches == pending


def test_rule_17_a_fetch_without_a_heartbeat_is_replaced() -> None:
    """A second after its timeout it counts as lost. Waiters wait until that very moment."""
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


def test_rule_17_a_fetch_with_a_timeout_is_waited_for() -> None:
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
    """The backoff delay and the next timeout start again."""
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
    assert machine.on_budget_result(ticket, YES, now, from_reserve=True) is None
    machine.on_fetch_failed(ticket, ODD, now)
    machine.on_fetch_abandoned(ticket, now)
    machine.on_token(ticket, token(1.0, name="late"), now)


def test_rule_16_the_token_of_a_lost_fetch_is_used_where_there_is_no_newer_one() -> None:
    """It was paid for; the fetch that has taken its place continues."""
    driven = Driven()
    lost = driven.lead(0.0)
    assert driven.send(lost, 0.0)
    ticket = driven.lead(6.0)
    driven.machine.on_token(lost, token(0.0), 7.0, digest=ONE)
    assert driven.ask(7.0) == Use(token())
    assert driven.machine.pending_fetches == {ticket}
    assert driven.machine.snapshot(ONE, {}).token == token()
    assert driven.machine.snapshot(TWO, {}).token is None


def test_rule_16_the_token_of_a_lost_fetch_replaces_none_that_is_as_new() -> None:
    """Nor is one used that has expired in the meantime."""
    driven = Driven()
    lost = driven.lead(0.0)
    driven.machine.on_fetch_abandoned(lost, 0.0)
    driven.machine.on_token(lost, token(0.0), 59.0)
    assert driven.machine.fast_path_token(59.0)[0] is None
    driven.get(60.0)
    driven.machine.on_token(lost, token(60.0, name="late"), 61.0)
    assert driven.ask(61.0) == Use(token(60.0))


@pytest.mark.parametrize("granted_first", [True, False])
def test_rule_16_the_fetch_after_a_lost_one_uses_no_reserve(granted_first: bool) -> None:
    """Whether the lost one got its unit before it was given up, or after that."""
    driven = Driven()
    lost = driven.lead(0.0)
    assert driven.machine.on_credentials(lost, ONE, 0.0)
    for granted in (granted_first, not granted_first):
        if granted:
            assert driven.machine.on_budget_result(lost, YES, 1.0, from_reserve=False) is None
        else:
            assert driven.machine.on_fetch_abandoned(lost, 1.0) is None
    assert driven.send(driven.lead(2.0), 2.0)
    assert driven.extra is False


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
    """A secrets manager may take longer than a token request: the fetch is not given up in the meantime."""
    driven = Driven(rotating=True)
    ticket = driven.lead(0.0)
    assert isinstance(driven.ask(20.9), Wait)
    assert driven.machine.on_credentials(ticket, ONE, 20.9)
    assert driven.ask(20.9) == Wait(until=pytest.approx(26.9))  # type: ignore[arg-type]
    assert driven.attempt(ticket, 25.0)
    assert driven.ask(25.0) == Wait(until=31.0)


def test_rule_19_credentials_that_never_come_are_not_waited_for() -> None:
    """A second after the longest wait of any request, another client loads them."""
    driven = Driven(rotating=True)
    driven.lead(0.0)
    assert driven.ask(20.999) == Wait(until=21.0)
    assert driven.ask(21.0) == Fetch(2)


def test_rule_19_a_timeout_names_what_the_call_was_waiting_for() -> None:
    """The credentials, or the token endpoint: not the same failure."""
    rotating, fixed = Driven(rotating=True), Driven()
    ticket = rotating.lead(0.0)
    fixed.lead(0.0)
    no_response = fixed.ask(0.0, wait=0.0)
    assert isinstance(no_response, Fail)
    assert rotating.ask(0.0, wait=0.0) != no_response
    assert rotating.machine.on_credentials(ticket, ONE, 0.0)
    assert rotating.ask(0.0, wait=0.0) == no_response


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

"""Rules 7 and 8: what a 401 of an API request makes of the token and of the reserve."""

from __future__ import annotations

import pytest

from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import Fail, Fetch, Use, Wait
from pay88_adapters.core.snapshot import Snapshot
from support.driven import (
    BROKEN,
    ODD,
    ONE,
    REJECTED,
    TWO,
    Driven,
    holding,
    limited,
    no,
    start_cooldown,
    token,
)


def used(count: int, of: int = 20) -> AcquireResult:
    """Return a grant after which *count* units of the reserve are used."""
    return AcquireResult(True, 0.0, count / of)


def test_rule_10_a_fetch_ends_where_another_got_a_429() -> None:
    """A fetch in its backoff delay, or with a request of its own, sends nothing after a 429, even a late one."""
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
    """A new token ends the fetch; an old one is cached, and the fetch continues; a cooldown applies to all managers."""
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

    for reason, failed in ((BROKEN, 1), (limited(9.0), 0)):
        driven = Driven()
        ticket = driven.lead(0.0)
        assert not driven.machine.merge_snapshot(
            ticket, Snapshot(cooldown_reason=reason, cooldown_until=8.0, failures=4), 0.0, digest=ONE
        )
        assert driven.machine.failed_fetches == failed
        response = driven.ask(1.0, wait=1.0)
        assert isinstance(response, Fail)
        assert (response.failure, response.retry_after) == (reason, 7.0)
        driven.lose(8.0)
        cooldown = driven.ask(8.0, wait=0.0)
        assert isinstance(cooldown, Fail)
        assert cooldown.retry_after == 16.0


def test_rule_04_a_cooldown_that_has_ended_delays_no_call() -> None:
    """At the very instant, too: the fetch continues, and nothing has failed."""
    driven = Driven()
    ticket = driven.lead(8.0)
    assert driven.machine.merge_snapshot(
        ticket, Snapshot(cooldown_reason=BROKEN, cooldown_until=8.0, failures=4), 8.0, digest=ONE
    )
    assert driven.machine.pending_fetches == {ticket}
    assert driven.machine.failed_fetches == 0


def test_rule_04_a_failure_in_another_process_ends_the_wait_here() -> None:
    """Also for a request that is notified after the end of the cooldown."""
    driven = Driven()
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=BROKEN, cooldown_until=8.0), 0.0, digest=ONE
    )
    assert driven.ask(8.0, known_failures=0) == Fail(BROKEN, 0.0)
    assert isinstance(driven.ask(8.0), Fetch)


def test_rule_09_credentials_that_were_rejected_elsewhere_are_not_sent_from_here() -> None:
    """The rejection is about the credentials that the other managers have; others are tried immediately."""
    driven = Driven(rotating=True)
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=REJECTED, cooldown_until=30.0), 0.0, digest=ONE
    )
    assert driven.machine.failed_fetches == 1
    assert not driven.machine.on_credentials(driven.lead(1.0), ONE, 1.0)
    assert driven.machine.on_credentials(driven.lead(2.0), TWO, 2.0)


def test_rule_04_an_abandoned_fetch_merges_nothing() -> None:
    """The manager that replaced it decides."""
    driven = Driven()
    late = driven.lead(0.0)
    ticket = driven.lead(6.0)
    assert not driven.machine.merge_snapshot(late, Snapshot(token(6.0)), 6.0, digest=ONE)
    assert driven.machine.fast_path_token(6.0)[0] is None
    assert driven.machine.pending_fetches == {ticket}


def test_rule_04_a_token_is_taken_over_for_as_long_as_it_would_have_lasted() -> None:
    """At the instant of its refresh it is held, and the fetch continues; at the end of its life it is nothing."""
    driven = Driven()
    ticket = driven.lead(45.0)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token()), 45.0, digest=ONE)
    assert driven.machine.fast_path_token(45.0)[0] == token()
    driven = Driven()
    assert driven.machine.merge_snapshot(driven.lead(59.0), Snapshot(token()), 59.0, digest=ONE)
    assert driven.machine.fast_path_token(59.0)[0] is None


def test_rule_07_another_token_of_the_same_instant_replaces_a_rejected_one() -> None:
    """It is not the one that was rejected, and not older."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 1.0)
    other = token(name="another")
    assert not driven.machine.merge_snapshot(driven.lead(1.0), Snapshot(other), 1.0, digest=ONE)
    assert driven.ask(1.0) == Use(other)


def test_rule_04_a_snapshot_contains_what_concerns_others() -> None:
    """The token of their credentials, an outage or a 429, the consecutive failures, and the known budget entries."""
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


def test_rule_09_a_snapshot_contains_a_rejection_of_the_same_credentials() -> None:
    """And of no other."""
    driven = Driven()
    driven.lose(0.0, REJECTED)
    reported = driven.machine.snapshot(ONE, {})
    assert (reported.cooldown_reason, reported.cooldown_until) == (REJECTED, 30.0)
    reported = driven.machine.snapshot(TWO, {})
    assert (reported.cooldown_reason, reported.cooldown_until) == (None, float("-inf"))


def test_rule_05_a_snapshot_does_not_contain_an_exhausted_budget() -> None:
    """They share the budget itself."""
    driven = Driven()
    assert not driven.send(driven.lead(0.0), 0.0, no(12.0))
    reported = driven.machine.snapshot(ONE, {})
    assert (reported.cooldown_reason, reported.cooldown_until) == (None, float("-inf"))


def test_rule_10_a_429_in_a_snapshot_causes_no_longer_cooldown_than_our_own() -> None:
    """At most ``max_retry_after``; nothing has failed here."""
    driven = Driven()
    reason = limited(9_000.0)
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=reason, cooldown_until=9_000.0), 0.0, digest=ONE
    )
    assert driven.machine.failed_fetches == 0
    assert driven.ask(0.0) == Fail(reason, 3_600.0)
    driven = Driven()
    assert not driven.machine.merge_snapshot(
        driven.lead(0.0), Snapshot(cooldown_reason=reason, cooldown_until=30.0), 0.0, digest=ONE
    )
    assert driven.ask(0.0) == Fail(reason, 30.0)


def test_rule_02_the_pace_of_the_budget_is_kept_by_those_who_follow() -> None:
    """As the hour's budget goes, a manager that takes a token over refreshes it later, too."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert not driven.machine.merge_snapshot(ticket, Snapshot(token()), 0.0, digest=ONE, pace=54.0)
    assert driven.ask(53.9) == Use(token())
    assert isinstance(driven.ask(54.0), Use)
    assert driven.machine.pending_fetches


def test_rule_04_a_token_that_was_rejected_is_not_taken_over_again() -> None:
    """Nor one that is older than ours; a rejected one is not published."""
    driven = holding()
    assert driven.machine.snapshot(ONE, {}).token == token()
    assert driven.machine.on_unauthorized(token(), 1.0)
    assert driven.machine.snapshot(ONE, {}).token is None
    ticket = driven.lead(1.0)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token()), 1.0, digest=ONE)
    assert driven.machine.merge_snapshot(ticket, Snapshot(token(-9.0)), 1.0, digest=ONE)
    assert driven.machine.pending_fetches == {ticket}


def test_rule_07_the_first_rejection_causes_one_fetch_immediately() -> None:
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
    """A late 401 for an older token: replay with the cached one, without a fetch."""
    driven = holding()
    driven.machine.on_unauthorized(token(), 1.0)
    newer = driven.get(1.0)
    assert driven.machine.on_unauthorized(token(), 2.0)
    assert driven.ask(2.0) == Use(newer)


def test_rule_07_a_401_for_a_discarded_token_is_replayed_if_there_is_or_can_be_another() -> None:
    """With a newer token whatever else holds; without one unless none can be fetched."""
    old = token(name="older")
    driven = holding()
    start_cooldown("429", driven, 45.0)
    assert driven.machine.on_unauthorized(old, 46.0), "the newer token is held"
    assert driven.machine.on_unauthorized(old, 58.9)
    assert not driven.machine.on_unauthorized(old, 59.0), "it has expired, and there will be no other"

    driven = Driven()
    assert driven.machine.on_unauthorized(old, 0.0), "one may be requested"
    driven.lead(0.0)
    assert driven.machine.on_unauthorized(old, 0.0), "one is in flight"


def test_rule_07_rejected_during_the_refresh_beside_is_replayed_with_its_token() -> None:
    """The fetch in flight suffices: no forced refresh is counted."""
    driven = holding()
    ticket = driven.lead(45.0)
    assert driven.send(ticket, 45.0)
    assert driven.machine.on_unauthorized(token(), 45.1)
    assert isinstance(driven.ask(45.1), Wait)
    assert not driven.machine.awaiting_first_success


def test_rule_08_a_thousand_rejections_cost_one_ticket() -> None:
    """All are to be replayed, and one fetch is in progress."""
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


def test_rule_08_a_forced_refresh_that_is_due_anyway_does_not_delay_the_next() -> None:
    """The next one is the first to use the reserve."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 45.0)
    newer = driven.get(45.0, grant=used(2))
    assert driven.machine.on_unauthorized(newer, 45.5)
    newest = driven.get(45.5, grant=used(3))
    assert not driven.machine.on_unauthorized(newest, 46.0)


def test_rule_08_a_forced_refresh_that_is_due_anyway_counts_as_one() -> None:
    """It neither ends the spacing of those that used the reserve, nor is it more than one of three."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 44.5)
    newer = driven.get(44.5, grant=used(1))
    assert driven.machine.on_unauthorized(newer, 45.0)
    newest = driven.get(45.0, grant=used(1))
    assert not driven.machine.on_unauthorized(newest, 45.4)
    assert driven.machine.on_unauthorized(newest, 45.5)

    driven = holding(rejection_cooldown=100)
    current = token()
    for now in (45.0, 90.0, 135.0):
        assert driven.machine.on_unauthorized(current, now)
        current = driven.get(now)
    assert not driven.machine.on_unauthorized(current, 180.0)


def storm(driven: Driven, start: float, count: int) -> float:
    """Let each new token be rejected as soon as the spacing allows; return the time of the last."""
    now = start
    for so_far, spacing in enumerate([0.0, 1.0, 2.0, 4.0, 8.0][:count], 1):
        now += spacing
        current, _ = driven.machine.fast_path_token(now)
        assert current is not None
        assert driven.machine.on_unauthorized(current, now)
        driven.get(now, grant=used(so_far))
    return now


def test_rule_08_after_three_consecutive_ones_the_callers_get_the_401() -> None:
    """Until the end of ``rejection_cooldown`` no token request is sent; the token is attached all the same."""
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


def test_rule_08_a_rejected_token_past_its_window_costs_no_forced_refresh() -> None:
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
    """The ordinary refresh brings a token that has not been rejected yet."""
    driven = holding(rejection_cooldown=1_000)
    last = storm(driven, 0.0, 3)
    newer = driven.get(last + 45.0)
    assert driven.machine.on_unauthorized(newer, last + 46.0)


def test_rule_08_a_token_fetched_by_one_caller_alone_resets_the_counter() -> None:
    """It was not fetched because of a rejection either."""
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


def test_rule_05_a_grant_that_has_become_too_old_leaves_the_others_as_they_are() -> None:
    """A first attempt is a regular one again, however soon; a forced one is not, nor is a retry."""
    driven = Driven()
    ticket = driven.lead(0.0)
    assert driven.send(ticket, 0.0)
    driven.machine.on_grant_expired(ticket)
    assert driven.attempt(ticket, 10.0)
    assert driven.extra is False
    assert driven.fail(ticket, 10.0, BROKEN) == 0.0
    assert driven.attempt(ticket, 10.0)
    driven.machine.on_grant_expired(ticket)
    assert driven.machine.on_fetch_abandoned(ticket, 11.0) == BROKEN
    assert driven.machine.uses_reserve(driven.lead(12.0), 12.0) is True

    driven = holding()
    assert driven.machine.on_unauthorized(token(), 10.0)
    ticket = driven.lead(10.0)
    assert driven.send(ticket, 10.0)
    driven.machine.on_grant_expired(ticket)
    assert driven.attempt(ticket, 11.0)
    assert driven.extra is True


def test_rule_08_a_retry_draws_on_the_reserve_however_late_it_comes() -> None:
    """Also when the regular refresh would be due; and so does a fetch that was given up as lost."""
    driven = holding()
    assert driven.machine.on_unauthorized(token(), 44.0)
    ticket = driven.lead(44.0)
    assert driven.send(ticket, 44.0)
    assert driven.fail(ticket, 44.9, BROKEN, jitter=0.8) is not None
    assert driven.attempt(ticket, 45.1)
    assert driven.extra is True
    assert driven.machine.uses_reserve(99, 100.0) is True


def test_rule_08_tokens_that_live_longer_make_ordinary_requests_rarer() -> None:
    """A request before the refresh of the cached token is due is not a regular one."""
    driven = holding(300.0, reuse_for=200)
    decision = driven.ask(100.0, min_validity=250.0)
    assert isinstance(decision, Fetch)
    assert driven.machine.uses_reserve(decision.ticket, 194.9) is True
    assert driven.machine.uses_reserve(decision.ticket, 195.0) is False


def test_rule_08_while_none_can_be_fetched_a_401_is_handed_over() -> None:
    """With a cooldown a replay would only meet the same token."""
    driven = holding()
    start_cooldown("429", driven, 45.0)
    assert not driven.machine.on_unauthorized(token(), 46.0)
    assert driven.ask(46.0) == Use(token())

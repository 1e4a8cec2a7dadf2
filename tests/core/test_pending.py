"""The fetches in progress: until when each is waited for, and which of them are interrupted or lost."""

from __future__ import annotations

import pytest

from pay88_adapters import TokenPolicy
from pay88_adapters.core.pending import FetchTimes, PendingFetches

GRACE = 1.0
REACTION = 0.5


def fetches(*, rotating: bool = False, reaction: float | None = REACTION) -> PendingFetches:
    """Return none yet, with the documented timeouts: 5 s for a token request, 20 s for credentials."""
    return PendingFetches(FetchTimes(TokenPolicy(), rotating, GRACE, reaction))


def lost(pending: PendingFetches, now: float) -> list[int]:
    """Return the tickets of the fetches that are lost at *now*."""
    return [ticket for ticket, _ in pending.expired(now)]


@pytest.mark.parametrize(
    ("rotating", "reaction", "first_step_by", "result_by"),
    [
        (False, None, 106.0, 106.25),
        (True, None, 121.0, 121.25),
        (False, REACTION, 100.5, 106.25),
        (True, REACTION, 100.5, 121.25),
    ],
)
def test_rule_17_a_fetch_is_waited_for_by_what_it_has_done(
    rotating: bool, reaction: float | None, first_step_by: float, result_by: float
) -> None:
    """Its first step is expected immediately where it is observed. Then it has its timeout, or the credentials have."""
    pending = fetches(rotating=rotating, reaction=reaction)
    assert pending.next_due_at == float("inf")
    ticket = pending.start(100.0, forced=False)
    fetch = pending.by_ticket[ticket]
    assert (pending.next_due_at, fetch.started, fetch.awaiting_credentials) == (first_step_by, False, rotating)
    pending.take_first_step(ticket, 100.25)
    assert (pending.next_due_at, fetch.started, fetch.awaiting_credentials) == (result_by, True, rotating)
    pending.keep(fetch, 110.0, 2.0)
    assert pending.next_due_at == 110.0 + 2.0 + 5.0 + GRACE


def test_rule_17_an_overdue_fetch_is_interrupted_before_it_is_lost() -> None:
    """Once, with a moment to react. One that reports in that moment has its time again."""
    pending = fetches()
    ticket = pending.start(0.0, forced=False)
    pending.take_first_step(ticket, 0.0)
    assert (lost(pending, 5.99), pending.overdue) == ([], ())
    assert (lost(pending, 6.0), pending.overdue, pending.next_due_at) == ([], (ticket,), 6.5)
    pending.keep(pending.by_ticket[ticket], 6.25)
    assert (lost(pending, 12.0), pending.overdue) == ([], (ticket,))
    assert (lost(pending, 12.25), pending.overdue, pending.next_due_at) == ([], (ticket, ticket), 12.75)
    assert (lost(pending, 12.75), pending.overdue) == ([ticket], (ticket, ticket))


@pytest.mark.parametrize(
    ("started", "reaction", "due"), [(False, REACTION, 0.5), (True, None, 6.0), (False, None, 6.0)]
)
def test_rule_17_a_fetch_that_cannot_be_interrupted_is_lost_when_it_is_due(
    started: bool, reaction: float | None, due: float
) -> None:
    """It has not taken its first step, or nothing observes how it reacts."""
    pending = fetches(reaction=reaction)
    ticket = pending.start(0.0, forced=False)
    if started:
        pending.take_first_step(ticket, 0.0)
    assert lost(pending, due - 0.01) == []
    assert (lost(pending, due), pending.overdue) == ([ticket], ())


def test_rule_17_each_of_several_fetches_has_its_own_deadline() -> None:
    """One is not due, one is interrupted, and one that never started is lost, in whatever order they come."""
    pending = fetches()
    early, kept, late = (pending.start(0.0, forced=False) for _ in range(3))
    for ticket in (early, kept):
        pending.take_first_step(ticket, 0.0)
    pending.keep(pending.by_ticket[early], 3.0)
    assert (lost(pending, 6.0), pending.overdue) == ([late], (kept,))


def test_rule_16_a_fetch_ends_once() -> None:
    """Whatever reports its end a second time: the number of ended fetches wakes the waiters of each."""
    pending = fetches()
    first, second = (pending.start(0.0, forced=forced) for forced in (False, True))
    assert pending.ended == 0
    fetch = pending.end(first)
    assert fetch is not None
    assert (fetch.forced, pending.end(first), pending.ended, list(pending.by_ticket)) == (False, None, 1, [second])
    assert pending.end(second) is not None
    assert (pending.ended, pending.next_due_at) == (2, float("inf"))


def test_rule_17_a_forked_child_has_no_fetch_of_its_parent() -> None:
    """Neither one that is pending nor one to interrupt; its own tickets are new."""
    pending = fetches()
    ticket = pending.start(0.0, forced=False)
    pending.take_first_step(ticket, 0.0)
    assert lost(pending, 6.0) == []
    pending.clear()
    assert (dict(pending.by_ticket), pending.overdue, lost(pending, 100.0)) == ({}, (), [])
    assert pending.start(100.0, forced=False) > ticket


def test_rule_02_a_foreground_refresh_is_waited_for_by_the_request_that_started_it() -> None:
    """A background refresh by none."""
    pending = fetches()
    started = [pending.start(0.0, forced=False, wait_until=wait_until) for wait_until in (5.0, float("-inf"))]
    assert [pending.by_ticket[ticket].foreground for ticket in started] == [True, False]

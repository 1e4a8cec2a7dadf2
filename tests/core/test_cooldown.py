"""The cooldown: which of two counts, until when it lasts, and what other managers learn of it."""

from __future__ import annotations

import pytest

from pay88_adapters.core.decisions import Fetch
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.failures import BUDGET_EXHAUSTED
from pay88_adapters.core.snapshot import Snapshot
from support.driven import BROKEN, NONSENSE, ODD, ONE, REJECTED, TWO, Driven, limited, no, token

NEVER = float("-inf")


def reported(driven: Driven, digest: str = ONE) -> tuple[Failure | None, float]:
    """Return what the managers with the credentials *digest* learn of the cooldown."""
    snapshot = driven.machine.snapshot(digest, {})
    return snapshot.cooldown_reason, snapshot.cooldown_until


@pytest.mark.parametrize(
    ("now", "reason"), [(29.9, limited(60.0)), (30.0, REJECTED), (30.1, REJECTED)], ids=["shorter", "as long", "longer"]
)
def test_rule_10_of_two_cooldowns_the_longer_one_counts(now: float, reason: Failure) -> None:
    """With its own reason; of two that end together, the later one. Here a key is rejected after a 429."""
    driven = Driven()
    first = driven.lead(0.0)
    assert driven.send(first, 0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(second.ticket, 0.0)
    driven.fail(first, 0.0, limited(60.0))
    driven.fail(second.ticket, now, REJECTED)
    cooldown = driven.machine.cooldown
    assert (cooldown.reason, cooldown.until) == (reason, max(60.0, now + 30.0))
    assert cooldown.next_check_at == cooldown.until


def test_rule_05_an_exhausted_budget_replaces_only_its_own_earlier_result() -> None:
    """It is checked once a minute. A newer result may be a shorter wait, and a grant ends it."""
    driven = Driven()
    for now, retry_in, check_in in ((0.0, 500.0, 60.0), (60.0, 50.0, 50.0)):
        ticket = driven.lead(now)
        assert not driven.send(ticket, now, no(retry_in))
        cooldown = driven.machine.cooldown
        assert (cooldown.reason, cooldown.until) == (BUDGET_EXHAUSTED, now + retry_in)
        assert cooldown.next_check_at == now + check_in
    assert driven.send(driven.lead(110.0), 110.0)
    assert (driven.machine.cooldown.reason, driven.machine.cooldown.until) == (None, NEVER)


def test_rule_05_a_token_does_not_end_the_cooldown_of_an_exhausted_budget() -> None:
    """Of two fetches one acquired the last unit."""
    driven = Driven()
    first = driven.lead(0.0)
    second = driven.ask(0.0, must_fetch=True)
    assert isinstance(second, Fetch)
    assert driven.send(first, 0.0)
    assert not driven.send(second.ticket, 0.0, no(30.0))
    driven.machine.on_token(first, token(0.0), 1.0)
    assert (driven.machine.cooldown.reason, driven.machine.cooldown.until) == (BUDGET_EXHAUSTED, 30.0)


def test_rule_10_a_wait_that_came_from_another_manager_is_passed_on_in_full() -> None:
    """Here it is capped by ``max_retry_after``."""
    driven = Driven(max_retry_after=60)
    found = Snapshot(cooldown_reason=limited(90.0), cooldown_until=90.0)
    assert not driven.machine.merge_snapshot(driven.lead(0.0), found, 0.0, digest=ONE)
    assert driven.machine.cooldown.until == 60.0
    assert reported(driven) == (limited(90.0), 90.0)


@pytest.mark.parametrize("requested", [40.0, 90.0])
def test_rule_10_other_managers_learn_the_wait_that_a_429_demanded(requested: float) -> None:
    """Not capped by this manager's ``max_retry_after``. It lengthens no outage that comes later."""
    driven = Driven(max_retry_after=60)
    driven.lose(0.0, limited(requested))
    assert driven.machine.cooldown.until == min(requested, 60.0)
    assert reported(driven) == (limited(requested), requested)
    driven.lose(60.0, ODD)
    assert reported(driven) == (ODD, 61.0)


def test_rule_10_a_later_and_shorter_429_does_not_shorten_the_wait_for_others() -> None:
    """Nor does the token that this manager got in the meantime, because of its ``max_retry_after``."""
    driven = Driven(max_retry_after=60)
    driven.lose(0.0, limited(90.0))
    driven.lose(60.0, ODD)
    newer = driven.get(61.0)
    assert driven.machine.on_unauthorized(newer, 70.0)
    driven.lose(70.0, limited(5.0))
    assert driven.machine.cooldown.until == 75.0
    assert reported(driven) == (limited(5.0), 90.0)


@pytest.mark.parametrize("failure", [BROKEN, NONSENSE, ODD])
def test_rule_11_other_managers_learn_of_an_outage(failure: Failure) -> None:
    """Whatever their key is; nothing before it, and nothing after a token."""
    driven = Driven(fetch_attempts=1)
    assert reported(driven) == (None, NEVER)
    driven.lose(0.0, failure)
    assert reported(driven) == reported(driven, TWO) == (failure, 1.0)
    driven.get(1.0)
    assert reported(driven) == (None, NEVER)


def test_rule_09_a_rejection_is_reported_to_managers_with_the_same_key() -> None:
    """Another key has not been rejected, and an exhausted budget reports itself."""
    driven = Driven()
    assert driven.machine.cooldown.rejected_key is None
    driven.lose(0.0, REJECTED)
    assert (reported(driven), reported(driven, TWO)) == ((REJECTED, 30.0), (None, NEVER))
    driven.get(30.0)
    assert (reported(driven), driven.machine.cooldown.rejected_key) == ((None, NEVER), None)
    assert not driven.send(driven.lead(80.0), 80.0, no(100.0))
    assert reported(driven) == (None, NEVER)

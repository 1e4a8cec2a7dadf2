"""The cooldown: which of two counts, and what other managers learn of it."""

from __future__ import annotations

import pytest

from pay88_adapters.core.cooldown import TokenCooldown
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.failures import BUDGET_EXHAUSTED
from support.driven import BROKEN, NONSENSE, ODD, ONE, REJECTED, TWO, limited

NEVER = float("-inf")
LIMITED = limited(60.0)


@pytest.mark.parametrize(
    ("until", "reason"), [(59.0, BROKEN), (60.0, ODD), (61.0, ODD)], ids=["shorter", "as long", "longer"]
)
def test_rule_11_of_two_cooldowns_the_longer_one_counts(until: float, reason: Failure) -> None:
    """With its own reason; of two that end together, the later one."""
    cooldown = TokenCooldown()
    cooldown.start(BROKEN, 60.0)
    cooldown.start(ODD, until)
    assert (cooldown.reason, cooldown.until) == (reason, max(60.0, until))
    assert cooldown.next_check_at == cooldown.until


def test_rule_05_an_exhausted_budget_replaces_only_its_own_earlier_result() -> None:
    """A newer result of the budget may be a shorter wait. The cooldown of a 429 stays, unless it ends earlier."""
    cooldown = TokenCooldown()
    cooldown.exhausted(BUDGET_EXHAUSTED, 500.0, 0.0)
    assert (cooldown.until, cooldown.next_check_at) == (500.0, 60.0)
    cooldown.exhausted(BUDGET_EXHAUSTED, 50.0, 10.0)
    assert (cooldown.until, cooldown.next_check_at) == (50.0, 50.0)
    cooldown.start(LIMITED, 100.0)
    cooldown.exhausted(BUDGET_EXHAUSTED, 90.0, 20.0)
    assert (cooldown.reason, cooldown.until, cooldown.next_check_at) == (LIMITED, 100.0, 100.0)
    cooldown.end_exhausted()
    assert cooldown.reason is LIMITED


@pytest.mark.parametrize("requested_until", [NEVER, 40.0, 90.0])
@pytest.mark.parametrize("reason", [LIMITED, BROKEN, NONSENSE])
def test_rule_10_other_managers_learn_the_wait_that_a_429_demanded(reason: Failure, requested_until: float) -> None:
    """Not capped by this manager's ``max_retry_after``, and no shorter than its cooldown. It lengthens no outage."""
    cooldown = TokenCooldown()
    cooldown.requested_until = requested_until
    cooldown.start(reason, 60.0)
    assert cooldown.to_report(ONE) == (reason, max(60.0, requested_until) if reason is LIMITED else 60.0)


def test_rule_09_a_rejection_is_reported_to_managers_with_the_same_key() -> None:
    """Another key has not been rejected, and an exhausted budget reports itself."""
    cooldown = TokenCooldown()
    assert cooldown.to_report(ONE) == (None, NEVER)
    assert cooldown.rejected_key is None
    cooldown.rejected_key = ONE
    cooldown.start(REJECTED, 30.0)
    assert cooldown.to_report(ONE) == (REJECTED, 30.0)
    assert cooldown.to_report(TWO) == (None, NEVER)
    cooldown.end()
    assert (cooldown.to_report(ONE), cooldown.rejected_key) == ((None, NEVER), None)
    cooldown.exhausted(BUDGET_EXHAUSTED, 60.0, 0.0)
    assert cooldown.to_report(ONE) == (None, NEVER)

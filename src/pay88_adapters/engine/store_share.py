"""The share of the token budget that a process has in degraded mode: 1/divisor of the budget (rule 24)."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from pay88_adapters.core.constants import NEVER
from pay88_adapters.core.policy import LIFETIME
from pay88_adapters.stores.base import LeaseResult
from pay88_adapters.stores.members import FIRST_DIVISOR, GRACE, HORIZON, MAX_MEMBERS, divisor_left, share_left

from .clock import Clock
from .store_link import Link

_DAY = 86_400.0
_numbers = itertools.count(1)


class _Assigned(NamedTuple):
    """A share that the store assigned."""

    divisor: int
    """It is 1/divisor of the budget; 0: it is none."""
    at: float
    """When the lease attempt began that returned it, or that the store reported."""
    number: int = 0
    """Number of the member, if it is one of this process."""


class Unreported(NamedTuple):
    """A share of which units may have been acquired that the store has not seen."""

    share: float
    """As a fraction of the budget."""
    at: float
    """When the member last reached the store."""


class Share:
    """The share of this process in degraded mode.

    Args:
        clock: The clock of the managers.
        share: The configured share, as a fraction of the budget; ``None`` for the share that the store assigns.
    """

    def __init__(self, clock: Clock, share: float | None) -> None:
        self._clock = clock
        self._configured = None if share is None else math.ceil(1 / share - 1e-9)  # as a divisor
        self.number = next(_numbers)
        """Number of the member of the store that has the share: another one from when this process gives it up."""
        self._assigned: _Assigned | None = None
        self._assigned_before: _Assigned | None = None  # the share before the store last failed
        self._recorded_at = NEVER
        self._is_split = False
        self._others: dict[str, _Assigned] = {}  # what the store assigned to each other member, at its last attempt
        self._members = FIRST_DIVISOR

    @property
    def is_assigned(self) -> bool:
        """Whether the store assigned it: if not, it was configured, or is a guess."""
        return self._configured is None and self._assigned is not None

    @property
    def members(self) -> int:
        """How many processes and hosts use the store, as far as is known; or what the configured share implies."""
        return self._members if self._configured is None else self._configured

    @property
    def is_removable(self) -> bool:
        """Whether the store may assign it to others once this process has given it up."""
        return self._configured is None and not self._is_split

    @property
    def has_joined(self) -> bool:
        """Whether the store has ever been reached."""
        return self._assigned is not None

    def record_lease_result(self, result: LeaseResult, asked_at: float, number: int, link: Link) -> None:
        """Record the result of a lease attempt.

        Args:
            result: The response of the store.
            asked_at: When the attempt began.
            number: Number of the member that made it.
            link: Access to the store, as it was before the response.
        """
        if link.failing:
            self._assigned_before = self._current()
        self._others = self._merge_members(result, asked_at, link)
        divisor = result.divisor
        if divisor and not link.is_steady:  # members that the store has lost still use their shares
            divisor = max(divisor, len(self._others) + 1)
        self._assigned = self._merge_overlapping(_Assigned(divisor, asked_at, number))
        self._recorded_at = self._clock.now()
        self._members = self._count_members(result, asked_at)

    def _merge_members(self, result: LeaseResult, asked_at: float, link: Link) -> dict[str, _Assigned]:
        """Return the other members: those in the response, and those that only the store may have lost."""
        if not link.is_steady:
            # Members that are missing may have been lost with the data of the store, and still use their shares.
            lost_within = _DAY
        elif result.divisor:
            # The store remembers our attempt of *last_attempt* seconds ago, and so all members of before then. Those
            # that are missing ended cleanly, and reported all units before that: drop them.
            lost_within = min(result.last_attempt, HORIZON)
        else:
            lost_within = HORIZON  # the response may not contain the members: there are too many
        kept = {name: each for name, each in self._others.items() if each.at >= asked_at - lost_within}
        reported = (each for each in result.others if each.divisor)
        return kept | {each.name: _Assigned(each.divisor, asked_at - each.age) for each in reported}

    def _merge_overlapping(self, new: _Assigned) -> _Assigned:
        """Return the smaller share, and the earlier start, of two attempts that overlap.

        The store may have executed them in either order.
        """
        old = self._assigned
        if old is None or self._recorded_at <= new.at:
            return new
        divisor = max(new.divisor, old.divisor) if new.divisor and old.divisor else 0
        return new._replace(divisor=divisor, at=min(new.at, old.at))

    def _count_members(self, result: LeaseResult, asked_at: float) -> int:
        """Return how many members share the rate limits of API requests.

        A rate limit may be exceeded: so a member that has ended, or is idle, does not count for longer than ``GRACE``.
        """
        if not (result.divisor or result.others):
            return MAX_MEMBERS
        in_response = sum(each.age <= GRACE for each in result.others)
        known = sum(asked_at - each.at <= GRACE for each in self._others.values())
        return max(in_response, known) + 1

    def unreported_shares(self, link: Link) -> list[Unreported]:
        """Return the shares of members without a lease attempt since the store recovered."""
        unreported = [
            Unreported(self._left(each, link), each.at) for each in self._others.values() if each.at < link.restored_at
        ]
        if self._assigned_before is not None and self._clock.now() < link.restored_at + LIFETIME:
            # What was free at our last attempt may have been assigned to new members before the store failed. By the
            # end of a token's lifetime, each of them that sends requests has attempted a lease.
            own, at, _ = self._assigned_before
            assigned = sum(1 / each.divisor for each in self._others.values())
            unreported.append(Unreported(max(1 - (1 / own if own else 0) - assigned, 0.0), at))
        return unreported

    def _left(self, other: _Assigned, link: Link) -> float:
        """Return what was left of the share of another member when the store failed after its last attempt."""
        if self._configured is not None:
            return 1 / other.divisor
        failing_since, _ = link.outages_after(other.at)[0]
        return share_left(other.divisor, failing_since - other.at)

    def divisor(self, failing_since: float) -> int:
        """Return the divisor of the share, if the store has failed since then; 0 for none."""
        if self._configured is not None:
            return self._configured
        assigned = self._current()
        if assigned is None:
            return FIRST_DIVISOR
        return divisor_left(assigned.divisor, failing_since - assigned.at)

    def _current(self) -> _Assigned | None:
        """Return what the store assigned to this process; ``None`` before its first response."""
        assigned = self._assigned
        if assigned is None or assigned.number == self.number:
            return assigned
        return assigned._replace(divisor=0)  # the share was given up after the attempt began

    def split(self) -> None:
        """Keep half of the share: another process continues with the other half."""
        self._members += 1
        self._is_split = True
        if self._assigned is not None:
            self._assigned = self._assigned._replace(divisor=2 * self._assigned.divisor)

    def fork(self) -> None:
        """Continue without a share in one more process, until the store assigns one."""
        self._members = max(self._members + 1, FIRST_DIVISOR)
        self._is_split = False
        self.give_up()

    def give_up(self) -> None:
        """Continue without a share, as another member, until the store assigns one."""
        self.number = next(_numbers)

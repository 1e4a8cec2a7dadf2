"""The share of the token budget that a process has in degraded mode: 1/divisor of the budget (rule 24)."""

from __future__ import annotations

import itertools
import math

from pay88_adapters.core.policy import LIFETIME
from pay88_adapters.stores.base import LeaseResult
from pay88_adapters.stores.members import FIRST_DIVISOR, GRACE, HORIZON, MOST_MEMBERS, divisor_left, share_left

from .clock import Clock
from .store_link import Link

_DAY = 86_400.0
_numbers = itertools.count(1)


class Share:
    """The share of this process in degraded mode, as the divisor of the budget.

    Args:
        clock: The clock of the managers.
        part: The configured share; ``None`` for the share that the store assigns.
    """

    def __init__(self, clock: Clock, part: float | None) -> None:
        self._clock = clock
        self._by_hand = None if part is None else math.ceil(1 / part - 1e-9)
        self.number = next(_numbers)
        """Number of the member of the store that has the share: another one from when this process gives it up."""
        # The divisor, when the store assigned it, and to which number.
        self._assigned: tuple[int, float, int] | None = None
        self._assigned_before: tuple[int, float] | None = None  # the divisor before the store last failed
        self._recorded_at = float("-inf")
        self._is_split = False
        self._others: dict[str, tuple[float, int]] = {}  # the last lease attempt of each other member, and its divisor
        self._members = FIRST_DIVISOR

    @property
    def is_firm(self) -> bool:
        """Whether the store assigned it: if not, it is a guess."""
        return self._by_hand is None and self._assigned is not None

    @property
    def members(self) -> int:
        """How many processes and hosts use the store, as far as is known; or what the configured share implies."""
        return self._members if self._by_hand is None else self._by_hand

    @property
    def is_set(self) -> bool:
        """Whether it was configured."""
        return self._by_hand is not None

    @property
    def is_removable(self) -> bool:
        """Whether the store may assign it to others once this process has given it up."""
        return self._by_hand is None and not self._is_split

    @property
    def is_assigned(self) -> bool:
        """Whether the store has ever been reached."""
        return self._assigned is not None

    def record_lease_result(self, result: LeaseResult, asked_at: float, number: int, link: Link) -> None:
        """Record the share that the store assigned to the member with this number."""
        if link.failing:
            self._assigned_before = self._part()
        reported = {each.name: (asked_at - each.age, each.divisor) for each in result.others if each.divisor}
        # A member that disappeared when the store failed may have used its share since, even if the store has lost it.
        # One that the store knew at the last attempt that it remembers, and does not know now, has ended. It has used
        # nothing that the store does not know.
        ended = min(result.last_attempt, HORIZON) if result.divisor else HORIZON
        since = asked_at - (ended if link.is_steady else _DAY)
        self._others = {**{name: each for name, each in self._others.items() if each[0] >= since}, **reported}
        divisor = result.divisor
        if divisor and not link.is_steady:
            divisor = max(divisor, len(self._others) + 1)
        if self._assigned is not None and self._recorded_at > asked_at:
            # Another attempt overlaps, and the store may have executed it later.
            other, other_asked_at, _ = self._assigned
            divisor, asked_at = max(divisor, other) if divisor and other else 0, min(asked_at, other_asked_at)
        self._assigned = divisor, asked_at, number
        self._recorded_at = self._clock.now()
        # Those that have ended are not among them for long: a rate limit may be exceeded.
        recent = sum(each.age <= GRACE for each in result.others)
        known = max(recent, sum(asked_at - at <= GRACE for at, _ in self._others.values())) + 1
        self._members = known if result.divisor or result.others else MOST_MEMBERS

    def unreported_members(self, link: Link) -> list[tuple[float, float]]:
        """Return the shares of members without a lease attempt since the store recovered, and since when."""
        others = [each for each in self._others.values() if each[0] < link.restored_at]
        unreported = [(at, self._left(divisor, link.outages_after(at)[0][0] - at)) for at, divisor in others]
        if self._assigned_before is not None and self._clock.now() < link.restored_at + LIFETIME:
            # The rest of the whole may have been assigned to others since; a member that sends requests attempts a
            # lease by then.
            divisor, asked_at = self._assigned_before
            assigned = sum(1 / divisor for _, divisor in self._others.values())
            unreported.append((asked_at, max(1 - (1 / divisor if divisor else 0) - assigned, 0.0)))
        return unreported

    def _left(self, divisor: int, age: float) -> float:
        return 1 / divisor if self.is_set else share_left(divisor, age)

    def divisor(self, failing_since: float) -> int:
        """Return the divisor of the share, if the store has failed since then; 0 for none."""
        if self._by_hand is not None:
            return self._by_hand
        assigned = self._part()
        if assigned is None:
            return FIRST_DIVISOR
        divisor, asked_at = assigned
        return divisor_left(divisor, failing_since - asked_at)

    def _part(self) -> tuple[int, float] | None:
        """Return the divisor that the store assigned to this process, and when."""
        if self._assigned is None:
            return None
        divisor, asked_at, number = self._assigned
        # The response to an attempt of before the share was given up may arrive later.
        return divisor if number == self.number else 0, asked_at

    def split(self) -> None:
        """Keep half of the share: another process continues with the other half."""
        self._members += 1
        self._is_split = True
        if self._assigned is not None:
            divisor, asked_at, number = self._assigned
            self._assigned = 2 * divisor, asked_at, number

    def fork(self) -> None:
        """Continue without a share in one more process, until the store assigns one."""
        self._members = max(self._members + 1, FIRST_DIVISOR)
        self._is_split = False
        self.give_up()

    def give_up(self) -> None:
        """Continue without a share, as another member, until the store assigns one."""
        self.number = next(_numbers)

"""The share of the token budget of each member in degraded mode.

A member is a process, or a host whose processes share a fallback store. Each lease attempt returns the share of its
member: 1/divisor of the budget. All shares together never exceed the budget: a share is reserved until its member gets
another one, because the store cannot revoke it. It shrinks while the member makes no lease attempt, to zero after an
hour: a member that was killed, or sends no requests, does not reduce the shares of the rest.

A member that ends cleanly first gives up its share, and then has the store remove it. No member has its name again, so
it does not matter how late the store does that, or whether.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .base import LeaseResult, Member

HORIZON = 3600.0
"""Seconds after which a member without lease attempts is removed, and has no share."""

GRACE = 300.0
"""Seconds for which a share stays whole: a member that sends requests attempts leases more often."""

FIRST_DIVISOR = 4
"""A new member, or one that could never attempt a lease, gets at most 1/4 of the budget."""

GROWTH_INTERVAL = 30.0
"""Minimum seconds between two doublings of a member's share."""

MAX_MEMBERS = 100
"""With more, none has a share: with the documented limits it would not reach one token request an hour."""

_NEAR = 1e-9


def member_of(owner: str) -> str:
    """Return which member *owner* belongs to; "" for none that counts."""
    return owner.rpartition("/")[0]


def assigned_divisor(others: Sequence[Member], before: Member | None) -> int:
    """Return the divisor of the share that a member has from now on; 0 for none.

    Args:
        others: All other members.
        before: This member, if it exists. A large share grows step by step, so that members that come later get theirs
            immediately.
    """
    if len(others) >= MAX_MEMBERS:
        return 0
    free = 1.0 - sum(share_left(each.divisor, each.age) for each in others)
    least = len(others) + 1
    if before is not None and before.divisor:
        next_divisor = before.divisor if before.age < GROWTH_INTERVAL else math.ceil(before.divisor / 2)
        least = max(least, min(next_divisor, FIRST_DIVISOR))
    else:
        least = max(least, FIRST_DIVISOR)
        if free * FIRST_DIVISOR < 1 - _NEAR:
            free /= 2  # some of what is free stays for the next new member
    return max(least, math.ceil(1 / free - _NEAR)) if free * MAX_MEMBERS >= 1 else 0


def with_share(result: LeaseResult, divisor: int, others: Sequence[Member], before: Member | None) -> LeaseResult:
    """Return *result* with what the member learns: its share, and of which other members the store knows."""
    known = others if len(others) < MAX_MEMBERS else ()
    last_attempt = before.age if before is not None and before.divisor else math.inf
    return result._replace(divisor=divisor, others=known, last_attempt=last_attempt)


def share_left(divisor: int, age: float) -> float:
    """Return which fraction of the budget a share still is, *age* seconds after the lease attempt of its member."""
    return max(1 - max(age - GRACE, 0.0) / (HORIZON - GRACE), 0.0) / divisor if divisor else 0.0


def divisor_left(divisor: int, age: float) -> int:
    """Return that fraction as a divisor; 0 for none."""
    left = share_left(divisor, age)
    return math.ceil(1 / left - _NEAR) if left > 0 else 0

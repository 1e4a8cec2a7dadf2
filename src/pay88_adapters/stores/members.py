"""The share of the token budget of each member in degraded mode.

A member is a process, or a host whose processes share a fallback store. Each lease attempt returns the share of its
member. All shares together never exceed the budget: a share is reserved until its member gets another one, because the
store cannot revoke it. It shrinks while the member makes no lease attempt, to zero after an hour: a member that was
killed, or sends no requests, does not reduce the shares of the rest.

A member that ends cleanly first gives up its share, and then has the store remove it. No member has its name again, so
it does not matter how late the store does that, or whether.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .base import LeaseResult, Member

HORIZON = 3600.0
"""Seconds after which a member without lease attempts is removed, and has no part."""

GRACE = 300.0
"""Seconds for which a part stays whole: a member that sends requests attempts leases more often."""

AT_FIRST = 4
"""A new member, or one that could never attempt a lease, gets at most one part in this many."""

STEP = 30.0
"""Minimum seconds between two doublings of a member's part."""

MOST_MEMBERS = 100
"""More have no part each: with the documented limits it would not reach one token request an hour."""

_NEAR = 1e-9


def member_of(owner: str) -> str:
    """Return which member *owner* belongs to; "" for none that counts."""
    return owner.rpartition("/")[0]


def parts(others: Sequence[Member], before: Member | None) -> int:
    """Return one part in how many a member has from now on; 0 for none.

    Args:
        others: All other members.
        before: This member, if it exists. A large part grows step by step, so that members that come later get theirs
            immediately.
    """
    if len(others) >= MOST_MEMBERS:
        return 0
    free = 1.0 - sum(part_left(each.parts, each.age) for each in others)
    least = len(others) + 1
    if before is not None and before.parts:
        step = before.parts if before.age < STEP else math.ceil(before.parts / 2)
        least = max(least, min(step, AT_FIRST))
    else:
        least = max(least, AT_FIRST)
        if free * AT_FIRST < 1 - _NEAR:
            free /= 2
    return max(least, math.ceil(1 / free - _NEAR)) if free * MOST_MEMBERS >= 1 else 0


def joined(result: LeaseResult, own_parts: int, others: Sequence[Member], before: Member | None) -> LeaseResult:
    """Return *result* with what the member learns: its part, and of which other members the store knows."""
    known = others if len(others) < MOST_MEMBERS else ()
    last_attempt = before.age if before is not None and before.parts else math.inf
    return result._replace(parts=own_parts, others=known, last_attempt=last_attempt)


def part_left(assigned: int, age: float) -> float:
    """Return the rest of one part in *assigned*, *age* seconds after the lease attempt of the member."""
    return max(1 - max(age - GRACE, 0.0) / (HORIZON - GRACE), 0.0) / assigned if assigned else 0.0


def shrunk(assigned: int, age: float) -> int:
    """Return that rest as one part in how many, *age* seconds after the lease attempt; 0 for none."""
    left = part_left(assigned, age)
    return math.ceil(1 / left - _NEAR) if left > 0 else 0

"""Keeping API calls within their documented limits (rule 22)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute

from .budget import AtomicMovingWindow, merchant_digest
from .stores.base import BudgetStorage
from .wire import asked_wait, calls_left

CALL_LIMITS: tuple[RateLimitItem, ...] = (RateLimitItemPerMinute(60), RateLimitItemPerHour(1000))
"""Of each group of calls, as 88Pay documents them."""

PACED = ("transactions", "balance")
"""The groups of calls that have limits."""

_TOO_MANY = 429
_LONGEST = 3600.0  # seconds; no limit lasts longer
_GUARD = 1.0  # seconds that a call may take longer to the service than the one before it


@dataclass(slots=True)
class _Announced:
    """What the service said is left, and until when that holds."""

    remaining: int
    until: float


class Pacing:
    """The calls that one merchant's managers may still make.

    What is counted in the storage is shared by all who share it. What the service says of itself, which
    may know of others, is kept here; the manager's lock guards it.

    Args:
        storage: Keeps the entries.
        base_url: Calls are counted per base URL and merchant.
    """

    def __init__(self, storage: BudgetStorage, base_url: str) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=_GUARD)
        self._base_url = base_url
        self._announced: dict[str, _Announced] = {}

    def take(self, group: str, merchant_id: str) -> float:
        """Take a unit of every limit of *group*: return 0, or after how many seconds to ask again. May block."""
        names = (group, merchant_digest(self._base_url, merchant_id))
        return self._strategy.hit_all([(item, names) for item in CALL_LIMITS]).wait

    def announced(self, group: str, now: float) -> float:
        """Use up one of the calls that the service said are left: return 0, or for how many seconds none is."""
        said = self._announced.get(group)
        if said is None or now >= said.until:
            return 0.0
        if said.remaining <= 0:
            return said.until - now
        said.remaining -= 1
        return 0.0

    def heard(self, group: str, status: int, headers: Mapping[str, str], now: float) -> None:
        """Note what the service says is left, in its ``X-RateLimit-*`` fields or the ``Retry-After`` of a 429.

        Answers overtake each other: within one window the least that was said counts.
        """
        if group not in PACED:
            return
        asked = asked_wait(headers) if status == _TOO_MANY else None
        announced = calls_left(headers) if asked is None else (0, asked)
        if announced is None:
            return
        remaining, wait = announced
        said = self._announced.get(group)
        if said is None or now >= said.until or remaining < said.remaining:
            self._announced[group] = _Announced(remaining, now + min(wait, _LONGEST))

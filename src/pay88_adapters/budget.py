"""How many token requests may still be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter

from .policy import TokenPolicy
from .stores.base import Acquired, BudgetStorage, Window, wait_for

_HOUR = 3600


class Grant(NamedTuple):
    """The answer to one acquisition."""

    granted: bool
    retry_in: float
    """Seconds until it could be granted; 0 if it was."""
    pressure: float
    """0 while the longest window is roomy, rising to 1 as the last of it goes."""
    ordinary_in: float = 0.0
    """Seconds until a request that is not extra could be granted, as far as is known now."""


class AtomicMovingWindow(MovingWindowRateLimiter):
    """The moving-window strategy of ``limits``, for several limits in one step.

    Args:
        storage: Must take several windows at once.
        guard: Seconds added to each window. A request may reach the service as late as its timeout
            after it was counted here, so entries less than that apart may be closer over there.
    """

    def __init__(self, storage: BudgetStorage, guard: float) -> None:
        super().__init__(storage)
        self._windows = storage
        self._guard = guard

    def hit_all(self, items: Sequence[tuple[RateLimitItem, tuple[str, ...]]]) -> Acquired:
        """Take a unit of every limit, or none."""
        return self._windows.acquire_all([self.window(item, *names) for item, names in items])

    def left(self, item: RateLimitItem, *identifiers: str) -> int:
        """Return how many units of *item* are left."""
        return max(item.amount - len(self._windows.ages(self.window(item, *identifiers))), 0)

    def window(self, item: RateLimitItem, *identifiers: str) -> Window:
        """Return the window that *item* stands for."""
        return Window(item.key_for(*identifiers), item.amount, item.get_expiry() + self._guard)


class TokenBudget:
    """The budgets of the merchants at one base URL.

    An *extra* request (a forced refresh, a retry, a probe during an outage) also draws on
    ``forced_reserve`` and leaves room in the short windows, so that the ordinary refresh, which comes
    at most every 45 seconds, always finds a unit.

    Args:
        policy: Gives the limits.
        storage: Keeps the entries.
        base_url: The budget is counted per base URL and merchant.
    """

    def __init__(self, policy: TokenPolicy, storage: BudgetStorage, base_url: str) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=policy.fetch_timeout)
        self._base_url = base_url
        self._limits = tuple(dict.fromkeys(policy.rate_limits()))
        self._longest = max(self._limits, key=RateLimitItem.get_expiry)
        self._reserve = (
            RateLimitItemPerHour(policy.forced_reserve),
            *(_with_room(item) for item in self._limits if item.get_expiry() < _HOUR),
        )

    def acquire(self, merchant_id: str, *, extra: bool) -> Grant:
        """Take one unit of every limit that applies, or none."""
        acquired = self._strategy.hit_all(self._items(merchant_id, extra=extra))
        if acquired.wait == 0:
            return Grant(True, 0.0, self.pressure(merchant_id))
        ordinary = zip(self.windows(merchant_id, extra=False), acquired.ages, strict=False)  # they come first
        ordinary_in = max(wait_for(window, ages, 1) for window, ages in ordinary)
        return Grant(False, acquired.wait, self.pressure(merchant_id), ordinary_in)

    def windows(self, merchant_id: str, *, extra: bool = True) -> list[Window]:
        """Return every window that the merchant's requests count in, those that are *extra* or not."""
        return [self._strategy.window(item, *names) for item, names in self._items(merchant_id, extra=extra)]

    def _items(self, merchant_id: str, *, extra: bool) -> list[tuple[RateLimitItem, tuple[str, ...]]]:
        names = self.names(merchant_id)
        items: list[tuple[RateLimitItem, tuple[str, ...]]] = [(item, names) for item in self._limits]
        return items + [(item, (*names, "extra")) for item in self._reserve] if extra else items

    def left(self, merchant_id: str) -> dict[str, int]:
        """Return the units left, by limit, such as ``{"10 per 1 minute": 9}``."""
        names = self.names(merchant_id)
        return {str(item): self._strategy.left(item, *names) for item in self._limits}

    def pressure(self, merchant_id: str) -> float:
        """Return 0 while the longest window is roomy, rising to 1 as the last of it goes."""
        left = self._strategy.left(self._longest, *self.names(merchant_id))
        # What steady traffic leaves over: 80 of 100 an hour are for the ordinary refresh.
        roomy = min(self._reserve[0].amount, self._longest.amount / 5)
        return max(0.0, 1.0 - left / roomy) if roomy else 0.0

    def names(self, merchant_id: str) -> tuple[str, str]:
        """Return what the merchant's entries are kept under."""
        return ("token", merchant_digest(self._base_url, merchant_id))


def merchant_digest(base_url: str, merchant_id: str) -> str:
    """Name a merchant at a base URL without giving it away."""
    return hashlib.sha256(f"{base_url}\n{merchant_id}".encode()).hexdigest()[:32]


def _with_room(item: RateLimitItem) -> RateLimitItem:
    # Two ordinary requests, 45 seconds apart, fit into one minute.
    return type(item)(max(item.amount - 2, 0), item.multiples)

"""How many token requests may still be sent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

from limits import RateLimitItem, RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter

from .policy import LIFETIME, TokenPolicy
from .stores.base import Acquired, Ages, BudgetStorage, Window, wait_for

_HOUR = 3600
_SLACK = 0.01  # seconds by which a planned request comes after the instant at which there is room


class Grant(NamedTuple):
    """The answer to one acquisition."""

    granted: bool
    retry_in: float
    """Seconds until it could be granted; 0 if it was."""
    pressure: float
    """The part of the reserve that is used: 0 for nothing, 1 for all of it."""
    ordinary_in: float = 0.0
    """Seconds until a request that is not extra could be granted, as far as is known now."""
    pace: float = 0.0
    """Seconds from one ordinary request to the next that the limits sustain; 0 where the usual ones do."""


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
        return Window(item.key_for(*identifiers), item.amount, self.expiry(item))

    def expiry(self, item: RateLimitItem) -> float:
        """Return for how many seconds a unit of *item* counts."""
        return item.get_expiry() + self._guard

    def ages(self, window: Window) -> Ages:
        """Return what counts in *window* now."""
        return self._windows.ages(window)


class TokenBudget:
    """The budgets of the merchants at one base URL.

    An *extra* request (a forced refresh, a retry, a probe during an outage) also draws on
    ``forced_reserve``, and on a share of each limit: ordinary requests always find the units that they need
    to follow each other at the end of each token's life.

    Args:
        policy: Gives the limits.
        storage: Keeps the entries.
        base_url: The budget is counted per base URL and merchant.
    """

    def __init__(self, policy: TokenPolicy, storage: BudgetStorage, base_url: str) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=policy.fetch_timeout)
        self._base_url = base_url
        self._limits = tuple(dict.fromkeys(policy.rate_limits()))
        self._usual, _, self._latest = policy.windows(LIFETIME)
        shares = [self._share(item, policy) for item in self._limits]
        reserve = min([policy.forced_reserve, *(each.amount for each in shares if each.get_expiry() == _HOUR)])
        self._reserve = (RateLimitItemPerHour(reserve), *(each for each in shares if each.get_expiry() != _HOUR))
        self._shares = tuple(self._reserve[0] if each.get_expiry() == _HOUR else each for each in shares)

    def acquire(self, merchant_id: str, *, extra: bool) -> Grant:
        """Take one unit of every limit that applies, or none."""
        acquired = self._strategy.hit_all(self._items(merchant_id, extra=extra))
        if acquired.wait == 0:
            return Grant(True, 0.0, self.pressure(merchant_id), pace=self.pace(merchant_id))
        ordinary = zip(self.windows(merchant_id, extra=False), acquired.ages, strict=False)  # they come first
        ordinary_in = max(wait_for(window, ages, 1) for window, ages in ordinary)
        return Grant(False, acquired.wait, self.pressure(merchant_id), ordinary_in, self.pace(merchant_id))

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
        """Return the part of the reserve that is used: 0 for nothing, 1 for all of it."""
        lasting = [item for item in self._reserve if item.get_expiry() >= _HOUR]
        return max(self._used(item, merchant_id) / item.amount if item.amount else 1.0 for item in lasting)

    def pace(self, merchant_id: str) -> float:
        """Return how many seconds apart ordinary requests must be from now on, so that none is ever denied.

        Evenly spaced, while the reserve keeps what it has not used of its share; 0 if that is no more than usual.
        """
        names = self.names(merchant_id)
        pace = 0.0
        for item, share in zip(self._limits, self._shares, strict=True):
            _, limit, expiry = window = self._strategy.window(item, *names)
            ages = self._strategy.ages(window)
            pace = max(pace, spread(limit, expiry + _SLACK, ages))
            if item.get_expiry() >= _HOUR:  # it takes a long time to come back to what is used too early
                kept = max(share.amount - self._used(share, merchant_id), 0)
                # The guard is for when a window is full, and no reason to leave the usual pace.
                pace = max(pace, spread(limit - kept, item.get_expiry(), ages))
        return pace if pace > self._usual else 0.0

    def _used(self, share: RateLimitItem, merchant_id: str) -> int:
        return len(self._strategy.ages(self._strategy.window(share, *self.names(merchant_id), "extra")))

    def _share(self, item: RateLimitItem, policy: TokenPolicy) -> RateLimitItem:
        """Return how many of *item* extra requests may use."""
        seconds = item.get_expiry()
        least = int(self._strategy.expiry(item) // self._latest) + 1  # one at the end of each token's life
        spare = item.amount - least
        if spare < 0:  # calls will have to do without a token at times; some of them, after a refusal
            share = max(item.amount // 5, 1)
        else:  # beyond the least, ordinary requests may have what their usual pace takes, at most half
            share = spare - min(max(math.ceil(seconds / self._usual) - least, 0), spare // 2)
        return type(item)(min(share, policy.forced_reserve * max(seconds // _HOUR, 1)), item.multiples)

    def names(self, merchant_id: str) -> tuple[str, str]:
        """Return what the merchant's entries are kept under."""
        return ("token", merchant_digest(self._base_url, merchant_id))


def merchant_digest(base_url: str, merchant_id: str) -> str:
    """Name a merchant at a base URL without giving it away."""
    return hashlib.sha256(f"{base_url}\n{merchant_id}".encode()).hexdigest()[:32]


def spread(limit: int, seconds: float, ages: Ages) -> float:
    """Return how many seconds apart further entries have to be, evenly, for each of them to find room.

    At most *limit* fit into any span of *seconds*; *ages* says since when there have been some, oldest first.
    """
    counting = [age for age in ages if age <= seconds]
    left = limit - len(counting)
    # Where n are left, the one after them takes the place of the oldest, the next one that of the second oldest.
    return max(((seconds - age) / (left + n) for n, age in enumerate(counting, 1) if left + n > 0), default=0.0)

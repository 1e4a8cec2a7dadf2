"""How many token requests may still be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter

from .policy import TokenPolicy
from .stores.memory import MemoryStorage, Window

_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to one acquisition."""

    granted: bool
    retry_in: float
    """Seconds until it could be granted; 0 if it was."""
    pressure: float
    """0 while the longest window is roomy, rising to 1 as the last of it goes."""


class AtomicMovingWindow(MovingWindowRateLimiter):
    """The moving-window strategy of ``limits``, for several limits in one step.

    One ``hit`` after another would charge the first limit for what the second one refuses.

    Args:
        storage: Must take several windows at once.
        guard: Seconds added to each window. A request may reach the service as late as its timeout
            after it was counted here, so entries less than that apart may be closer over there.
    """

    def __init__(self, storage: MemoryStorage, guard: float) -> None:
        super().__init__(storage)
        self._windows = storage
        self._guard = guard

    def hit_all(self, items: Sequence[tuple[RateLimitItem, tuple[str, ...]]]) -> float:
        """Take a unit of every limit, or none; return 0, or the seconds until they can be taken."""
        return self._windows.acquire_all([self._window(item, *names) for item, names in items])

    def left(self, item: RateLimitItem, *identifiers: str) -> int:
        """Return how many units of *item* are left."""
        return max(item.amount - self._windows.count(self._window(item, *identifiers)), 0)

    def _window(self, item: RateLimitItem, *identifiers: str) -> Window:
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

    def __init__(self, policy: TokenPolicy, storage: MemoryStorage, base_url: str) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=policy.fetch_timeout)
        self._base_url = base_url
        self._limits = policy.rate_limits()
        self._longest = max(self._limits, key=RateLimitItem.get_expiry)
        self._reserve = (
            RateLimitItemPerHour(policy.forced_reserve),
            *(_with_room(item) for item in self._limits if item.get_expiry() < _HOUR),
        )

    def acquire(self, merchant_id: str, *, extra: bool) -> Grant:
        """Take one unit of every limit that applies, or none."""
        names = self._names(merchant_id)
        taken: list[tuple[RateLimitItem, tuple[str, ...]]] = [(item, names) for item in self._limits]
        if extra:
            taken += [(item, (*names, "extra")) for item in self._reserve]
        retry_in = self._strategy.hit_all(taken)
        return Grant(retry_in == 0, retry_in, self._pressure(self._strategy.left(self._longest, *names)))

    def left(self, merchant_id: str) -> dict[str, int]:
        """Return the units left, by limit, such as ``{"10 per 1 minute": 9}``."""
        names = self._names(merchant_id)
        return {str(item): self._strategy.left(item, *names) for item in self._limits}

    def _pressure(self, left: int) -> float:
        # What steady traffic leaves over: 80 of 100 an hour are for the ordinary refresh.
        roomy = min(self._reserve[0].amount, self._longest.amount / 5)
        return max(0.0, 1.0 - left / roomy) if roomy else 0.0

    def _names(self, merchant_id: str) -> tuple[str, str, str]:
        return ("token", self._base_url, merchant_id)


def _with_room(item: RateLimitItem) -> RateLimitItem:
    # Two ordinary requests, 45 seconds apart, fit into one minute.
    return type(item)(max(item.amount - 2, 0), item.multiples)

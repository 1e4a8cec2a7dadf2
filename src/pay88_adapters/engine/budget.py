"""The token budget: how many token requests may still be sent."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from limits import RateLimitItem, RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter

from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.errors import Failure, TokenBudgetExhausted, TokenRateLimited
from pay88_adapters.core.history import Acquisition, Ages, Cooldown, StorageResult, Window, counted, wait_for
from pay88_adapters.core.policy import LIFETIME, TokenPolicy
from pay88_adapters.core.snapshot import failure_from, failure_to
from pay88_adapters.stores.base import EntryStorage, new_id

_HOUR = 3600
_DAY = 86_400.0
_SLACK = 0.01  # seconds from the availability of a unit to a planned request


class AtomicMovingWindow(MovingWindowRateLimiter):
    """The moving-window strategy of ``limits``, for several limits in one atomic step.

    Args:
        storage: Must acquire several windows in one step.
        guard: Seconds added to each window. A request may reach the service as late as its timeout after it was counted
            here, so requests may arrive closer together than their entries.
    """

    def __init__(self, storage: EntryStorage, guard: float) -> None:
        super().__init__(storage)
        self._windows = storage
        self._guard = guard

    def acquire_all(self, items: Sequence[tuple[RateLimitItem, tuple[str, ...]]]) -> StorageResult:
        """Acquire a unit of every limit, or none."""
        return self._windows.acquire_all([self.window(item, *names) for item, names in items])

    def left(self, item: RateLimitItem, *identifiers: str) -> int:
        """Return the remaining units of *item*."""
        return max(item.amount - len(self._windows.ages(self.window(item, *identifiers))), 0)

    def window(self, item: RateLimitItem, *identifiers: str) -> Window:
        """Return the window of *item*: all items with the same identifiers share one history."""
        return Window("/".join(identifiers), item.amount, self.expiry(item))

    def expiry(self, item: RateLimitItem) -> float:
        """Return for how many seconds a unit of *item* counts."""
        return item.get_expiry() + self._guard

    def ages(self, window: Window) -> Ages:
        """Return the ages of the entries that count in *window* now."""
        return self._windows.ages(window)


class TokenBudget:
    """The budgets of the merchants at one base URL.

    A request *from the reserve* (a forced refresh, a retry, a trial request) also draws on ``forced_reserve``, and on a
    share of each limit. So regular requests always find the units for one refresh at the end of each token's lifetime.

    Args:
        policy: Contains the limits.
        storage: Stores the entries.
        base_url: The budget is counted per base URL and merchant.
    """

    def __init__(self, policy: TokenPolicy, storage: EntryStorage, base_url: str) -> None:
        self._strategy = AtomicMovingWindow(storage, guard=policy.guard)
        self._storage = storage
        self._base_url = base_url
        self._limits = tuple(dict.fromkeys(policy.rate_limits()))
        self._usual, _, self._latest = policy.windows(LIFETIME)
        shares = [self._share(item, policy) for item in self._limits]
        reserve = min([policy.forced_reserve, *(each.amount for each in shares if each.get_expiry() == _HOUR)])
        self._reserve = (RateLimitItemPerHour(reserve), *(each for each in shares if each.get_expiry() != _HOUR))
        self._shares = tuple(self._reserve[0] if each.get_expiry() == _HOUR else each for each in shares)
        self._longest_cooldown = policy.max_retry_after

    def acquire(self, merchant_id: str, *, from_reserve: bool) -> AcquireResult:
        """Acquire one unit of every limit that applies, or none."""
        windows = self.windows(merchant_id, from_reserve=from_reserve)
        acquisition = Acquisition(windows, [new_id()], longest_cooldown=self._longest_cooldown, durable=True)
        result = self._storage.acquire(acquisition)
        reserve_used, pace = self.reserve_used(merchant_id), self.pace(merchant_id)
        if result.wait == 0:
            return AcquireResult(True, 0.0, reserve_used, pace=pace)
        cooldown = result.cooldown
        if cooldown is not None and cooldown.left(self._longest_cooldown) > 0:
            return AcquireResult(False, result.wait, reserve_used, result.wait, pace, _reported(cooldown))
        regular = windows[: len(self._limits)]
        refresh_allowed_in = max(wait_for(each, counted(each, result.histories[each.key]), 1) for each in regular)
        return AcquireResult(False, result.wait, reserve_used, refresh_allowed_in, pace, self._refusal(result, regular))

    def _refusal(self, result: StorageResult, regular: Sequence[Window]) -> Failure:
        left = {
            item: item.amount - len(counted(window, result.histories[window.key]))
            for item, window in zip(self._limits, regular, strict=True)
        }
        spent = ", ".join(str(item) for item, units in left.items() if units <= 0)
        if result.reason:
            why = result.reason
        elif spent:
            why = f"token budget exhausted ({spent})"
        else:
            units = ", ".join(f"{units} of {item}" for item, units in left.items())
            why = (
                f"token budget exhausted for forced refreshes and retries: {units} left, reserved for regular refreshes"
            )
        return Failure(TokenBudgetExhausted, f"{why}; request not sent", retryable=True)

    def rate_limited(self, merchant_id: str, failure: Failure) -> None:
        """Record the wait that a 429 demanded. It applies to the merchant with any key, in all processes with this
        storage.

        Raises:
            StoreError: The storage is unavailable.
        """
        seconds = min(failure.retry_after or 0.0, _DAY)
        self._storage.start_cooldown(self.key(merchant_id), Cooldown(seconds, 0.0, json.dumps(failure_to(failure))))

    def cooldown(self, merchant_id: str) -> tuple[Failure, float] | None:
        """Return the cooldown after a 429, if any: its reason and its remaining seconds.

        Raises:
            StoreError: The storage is unavailable.
        """
        cooldown = self._storage.cooldown(self.key(merchant_id))
        left = cooldown.left(self._longest_cooldown) if cooldown is not None else 0.0
        return (_reported(cooldown), left) if cooldown is not None and left > 0 else None

    def windows(self, merchant_id: str, *, from_reserve: bool = True) -> list[Window]:
        """Return the windows in which the merchant's requests count, *from_reserve* or not."""
        return [
            self._strategy.window(item, *names) for item, names in self._items(merchant_id, from_reserve=from_reserve)
        ]

    def _items(self, merchant_id: str, *, from_reserve: bool) -> list[tuple[RateLimitItem, tuple[str, ...]]]:
        names = self.names(merchant_id)
        items: list[tuple[RateLimitItem, tuple[str, ...]]] = [(item, names) for item in self._limits]
        return items + [(item, (*names, "extra")) for item in self._reserve] if from_reserve else items

    def left(self, merchant_id: str) -> dict[str, int]:
        """Return the remaining units by limit, such as ``{"10 per 1 minute": 9}``."""
        names = self.names(merchant_id)
        return {str(item): self._strategy.left(item, *names) for item in self._limits}

    def left_for_forced(self, merchant_id: str) -> int:
        """Return the remaining units for forced refreshes and retries; the rest is reserved for regular refreshes."""
        items = self._items(merchant_id, from_reserve=True)
        return min(self._strategy.left(item, *names) for item, names in items)

    def reserve_used(self, merchant_id: str) -> float:
        """Return the used fraction of the reserve, from 0 to 1."""
        lasting = [item for item in self._reserve if item.get_expiry() >= _HOUR]
        return max(self._used(item, merchant_id) / item.amount if item.amount else 1.0 for item in lasting) or 0.0

    def pace(self, merchant_id: str) -> float:
        """Return the minimum seconds between regular requests, from now on, so that none is ever denied.

        They are spaced evenly, while the reserve keeps the unused part of its share; 0 if the usual interval is long
        enough.
        """
        names = self.names(merchant_id)
        pace = 0.0
        for item, share in zip(self._limits, self._shares, strict=True):
            window = self._strategy.window(item, *names)
            limit, expiry = self._storage.usable_limit(window), window.expiry
            ages = self._strategy.ages(window)
            pace = max(pace, spread(limit, expiry + _SLACK, ages))
            if item.get_expiry() >= _HOUR:  # a unit that is used early returns only after a long time
                kept = max(share.amount - self._used(share, merchant_id), 0)
                # The guard matters when a window is full. It is no reason to leave the usual pace.
                pace = max(pace, spread(limit - kept, item.get_expiry(), ages))
        return pace if pace > self._usual else 0.0

    def _used(self, share: RateLimitItem, merchant_id: str) -> int:
        return len(self._strategy.ages(self._strategy.window(share, *self.names(merchant_id), "extra")))

    def _share(self, item: RateLimitItem, policy: TokenPolicy) -> RateLimitItem:
        """Return how many units of *item* the reserve may use: by default 20 of 100 per hour, 8 of 10 per minute."""
        seconds = item.get_expiry()
        # One at the end of each token's lifetime, which takes 62 of 100 per hour.
        least = int(self._strategy.expiry(item) // self._latest) + 1
        spare = item.amount - least
        if spare < 0:  # requests will lack a token at times; some of them after a 401
            share = max(item.amount // 5, 1)
        else:  # of the other 38, regular requests get the 18 that they usually need (80 - 62), at most half
            share = spare - min(max(math.ceil(seconds / self._usual) - least, 0), spare // 2)
        return type(item)(min(share, policy.forced_reserve * max(seconds // _HOUR, 1)), item.multiples)

    def names(self, merchant_id: str) -> tuple[str, str]:
        """Return the identifiers of the merchant's entries."""
        return ("token", merchant_digest(self._base_url, merchant_id))

    def key(self, merchant_id: str) -> str:
        """Return the key of the merchant's history."""
        return "/".join(self.names(merchant_id))

    def keys(self, merchant_id: str) -> dict[str, float]:
        """Return the keys of the merchant's histories, each with the longest window of its limits in seconds."""
        longest: dict[str, float] = {}
        for window in self.windows(merchant_id):
            longest[window.key] = max(longest.get(window.key, 0.0), window.expiry)
        return longest


def merchant_digest(base_url: str, merchant_id: str) -> str:
    """Return an opaque id of a merchant at a base URL."""
    return hashlib.sha256(f"{base_url}\n{merchant_id}".encode()).hexdigest()[:32]


def spread(limit: int, seconds: float, ages: Ages) -> float:
    """Return the even distance in seconds of further entries at which each of them fits.

    At most *limit* fit into any span of *seconds*; *ages* are those of the existing entries, oldest first.
    """
    counting = [age for age in ages if age <= seconds]
    left = limit - len(counting)
    # With n units left, the entry after them replaces the oldest, and the next one the second oldest.
    return max(((seconds - age) / (left + n) for n, age in enumerate(counting, 1) if left + n > 0), default=0.0)


def _reported(cooldown: Cooldown) -> Failure:
    try:
        reported = failure_from(json.loads(cooldown.reason))
    except (ValueError, TypeError, LookupError, RecursionError):
        reported = None
    if reported is None or reported.kind is not TokenRateLimited:
        reported = Failure(
            TokenRateLimited, "the token endpoint responded with 429; request not sent", 429, retryable=True
        )
    return reported

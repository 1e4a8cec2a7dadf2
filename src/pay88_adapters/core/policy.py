"""Configuration of token reuse, refresh and fetches."""

from __future__ import annotations

from dataclasses import dataclass, fields

from limits import RateLimitItem, parse_many

from .arguments import LEAST, check_number, shown
from .errors import ConfigurationError, shorten

LIFETIME = 60.0
"""Lifetime of a token in seconds, as documented by 88Pay."""

_LONGEST_WINDOW = 10 * 365 * 86_400  # seconds; a store keeps its entries that long
_SLOW_OPERATION = 5.0  # seconds: one more than an operation of the store may take
_LEASE_LEEWAY = 2.0  # seconds that a lease lasts longer than a fetch, for the operations of the store itself

_COUNTS = ("fetch_attempts", "max_forced_refreshes", "forced_reserve")
_POSITIVE = ("reuse_for", "fetch_timeout", "fetch_attempts", "max_retry_after")
_WITHIN_LIFETIME = ("margin", "expiry_skew")


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """Configuration of tokens. Durations are in seconds. The defaults follow 88Pay's documentation.

    Args:
        reuse_for: How long a token is reused, from the moment its token request was sent.
        margin: Leeway of the reuse window: it ends at least this long before expiry.
        refresh_ahead: How long before the end of the reuse window the background refresh starts.
        expiry_skew: Leeway of a stale token: it is used until this long before expiry while no token can be fetched.
        max_wait: Maximum wait of a request for tokens, across all its attempts.
        fetch_timeout: Timeout of one token request.
        fetch_attempts: Attempts of one fetch.
        backoff_base: Upper bound of the first backoff delay between attempts; it doubles each time.
        backoff_cap: Largest upper bound of a backoff delay.
        rejection_cooldown: Cooldown after the token endpoint rejected the credentials.
        max_forced_refreshes: Consecutive forced refreshes before 401s are returned to the callers.
        forced_reserve: Token requests per hour for forced refreshes, retries and trial requests together.
        max_retry_after: Maximum cooldown after a 429 of the token endpoint.
        fallback_share: Part of the token budget that one process may use while the shared store is unavailable,
            from 0.000001 to 1, for example 0.25 with four processes. ``None``: one part in as many processes as the
            store last knew.
        limits: The token budget, in the notation of the ``limits`` library. 88Pay documents the default.

    Raises:
        ConfigurationError: A value is out of range.
    """

    reuse_for: float = 50
    margin: float = 10
    refresh_ahead: float = 5
    expiry_skew: float = 1
    max_wait: float = 20
    fetch_timeout: float = 5
    fetch_attempts: int = 3
    backoff_base: float = 0.25
    backoff_cap: float = 4
    rejection_cooldown: float = 30
    max_forced_refreshes: int = 3
    forced_reserve: int = 20
    max_retry_after: float = 3600
    fallback_share: float | None = None
    limits: tuple[str, ...] = ("10/minute", "100/hour")

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name not in ("limits", "fallback_share"):
                self._check_number(each.name, getattr(self, each.name))
        if self.fallback_share is not None:
            self._check_number("fallback_share", self.fallback_share)
            if not LEAST <= self.fallback_share <= 1:
                share = shown(self.fallback_share)
                raise ConfigurationError(f"fallback_share is {share}: it must be a number from {LEAST:g} to 1, or None")
        if self.backoff_cap < self.backoff_base:
            raise ConfigurationError(
                f"backoff_cap ({self.backoff_cap:g} s) is less than backoff_base ({self.backoff_base:g} s): raise it"
            )
        self.rate_limits()

    def _check_number(self, name: str, value: float) -> None:
        check_number(name, value, whole=name in _COUNTS, positive=name in _POSITIVE)
        if name in _WITHIN_LIFETIME and value >= LIFETIME:
            raise ConfigurationError(
                f"{name} is {value:g} s: it must be less than the lifetime of a token ({LIFETIME:.0f} s)"
            )

    def windows(self, expires_in: float) -> tuple[float, float, float]:
        """Return when a token is refreshed, until when it is reused, and until when it is usable (rules 1, 2 and 6).

        All in seconds since its request was sent, for a token granted for *expires_in* seconds.
        """
        left = expires_in - self.margin if expires_in >= 2 * self.margin else expires_in / 2
        reuse_for = min(self.reuse_for, left)
        refresh_at = reuse_for - min(self.refresh_ahead, reuse_for / 4)
        return refresh_at, reuse_for, max(reuse_for, expires_in - self.expiry_skew)

    @property
    def trusted_after(self) -> float:
        """Seconds after which a client, or a run of an event loop, is taken to outlive a background refresh (rule 2).

        The longest duration of a fetch, but at most a third of ``reuse_for``: else no client would ever be old enough.
        """
        return min(self.longest_fetch, self.reuse_for / 3)

    @property
    def longest_fetch(self) -> float:
        """Longest duration of a fetch in seconds, with all its attempts and backoff delays."""
        pauses = (min(self.backoff_cap, self.backoff_base * 2.0 ** min(n, 32)) for n in range(self.fetch_attempts - 1))
        return self.fetch_attempts * self.fetch_timeout + sum(pauses)

    def full_pool_pause(self, consecutive: int) -> float:
        """Return for how many seconds a client sends no token request after its pool had no free connection (rule 16).

        It grows from a ``fetch_timeout`` to the reuse window, so that a pool that stays full leaves budget for others.

        Args:
            consecutive: How often that has happened before, without a free connection in between.
        """
        return min(self.fetch_timeout * 2.0 ** min(consecutive, 32), self.reuse_for)

    @property
    def guard(self) -> float:
        """Seconds within which a request arrives, from the acquisition of its unit of the budget (rule 5).

        At least as many as a slow store may take: a unit that comes too late for its request counts all the same.
        """
        return max(self.fetch_timeout, _SLOW_OPERATION)

    def timeout_after(self, age: float) -> float | None:
        """Return the timeout of a request whose unit was claimed *age* seconds ago; ``None`` if it is too old."""
        left = self.guard - age
        return min(left, self.fetch_timeout) if left >= min(self.fetch_timeout, self.guard / 5) else None

    @property
    def lease_duration(self) -> float:
        """Duration of the refresh lease in seconds: ``longest_fetch`` or ``guard``, plus 2 s for the store (rule 4)."""
        return max(self.longest_fetch, self.guard) + _LEASE_LEEWAY

    @property
    def extended_lease_duration(self) -> float:
        """Duration in seconds of the lease that replaces one which was too short, as with a slow store."""
        return max(self.longest_fetch, self.guard) + _SLOW_OPERATION

    def rate_limits(self) -> tuple[RateLimitItem, ...]:
        """Return the parsed limits.

        Raises:
            ConfigurationError: There is no limit, or one is not in the notation of ``limits`` or has a window of more
                than ten years.
        """
        if not self.limits or not isinstance(self.limits, tuple):
            raise ConfigurationError('limits must be a tuple of at least one limit, such as ("10/minute",)')
        try:
            items = tuple(item for limit in self.limits for item in parse_many(limit))
        except (ValueError, TypeError, AttributeError):
            items = ()
        if not items or not all(item.amount > 0 and item.get_expiry() > 0 for item in items):
            raise ConfigurationError(shorten(f"limits is {self.limits!r}", 120) + ': write each limit like "10/minute"')
        for item in items:
            if item.get_expiry() > _LONGEST_WINDOW:
                limit = shorten(str(item), 60)
                raise ConfigurationError(f"the window of {limit} in limits is too long: it must be at most 10 years")
        return items

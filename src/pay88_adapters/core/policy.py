"""How tokens are reused, refreshed and asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from limits import RateLimitItem, parse_many

from .arguments import check_number, shown
from .errors import ConfigurationError

LIFETIME = 60.0
"""Seconds a token lives, as 88Pay documents it."""

_LEAST_SHARE = 1e-6

_COUNTS = ("fetch_attempts", "max_forced_refreshes", "forced_reserve")
_POSITIVE = ("reuse_for", "fetch_timeout", "fetch_attempts", "max_retry_after")
_WITHIN_LIFETIME = ("margin", "expiry_skew")


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """Durations are in seconds. The defaults follow what 88Pay tells its users to do.

    Args:
        reuse_for: A token is reused this long, counted from the moment its request was sent.
        margin: And never closer to its expiry than this.
        refresh_ahead: One refresh runs beside the traffic this long before the reuse window ends.
        expiry_skew: When no token can be fetched, the old one is used until this long before expiry.
        max_wait: A call waits for a token at most this long in all.
        fetch_timeout: Bound on one token request.
        fetch_attempts: Token requests in a row before an outage is declared.
        backoff_base: Bound on the first random pause between attempts; it doubles each time.
        backoff_cap: Largest bound on such a pause.
        rejection_cooldown: No token request for this long after the credentials were refused.
        max_forced_refreshes: Refused tokens replaced in a row before 401s are handed to the callers.
        forced_reserve: Token requests an hour that refusals, retries and probes may use in all.
        max_retry_after: Longest wait that a 429 of the token endpoint can impose.
        fallback_share: Part of the token budget that one process may use while the shared store is unavailable,
            from 0.000001 to 1, for example 0.25 with four processes. ``None``: as much as all processes that the
            store last knew leave to each other.
        limits: The budget of token requests, in the notation of the ``limits`` library.

    Raises:
        ConfigurationError: A value makes no sense.
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
            if not _LEAST_SHARE <= self.fallback_share <= 1:
                share = shown(self.fallback_share)
                raise ConfigurationError(f"fallback_share is {share}: it must be {_LEAST_SHARE:g} to 1, or None")
        if self.backoff_cap < self.backoff_base:
            raise ConfigurationError("backoff_cap is less than backoff_base: raise it")
        self.rate_limits()

    def _check_number(self, name: str, value: float) -> None:
        check_number(name, value, whole=name in _COUNTS, positive=name in _POSITIVE)
        if name in _WITHIN_LIFETIME and value >= LIFETIME:
            raise ConfigurationError(f"{name} is {value:g} s, but a token lives {LIFETIME:.0f} s: make it less")

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

        As long as a fetch can take, or less where that is long: each refresh would find it too young.
        """
        return min(self.longest_fetch, self.reuse_for / 3)

    @property
    def longest_fetch(self) -> float:
        """Seconds that a fetch can take, with all its attempts and the pauses between them."""
        pauses = (min(self.backoff_cap, self.backoff_base * 2.0 ** min(n, 32)) for n in range(self.fetch_attempts - 1))
        return self.fetch_attempts * self.fetch_timeout + sum(pauses)

    def rate_limits(self) -> tuple[RateLimitItem, ...]:
        """Return the parsed limits.

        Raises:
            ConfigurationError: There is none, or one is not in the notation of ``limits``.
        """
        if not self.limits or not isinstance(self.limits, tuple):
            raise ConfigurationError('limits must be a tuple of at least one limit, such as ("10/minute",)')
        try:
            items = tuple(item for limit in self.limits for item in parse_many(limit))
        except (ValueError, TypeError, AttributeError):
            items = ()
        if not items or not all(item.amount > 0 and item.get_expiry() > 0 for item in items):
            raise ConfigurationError(f'limits is {self.limits!r}: write each one like "10/minute"')
        return items

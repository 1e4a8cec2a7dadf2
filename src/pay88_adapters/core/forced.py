"""When a 401 may force a refresh (rule 8)."""

from __future__ import annotations

from .policy import TokenPolicy

_HOUR = 3600.0
_NEVER = float("-inf")
_EVER = float("inf")
_FIRST_SPACING = 1.0  # seconds between forced refreshes; doubles with each that counts


class ForcedRefreshes:
    """The forced refreshes of one manager.

    Args:
        policy: How many there may be.
    """

    __slots__ = ("_policy", "consecutive", "last_at", "reserve_used", "reserve_used_at")

    def __init__(self, policy: TokenPolicy) -> None:
        self._policy = policy
        self.consecutive = 0
        """How many there were since a request succeeded."""
        self.last_at = _NEVER
        self.reserve_used = 0.0
        """The part of the reserve that is used: 0 for nothing, 1 for all of it."""
        self.reserve_used_at = _NEVER
        """When one used the reserve last."""

    def may_start(self, now: float, *, is_due: bool) -> bool:
        """Whether another one may start; *is_due* says whether a regular refresh might start as well."""
        policy = self._policy
        if self.consecutive >= policy.max_forced_refreshes:
            if now < self.last_at + policy.rejection_cooldown or not policy.max_forced_refreshes:
                return False
            self.consecutive = 0
        if not policy.forced_reserve:
            return False
        return is_due or now >= self.reserve_used_at + self.spacing()

    def count(self, now: float, *, is_due: bool) -> None:
        """Note that one starts."""
        self.last_at = now
        self.consecutive += 1
        if not is_due:
            self.reserve_used_at = now

    def spacing(self) -> float:
        """Return how many seconds apart they are, by what is left of the reserve."""
        reserve = self._policy.forced_reserve
        # The last of it, at most half, is for the retries within a fetch.
        if self.reserve_used >= max(1.0 - (self._policy.fetch_attempts - 1) / reserve, 0.5):
            return _EVER
        doubled: float = 2.0 ** min(max(self.reserve_used * reserve - 1.0, 0.0), 32)
        return min(_FIRST_SPACING * doubled, _HOUR / reserve)

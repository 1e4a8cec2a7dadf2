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
        policy: The limits of rule 8.
    """

    __slots__ = ("_policy", "consecutive", "last_at", "reserve_used", "reserve_used_at")

    def __init__(self, policy: TokenPolicy) -> None:
        self._policy = policy
        self.consecutive = 0
        """Number of forced refreshes since the last successful request."""
        self.last_at = _NEVER
        self.reserve_used = 0.0
        """Used fraction of the reserve, from 0 to 1."""
        self.reserve_used_at = _NEVER
        """When a forced refresh last used the reserve."""

    def may_start(self, now: float, *, is_due: bool) -> bool:
        """Whether another forced refresh may start; *is_due*: whether a regular refresh may start as well."""
        policy = self._policy
        if self.consecutive >= policy.max_forced_refreshes:
            if now < self.last_at + policy.rejection_cooldown or not policy.max_forced_refreshes:
                return False
            self.consecutive = 0
        if not policy.forced_reserve:
            return False
        return is_due or now >= self.reserve_used_at + self.spacing()

    def count(self, now: float, *, is_due: bool) -> None:
        """Record the start of a forced refresh."""
        self.last_at = now
        self.consecutive += 1
        if not is_due:
            self.reserve_used_at = now

    def spacing(self) -> float:
        """Return the seconds between forced refreshes, by the remaining reserve."""
        reserve = self._policy.forced_reserve
        # The last part of it, at most half, is for the retries within a fetch.
        if self.reserve_used >= max(1.0 - (self._policy.fetch_attempts - 1) / reserve, 0.5):
            return _EVER
        doubled: float = 2.0 ** min(max(self.reserve_used * reserve - 1.0, 0.0), 32)
        return min(_FIRST_SPACING * doubled, _HOUR / reserve)

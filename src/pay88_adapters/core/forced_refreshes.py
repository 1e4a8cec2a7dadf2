"""When a 401 may force a refresh (rule 8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .constants import FOREVER, NEVER
from .policy import TokenPolicy

_HOUR = 3600.0
_FIRST_SPACING = 1.0  # seconds between forced refreshes; doubles with each that counts


@dataclass(frozen=True, slots=True)
class ForcedRefreshes:
    """The forced refreshes of one manager. Nearly all managers share ``NO_FORCED_REFRESHES``."""

    consecutive: int = 0
    """Number of forced refreshes since the last successful request."""
    last_at: float = NEVER
    reserve_used_at: float = NEVER
    """When a forced refresh last used the reserve."""

    def next(self, policy: TokenPolicy, now: float, *, is_due: bool, reserve_used: float) -> ForcedRefreshes | None:
        """Return them with another one that starts now, or ``None`` if none may start.

        Args:
            policy: The limits of rule 8.
            now: The time.
            is_due: Whether a regular refresh may start as well. Then this one does not use the reserve.
            reserve_used: Used fraction of the reserve, from 0 to 1.
        """
        consecutive = self.consecutive
        if consecutive >= policy.max_forced_refreshes:
            if now < self.last_at + policy.rejection_cooldown or not policy.max_forced_refreshes:
                return None
            consecutive = 0
        if not policy.forced_reserve:
            return None
        if is_due:
            return ForcedRefreshes(consecutive + 1, now, self.reserve_used_at)
        if now < self.reserve_used_at + spacing(policy, reserve_used):
            return None
        return ForcedRefreshes(consecutive + 1, now, now)

    def succeeded(self) -> ForcedRefreshes:
        """Return them after a successful request."""
        return replace(self, consecutive=0) if self.consecutive else self


NO_FORCED_REFRESHES = ForcedRefreshes()


def spacing(policy: TokenPolicy, reserve_used: float) -> float:
    """Return the seconds between forced refreshes, by the remaining reserve."""
    reserve = policy.forced_reserve
    # The last part of it, at most half, is for the retries within a fetch.
    if reserve_used >= max(1.0 - (policy.fetch_attempts - 1) / reserve, 0.5):
        return FOREVER
    doubled: float = 2.0 ** min(max(reserve_used * reserve - 1.0, 0.0), 32)
    return min(_FIRST_SPACING * doubled, _HOUR / reserve)

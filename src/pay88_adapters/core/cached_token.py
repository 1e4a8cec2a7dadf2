"""The deadlines of a token: when it is refreshed, until when it is reused and usable (rules 1, 2 and 6)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .policy import TokenPolicy
from .token import Token


class CachedToken(NamedTuple):
    """The cached token with its deadlines."""

    token: Token
    window: tuple[float, float, float]
    """The deadlines, in seconds since the token was requested."""

    @property
    def refresh_at(self) -> float:
        """When it is refreshed."""
        return self.token.requested_at + self.window[0]

    @property
    def reuse_until(self) -> float:
        """Until when it is reused."""
        return self.token.requested_at + self.window[1]

    @property
    def usable_until(self) -> float:
        """Until when it is usable at all."""
        return self.token.requested_at + self.window[2]


@lru_cache(maxsize=32)  # one object for nearly all tokens of a process
def window(policy: TokenPolicy, expires_in: float, pace: float) -> tuple[float, float, float]:
    """Return when a token is refreshed, until when it is reused and usable (rules 1, 2 and 6).

    If the limits sustain no more, it is refreshed later: up to the end of its lifetime.
    """
    refresh_at, reuse_for, usable_for = policy.windows(expires_in)
    later = min(max(refresh_at, pace), usable_for)
    return later, min(max(reuse_for, later + reuse_for - refresh_at), usable_for), usable_for

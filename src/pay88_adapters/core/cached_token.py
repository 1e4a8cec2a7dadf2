"""The deadlines of a token: when it is refreshed, until when it is reused and usable (rules 1, 2 and 6)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .policy import TokenPolicy
from .token import Token


class Deadlines(NamedTuple):
    """Deadlines of a token, in seconds since it was requested."""

    refresh_at: float
    """When it is refreshed."""
    reuse_until: float
    """Until when it is reused."""
    usable_until: float
    """Until when it is usable at all."""


NO_DEADLINES = Deadlines(0.0, 0.0, 0.0)
"""Those of no token."""


class CachedToken(NamedTuple):
    """The cached token with its deadlines."""

    token: Token
    deadlines: Deadlines

    @property
    def refresh_at(self) -> float:
        """When it is refreshed, in seconds of the manager's clock; so are the other two."""
        return self.token.requested_at + self.deadlines.refresh_at

    @property
    def reuse_until(self) -> float:
        """Until when it is reused."""
        return self.token.requested_at + self.deadlines.reuse_until

    @property
    def usable_until(self) -> float:
        """Until when it is usable at all."""
        return self.token.requested_at + self.deadlines.usable_until


@lru_cache(maxsize=32)  # one object for nearly all tokens of a process
def deadlines(policy: TokenPolicy, expires_in: float, pace: float) -> Deadlines:
    """Return the deadlines of a token that was granted for *expires_in* seconds (rules 1, 2 and 6).

    It is refreshed later, up to the end of its lifetime, if the limits sustain a refresh only each *pace* seconds.
    """
    refresh_at, reuse_until, usable_until = policy.windows(expires_in)
    # The refresh window keeps its length: with 45 s, 50 s and 59 s, a pace of 52 s means 52 s, 57 s and 59 s.
    paced = min(max(refresh_at, pace), usable_until)
    return Deadlines(paced, min(reuse_until + (paced - refresh_at), usable_until), usable_until)

"""Result of asking for a unit of the token budget."""

from __future__ import annotations

from typing import NamedTuple

from .errors import Failure


class AcquireResult(NamedTuple):
    """The answer to one acquisition."""

    granted: bool
    retry_in: float
    """Seconds until it could be granted; 0 if it was."""
    reserve_used: float
    """The part of the reserve that is used: 0 for nothing, 1 for all of it."""
    refresh_allowed_in: float = 0.0
    """Seconds until a request that is not extra could be granted, as far as is known now."""
    pace: float = 0.0
    """Seconds from one ordinary request to the next that the limits sustain; 0 where the usual ones do."""
    failure: Failure | None = None
    """Why it was not granted."""

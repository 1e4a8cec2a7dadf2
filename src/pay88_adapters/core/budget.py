"""Result of an acquisition from the token budget."""

from __future__ import annotations

from typing import NamedTuple

from .errors import Failure


class AcquireResult(NamedTuple):
    """Result of one acquisition."""

    granted: bool
    retry_in: float
    """Seconds until a unit is available; 0 if it was granted."""
    reserve_used: float
    """Used fraction of the reserve, from 0 to 1."""
    refresh_allowed_in: float = 0.0
    """Seconds until a regular refresh is granted, as far as is known now."""
    pace: float = 0.0
    """Seconds between regular refreshes that the limits sustain; 0 where they sustain the usual interval."""
    failure: Failure | None = None
    """Why it was not granted."""

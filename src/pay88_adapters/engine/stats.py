"""What a manager counts, and what it reports of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counted off the cached path, under the state's lock."""

    token_requests: int = 0
    tokens: int = 0
    refreshes: int = 0
    failed_fetches: int = 0
    consecutive_failures: int = 0
    unauthorized: int = 0
    replayed: int = 0
    retried: int = 0
    waited: int = 0
    paced: int = 0
    not_sent: int = 0
    bypassed: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """What a manager has done so far, and what it may still do.

    Attributes:
        token_requests: Token requests sent, failed ones included.
        tokens: Tokens received.
        refreshes: Background refreshes started, including failed ones.
        failed_fetches: Fetches that ended without a token.
        consecutive_failures: How many of them since there was a new token.
        unauthorized: Calls that got 401.
        replayed: Calls sent a second time after a 401.
        retried: Times that a call was retried after it failed, or was told to slow down.
        waited: Calls that had to wait for a token.
        paced: Calls that had to wait for room in the limits of calls (``pacing=True``).
        not_sent: Calls that got an error of this package and were not sent, or not once more.
        bypassed: Requests to 88Pay that went out as they were, for they had an ``Authorization: Bearer`` of their own;
            each attempt that the HTTP client library makes counts.
        budget_left: Token requests left, by limit.
        fetching: Whether a fetch is in progress.
        token_expires_in: Seconds for which the token stays valid; ``None`` without one.
        circuits_open: Whether the circuit is open, by group of calls made so far (``breaker=``).
        store_degraded: Whether the store fails, and this process continues alone.
    """

    token_requests: int
    tokens: int
    refreshes: int
    failed_fetches: int
    consecutive_failures: int
    unauthorized: int
    replayed: int
    retried: int
    waited: int
    paced: int
    not_sent: int
    bypassed: int
    budget_left: Mapping[str, int]
    fetching: bool
    token_expires_in: float | None
    circuits_open: Mapping[str, bool]
    store_degraded: bool

    @property
    def refused(self) -> int:
        """Deprecated name of ``unauthorized``."""
        return self.unauthorized

    @property
    def held(self) -> int:
        """Deprecated name of ``paced``."""
        return self.paced

    @property
    def failed_in_a_row(self) -> int:
        """Deprecated name of ``consecutive_failures``."""
        return self.consecutive_failures

"""Counters of a manager, and their public view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class FetchCounters:
    """Counters of fetches, and of the requests that wait for them, under the state's lock."""

    token_requests: int = 0
    tokens: int = 0
    refreshes: int = 0
    failed_fetches: int = 0
    consecutive_failures: int = 0
    waited: int = 0


@dataclass(slots=True)
class RequestCounters:
    """Other counters of API requests outside of the cached path, under the state's lock."""

    unauthorized: int = 0
    replayed: int = 0
    retried: int = 0
    paced: int = 0
    not_sent: int = 0
    bypassed: int = 0


NO_REQUESTS = RequestCounters()
"""Those of all managers that have counted none. Never changed."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters and current state of a manager.

    Attributes:
        token_requests: Token requests sent, including failed ones.
        tokens: Tokens received.
        refreshes: Background refreshes started, including failed ones.
        failed_fetches: Fetches that ended without a token.
        consecutive_failures: Failed fetches since the last new token.
        unauthorized: API requests that got a 401.
        replayed: API requests retried after a 401.
        retried: Retries of API requests after a failure or a 429.
        waited: Requests that waited for a token.
        paced: API requests that waited for a rate limit (``pacing=True``).
        not_sent: Requests that failed with a Pay88Error before they were sent or retried.
        bypassed: Requests to 88Pay that bypassed the manager because they had their own ``Authorization: Bearer``; each
            attempt of the HTTP client library counts.
        budget_left: Remaining token requests, by limit.
        fetching: Whether a fetch is in progress.
        token_expires_in: Remaining lifetime of the token in seconds; ``None`` without one.
        circuits_open: Whether the circuit is open, by group of requests used so far (``breaker=``).
        store_degraded: Whether the store is unavailable and the process is in degraded mode.
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

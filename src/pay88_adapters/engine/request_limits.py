"""What may delay or reject an API request: circuit breakers and rate limits. The manager's lock guards both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pay88_adapters.core.breaker import CLOSED_PERMIT, Breaker, BreakerPolicy, Permit, Rejected
from pay88_adapters.core.endpoint import RATE_LIMITED_GROUPS
from pay88_adapters.core.events import BreakerClosed, BreakerOpened, Event

from .pacing import Pacing, RateLimitPermit

_SERVER_ERROR = 500


class RequestLimits:
    """The circuit breakers and the rate limits of one manager, by group of requests.

    Args:
        pacing: Client-side rate limiting, if enabled.
        breaker: Circuit breaker configuration, if enabled.
    """

    def __init__(self, pacing: Pacing | None, breaker: BreakerPolicy | None) -> None:
        self.pacing = pacing
        self.policy = breaker
        self._breakers: dict[str, Breaker] = {}

    def try_acquire(self, group: str, now: float) -> Permit | Rejected:
        """Acquire a permit for a request of *group* from the circuit breaker."""
        if self.policy is None:
            return CLOSED_PERMIT
        breaker = self._breakers.get(group)
        if breaker is None:
            breaker = self._breakers[group] = Breaker(self.policy)
        return breaker.try_acquire(now)

    def is_open(self, group: str) -> bool:
        """Whether the circuit of *group* is open or half-open."""
        return group in self._breakers and self._breakers[group].is_open

    def circuit_states(self) -> dict[str, bool]:
        """Return whether the circuit is open, by group used so far."""
        return {group: breaker.is_open for group, breaker in tuple(self._breakers.items())}

    def release(self, group: str, permit: Permit) -> None:
        """Release the permit of a request without a result about the service. Needs no lock."""
        if group in self._breakers:
            self._breakers[group].release(permit)

    def expected_wait(self, group: str, merchant_id: str, now: float) -> float:
        """Return the seconds until the rate limit of *group* allows a request, as far as this process knows."""
        if self.pacing is None or group not in RATE_LIMITED_GROUPS:
            return 0.0
        return self.pacing.expected_wait(group, merchant_id, now)

    def end_attempt(self, rate_permit: RateLimitPermit | None, now: float) -> None:
        """Record the end of the attempt with *rate_permit*. Needs no lock."""
        if self.pacing is not None and rate_permit is not None:
            self.pacing.end_attempt(rate_permit, now)

    def record_response(
        self, group: str, permit: Permit, status: int | None, headers: Mapping[str, str], now: float, wall: float
    ) -> tuple[Callable[..., Event], tuple[object, ...]] | None:
        """Record the outcome of an attempt, *status* is ``None`` without a response; return the event to emit."""
        if self.pacing is not None and status is not None:
            self.pacing.record_response(group, status, headers, now, wall)
        breaker = self._breakers.get(group)
        if breaker is None:
            return None
        if status is None or status >= _SERVER_ERROR:
            reopened = breaker.is_open
            opened = breaker.failed(permit, now)
            return (BreakerOpened, (group, breaker.policy.open_for, reopened)) if opened else None
        return (BreakerClosed, (group,)) if breaker.succeeded(permit) else None

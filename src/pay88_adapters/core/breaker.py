"""The circuit breaker of API requests (rule 23). It takes the time as an argument and does no I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

from .arguments import check_number
from .constants import NEVER


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Circuit breaker configuration. Durations are in seconds.

    Args:
        failure_threshold: Number of 5xx responses and connection errors within *window* that opens the circuit.
        window: How long a failure counts.
        open_for: How long requests fail fast; then one trial request is sent.

    Raises:
        ConfigurationError: A value is out of range.
    """

    failure_threshold: int = 5
    window: float = 30
    open_for: float = 30

    def __post_init__(self) -> None:
        for each in fields(self):
            check_number(each.name, getattr(self, each.name), whole=each.name == "failure_threshold", positive=True)


@dataclass(frozen=True, slots=True)
class ClosedPermit:
    """Permit of a closed circuit."""

    generation: int = 0
    """How often the circuit had closed again. Outcomes of an older generation are ignored."""


@dataclass(frozen=True, slots=True)
class TrialPermit:
    """Permit for the trial request of a half-open circuit."""

    number: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """Result of an open circuit: the request may be retried in *retry_after* seconds."""

    retry_after: float


Permit = ClosedPermit | TrialPermit
CLOSED_PERMIT = ClosedPermit()


class Breaker:
    """One circuit: closed, open, or half-open with one trial request."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self._closed = CLOSED_PERMIT
        self._failed_at: deque[float] = deque(maxlen=policy.failure_threshold)
        self._open_until: float | None = None
        self._trials = 0
        self._trial_due = NEVER  # the trial request counts as lost if it has no outcome by then

    def try_acquire(self, now: float) -> Permit | Rejected:
        """Return a permit to send a request, or a rejection."""
        if self._open_until is None:
            return self._closed
        until = max(self._open_until, self._trial_due)
        if now < until:
            return Rejected(until - now)
        self._trials += 1
        self._trial_due = now + self.policy.open_for
        return TrialPermit(self._trials)

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open or half-open."""
        return self._open_until is not None

    def succeeded(self, permit: Permit) -> bool:
        """Record a successful request; return whether it closed the circuit."""
        if not self._is_current_trial(permit):
            return False
        self._open_until, self._trial_due = None, NEVER
        self._closed = ClosedPermit(self._closed.generation + 1)
        self._failed_at.clear()
        return True

    def failed(self, permit: Permit, now: float) -> bool:
        """Record a 5xx or a connection error; return whether it opened the circuit, or reopened it."""
        if permit == self._closed and self._open_until is None:
            self._failed_at.append(now)
            full = len(self._failed_at) == self.policy.failure_threshold
            if not full or self._failed_at[0] < now - self.policy.window:
                return False
        elif not self._is_current_trial(permit):  # sent before the circuit opened, or a lost trial request
            return False
        self._open_until, self._trial_due = now + self.policy.open_for, NEVER
        return True

    def release(self, permit: Permit) -> None:
        """Return a permit whose request has no outcome. Another trial request may follow."""
        if self._is_current_trial(permit):
            self._trial_due = NEVER

    def _is_current_trial(self, permit: Permit) -> bool:
        return self._open_until is not None and permit == TrialPermit(self._trials) and self._trial_due != NEVER

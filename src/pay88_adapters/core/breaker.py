"""The circuit breaker of API calls (rule 23): events in with ``now``, decisions out, and nothing else."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

from .arguments import check_number

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When calls fail at once because the service does. Durations are in seconds.

    Args:
        failure_threshold: So many 5xx answers or broken connections within *window* open the circuit.
        window: For how long one of them counts.
        open_for: For how long calls fail at once; then one call is let through as a probe.

    Raises:
        ConfigurationError: A value makes no sense.
    """

    failure_threshold: int = 5
    window: float = 30
    open_for: float = 30

    def __post_init__(self) -> None:
        for each in fields(self):
            check_number(each.name, getattr(self, each.name), whole=each.name == "failure_threshold", positive=True)


@dataclass(frozen=True, slots=True)
class ClosedPermit:
    """Send the call."""

    generation: int = 0
    """How often the circuit had been closed again by then: what is older says nothing of the service now."""


@dataclass(frozen=True, slots=True)
class TrialPermit:
    """Send the call: it decides for all. Its *number* goes back with its outcome."""

    number: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """Do not send the call; it may help to try again *retry_after* seconds from now."""

    retry_after: float


Permit = ClosedPermit | TrialPermit
CLOSED_PERMIT = ClosedPermit()


class Breaker:
    """One circuit: closed, open, or half open with one probe under way."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self._closed = CLOSED_PERMIT
        self._failed_at: deque[float] = deque(maxlen=policy.failure_threshold)
        self._open_until: float | None = None
        self._probes = 0
        self._probe_due = _NEVER  # it is lost if it has not been heard of by then

    def try_acquire(self, now: float) -> Permit | Rejected:
        """Say whether a call may be sent."""
        if self._open_until is None:
            return self._closed
        until = max(self._open_until, self._probe_due)
        if now < until:
            return Rejected(until - now)
        self._probes += 1
        self._probe_due = now + self.policy.open_for
        return TrialPermit(self._probes)

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once, or only a probe is let through."""
        return self._open_until is not None

    def succeeded(self, permit: Permit) -> bool:
        """Note that the service works; return whether that closed the circuit."""
        if not self._is_current_trial(permit):
            return False
        self._open_until, self._probe_due = None, _NEVER
        self._closed = ClosedPermit(self._closed.generation + 1)
        self._failed_at.clear()
        return True

    def failed(self, permit: Permit, now: float) -> bool:
        """Note a 5xx or a broken connection; return whether that opened the circuit, or keeps it open."""
        if permit == self._closed and self._open_until is None:
            self._failed_at.append(now)
            full = len(self._failed_at) == self.policy.failure_threshold
            if not full or self._failed_at[0] < now - self.policy.window:
                return False
        elif not self._is_current_trial(permit):  # it was sent before the circuit opened, or a lost probe
            return False
        self._open_until, self._probe_due = now + self.policy.open_for, _NEVER
        return True

    def release(self, permit: Permit) -> None:
        """Note that a call came to nothing that says anything of the service; another one may probe."""
        if self._is_current_trial(permit):
            self._probe_due = _NEVER

    def _is_current_trial(self, permit: Permit) -> bool:
        return self._open_until is not None and permit == TrialPermit(self._probes) and self._probe_due != _NEVER

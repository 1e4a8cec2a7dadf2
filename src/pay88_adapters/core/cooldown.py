"""The cooldown, in which no token request is sent, and its reason (rules 5 and 9 to 11)."""

from __future__ import annotations

from .errors import CredentialsRejected, Failure, TokenBudgetExhausted, TokenRateLimited
from .policy import LIFETIME

_NEVER = float("-inf")


class TokenCooldown:
    """The cooldown of one manager. All instants are in seconds of its clock."""

    __slots__ = ("next_check_at", "reason", "rejected_key", "requested_until", "until")

    def __init__(self) -> None:
        self.reason: Failure | None = None
        self.until = _NEVER
        self.next_check_at = _NEVER
        """From when on a fetch may start. It checks an exhausted budget once in the life of a token: another process
        may have a token by then, or the store may have lost what this process knows."""
        self.requested_until = _NEVER
        """End of the wait that the service demanded, not capped by ``max_retry_after``."""
        self.rejected_key: str | None = None
        """Digest of the credentials that were rejected."""

    def start(self, reason: Failure, until: float) -> None:
        """Start a cooldown, unless the current one lasts longer."""
        if until >= self.until:
            self.reason, self.until = reason, until
        self.next_check_at = self.until

    def exhausted(self, reason: Failure, until: float, now: float) -> None:
        """Start a cooldown because the token budget granted no unit; this result replaces an earlier one."""
        self.end_exhausted()
        self.start(reason, until)
        if self.is_for(TokenBudgetExhausted):
            self.next_check_at = min(until, now + LIFETIME)

    def end_exhausted(self) -> None:
        """End the cooldown if an exhausted budget is its reason: there is a newer result of the budget."""
        if self.is_for(TokenBudgetExhausted):
            self.end()

    def end(self) -> None:
        """End the cooldown early."""
        self.reason, self.until, self.next_check_at, self.rejected_key = None, _NEVER, _NEVER, None

    def is_for(self, *kinds: type[Exception]) -> bool:
        """Whether the reason is one of *kinds*."""
        return self.reason is not None and self.reason.kind in kinds

    @property
    def credentials_rejected(self) -> bool:
        """Whether the credentials were rejected."""
        return self.is_for(CredentialsRejected)

    def to_report(self, digest: str) -> tuple[Failure | None, float]:
        """Return the reason and the end of the cooldown, for the managers with the credentials *digest*."""
        # The budget reports itself, and another key has not been rejected.
        if self.is_for(TokenBudgetExhausted) or (self.credentials_rejected and self.rejected_key != digest):
            return None, _NEVER
        if self.reason is None:
            return None, _NEVER
        # The wait that the service demanded, not capped: another manager may have another max_retry_after.
        until = max(self.requested_until, self.until) if self.is_for(TokenRateLimited) else self.until
        return self.reason, until

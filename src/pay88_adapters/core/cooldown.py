"""The cooldown, in which no token request is sent, and its reason (rules 5 and 9 to 11)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .constants import NEVER
from .errors import CredentialsRejected, Failure, TokenBudgetExhausted, TokenRateLimited
from .policy import LIFETIME


@dataclass(frozen=True, slots=True)
class TokenCooldown:
    """The cooldown of one manager, in seconds of its clock. Nearly all managers share ``NO_COOLDOWN``."""

    reason: Failure | None = None
    until: float = NEVER
    next_check_at: float = NEVER
    """From when on a fetch may start. It checks an exhausted budget once in the life of a token: another process may
    have a token by then, or the store may have lost what this process knows."""
    requested_until: float = NEVER
    """End of the wait that the service demanded, not capped by ``max_retry_after``."""
    rejected_key: str | None = None
    """Digest of the credentials that were rejected."""

    def started(self, reason: Failure, until: float) -> TokenCooldown:
        """Return a new cooldown, unless the current one lasts longer."""
        if until >= self.until:
            return replace(self, reason=reason, until=until, next_check_at=until)
        return replace(self, next_check_at=self.until)

    def exhausted(self, reason: Failure, until: float, now: float) -> TokenCooldown:
        """Return the cooldown after the token budget granted no unit; this result replaces an earlier one."""
        cooldown = self.unless_exhausted().started(reason, until)
        if cooldown.is_for(TokenBudgetExhausted):
            return replace(cooldown, next_check_at=min(until, now + LIFETIME))
        return cooldown

    def unless_exhausted(self) -> TokenCooldown:
        """Return it ended if an exhausted budget is its reason: there is a newer result of the budget."""
        return self.ended() if self.is_for(TokenBudgetExhausted) else self

    def ended(self) -> TokenCooldown:
        """Return it ended early."""
        return NO_COOLDOWN if self.requested_until == NEVER else TokenCooldown(requested_until=self.requested_until)

    def requested(self, until: float) -> TokenCooldown:
        """Return it with a wait that the service demanded."""
        return replace(self, requested_until=max(self.requested_until, until))

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
            return None, NEVER
        if self.reason is None:
            return None, NEVER
        # The wait that the service demanded, not capped: another manager may have another max_retry_after.
        until = max(self.requested_until, self.until) if self.is_for(TokenRateLimited) else self.until
        return self.reason, until


NO_COOLDOWN = TokenCooldown()

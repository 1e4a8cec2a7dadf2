"""What the tests of machine and their neighbours share."""

from __future__ import annotations

from typing import Any

from pay88_adapters import (
    CredentialsRejected,
    Token,
    TokenEndpointUnavailable,
    TokenPolicy,
    TokenRateLimited,
    TokenResponseInvalid,
)
from pay88_adapters.core.budget import AcquireResult
from pay88_adapters.core.decisions import Decision, Fetch
from pay88_adapters.core.errors import Failure
from pay88_adapters.core.machine import TokenMachine

YES = AcquireResult(True, 0.0, 0.0)


ONE = "digest of the first key"


TWO = "digest of the second key"


BROKEN = Failure(TokenEndpointUnavailable, "503", status=503, retryable=True)


ODD = Failure(TokenEndpointUnavailable, "404", status=404)


NONSENSE = Failure(TokenResponseInvalid, "not JSON", status=200, retryable=True)


REJECTED = Failure(CredentialsRejected, "401", status=401)


def limited(seconds: float) -> Failure:
    """Return what a 429 becomes."""
    return Failure(TokenRateLimited, "429", status=429, retry_after=seconds, retryable=True)


def no(retry_in: float, reserve_used: float = 1.0) -> AcquireResult:
    """Return a rejection of the budget."""
    return AcquireResult(False, retry_in, reserve_used)


def token(sent_at: float = 0.0, expires_in: float = 60.0, name: str | None = None) -> Token:
    """Return a token of its own for each instant."""
    name = str(sent_at) if name is None else name
    return Token(f"token-{name}", f"session-{name}", expires_in, sent_at)


class Driven:
    """A machine, and what the manager does around it in one step each."""

    def __init__(self, *, rotating: bool | None = None, **policy: Any) -> None:
        known = {} if rotating is None else {"rotating": rotating}
        self.machine = TokenMachine(TokenPolicy(**policy), **known)
        self.extra: bool | None = None

    def ask(self, now: float, *, known_failures: int | None = None, wait: float = 20.0, **more: Any) -> Decision:
        """Decide for a call that came at *now* unless *seen* says otherwise."""
        known = self.machine.failed_fetches if known_failures is None else known_failures
        return self.machine.decide(now, known_failures=known, deadline=now + wait, **more)

    def lead(self, now: float) -> int:
        """Decide for a request that must start a fetch; return the ticket."""
        decision = self.ask(now)
        ticket = decision.ticket if isinstance(decision, Fetch) else getattr(decision, "refresh", None)
        assert ticket is not None, f"no fetch at {now}, but {decision}"
        return int(ticket)

    def send(self, ticket: int, now: float, grant: AcquireResult = YES, digest: str = ONE) -> bool:
        """Take the ticket to where its request goes out; return whether it may."""
        if not self.machine.on_credentials(ticket, digest, now):
            return False
        return self.attempt(ticket, now, grant)

    def attempt(self, ticket: int, now: float, grant: AcquireResult = YES) -> bool:
        """Acquire a unit of the budget for one attempt."""
        self.extra = self.machine.uses_reserve(ticket, now)
        return self.machine.on_budget_result(ticket, grant, now, from_reserve=self.extra) is None

    def get(self, now: float, expires_in: float = 60.0, grant: AcquireResult = YES, name: str | None = None) -> Token:
        """Fetch a token that arrives immediately."""
        ticket = self.lead(now)
        assert self.send(ticket, now, grant)
        new = token(now, expires_in, name)
        self.machine.on_token(ticket, new, now)
        return new

    def fail(
        self, ticket: int, now: float, failure: Failure, *, jitter: float = 0.0, digest: str = ONE
    ) -> float | None:
        """Let the attempt fail."""
        return self.machine.on_attempt_failed(ticket, failure, now, jitter=jitter, digest=digest)

    def lose(self, now: float, failure: Failure = ODD) -> None:
        """Fetch, and fail."""
        ticket = self.lead(now)
        assert self.send(ticket, now)
        assert self.fail(ticket, now, failure) is None


def holding(expires_in: float = 60.0, **policy: Any) -> Driven:
    """Return a machine that got a token at second 0."""
    driven = Driven(**policy)
    driven.get(0.0, expires_in)
    return driven


def start_cooldown(why: str, driven: Driven, now: float) -> None:
    """Let a fetch fail in one of the ways that start a cooldown."""
    ticket = driven.lead(now)
    if why == "budget":
        assert not driven.send(ticket, now, no(100.0))
        return
    assert driven.send(ticket, now)
    failure = {"429": limited(100.0), "rejected": REJECTED, "outage": ODD, "nonsense": NONSENSE}[why]
    while (pause := driven.fail(ticket, now, failure)) is not None:
        assert driven.attempt(ticket, now + pause)

"""Failures that the machine detects by itself."""

from __future__ import annotations

from dataclasses import replace

from .errors import Failure, TokenBudgetExhausted, TokenEndpointUnavailable, TokenResponseInvalid, in_seconds
from .token import Token

BUDGET_EXHAUSTED = Failure(
    TokenBudgetExhausted,
    "token budget exhausted; request not sent",
    retryable=True,
)
LOST = Failure(
    TokenEndpointUnavailable,
    "the token request did not end in time; request not sent",
    retryable=True,
)
NO_CONNECTION = Failure(
    TokenEndpointUnavailable,
    "the pool of the HTTP client had no free connection for a token request; request not sent: allow more connections",
    retryable=True,
)
NO_CREDENTIALS_YET = Failure(
    TokenEndpointUnavailable,
    "the credentials provider did not return in time; request not sent",
    retryable=True,
)
NO_TOKEN_YET = Failure(
    TokenEndpointUnavailable,
    "no token in time; request not sent",
    retryable=True,
)


INTERRUPTING = Failure(
    TokenEndpointUnavailable,
    "no valid token, and a signal handler or finalizer cannot fetch one while it interrupts the manager; not sent",
    retryable=True,
)


def after_waiting(failure: Failure, seconds: float) -> Failure:
    """Return *failure* with the seconds that the request waited, if it is about a wait that was too short."""
    if failure is not NO_TOKEN_YET and failure is not NO_CREDENTIALS_YET:
        return failure
    what = "no token" if failure is NO_TOKEN_YET else "no credentials from the provider"
    limit = "max_wait or the request's own timeout"
    return replace(failure, message=f"{what} within {in_seconds(seconds)} ({limit}); request not sent")


def expired_on_arrival(token: Token) -> Failure:
    """Return the failure of a token that had expired when its response arrived."""
    return Failure(
        TokenResponseInvalid,
        f"the token was valid for {token.expires_in:g} s and expired before its response arrived; request not sent",
        status=200,
        retryable=True,
    )

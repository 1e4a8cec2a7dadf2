"""Failures that the machine itself finds."""

from __future__ import annotations

from .errors import Failure, TokenBudgetExhausted, TokenEndpointUnavailable, TokenResponseInvalid
from .token import Token

BUDGET_EXHAUSTED = Failure(
    TokenBudgetExhausted,
    "token budget exhausted; request not sent",
    retryable=True,
)
LOST = Failure(
    TokenEndpointUnavailable,
    "the token request was never heard of again; the call was not sent: try again",
    retryable=True,
)
NO_CREDENTIALS_YET = Failure(
    TokenEndpointUnavailable,
    "the credentials callable has not returned within the time this call can wait; the call was not sent",
    retryable=True,
)
NO_TOKEN_YET = Failure(
    TokenEndpointUnavailable,
    "the token endpoint has not answered within the time this call can wait; the call was not sent",
    retryable=True,
)


INTERRUPTING = Failure(
    TokenEndpointUnavailable,
    "no usable token, and a signal handler or finalizer that interrupts the manager cannot fetch one; not sent: retry",
    retryable=True,
)


def expired_on_arrival(token: Token) -> Failure:
    """Return the failure of a token that had expired when it came."""
    return Failure(
        TokenResponseInvalid,
        f"the token was granted for {token.expires_in:g} s and had expired when it came; the call was not sent",
        status=200,
        retryable=True,
    )

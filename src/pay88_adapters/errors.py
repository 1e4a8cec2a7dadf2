"""Exceptions of this package."""

from .core.errors import (
    CircuitOpen,
    ConfigurationError,
    CredentialsRejected,
    Pay88Error,
    RequestBudgetExhausted,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)

__all__ = [
    "CircuitOpen",
    "ConfigurationError",
    "CredentialsRejected",
    "Pay88Error",
    "RequestBudgetExhausted",
    "TokenBudgetExhausted",
    "TokenEndpointUnavailable",
    "TokenRateLimited",
    "TokenResponseInvalid",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # under which users know, pickle and see them

"""One 88Pay token, shared by every HTTP stack, thread and task, within the service's budget.

PYTEST_DONT_REWRITE: says to pytest that this may be imported before it runs, though a plugin of its comes along.
"""

import logging

from .breaker import BreakerPolicy
from .contexts import unmanaged
from .credentials import Credentials
from .endpoint import PRODUCTION_URL, SANDBOX_URL
from .errors import (
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
from .manager import ActivatedManager, TokenManager
from .policy import TokenPolicy
from .retry import RetryPolicy
from .state import Stats
from .token import Token

__all__ = [
    "PRODUCTION_URL",
    "SANDBOX_URL",
    "ActivatedManager",
    "BreakerPolicy",
    "CircuitOpen",
    "ConfigurationError",
    "Credentials",
    "CredentialsRejected",
    "Pay88Error",
    "RequestBudgetExhausted",
    "RetryPolicy",
    "Stats",
    "Token",
    "TokenBudgetExhausted",
    "TokenEndpointUnavailable",
    "TokenManager",
    "TokenPolicy",
    "TokenRateLimited",
    "TokenResponseInvalid",
    "unmanaged",
]

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged, and where to, is the application's

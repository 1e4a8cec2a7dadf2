"""One 88Pay token, shared by every HTTP stack, thread and task, within the service's budget."""

from .credentials import Credentials
from .endpoint import PRODUCTION_URL, SANDBOX_URL
from .errors import (
    ConfigurationError,
    CredentialsRejected,
    Pay88Error,
    TokenBudgetExhausted,
    TokenEndpointUnavailable,
    TokenRateLimited,
    TokenResponseInvalid,
)
from .manager import TokenManager
from .policy import TokenPolicy
from .state import Stats
from .token import Token

__all__ = [
    "PRODUCTION_URL",
    "SANDBOX_URL",
    "ConfigurationError",
    "Credentials",
    "CredentialsRejected",
    "Pay88Error",
    "Stats",
    "Token",
    "TokenBudgetExhausted",
    "TokenEndpointUnavailable",
    "TokenManager",
    "TokenPolicy",
    "TokenRateLimited",
    "TokenResponseInvalid",
]

__version__ = "0.1.0"

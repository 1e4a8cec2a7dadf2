"""Access tokens of 88Pay, shared by all HTTP clients, threads and tasks, within the token budget.

Adapters are the modules named for a client library. Beside them, ``httpx_family`` and ``httpx_library`` are parts of
two, ``urllib3_io`` and ``urllib3_retry`` of one. ``errors``, ``events`` and ``clock`` are public names of what is in
``core`` and ``engine``.

PYTEST_DONT_REWRITE: says to pytest that this may be imported before it runs, though a plugin of its comes along.
"""

import logging

from .core.breaker import BreakerPolicy
from .core.endpoint import PRODUCTION_URL, SANDBOX_URL
from .core.policy import TokenPolicy
from .core.retry import RetryPolicy
from .core.token import Token
from .engine.credentials import Credentials
from .engine.manager import TokenManager
from .engine.overrides import unmanaged
from .engine.stand_ins import ActivatedManager
from .engine.stats import Stats
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

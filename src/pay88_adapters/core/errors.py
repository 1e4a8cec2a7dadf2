"""What can go wrong, as exceptions and as values.

The core hands failures around as :class:`Failure` values and raises a new exception for each caller:
one exception object raised by a thousand callers would collect a thousand tracebacks. Each adapter
raises its own flavour, which is also its stack's base error.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any


class Pay88Error(Exception):
    """Base of everything this package raises.

    Attributes:
        status: The HTTP status that the token endpoint answered with, if it did.
        server_message: What the service said, cleaned and without secrets.
        retry_after: Seconds after which trying again can help; ``None`` where waiting does not.
        retryable: Whether the same call may succeed later without any change.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        server_message: str | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)  # one positional argument: pickles, and suits every stack's base
        self.status = status
        self.server_message = server_message
        self.retry_after = retry_after
        self.retryable = retryable


class ConfigurationError(Pay88Error, ValueError):
    """The configuration cannot work; the message says what to change."""


class CredentialsRejected(Pay88Error):
    """The token endpoint refused the API key or the merchant id (401 or 403)."""


class TokenBudgetExhausted(Pay88Error):
    """No usable token is left and the budget of token requests is spent for ``retry_after`` seconds."""


class TokenRateLimited(Pay88Error):
    """The token endpoint answered 429; nobody asks again for ``retry_after`` seconds."""


class TokenEndpointUnavailable(Pay88Error):
    """The token endpoint failed or did not answer; the last failure is ``__cause__`` if there is one."""


class TokenResponseInvalid(TokenEndpointUnavailable):
    """The token endpoint answered 200 with something that is not a token."""


class RequestBudgetExhausted(Pay88Error):
    """The call was not sent: its limit at the service is spent for ``retry_after`` seconds (``pacing=True``)."""


class CircuitOpen(Pay88Error):
    """The call was not sent: the service fails, and calls fail at once for ``retry_after`` seconds (``breaker=``)."""


ERROR_CLASSES = (
    ConfigurationError,
    CredentialsRejected,
    TokenBudgetExhausted,
    TokenRateLimited,
    TokenEndpointUnavailable,
    TokenResponseInvalid,
    RequestBudgetExhausted,
    CircuitOpen,
)


class ClientClosed(Exception):
    """What carried a fetch, such as its HTTP client, was closed under it; another one can carry the next."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that has not been raised yet."""

    kind: type[Pay88Error]
    message: str
    status: int | None = None
    server_message: str | None = None
    retry_after: float | None = None
    """Seconds that the *service* asked for."""
    retryable: bool = False
    cause: BaseException | None = field(default=None, repr=False)
    is_bug: bool = False
    """Whether the client raised what is no network error: that says nothing of the service."""

    def error(self, retry_after: float | None) -> Pay88Error:
        """Return a new exception; *retry_after* is in seconds from now, and its text says so."""
        error = self.kind(
            f"{self.message}; retry in {retry_after:.1f} s" if retry_after and self.retryable else self.message,
            status=self.status,
            server_message=self.server_message,
            retry_after=retry_after,
            retryable=self.retryable,
        )
        error.__cause__ = self.cause
        return error


class AdapterErrors:
    """One stack's errors: each is a :class:`~pay88_adapters.Pay88Error` and the stack's own base error.

    Args:
        base: The stack's base error.
        namespace: ``globals()`` of the module they belong to. Classes found there by the names of the core's are used.
            Those that are missing are put there, because pickle finds a class by module and name; but type checkers
            do not know them.
    """

    def __init__(self, base: type[Exception], namespace: MutableMapping[str, Any]) -> None:
        self._base = base
        self._classes: dict[type[Pay88Error], type[Any]] = {
            kind: _flavour(kind, base, namespace.get(kind.__name__), namespace["__name__"]) for kind in ERROR_CLASSES
        }
        namespace.update({kind.__name__: flavour for kind, flavour in self._classes.items()})

    def convert(self, error: Pay88Error) -> Pay88Error:
        """Return the stack's flavour of a core error, or of another stack's."""
        if isinstance(error, self._base):
            return error
        flavour = next(self._classes[kind] for kind in type(error).__mro__ if kind in self._classes)
        translated: Pay88Error = flavour(str(error), **vars(error))
        self._base.__init__(translated, str(error))  # ValueError, which is first in line, would not call it
        translated.__cause__ = error.__cause__
        translated.__suppress_context__ = True  # the core's twin says nothing more
        return translated


def _flavour(kind: type[Pay88Error], base: type[Exception], found: Any, module: str) -> type[Any]:
    if not (isinstance(found, type) and issubclass(found, kind) and issubclass(found, base)):
        return type(kind.__name__, (kind, base), {"__module__": module, "__doc__": kind.__doc__})
    if found.__doc__ is None:
        found.__doc__ = kind.__doc__
    return found

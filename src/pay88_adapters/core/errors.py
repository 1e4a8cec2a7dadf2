"""The exception hierarchy, and failures as values.

The core passes failures as :class:`Failure` values and raises a new exception for each caller: one exception object
raised to a thousand callers would collect a thousand tracebacks. Each adapter raises client-specific subclasses, which
also derive from its library's base exception.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any


class Pay88Error(Exception):
    """Base of everything this package raises.

    Attributes:
        status: HTTP status code of the token endpoint's response; ``None`` without a response.
        server_message: The ``message`` of that response: one printable line, at most 200 characters, secrets redacted.
        retry_after: Seconds to wait before a retry; ``None`` if the time is unknown.
        retryable: Whether the same request may succeed later without any change.
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
        super().__init__(message)  # one positional argument: it pickles, and fits every library's base exception
        self.status = status
        self.server_message = server_message
        self.retry_after = retry_after
        self.retryable = retryable


class ConfigurationError(Pay88Error, ValueError):
    """The configuration cannot work; the message says what to change."""


class CredentialsRejected(Pay88Error):
    """The token endpoint rejected the API key or the merchant id (401 or 403)."""


class TokenBudgetExhausted(Pay88Error):
    """No valid token, and the token budget is exhausted for ``retry_after`` seconds."""


class TokenRateLimited(Pay88Error):
    """The token endpoint returned 429. No token request is sent for ``retry_after`` seconds."""


class TokenEndpointUnavailable(Pay88Error):
    """The token endpoint failed or did not respond. ``__cause__`` is the network error, if there was one."""


class TokenResponseInvalid(TokenEndpointUnavailable):
    """The token endpoint returned 200 with a body that is not a valid token."""


class RequestBudgetExhausted(Pay88Error):
    """Request not sent: 88Pay's rate limit for it is reached for ``retry_after`` seconds (``pacing=True``)."""


class CircuitOpen(Pay88Error):
    """Request not sent: the circuit is open. Requests fail fast for ``retry_after`` seconds (``breaker=``)."""


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
    """The HTTP client or event loop of a fetch was closed. Another one can start the next fetch."""


class NoFreeConnection(Exception):
    """The HTTP client's pool had no free connection: the token request was not sent. Another client can send one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that has not been raised yet."""

    kind: type[Pay88Error]
    message: str
    status: int | None = None
    server_message: str | None = None
    retry_after: float | None = None
    """Seconds from the ``Retry-After`` header or the body of a 429."""
    retryable: bool = False
    cause: BaseException | None = field(default=None, repr=False)
    is_bug: bool = False
    """Whether the HTTP client raised an exception that is not a network error. It does not count as an outage."""

    def error(self, retry_after: float | None) -> Pay88Error:
        """Return a new exception whose text contains *retry_after* (seconds from now)."""
        error = self.kind(
            f"{self.message}{_when(retry_after, self)}",
            status=self.status,
            server_message=self.server_message,
            retry_after=retry_after,
            retryable=self.retryable,
        )
        error.__cause__ = self.cause
        return error


def in_seconds(seconds: float) -> str:
    """Return a duration as messages show it, rounded up: "45 s", or "4.5 s" below 10 s."""
    tenths = ceil(round(seconds * 10, 3))
    return f"{ceil(tenths / 10)} s" if tenths >= 100 else f"{tenths / 10:.1f} s"


def shorten(text: str, most: int) -> str:
    """Return *text* with at most *most* characters; an ellipsis replaces the middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}" if most > 2 else ""


def fitted(before: str, detail: str, after: str = "") -> str:
    """Return a message with *detail* shortened, so that the seconds that follow fit into 200 characters."""
    return f"{before}{shorten(detail.rstrip('. '), max(_MOST - len(before) - len(after), 0))}{after}"


_FIELDS = ("status", "server_message", "retry_after", "retryable")
_OTHER = "_Pay88Error"  # the name of each library's subclass for what is none of the known errors
_MOST = 168  # characters of a message without "; no token request for 86400 s"


def _when(retry_after: float | None, failure: Failure) -> str:
    if not retry_after or failure.is_bug:
        return ""
    return f"; {'retry in' if failure.retryable else 'no token request for'} {in_seconds(retry_after)}"


class AdapterErrors:
    """Exception classes for one client library. Each also derives from that library's base exception.

    Args:
        base: The library's base exception.
        namespace: ``globals()`` of the adapter's module. Classes that it defines under the core's names are used. The
            missing ones are added, because pickle finds a class by module and name; type checkers do not see those. So
            is a private one, for errors of no known kind.
    """

    def __init__(self, base: type[Exception], namespace: MutableMapping[str, Any]) -> None:
        module = namespace["__name__"]
        self._base = base
        self._classes: dict[type[Pay88Error], type[Any]] = {
            kind: _subclass(kind, base, namespace.get(kind.__name__), module) for kind in ERROR_CLASSES
        }
        namespace.update({kind.__name__: own for kind, own in self._classes.items()})
        # Under another name: the module may have imported the class itself.
        namespace[_OTHER] = self._classes[Pay88Error] = type(_OTHER, (Pay88Error, base), {"__module__": module})

    def convert(self, error: Pay88Error) -> Pay88Error:
        """Return *error*, from the core, another adapter or a caller's own code, as this library's subclass."""
        if isinstance(error, self._base):
            return error
        kind = next(each for each in type(error).__mro__ if each in self._classes)
        # Not all of its attributes: a library's base exception and tracing tools add theirs.
        known = {name: getattr(error, name) for name in _FIELDS if hasattr(error, name)}
        translated: Pay88Error = self._classes[kind](str(error), **known)
        self._base.__init__(translated, str(error))  # ValueError comes first in the MRO and does not call it
        vars(translated).update({name: list(notes) for name, notes in vars(error).items() if name == "__notes__"})
        # The core's error has the same text and is not shown. A class of the caller's own is not lost.
        translated.__cause__ = error if kind is Pay88Error else error.__cause__
        translated.__suppress_context__ = True
        return translated


def _subclass(kind: type[Pay88Error], base: type[Exception], found: Any, module: str) -> type[Any]:
    if not (isinstance(found, type) and issubclass(found, kind) and issubclass(found, base)):
        return type(kind.__name__, (kind, base), {"__module__": module, "__doc__": kind.__doc__})
    if found.__doc__ is None:
        found.__doc__ = kind.__doc__
    return found

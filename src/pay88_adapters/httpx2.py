"""httpx2: transports whose requests to 88Pay carry a token."""

from __future__ import annotations

from typing import TypeVar

try:
    import httpx2
except ModuleNotFoundError as exc:
    raise ImportError("httpx2 is not installed: pip install 'pay88-adapters[httpx2]'") from exc

from . import httpx_family as family
from . import httpx_senders as senders
from .core import errors
from .core.errors import AdapterErrors
from .engine.calls import AsyncSender, Sender
from .engine.stand_ins import AnyManager
from .engine.standalone import ClosableSender
from .httpx_library import ClientLibrary

__all__ = ["AsyncPay88Transport", "Pay88Transport", "attach"]

C = TypeVar("C", bound=httpx2.Client | httpx2.AsyncClient)


class ConfigurationError(errors.ConfigurationError, httpx2.TransportError): ...


class CredentialsRejected(errors.CredentialsRejected, httpx2.TransportError): ...


class TokenBudgetExhausted(errors.TokenBudgetExhausted, httpx2.TransportError): ...


class TokenRateLimited(errors.TokenRateLimited, httpx2.TransportError): ...


class TokenEndpointUnavailable(errors.TokenEndpointUnavailable, httpx2.TransportError): ...


class TokenResponseInvalid(errors.TokenResponseInvalid, TokenEndpointUnavailable): ...


class RequestBudgetExhausted(errors.RequestBudgetExhausted, httpx2.TransportError): ...


class CircuitOpen(errors.CircuitOpen, httpx2.TransportError): ...


_errors = AdapterErrors(httpx2.TransportError, globals())
_library = ClientLibrary(httpx2, _errors)


class Pay88Transport(
    family.SyncTransport[httpx2.Request, httpx2.Response, httpx2.BaseTransport, httpx2.Timeout],
    httpx2.BaseTransport,
):
    """Wraps a transport: requests to ``manager.base_url`` carry a token, all others pass through unchanged.

    Hooks and responses show the request of the caller. The wrapped transport, and a request's own ``trace`` extension,
    see the request as it is sent, with the token.

    Args:
        manager: The manager; it may be attached to any number of clients.
        transport: Any transport; a new :class:`httpx2.HTTPTransport` unless given.
        timeout: Timeout of each token request, in addition to the policy's ``fetch_timeout``: seconds, an
            :class:`httpx2.Timeout`, or ``None``.

    Raises:
        ConfigurationError: An argument has the wrong type.
    """

    library = _library


class AsyncPay88Transport(
    family.AsyncTransport[httpx2.Request, httpx2.Response, httpx2.AsyncBaseTransport, httpx2.Timeout],
    httpx2.AsyncBaseTransport,
):
    """The same for an async transport, on asyncio and trio.

    Args:
        manager: The manager; it may be attached to any number of clients.
        transport: Any transport; a new :class:`httpx2.AsyncHTTPTransport` unless given.
        timeout: Timeout of each token request, in addition to the policy's ``fetch_timeout``: seconds, an
            :class:`httpx2.Timeout`, or ``None``.

    Raises:
        ConfigurationError: An argument has the wrong type.
    """

    library = _library


def attach(client: C, manager: AnyManager) -> C:
    """Attach *manager* to *client*: requests to ``manager.base_url`` carry a token.

    Its proxies, TLS settings, limits and mounts stay in effect; attaching again replaces the manager.

    Returns:
        *client*.

    Raises:
        ConfigurationError: *client* is not one of httpx2's, or *manager* is not a manager.
    """
    return family.attach(client, manager, Pay88Transport, AsyncPay88Transport)


def standalone_sender() -> ClosableSender:
    """Return a sender with a client of its own."""
    return senders.standalone_sender(Pay88Transport)


def client_sender(client: httpx2.Client | httpx2.AsyncClient) -> Sender | AsyncSender:
    """Return a sender over the transports of *client*."""
    return senders.client_sender(client, Pay88Transport, AsyncPay88Transport)

"""httpx: transports whose requests to 88Pay carry a token."""

from __future__ import annotations

from typing import TypeVar

try:
    import httpx
except ModuleNotFoundError as exc:
    raise ImportError("httpx is not installed: pip install 'pay88-adapters[httpx]'") from exc

from . import httpx_family as family
from . import httpx_senders as senders
from .core import errors
from .core.errors import AdapterErrors
from .engine.calls import AsyncSender, Sender
from .engine.stand_ins import AnyManager
from .engine.standalone import ClosableSender
from .httpx_library import ClientLibrary

__all__ = ["AsyncPay88Transport", "Pay88Transport", "attach"]

C = TypeVar("C", bound=httpx.Client | httpx.AsyncClient)


class ConfigurationError(errors.ConfigurationError, httpx.TransportError): ...


class CredentialsRejected(errors.CredentialsRejected, httpx.TransportError): ...


class TokenBudgetExhausted(errors.TokenBudgetExhausted, httpx.TransportError): ...


class TokenRateLimited(errors.TokenRateLimited, httpx.TransportError): ...


class TokenEndpointUnavailable(errors.TokenEndpointUnavailable, httpx.TransportError): ...


class TokenResponseInvalid(errors.TokenResponseInvalid, TokenEndpointUnavailable): ...


class RequestBudgetExhausted(errors.RequestBudgetExhausted, httpx.TransportError): ...


class CircuitOpen(errors.CircuitOpen, httpx.TransportError): ...


_errors = AdapterErrors(httpx.TransportError, globals())
_library = ClientLibrary(httpx, _errors)


class Pay88Transport(
    family.SyncTransport[httpx.Request, httpx.Response, httpx.BaseTransport, httpx.Timeout],
    httpx.BaseTransport,
):
    """Wraps a transport: requests to ``manager.base_url`` carry a token, all others pass through unchanged.

    Hooks and responses show the request of the caller. The wrapped transport, and a request's own ``trace`` extension,
    see the request as it is sent, with the token.

    Args:
        manager: The manager; it may be attached to any number of clients.
        transport: Any transport; a new :class:`httpx.HTTPTransport` unless given.
        timeout: Timeout of each token request, in addition to the policy's ``fetch_timeout``: seconds, an
            :class:`httpx.Timeout`, or ``None``.

    Raises:
        ConfigurationError: An argument has the wrong type.
    """

    library = _library


class AsyncPay88Transport(
    family.AsyncTransport[httpx.Request, httpx.Response, httpx.AsyncBaseTransport, httpx.Timeout],
    httpx.AsyncBaseTransport,
):
    """The same for an async transport, on asyncio and trio.

    Args:
        manager: The manager; it may be attached to any number of clients.
        transport: Any transport; a new :class:`httpx.AsyncHTTPTransport` unless given.
        timeout: Timeout of each token request, in addition to the policy's ``fetch_timeout``: seconds, an
            :class:`httpx.Timeout`, or ``None``.

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
        ConfigurationError: *client* is not one of httpx's, or *manager* is not a manager.
    """
    return family.attach(client, manager, Pay88Transport, AsyncPay88Transport)


def standalone_sender() -> ClosableSender:
    """Return a sender with a client of its own."""
    return senders.standalone_sender(Pay88Transport)


def client_sender(client: httpx.Client | httpx.AsyncClient) -> Sender | AsyncSender:
    """Return a sender over the transports of *client*."""
    return senders.client_sender(client, Pay88Transport, AsyncPay88Transport)

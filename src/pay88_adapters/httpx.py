"""httpx: transports whose calls to 88Pay carry a token."""

from __future__ import annotations

from typing import TypeVar

try:
    import httpx
except ModuleNotFoundError as exc:
    raise ImportError("httpx is not installed: pip install 'pay88-adapters[httpx]'") from exc

from . import httpx_family as family
from .core import errors
from .core.errors import AdapterErrors
from .engine.calls import AsyncSender, Sender
from .engine.stand_ins import AnyManager
from .engine.standalone import ClosableSender
from .httpx_library import Library

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
_library = Library(httpx, _errors)


class Pay88Transport(
    family.SyncTransport[httpx.Request, httpx.Response, httpx.BaseTransport, httpx.Timeout],
    httpx.BaseTransport,
):
    """Wraps a transport: calls to ``manager.base_url`` carry a token, all others pass untouched.

    Hooks and responses show what the caller sent. The wrapped transport, and a call's own ``trace`` extension,
    see what goes out, token and all.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new :class:`httpx.HTTPTransport` unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``: seconds, an
            :class:`httpx.Timeout`, or ``None``.

    Raises:
        ConfigurationError: An argument is something else.
    """

    library = _library


class AsyncPay88Transport(
    family.AsyncTransport[httpx.Request, httpx.Response, httpx.AsyncBaseTransport, httpx.Timeout],
    httpx.AsyncBaseTransport,
):
    """The same for an async transport, on asyncio and trio.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new :class:`httpx.AsyncHTTPTransport` unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``: seconds, an
            :class:`httpx.Timeout`, or ``None``.

    Raises:
        ConfigurationError: An argument is something else.
    """

    library = _library


def attach(client: C, manager: AnyManager) -> C:
    """Let the calls that *client* makes to ``manager.base_url`` carry a token.

    Its proxies, TLS settings, limits and mounts stay in force; attaching again replaces the manager.

    Returns:
        *client*.

    Raises:
        ConfigurationError: *client* is not one of httpx's, or *manager* is no manager.
    """
    return family.attach(client, manager, Pay88Transport, AsyncPay88Transport)


def standalone_sender() -> ClosableSender:
    """Return a sender with a client of its own."""
    return family.standalone_sender(Pay88Transport)


def client_sender(client: httpx.Client | httpx.AsyncClient) -> Sender | AsyncSender:
    """Return a sender over the transports of *client*."""
    return family.client_sender(client, Pay88Transport, AsyncPay88Transport)

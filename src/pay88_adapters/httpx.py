"""httpx: transports whose calls to 88Pay carry a token."""

from __future__ import annotations

from typing import TypeVar

try:
    import httpx
except ModuleNotFoundError as exc:
    raise ImportError("httpx is not installed: pip install 'pay88-adapters[httpx]'") from exc

from . import httpx_family as family
from .drivers import Sender
from .errors import Flavours
from .manager import TokenManager

__all__ = ["AsyncPay88Transport", "Pay88Transport", "attach"]

C = TypeVar("C", httpx.Client, httpx.AsyncClient)

_flavours = Flavours(httpx.TransportError, globals())
_library = family.Library(httpx, _flavours)


class Pay88Transport(family.SyncTransport, httpx.BaseTransport):
    """Wraps a transport: calls to ``manager.base_url`` carry a token, all others pass untouched.

    Hooks and responses show what the caller sent. The wrapped transport, and a call's own ``trace`` extension,
    see what goes out, token and all.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new :class:`httpx.HTTPTransport` unless given.
        timeout: An :class:`httpx.Timeout` that bounds each token request, besides the policy's ``fetch_timeout``.
    """

    library = _library


class AsyncPay88Transport(family.AsyncTransport, httpx.AsyncBaseTransport):
    """The same for an async transport, on asyncio and trio.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new :class:`httpx.AsyncHTTPTransport` unless given.
        timeout: An :class:`httpx.Timeout` that bounds each token request, besides the policy's ``fetch_timeout``.
    """

    library = _library


def attach(client: C, manager: TokenManager) -> C:
    """Let the calls that *client* makes to ``manager.base_url`` carry a token.

    Its proxies, TLS settings, limits and mounts stay in force; attaching again replaces the manager.

    Returns:
        *client*.

    Raises:
        ConfigurationError: *client* is not one of httpx's.
    """
    return family.attach(client, manager, Pay88Transport, AsyncPay88Transport)


def standalone_sender(manager: TokenManager) -> Sender:
    """Return a sender with a transport of its own."""
    return family.standalone_sender(Pay88Transport(manager), manager)

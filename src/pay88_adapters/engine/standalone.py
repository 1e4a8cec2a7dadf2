"""Token requests of ``get_token()``, without an adapter."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from pay88_adapters.core.arguments import CLIENTS, class_of
from pay88_adapters.core.errors import ClientClosed, ConfigurationError
from pay88_adapters.core.wire import TokenRequest, TokenResponse

from .calls import AsyncSender, Sender


class ClosableSender(Sender, Protocol):
    """A sender that owns its client."""

    def close(self) -> None:
        """Close the client."""
        ...


class OwnSender:
    """A sender over the manager's own client, which is closed after the last token request over it."""

    client = None  # no caller closes it

    def __init__(self, sender: ClosableSender) -> None:
        self.network_errors = sender.network_errors
        self._sender = sender
        self._lock = threading.RLock()
        self._in_flight = 0
        self.is_closed = False

    def post(self, request: TokenRequest) -> TokenResponse:
        """Do the same as :meth:`Sender.post`."""
        with self._lock:
            if self.is_closed:
                raise ClientClosed("the TokenManager was closed")
            self._in_flight += 1
        try:
            return self._sender.post(request)
        finally:
            with self._lock:
                self._in_flight -= 1
                last = self.is_closed and not self._in_flight
            if last:
                self._sender.close()

    def close(self) -> None:
        """Send no further token request, and close the client as soon as no request is in flight."""
        with self._lock:
            idle = not self.is_closed and not self._in_flight
            self.is_closed = True
        if idle:
            self._sender.close()


def own_sender() -> OwnSender:
    """Return a sender over the first installed HTTP client library.

    Raises:
        ConfigurationError: No supported library is installed.
    """
    for library in ("urllib3", "httpx", "httpx2", "aiohttp"):
        if find_spec(library):
            return OwnSender(import_module(f"pay88_adapters.{library}").standalone_sender())
    raise ConfigurationError(
        "no HTTP library is installed to request a token with: pip install 'pay88-adapters[urllib3]',"
        " or [requests], [httpx], [httpx2] or [aiohttp]"
    )


def client_sender(client: object) -> Sender | AsyncSender:
    """Return a sender over *client*, which :func:`check_client` has checked."""
    sender: Sender | AsyncSender = import_module(f"pay88_adapters.{_library_of(client)}").client_sender(client)
    return sender


def check_client(client: object) -> None:
    """Check the client for the token requests of :meth:`TokenManager.get_token`.

    Raises:
        ConfigurationError: It is not a client of a supported library.
    """
    if _library_of(client) is None:
        names = ", ".join(f"{library}.{'/'.join(kinds)}" for library, kinds in CLIENTS.items())
        raise ConfigurationError(f"client must be one of {names}, not {class_of(client)}")


def _library_of(client: object) -> str | None:
    for library, names in CLIENTS.items():
        module = sys.modules.get(library)  # an existing client implies an imported library
        kinds = tuple(getattr(module, name) for name in names if hasattr(module, name))
        if isinstance(client, kinds):
            return library
    return None

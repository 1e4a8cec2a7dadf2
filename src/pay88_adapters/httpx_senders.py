"""Token requests over clients of httpx and httpx2."""

from __future__ import annotations

from typing import Any

from .core.wire import TokenRequest, TokenResponse
from .engine.calls import AsyncSender, Sender
from .engine.standalone import ClosableSender
from .httpx_family import AsyncTransport, SyncTransport

Transport = SyncTransport[Any, Any, Any, Any] | AsyncTransport[Any, Any, Any, Any]


class _ClientSender:
    """Sends token requests over the transports of a client."""

    def __init__(self, transport: type[Transport], client: Any) -> None:
        self.client = client
        self.network_errors = transport.library.network_errors
        self._transport = transport

    @property
    def is_closed(self) -> bool:
        closed: bool = self.client.is_closed
        return closed

    def _post(self, request: TokenRequest) -> Any:
        module = self._transport.library.module
        transport: Any = self.client._transport_for_url(module.URL(request.url))
        managed: Any = transport
        if not isinstance(transport, self._transport):
            managed = self._transport.without_manager(transport)
        return managed.post(request, managed.opened, {})


class _SyncClientSender(_ClientSender):
    def post(self, request: TokenRequest) -> TokenResponse:
        reply: TokenResponse = self._post(request)
        return reply

    def close(self) -> None:
        self.client.close()


class _AsyncClientSender(_ClientSender):
    async def post(self, request: TokenRequest) -> TokenResponse:
        reply: TokenResponse = await self._post(request)
        return reply


def standalone_sender(transport: type[SyncTransport[Any, Any, Any, Any]]) -> ClosableSender:
    """Return a sender with a client of its own."""
    module = transport.library.module
    return _SyncClientSender(transport, module.Client(transport=module.HTTPTransport()))  # without proxies


def client_sender(
    client: Any, sync: type[SyncTransport[Any, Any, Any, Any]], tasks: type[AsyncTransport[Any, Any, Any, Any]]
) -> Sender | AsyncSender:
    """Return a sender over the transports of *client*."""
    if isinstance(client, sync.library.module.Client):
        return _SyncClientSender(sync, client)
    return _AsyncClientSender(tasks, client)

"""httpx: transports whose calls to 88Pay carry a token. The core decides; this file translates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from typing import Any, TypeVar

try:
    import httpx
except ModuleNotFoundError as exc:
    raise ImportError("httpx is not installed: pip install 'pay88-adapters[httpx]'") from exc

import anyio  # httpx stands on it

from .bodies import Bookmark
from .drivers import CarrierLost, Sender
from .errors import Flavours, Pay88Error
from .logs import hide_secrets_in_logs
from .manager import TokenManager
from .token import Token
from .wire import MAX_BODY, MAX_DRAINED, TokenReply, TokenRequest, capped

__all__ = ["AsyncPay88Transport", "Pay88Transport", "attach"]

C = TypeVar("C", httpx.Client, httpx.AsyncClient)

_flavours = Flavours(httpx.TransportError, globals())
hide_secrets_in_logs()


class _Wrapper:
    _default: Any

    def __init__(self, manager: TokenManager, transport: Any = None, *, timeout: httpx.Timeout | None = None) -> None:
        self.wrapped = self._default() if transport is None else transport
        self._manager, self._timeout = manager, timeout
        self._closings = 0

    def _is_ours(self, request: httpx.Request) -> bool:
        url = request.url
        authorization = request.headers.get("authorization")
        return self._manager.covers(url.scheme, url.raw_host.decode("ascii"), url.port, url.path, authorization)

    def _watch(self) -> Callable[[], bool]:
        """Return what tells whether the transport was closed since now. One that is used again is open again."""
        before = self._closings
        return lambda: self._closings != before


class Pay88Transport(_Wrapper, httpx.BaseTransport):
    """Wraps a transport: calls to ``manager.base_url`` carry a token, all others pass untouched.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new :class:`httpx.HTTPTransport` unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``.
    """

    _default = httpx.HTTPTransport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._is_ours(request):
            response: httpx.Response = self.wrapped.handle_request(request)
            return response
        try:
            return self._manager.call(_SyncCall(self.wrapped, request, self._timeout, self._watch()))
        except Pay88Error as error:
            raise _flavours.of(error)  # noqa: B904 - carries its cause

    def close(self) -> None:
        self._closings += 1
        self.wrapped.close()

    def __enter__(self) -> Pay88Transport:
        self.wrapped.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._closings += 1
        self.wrapped.__exit__(*exc)


class AsyncPay88Transport(_Wrapper, httpx.AsyncBaseTransport):
    """The same for an async transport, on asyncio and trio.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new :class:`httpx.AsyncHTTPTransport` unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``.
    """

    _default = httpx.AsyncHTTPTransport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._is_ours(request):
            response: httpx.Response = await self.wrapped.handle_async_request(request)
            return response
        try:
            return await self._manager.acall(_AsyncCall(self.wrapped, request, self._timeout, self._watch()))
        except Pay88Error as error:
            raise _flavours.of(error)  # noqa: B904 - carries its cause

    async def aclose(self) -> None:
        self._closings += 1
        await self.wrapped.aclose()

    async def __aenter__(self) -> AsyncPay88Transport:
        await self.wrapped.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._closings += 1
        await self.wrapped.__aexit__(*exc)


def attach(client: C, manager: TokenManager) -> C:
    """Let the calls that *client* makes to ``manager.base_url`` carry a token.

    Its proxies, TLS settings, limits and mounts stay in force; attaching again replaces the manager.

    Returns:
        *client*.
    """
    wrapper: Any = Pay88Transport if isinstance(client, httpx.Client) else AsyncPay88Transport

    def wrap(transport: Any) -> Any:
        return wrapper(manager, getattr(transport, "wrapped", transport), timeout=client.timeout)

    # httpx has no public way to change the transports of a client; these names are the same in all versions.
    inside: Any = client
    inside._transport = wrap(inside._transport)
    inside._mounts = {
        pattern: None if transport is None else wrap(transport) for pattern, transport in inside._mounts.items()
    }
    return client


def standalone_sender() -> Sender:
    """Return a sender with a transport of its own."""
    return _SyncCall(httpx.HTTPTransport(), httpx.Request("POST", "/"), None)


class _Call:
    """One call, and the token requests it may lead to."""

    network_errors = (httpx.HTTPError, httpx.StreamError, OSError)
    patience = None

    def __init__(
        self,
        transport: Any,
        request: httpx.Request,
        timeout: httpx.Timeout | None,
        was_closed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport, self._request, self._timeout = transport, request, timeout
        self._was_closed = was_closed
        self._bookmarks = _bookmarks(request.stream)

    def status(self, response: httpx.Response) -> int:
        return response.status_code

    def token_used(self, response: httpx.Response, token: Token) -> Token:
        return token

    def replayable(self, response: httpx.Response) -> bool:
        return self._bookmarks is not None and all(each.replayable for each in self._bookmarks)

    def _with(self, token: Token) -> httpx.Request:
        # httpx would open a connection that nobody closes.
        if self._was_closed():
            raise httpx.TransportError("the client was closed while this call waited for a token; it was not sent")
        request = self._request
        for bookmark in self._bookmarks or ():
            bookmark.rewind()
        # A copy: the caller's own object would print the session id.
        headers = request.headers.copy()
        headers.update(token.attached)
        return httpx.Request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
        )

    def _token_request(self, request: TokenRequest) -> httpx.Request:
        if self._was_closed():
            raise CarrierLost
        extensions: dict[str, Any] = {"timeout": _bounded(self._timeout, request.timeout)}
        if "sni_hostname" in self._request.extensions:
            extensions["sni_hostname"] = self._request.extensions["sni_hostname"]
        return httpx.Request(request.method, request.url, headers=request.headers, extensions=extensions)


class _SyncCall(_Call):
    def send(self, token: Token) -> httpx.Response:
        response: httpx.Response = self._transport.handle_request(self._with(token))
        return response

    def discard(self, response: httpx.Response) -> None:
        with closing(response), suppress(*self.network_errors):
            _read(response, MAX_DRAINED)

    def post(self, request: TokenRequest) -> TokenReply:
        with closing(self._transport.handle_request(self._token_request(request))) as response:
            return TokenReply(response.status_code, response.headers, _read(response, MAX_BODY))


class _AsyncCall(_Call):
    async def send(self, token: Token) -> httpx.Response:
        response: httpx.Response = await self._transport.handle_async_request(self._with(token))
        return response

    async def discard(self, response: httpx.Response) -> None:
        async with aclosing(response):
            with suppress(*self.network_errors):
                await _aread(response, MAX_DRAINED)

    async def post(self, request: TokenRequest) -> TokenReply:
        async with aclosing(await self._transport.handle_async_request(self._token_request(request))) as response:
            return TokenReply(response.status_code, response.headers, await _aread(response, MAX_BODY))


def _read(response: httpx.Response, bound: int) -> bytes:
    # A transport that is no network may hand over a response that was read before.
    return response.content[: bound + 1] if response.is_stream_consumed else capped(response.iter_raw(), bound)


async def _aread(response: httpx.Response, bound: int) -> bytes:
    if response.is_stream_consumed:
        return response.content[: bound + 1]
    body = bytearray()
    with anyio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > bound:
                # Ends the whole chain of async generators. Trio complains where a loop is just left.
                enough.cancel()
    return bytes(body[: bound + 1])


def _bookmarks(stream: Any) -> list[Bookmark] | None:
    """Return what has to be replayable for *stream* to be, or ``None`` if that cannot be told."""
    if isinstance(stream, httpx.ByteStream):
        return []
    if hasattr(stream, "fields"):  # multipart; it puts its files back to their beginning by itself
        files = [getattr(each, "file", b"") for each in stream.fields]
        return [Bookmark(file) for file in files]
    # Iterators and files are wrapped in classes that httpx does not export: look inside if that is possible.
    if type(stream).__name__ in ("IteratorByteStream", "AsyncIteratorByteStream") and hasattr(stream, "_stream"):
        return [Bookmark(stream._stream)]
    return None


def _bounded(configured: httpx.Timeout | None, seconds: float) -> dict[str, float | None]:
    """Return the client's own timeouts where they are shorter than *seconds*."""
    phases = (configured or httpx.Timeout(seconds)).as_dict()
    return {name: seconds if value is None else min(value, seconds) for name, value in phases.items()}

"""What httpx and httpx2 share: the same names and seams in two libraries. The core decides; this file translates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from typing import Any, ClassVar, TypeVar

import anyio  # both libraries stand on it

from .bodies import Bookmark
from .drivers import CarrierLost, Sender
from .errors import ConfigurationError, Flavours, Pay88Error
from .logs import hide_secrets_in_logs
from .manager import TokenManager
from .retry import Broken
from .token import Token
from .wire import MAX_BODY, MAX_DRAINED, TokenReply, TokenRequest, capped

C = TypeVar("C")


class Library:
    """One of the two libraries.

    Args:
        module: The library.
        flavours: Its errors.
    """

    def __init__(self, module: Any, flavours: Flavours) -> None:
        self.module = module
        self.flavours = flavours
        self.network_errors = (module.HTTPError, module.StreamError, OSError)
        self.never_sent = (module.ConnectError, module.ConnectTimeout, module.ProxyError)
        self.broken = (*self.never_sent, module.NetworkError, module.TimeoutException, module.RemoteProtocolError)
        hide_secrets_in_logs()

    def managing(self, request: Any, manager: TokenManager) -> TokenManager | None:
        """Return the manager for *request* of a client with *manager*; ``None`` leaves it alone."""
        url = request.url
        authorization = request.headers.get("authorization")
        return manager.managing(url.scheme, url.raw_host.decode("ascii"), url.port, url.path, authorization)


class _Transport:
    """Wraps a transport.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new one of the library's own unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``.
    """

    library: ClassVar[Library]
    default: ClassVar[str]
    """The name of the library's own transport."""

    def __init__(self, manager: TokenManager, transport: Any = None, *, timeout: Any = None) -> None:
        self.wrapped = getattr(self.library.module, self.default)() if transport is None else transport
        self._manager, self._timeout = manager, timeout
        self._closings = 0

    def _watch(self) -> Callable[[], bool]:
        """Return what tells whether the transport was closed since now. One that is used again is open again."""
        before = self._closings
        return lambda: self._closings != before


class SyncTransport(_Transport):
    """For ``Client``."""

    default = "HTTPTransport"

    def handle_request(self, request: Any) -> Any:
        manager = self.library.managing(request, self._manager)
        if manager is None:
            return self.wrapped.handle_request(request)
        try:
            return manager.call(_SyncCall(self.library, self.wrapped, request, self._timeout, self._watch()))
        except Pay88Error as error:
            raise self.library.flavours.of(error)  # noqa: B904 - carries its cause

    def close(self) -> None:
        self._closings += 1
        self.wrapped.close()

    def __enter__(self) -> Any:
        self.wrapped.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._closings += 1
        self.wrapped.__exit__(*exc)


class AsyncTransport(_Transport):
    """For ``AsyncClient``, on asyncio and trio."""

    default = "AsyncHTTPTransport"

    async def handle_async_request(self, request: Any) -> Any:
        manager = self.library.managing(request, self._manager)
        if manager is None:
            return await self.wrapped.handle_async_request(request)
        try:
            return await manager.acall(_AsyncCall(self.library, self.wrapped, request, self._timeout, self._watch()))
        except Pay88Error as error:
            raise self.library.flavours.of(error)  # noqa: B904 - carries its cause

    async def aclose(self) -> None:
        self._closings += 1
        await self.wrapped.aclose()

    async def __aenter__(self) -> Any:
        await self.wrapped.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._closings += 1
        await self.wrapped.__aexit__(*exc)


def attach(client: C, manager: TokenManager, sync: type[SyncTransport], tasks: type[AsyncTransport]) -> C:
    """Let the calls that *client* makes to ``manager.base_url`` carry a token."""
    module = sync.library.module
    if not isinstance(client, (module.Client, module.AsyncClient)):
        raise ConfigurationError(f"attach() of this module takes a client of {module.__name__}, not {type(client)}")
    wrapper = sync if isinstance(client, module.Client) else tasks
    # There is no public way to change the transports of a client; these names are the same in all versions.
    inside: Any = client

    def wrap(transport: Any) -> Any:
        return wrapper(manager, getattr(transport, "wrapped", transport), timeout=inside.timeout)

    inside._transport = wrap(inside._transport)
    inside._mounts = {
        pattern: None if transport is None else wrap(transport) for pattern, transport in inside._mounts.items()
    }
    return client


def standalone_sender(library: Library) -> Sender:
    """Return a sender with a transport of its own."""
    hx = library.module
    return _SyncCall(library, hx.HTTPTransport(), hx.Request("POST", "/"), None)


class _Call:
    """One call, and the token requests it may lead to."""

    patience = None
    total = None
    retry = None

    def __init__(
        self,
        library: Library,
        transport: Any,
        request: Any,
        timeout: Any,
        was_closed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._library, self._transport, self._request, self._timeout = library, transport, request, timeout
        self._was_closed = was_closed
        self.method, self.network_errors = request.method, library.network_errors
        self._bookmarks = _bookmarks(library, request.stream)

    @property
    def path(self) -> str:
        path: str = self._request.url.path
        return path

    def status(self, response: Any) -> int:
        status: int = response.status_code
        return status

    def headers(self, response: Any) -> Any:
        return response.headers

    def broken(self, exc: Exception) -> Broken | None:
        # A pool without a free connection says nothing of the service.
        if not isinstance(exc, self._library.broken) or isinstance(exc, self._library.module.PoolTimeout):
            return None
        return Broken(never_sent=isinstance(exc, self._library.never_sent))

    def token_used(self, response: Any, token: Token) -> Token:
        return token

    def replayable(self) -> bool:
        return self._bookmarks is not None and all(each.replayable for each in self._bookmarks)

    def _with(self, token: Token) -> Any:
        # httpx would open a connection that nobody closes.
        if self._was_closed():
            raise self._library.module.TransportError(
                "the client was closed while this call waited for a token; it was not sent"
            )
        request = self._request
        for bookmark in self._bookmarks or ():
            bookmark.rewind()
        # A copy: the caller's own object would print the session id.
        headers = request.headers.copy()
        for name, value in token.attached.items():  # update() would make another copy
            headers[name] = value
        return self._library.module.Request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
        )

    def _token_request(self, request: TokenRequest) -> Any:
        if self._was_closed():
            raise CarrierLost
        extensions: dict[str, Any] = {"timeout": _bounded(self._library, self._timeout, request.timeout)}
        if "sni_hostname" in self._request.extensions:
            extensions["sni_hostname"] = self._request.extensions["sni_hostname"]
        return self._library.module.Request(request.method, request.url, headers=request.headers, extensions=extensions)


class _SyncCall(_Call):
    def send(self, token: Token) -> Any:
        return self._transport.handle_request(self._with(token))

    def discard(self, response: Any) -> None:
        with closing(response), suppress(*self.network_errors):
            _read(response, MAX_DRAINED)

    def post(self, request: TokenRequest) -> TokenReply:
        with closing(self._transport.handle_request(self._token_request(request))) as response:
            return TokenReply(response.status_code, response.headers, _read(response, MAX_BODY))


class _AsyncCall(_Call):
    async def send(self, token: Token) -> Any:
        return await self._transport.handle_async_request(self._with(token))

    async def discard(self, response: Any) -> None:
        async with aclosing(response):
            with suppress(*self.network_errors):
                await _aread(response, MAX_DRAINED)

    async def post(self, request: TokenRequest) -> TokenReply:
        async with aclosing(await self._transport.handle_async_request(self._token_request(request))) as response:
            return TokenReply(response.status_code, response.headers, await _aread(response, MAX_BODY))


def _read(response: Any, bound: int) -> bytes:
    # A transport that is no network may hand over a response that was read before.
    if response.is_stream_consumed:
        content: bytes = response.content[: bound + 1]
        return content
    return capped(response.iter_raw(), bound)


async def _aread(response: Any, bound: int) -> bytes:
    if response.is_stream_consumed:
        content: bytes = response.content[: bound + 1]
        return content
    body = bytearray()
    with anyio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > bound:
                # Ends the whole chain of async generators. Trio complains where a loop is just left.
                enough.cancel()
    return bytes(body[: bound + 1])


def _bookmarks(library: Library, stream: Any) -> list[Bookmark] | None:
    """Return what has to be replayable for *stream* to be, or ``None`` if that cannot be told."""
    if isinstance(stream, library.module.ByteStream):
        return []
    if hasattr(stream, "fields"):  # multipart; it puts its files back to their beginning by itself
        files = [getattr(each, "file", b"") for each in stream.fields]
        return [Bookmark(file) for file in files]
    # Iterators and files are wrapped in classes that neither library exports: look inside if that is possible.
    if type(stream).__name__ in ("IteratorByteStream", "AsyncIteratorByteStream") and hasattr(stream, "_stream"):
        return [Bookmark(stream._stream)]
    return None


def _bounded(library: Library, configured: Any, seconds: float) -> dict[str, float | None]:
    """Return the client's own timeouts where they are shorter than *seconds*."""
    phases = (configured or library.module.Timeout(seconds)).as_dict()
    return {name: seconds if value is None else min(value, seconds) for name, value in phases.items()}

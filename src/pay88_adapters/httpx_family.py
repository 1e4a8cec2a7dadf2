"""What httpx and httpx2 share: the same names and seams in two libraries. The core decides; this file translates."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing, suppress
from operator import attrgetter
from time import monotonic
from typing import Any, ClassVar, TypeVar

import anyio  # both libraries stand on it

from .bodies import WHOLE, Bookmark
from .drivers import CarrierLost, Sender
from .errors import ConfigurationError, Flavours, Pay88Error
from .logs import hide_secrets_in_logs
from .manager import TokenManager
from .retry import Broken
from .token import AUTHORIZATION, SESSION_ID, Token
from .wire import MAX_BODY, MAX_DRAIN_SECONDS, MAX_DRAINED, BodyTimeout, TokenReply, TokenRequest, capped

C = TypeVar("C")

_FIELDS = tuple((name.encode(), name.lower().encode(), name) for name in (AUTHORIZATION, SESSION_ID))
_MANAGED_FIELDS = frozenset(lower for _, lower, _ in _FIELDS)


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
        # What may happen while a response is drained. Any other timeout is the caller's.
        self.drain_errors = (module.HTTPError, module.StreamError, ConnectionError, BodyTimeout)
        self.never_sent = (module.ConnectError, module.ConnectTimeout, module.ProxyError)
        self.broken = (*self.never_sent, module.NetworkError, module.TimeoutException, module.RemoteProtocolError)
        self._appends = _can_append(module.Headers)
        # The libraries do not export what bodies are wrapped in.
        self._bytes = module.ByteStream
        self._multipart = self._stream(files={"file": b""})
        self._iterators = (self._stream(content=iter(())), self._stream(content=_AsyncIterable()))
        hide_secrets_in_logs()

    def _stream(self, **body: Any) -> type[Any]:
        stream: object = self.module.Request("POST", "http://localhost", **body).stream
        return type(stream)

    def bookmark(self, stream: Any) -> Bookmark:
        """Return the state of a request's body, which has not been sent yet."""
        if type(stream) is self._bytes and type(stream._stream) is bytes:
            return WHOLE
        if type(stream) in self._iterators:
            return Bookmark(stream._stream)
        if type(stream) is self._multipart:  # it puts its files back to their beginning by itself
            return Bookmark(*[getattr(each, "file", getattr(each, "value", each)) for each in stream.fields])
        return Bookmark(stream)

    def has_managed_field(self, headers: Any) -> bool:
        """Whether the caller gave a field that a token goes into; where that is not cheap to tell, it may have."""
        if not self._appends:
            return True
        for _, name, _ in headers._list:  # noqa: SIM110 - no generator in what every call does
            if name in _MANAGED_FIELDS:
                return True
        return False

    def with_token(self, request: Any, token: Token, *, replaces: bool) -> Any:
        """Return a copy of *request* with *token*: the caller's own object would print the session id."""
        headers = self.module.Headers(request.headers)
        if replaces:
            for name, value in token.attached.items():
                headers[name] = value
        else:
            headers._list += _entries(token)
        # What its constructor would make of the same, at a third of the price.
        kind: type[Any] = request.__class__
        copy: Any = object.__new__(kind)
        copy.__dict__ = {**request.__dict__, "headers": headers}
        return copy


class _AsyncIterable:
    def __aiter__(self) -> Any:
        raise AssertionError


def _entries(token: Token) -> list[tuple[bytes, bytes, bytes]]:
    return [(name, lower, token.attached[field].encode()) for name, lower, field in _FIELDS]


def _can_append(kind: Callable[..., Any]) -> bool:
    """Whether :class:`Headers` is inside what all versions have been: then two fields cost a tenth."""
    name, value = "x-field", "value"
    headers, appended = kind({"Host": "h"}), kind({"Host": "h"})
    headers[name] = value
    try:
        appended._list.append((name.encode(), name.encode(), value.encode()))
    except (AttributeError, TypeError):
        return False
    return bool(appended.__dict__ == headers.__dict__)


class _Call:
    """One call, and the token requests it may lead to."""

    patience = None
    total = None
    retry = None
    status = staticmethod(attrgetter("status_code"))

    def __init__(self, transport: _Transport, manager: TokenManager, request: Any, replaces: bool) -> None:
        self.manager = manager
        self._transport, self._request, self._replaces = transport, request, replaces
        self._closings = transport.closings
        self._bookmark = transport.library.bookmark(request.stream)

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        return self._transport.library.network_errors

    @property
    def method(self) -> str:
        method: str = self._request.method
        return method

    @property
    def path(self) -> str:
        path: str = self._request.url.path
        return path

    def headers(self, response: Any) -> Any:
        return response.headers

    def broken(self, exc: Exception) -> Broken | None:
        library = self._transport.library
        # A pool without a free connection says nothing of the service.
        if not isinstance(exc, library.broken) or isinstance(exc, library.module.PoolTimeout):
            return None
        return Broken(never_sent=isinstance(exc, library.never_sent))

    def token_used(self, response: Any, token: Token) -> Token:
        return token

    def replayable(self) -> bool:
        return self._bookmark.rewind()

    def _with(self, token: Token) -> Any:
        transport = self._transport
        if transport.closings != self._closings:  # httpx would open a connection that nobody closes
            raise transport.library.module.TransportError(
                "the client was closed while this call waited for a token; it was not sent"
            )
        return transport.library.with_token(self._request, token, replaces=self._replaces)

    def _token_request(self, request: TokenRequest) -> Any:
        transport = self._transport
        if transport.closings != self._closings:
            raise CarrierLost
        extensions: dict[str, Any] = {"timeout": _bounded(transport.library, transport.timeout, request.timeout)}
        if "sni_hostname" in self._request.extensions:
            extensions["sni_hostname"] = self._request.extensions["sni_hostname"]
        return transport.library.module.Request(
            request.method, request.url, headers=request.headers, extensions=extensions
        )


class _SyncCall(_Call):
    def send(self, token: Token) -> Any:
        request = self._with(token)
        extensions = request.extensions
        timeout = extensions.get("timeout")
        if timeout is not None:  # to be shortened while a response is drained, for this request alone
            timeout = timeout.copy()
            request.extensions = {**extensions, "timeout": timeout}
        self._timeout = timeout
        return self._transport.wrapped.handle_request(request)

    def discard(self, response: Any) -> None:
        with closing(response):
            # A timeout would end the whole connection of HTTP/2, with the requests of other threads.
            if self._timeout is None or response.extensions.get("http_version") == b"HTTP/2":
                return
            # Half of the time for each read, as that is looked up once: the last one may begin late.
            half = MAX_DRAIN_SECONDS / 2
            self._timeout["read"] = min(half, self._timeout.get("read") or half)
            with suppress(*self._transport.library.drain_errors):
                _read(response, MAX_DRAINED, monotonic() + half)

    def post(self, request: TokenRequest) -> TokenReply:
        until = monotonic() + request.timeout
        with closing(self._transport.wrapped.handle_request(self._token_request(request))) as response:
            return TokenReply(response.status_code, response.headers, _read(response, MAX_BODY, until))


class _AsyncCall(_Call):
    def send(self, token: Token) -> Any:  # to be awaited
        return self._transport.wrapped.handle_async_request(self._with(token))

    async def discard(self, response: Any) -> None:
        async with _closing(response):
            with suppress(*self._transport.library.drain_errors), anyio.move_on_after(MAX_DRAIN_SECONDS):
                await _aread(response, MAX_DRAINED)

    async def post(self, request: TokenRequest) -> TokenReply:
        async with _closing(
            await self._transport.wrapped.handle_async_request(self._token_request(request))
        ) as response:
            return TokenReply(response.status_code, response.headers, await _aread(response, MAX_BODY))


@asynccontextmanager
async def _closing(response: Any) -> AsyncGenerator[Any, None]:
    """Close *response*, also where the caller is cancelled: a cancelled task would wait for nothing any more."""
    try:
        yield response
    finally:
        with anyio.move_on_after(MAX_DRAIN_SECONDS, shield=True):
            await response.aclose()


class _Transport:
    """Wraps a transport.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new one of the library's own unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``.
    """

    library: ClassVar[Library]
    _call: ClassVar[type[_Call]]
    default: ClassVar[str]
    """The name of the library's own transport."""

    def __init__(self, manager: TokenManager, transport: Any = None, *, timeout: Any = None) -> None:
        self.wrapped = getattr(self.library.module, self.default)() if transport is None else transport
        self.timeout = timeout
        self.closings = 0
        self._manager = manager

    def _begin(self, request: Any) -> Any:
        """Return the managed call that *request* is; ``None`` leaves it alone."""
        url = request.url
        replaces = self.library.has_managed_field(request.headers)
        authorization = request.headers.get("authorization") if replaces else None
        manager = self._manager.managing(url.scheme, url.raw_host.decode("ascii"), url.port, url.path, authorization)
        return None if manager is None else self._call(self, manager, request, replaces)


class SyncTransport(_Transport):
    """For ``Client``."""

    default = "HTTPTransport"
    _call = _SyncCall

    def handle_request(self, request: Any) -> Any:
        call = self._begin(request)
        if call is None:
            return self.wrapped.handle_request(request)
        try:
            return call.manager.threads.call(call)
        except Pay88Error as error:
            raise self.library.flavours.of(error)  # noqa: B904 - carries its cause

    def close(self) -> None:
        self.closings += 1
        self.wrapped.close()

    def __enter__(self) -> Any:
        self.wrapped.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.closings += 1
        self.wrapped.__exit__(*exc)


class AsyncTransport(_Transport):
    """For ``AsyncClient``, on asyncio and trio."""

    default = "AsyncHTTPTransport"
    _call = _AsyncCall

    async def handle_async_request(self, request: Any) -> Any:
        call = self._begin(request)
        if call is None:
            return await self.wrapped.handle_async_request(request)
        try:
            return await call.manager.tasks.call(call)
        except Pay88Error as error:
            raise self.library.flavours.of(error)  # noqa: B904 - carries its cause

    async def aclose(self) -> None:
        self.closings += 1
        await self.wrapped.aclose()

    async def __aenter__(self) -> Any:
        await self.wrapped.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self.closings += 1
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


def standalone_sender(transport: SyncTransport, manager: TokenManager) -> Sender:
    """Return a sender over *transport*."""
    return _SyncCall(transport, manager, transport.library.module.Request("POST", "/"), False)


def _read(response: Any, bound: int, until: float) -> bytes:
    # A transport that is no network may hand over a response that was read before.
    if response.is_stream_consumed:
        content: bytes = response.content[: bound + 1]
        return content
    return capped(response.iter_raw(), bound, until)


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


def _bounded(library: Library, configured: Any, seconds: float) -> dict[str, float | None]:
    """Return the client's own timeouts where they are shorter than *seconds*."""
    phases = (configured or library.module.Timeout(seconds)).as_dict()
    return {name: seconds if value is None else min(value, seconds) for name, value in phases.items()}

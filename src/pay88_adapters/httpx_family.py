"""What httpx and httpx2 share: the same names and seams in two libraries. The core decides; this file translates."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from math import inf
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar

import anyio  # both libraries stand on it

from .core.arguments import check_client, check_method, class_of, inside
from .core.errors import CarrierLost, ConfigurationError, Flavours, Pay88Error
from .core.retry import Broken
from .core.token import AUTHORIZATION, SESSION_ID, Token
from .core.wire import MAX_BODY, MAX_DRAIN_SECONDS, MAX_DRAINED, TokenReply, TokenRequest
from .engine.bodies import WHOLE, Bookmark
from .engine.logs import hide_secrets_in_logs
from .engine.manager import AnyManager, TokenManager, check_manager
from .engine.responses import BodyTimeout, capped
from .engine.runners import AsyncSender, Sender
from .engine.standalone import ClosableSender

C = TypeVar("C")
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
TransportT = TypeVar("TransportT")
TimeoutT = TypeVar("TimeoutT")
SelfT = TypeVar("SelfT", bound="_Transport[Any, Any]")

_FIELDS = tuple((name.encode(), name.lower().encode(), name) for name in (AUTHORIZATION, SESSION_ID))
_MANAGED_FIELDS = frozenset(lower for _, lower, _ in _FIELDS)

_CLOSE_PATIENCE = 1.0  # real seconds for which a client that is closed waits for the token request it carries
_LOOK_AGAIN = 0.005  # real seconds


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

    def timeout(self, given: Any) -> Any:
        """Return the library's own class for *given*, which may be a number of seconds.

        Raises:
            ConfigurationError: It is neither of the two, nor ``None``.
        """
        kind = self.module.Timeout
        if given is None or isinstance(given, kind):
            return given
        if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < inf:
            return kind(given)
        shown = given if isinstance(given, (int, float)) else class_of(given)
        raise ConfigurationError(
            f"timeout must be a {self.module.__name__}.Timeout, a positive number of seconds or None, not {shown}"
        )

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

    def __init__(self, transport: _Transport[Any, Any], manager: TokenManager, request: Any, replaces: bool) -> None:
        self.manager = manager
        self._transport, self._request, self._replaces = transport, request, replaces
        self.client = transport.opened
        self._bookmark = transport.library.bookmark(request.stream)

    @property
    def is_closed(self) -> bool:
        return self._transport.opened is not self.client

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
        if self.is_closed:  # httpx would open a connection that nobody closes
            raise transport.library.module.TransportError(
                "the client was closed while this call waited for a token; it was not sent"
            )
        return transport.library.with_token(self._request, token, replaces=self._replaces)


class _SyncCall(_Call):
    _transport: SyncTransport[Any, Any, Any, Any]

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
                _read(response, MAX_DRAINED, time.monotonic() + half)

    def post(self, request: TokenRequest) -> TokenReply:
        return self._transport.post(request, self.client, self._request.extensions)


class _AsyncCall(_Call):
    _transport: AsyncTransport[Any, Any, Any, Any]

    def send(self, token: Token) -> Any:  # to be awaited
        return self._transport.wrapped.handle_async_request(self._with(token))

    async def discard(self, response: Any) -> None:
        async with _closing(response):
            with suppress(*self._transport.library.drain_errors), anyio.move_on_after(MAX_DRAIN_SECONDS):
                await _aread(response, MAX_DRAINED)

    async def post(self, request: TokenRequest) -> TokenReply:
        return await self._transport.post(request, self.client, self._request.extensions)


@asynccontextmanager
async def _closing(response: Any) -> AsyncGenerator[Any, None]:
    """Close *response*, also where the caller is cancelled: a cancelled task would wait for nothing any more."""
    try:
        yield response
    finally:
        with anyio.move_on_after(MAX_DRAIN_SECONDS, shield=True):
            await response.aclose()


class _Opened:
    """Stands for a transport from one closing to the next."""


class _Transport(Generic[TransportT, TimeoutT]):
    """Wraps a transport.

    Args:
        manager: Shared by every stack.
        transport: Any transport; a new one of the library's own unless given.
        timeout: Bounds each token request, besides the policy's ``fetch_timeout``: seconds, or the library's own class.
    """

    library: ClassVar[Library]
    _call: ClassVar[type[_Call]]
    default: ClassVar[str]
    """The name of the library's own transport."""
    method: ClassVar[str]
    """What every transport of that kind has."""

    def __init__(
        self, manager: AnyManager, transport: TransportT | None = None, *, timeout: TimeoutT | float | None = None
    ) -> None:
        check_manager(manager)
        self._manager = manager
        self._wrap(transport, timeout)

    def _wrap(self, transport: TransportT | None, timeout: TimeoutT | float | None) -> None:
        library = self.library
        if transport is not None:
            check_method("transport", transport, self.method, f"like {library.module.__name__}.{self.default}")
        self.timeout: TimeoutT | None = library.timeout(timeout)
        self.wrapped: TransportT = getattr(library.module, self.default)() if transport is None else transport
        self.opened = _Opened()
        self._token_requests = 0  # in flight

    @classmethod
    def without_manager(cls, transport: TransportT, timeout: TimeoutT) -> Any:
        """Return a wrapper of *transport* for token requests alone."""
        wrapper = cls.__new__(cls)
        wrapper._wrap(transport, timeout)
        return wrapper

    @contextmanager
    def _carried(self, opened: _Opened) -> Generator[None, None, None]:
        """Hold the transport open for a moment if it is closed (rule 16); and tell that from a network that failed."""
        self._token_requests += 1
        try:
            yield
        except self.library.network_errors as exc:
            if self.opened is not opened:
                raise CarrierLost("the HTTP client was closed during the token request") from exc
            raise
        finally:
            self._token_requests -= 1

    def _token_request(self, request: TokenRequest, opened: _Opened, extensions: Mapping[str, Any]) -> Any:
        if self.opened is not opened:
            raise CarrierLost("the HTTP client was closed")
        passed_on: dict[str, Any] = {"timeout": _bounded(self.library, self.timeout, request.timeout)}
        if "sni_hostname" in extensions:
            passed_on["sni_hostname"] = extensions["sni_hostname"]
        return self.library.module.Request(request.method, request.url, headers=request.headers, extensions=passed_on)

    def _is_held_open(self, since: float) -> bool:
        return self._token_requests > 0 and time.monotonic() < since + _CLOSE_PATIENCE

    def _begin(self, request: Any) -> Any:
        """Return the managed call that *request* is; ``None`` leaves it alone."""
        url = request.url
        replaces = self.library.has_managed_field(request.headers)
        authorization = request.headers.get("authorization") if replaces else None
        manager = self._manager.managing(url.scheme, url.raw_host.decode("ascii"), url.port, url.path, authorization)
        return None if manager is None else self._call(self, manager, request, replaces)


class SyncTransport(_Transport[TransportT, TimeoutT], Generic[RequestT, ResponseT, TransportT, TimeoutT]):
    """For ``Client``."""

    default = "HTTPTransport"
    method = "handle_request"
    _call = _SyncCall

    def post(self, request: TokenRequest, opened: _Opened, extensions: Mapping[str, Any]) -> TokenReply:
        """Send a token request over the wrapped transport as it was *opened*."""
        until = time.monotonic() + request.timeout
        wrapped: Any = self.wrapped
        message = self._token_request(request, opened, extensions)
        with self._carried(opened), closing(wrapped.handle_request(message)) as response:
            return TokenReply(response.status_code, response.headers, _read(response, MAX_BODY, until))

    def handle_request(self, request: RequestT) -> ResponseT:
        try:
            call = self._begin(request)
            if call is not None:
                response: ResponseT = call.manager.threads.call(call)
                return response
        except Pay88Error as error:
            raise self.library.flavours.of(error)  # noqa: B904 - carries its cause
        wrapped: Any = self.wrapped
        unmanaged: ResponseT = wrapped.handle_request(request)
        return unmanaged

    def close(self) -> None:
        self._before_close()
        wrapped: Any = self.wrapped
        wrapped.close()

    def __enter__(self: SelfT) -> SelfT:
        wrapped: Any = self.wrapped
        wrapped.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._before_close()
        wrapped: Any = self.wrapped
        wrapped.__exit__(*exc)

    def _before_close(self) -> None:
        since = time.monotonic()
        while self._is_held_open(since):
            time.sleep(_LOOK_AGAIN)
        self.opened = _Opened()


class AsyncTransport(_Transport[TransportT, TimeoutT], Generic[RequestT, ResponseT, TransportT, TimeoutT]):
    """For ``AsyncClient``, on asyncio and trio."""

    default = "AsyncHTTPTransport"
    method = "handle_async_request"
    _call = _AsyncCall

    async def post(self, request: TokenRequest, opened: _Opened, extensions: Mapping[str, Any]) -> TokenReply:
        """Send a token request over the wrapped transport as it was *opened*."""
        wrapped: Any = self.wrapped
        message = self._token_request(request, opened, extensions)
        with self._carried(opened):
            async with _closing(await wrapped.handle_async_request(message)) as response:
                return TokenReply(response.status_code, response.headers, await _aread(response, MAX_BODY))

    async def handle_async_request(self, request: RequestT) -> ResponseT:
        try:
            call = self._begin(request)
            if call is not None:
                response: ResponseT = await call.manager.tasks.call(call)
                return response
        except Pay88Error as error:
            raise self.library.flavours.of(error)  # noqa: B904 - carries its cause
        wrapped: Any = self.wrapped
        unmanaged: ResponseT = await wrapped.handle_async_request(request)
        return unmanaged

    async def aclose(self) -> None:
        await self._before_close()
        wrapped: Any = self.wrapped
        await wrapped.aclose()

    async def __aenter__(self: SelfT) -> SelfT:
        wrapped: Any = self.wrapped
        await wrapped.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._before_close()
        wrapped: Any = self.wrapped
        await wrapped.__aexit__(*exc)

    async def _before_close(self) -> None:
        since = time.monotonic()
        try:
            with anyio.CancelScope(shield=True):
                while self._is_held_open(since):  # noqa: ASYNC110 - an event would belong to one event loop
                    await anyio.sleep(_LOOK_AGAIN)
        finally:
            self.opened = _Opened()


def attach(
    client: C,
    manager: AnyManager,
    sync: type[SyncTransport[Any, Any, Any, Any]],
    tasks: type[AsyncTransport[Any, Any, Any, Any]],
) -> C:
    """Let the calls that *client* makes to ``manager.base_url`` carry a token."""
    module = sync.library.module
    check_client(client, module.__name__, (module.Client, module.AsyncClient))
    check_manager(manager)
    wrapper = sync if isinstance(client, module.Client) else tasks
    # There is no public way to change the transports of a client; these names are the same in all versions.
    transport, mounts = inside(client, "_transport"), inside(client, "_mounts", dict)
    own: Any = client

    def wrap(transport: Any) -> Any:
        return wrapper(manager, getattr(transport, "wrapped", transport), timeout=own.timeout)

    own._transport = wrap(transport)
    own._mounts = {pattern: None if transport is None else wrap(transport) for pattern, transport in mounts.items()}
    return client


class _ClientSender:
    """Sends token requests over the transports of a client."""

    def __init__(self, transport: type[_Transport[Any, Any]], client: Any) -> None:
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
            managed = self._transport.without_manager(transport, self.client.timeout)
        return managed.post(request, managed.opened, {})


class _SyncClientSender(_ClientSender):
    def post(self, request: TokenRequest) -> TokenReply:
        reply: TokenReply = self._post(request)
        return reply

    def close(self) -> None:
        self.client.close()


class _AsyncClientSender(_ClientSender):
    async def post(self, request: TokenRequest) -> TokenReply:
        reply: TokenReply = await self._post(request)
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

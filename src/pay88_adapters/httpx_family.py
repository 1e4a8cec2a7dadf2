"""What httpx and httpx2 share: the same names and seams in two libraries. The core decides; this file translates."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, suppress
from sys import modules
from typing import Any, ClassVar, Generic, TypeVar

import anyio  # both libraries depend on it

from pay88_adapters.stores.realtime import monotonic

from .core.arguments import check_client, check_method, inside
from .core.errors import ClientClosed, NoFreeConnection, Pay88Error
from .core.retry import ConnectionFailure
from .core.token import Token
from .core.wire import MAX_BODY, MAX_DRAIN_SECONDS, MAX_DRAINED, TokenRequest, TokenResponse
from .engine.bodies import BodyPosition
from .engine.manager import TokenManager
from .engine.recorders import RECORDER, check_call
from .engine.responses import tolerated
from .engine.stand_ins import AnyManager, check_manager
from .httpx_library import ClientLibrary, WriteTrace, aread, closing_async, read

C = TypeVar("C")
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
TransportT = TypeVar("TransportT")
TimeoutT = TypeVar("TimeoutT")
SelfT = TypeVar("SelfT", bound="_Transport[Any, Any]")
ManagedT = TypeVar("ManagedT", bound="_Transport[Any, Any]")

_CLOSE_TIMEOUT = 1.0  # real seconds that closing a client waits for its token request
_CHECK_INTERVAL = 0.005  # real seconds


class _Call(Generic[ManagedT]):
    """One API request, and the token requests that it may send."""

    token_timeout = None
    total_timeout = None
    retry = None

    # No constructor: it costs more than all of them.
    __slots__ = ("body_position", "client", "extensions", "manager", "replaces", "request", "transport")
    body_position: BodyPosition
    extensions: dict[str, Any]
    replaces: bool
    request: Any
    transport: ManagedT
    client: _Opened
    manager: TokenManager

    @property
    def is_closed(self) -> bool:
        return self.transport.opened is not self.client

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        return self.transport.library.network_errors

    @property
    def method(self) -> str:
        method: str = self.request.method
        return method

    @property
    def path(self) -> str:
        path: str = self.request.url.path
        return path

    def status(self, response: Any) -> int:
        status: int = response.status_code
        return status

    def _url(self) -> str:
        return str(self.request.url)

    def headers(self, response: Any) -> Any:
        return response.headers

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        library = self.transport.library
        # A pool without a free connection is no sign of a service failure.
        if not isinstance(exc, library.connection_errors) or isinstance(exc, library.module.PoolTimeout):
            return None
        return ConnectionFailure(not_sent=isinstance(exc, library.not_sent) and self._was_not_sent(exc))

    def _was_not_sent(self, exc: Any) -> bool:
        """Whether *exc*, of a connection that was not established, is about this request (see :class:`_LayeredCall`).

        An inner layer may send requests of its own, and httpx sets the request of an exception in its clients.
        """
        try:
            request = exc.request
        except RuntimeError:
            return True
        return bool(request.method == self.method and request.url == self.request.url)

    def token_used(self, response: Any, token: Token) -> Token:
        return token

    def replayable(self) -> bool:
        return self.body_position.rewind()

    def _with(self, token: Token) -> Any:
        transport = self.transport
        if transport.opened is not self.client:  # httpx would open a connection that is never closed
            raise transport.library.module.TransportError(
                "the client was closed while the request waited for a token; request not sent"
            )
        if RECORDER in modules:
            check_call(self.method, self._url())
        return transport.client_library.with_token(self.request, token, self.replaces)


class _SyncCall(_Call["SyncTransport[Any, Any, Any, Any]"]):
    __slots__ = ()

    def send(self, token: Token) -> Any:
        request = self._with(token)
        # A copy: its timeout is shortened while a response is drained.
        request.extensions = self.extensions = {**request.extensions}
        return self.transport.wrapped.handle_request(request)

    def discard(self, response: Any) -> None:
        with closing(response):
            timeout = self.extensions.get("timeout")
            # A timeout would end the whole connection of HTTP/2, with the requests of other threads.
            if timeout is None or response.extensions.get("http_version") == b"HTTP/2":
                return
            # Half of the time for each read, as that is looked up once: the last one may begin late.
            half = MAX_DRAIN_SECONDS / 2
            self.extensions["timeout"] = {**timeout, "read": min(half, timeout.get("read") or half)}
            with suppress(*self.transport.library.drain_errors):
                read(response, MAX_DRAINED, monotonic() + half)

    def post(self, request: TokenRequest) -> TokenResponse:
        return self.transport.post(request, self.client, self.request.extensions)


class _LayeredCall(_Call[ManagedT]):
    """One over a transport that is not the library's own: its layers may send more than the request."""

    __slots__ = ("trace",)
    trace: WriteTrace

    def _with(self, token: Token) -> Any:
        request = super()._with(token)
        self.trace = trace = WriteTrace(request.extensions.get("trace"))
        request.extensions = {**request.extensions, "trace": trace}
        return request

    def _was_not_sent(self, exc: Any) -> bool:
        return not self.trace.written and super()._was_not_sent(exc)


class _LayeredSyncCall(_LayeredCall["SyncTransport[Any, Any, Any, Any]"], _SyncCall):
    __slots__ = ()


class _AsyncCall(_Call["AsyncTransport[Any, Any, Any, Any]"]):
    __slots__ = ()

    def send(self, token: Token) -> Any:  # to be awaited
        return self.transport.wrapped.handle_async_request(self._with(token))

    async def discard(self, response: Any) -> None:
        async with closing_async(response):
            with suppress(*self.transport.library.drain_errors), anyio.move_on_after(MAX_DRAIN_SECONDS):
                await aread(response, MAX_DRAINED)

    async def post(self, request: TokenRequest) -> TokenResponse:
        return await self.transport.post(request, self.client, self.request.extensions)


class _LayeredAsyncCall(_LayeredCall["AsyncTransport[Any, Any, Any, Any]"], _AsyncCall):
    __slots__ = ()


class _Opened:
    """Identity of a transport between two closings."""


class _Transport(Generic[TransportT, TimeoutT]):
    """Wraps a transport.

    Args:
        manager: The manager; it may be attached to any number of clients.
        transport: Any transport; a new one of the library's own unless given.
        timeout: Timeout of each token request, besides the policy's ``fetch_timeout``: seconds, or the library's own
        class.
    """

    library: ClassVar[ClientLibrary]
    _calls: ClassVar[tuple[type[_Call[Any]], type[_Call[Any]]]]
    """The classes of a request: over the library's own transport, and over any other."""
    default: ClassVar[str]
    """Name of the library's own transport."""
    method: ClassVar[str]
    """Base class of all transports of that kind."""

    def __init__(
        self, manager: AnyManager, transport: TransportT | None = None, *, timeout: TimeoutT | float | None = None
    ) -> None:
        check_manager(manager)
        self._manager = manager
        self._wrap(transport, timeout)

    def _wrap(self, transport: TransportT | None, timeout: TimeoutT | float | None) -> None:
        library = self.client_library = self.library  # in the instance, too: each request reads it
        if transport is not None:
            check_method("transport", transport, self.method, f"like {library.module.__name__}.{self.default}")
        self.timeout: TimeoutT | None = library.timeout(timeout)
        own = getattr(library.module, self.default)
        self.wrapped: TransportT = own() if transport is None else transport
        self._call = self._calls[type(self.wrapped) is not own]
        self.opened = _Opened()
        self._token_requests: set[object] = set()  # in flight; no counter: += loses updates without the GIL

    @classmethod
    def without_manager(cls, transport: TransportT) -> Any:
        """Return a wrapper of *transport* for token requests alone."""
        wrapper = cls.__new__(cls)
        wrapper._wrap(transport, None)
        return wrapper

    @contextmanager
    def _carried(self, opened: _Opened) -> Generator[None, None, None]:
        """Keep a closing transport open briefly (rule 16); distinguish its end and a full pool from network errors."""
        token_request = object()
        self._token_requests.add(token_request)
        try:
            yield
        except self.library.network_errors as exc:
            self.library.forget_headers(exc)
            if self.opened is not opened:
                raise ClientClosed("the HTTP client was closed during the token request") from exc
            if isinstance(exc, self.library.module.PoolTimeout):
                raise NoFreeConnection from exc
            raise
        finally:
            self._token_requests.discard(token_request)

    def _token_request(self, request: TokenRequest, opened: _Opened, extensions: Mapping[str, Any]) -> Any:
        if self.opened is not opened:
            raise ClientClosed("the HTTP client was closed")
        passed_on: dict[str, Any] = {"timeout": self.library.phases(self.timeout, request)}
        if "sni_hostname" in extensions:
            passed_on["sni_hostname"] = extensions["sni_hostname"]
        return self.library.module.Request(request.method, request.url, headers=request.headers, extensions=passed_on)

    def _is_held_open(self, since: float) -> bool:
        return bool(self._token_requests) and monotonic() < since + _CLOSE_TIMEOUT

    def _prepare(self, request: Any) -> Any:
        """Return *request* as a managed one; ``None`` to pass it through unchanged."""
        library = self.client_library
        # Neither is a method: to call them as attributes would cost more.
        examine, make_call = library.examine, self._call
        replaces, scheme, host, port, path = examine(request)
        authorization = request.headers.get("authorization") if replaces else None
        manager = self._manager.for_request(scheme, host, port, path, authorization)
        if manager is None:
            return None
        call = make_call()
        call.manager, call.client, call.transport = manager, self.opened, self
        call.request, call.replaces = request, replaces
        call.body_position = library.body_position(request.stream)
        return call


class SyncTransport(_Transport[TransportT, TimeoutT], Generic[RequestT, ResponseT, TransportT, TimeoutT]):
    """For ``Client``."""

    default = "HTTPTransport"
    method = "handle_request"
    _calls = _SyncCall, _LayeredSyncCall

    def post(self, request: TokenRequest, opened: _Opened, extensions: Mapping[str, Any]) -> TokenResponse:
        """Send a token request over the wrapped transport as it was *opened*."""
        until = monotonic() + request.timeout
        wrapped: Any = self.wrapped
        message = self._token_request(request, opened, extensions)
        with self._carried(opened), closing(wrapped.handle_request(message)) as response:
            body, status = b"", response.status_code
            with suppress(*tolerated(status, self.library.network_errors)):
                body = read(response, MAX_BODY, min(until, monotonic() + request.body_timeout(status)))
            return TokenResponse(status, response.headers, body)

    def handle_request(self, request: RequestT) -> ResponseT:
        try:
            call = self._prepare(request)
            if call is not None:
                response: ResponseT = call.manager.sync_runner.call(call)
                return response
        except Pay88Error as error:
            raise self.library.adapter_errors.convert(error)  # noqa: B904 - carries its cause
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
        since = monotonic()
        while self._is_held_open(since):
            time.sleep(_CHECK_INTERVAL)
        self.opened = _Opened()


class AsyncTransport(_Transport[TransportT, TimeoutT], Generic[RequestT, ResponseT, TransportT, TimeoutT]):
    """For ``AsyncClient``, on asyncio and trio."""

    default = "AsyncHTTPTransport"
    method = "handle_async_request"
    _calls = _AsyncCall, _LayeredAsyncCall

    async def post(self, request: TokenRequest, opened: _Opened, extensions: Mapping[str, Any]) -> TokenResponse:
        """Send a token request over the wrapped transport as it was *opened*."""
        wrapped: Any = self.wrapped
        message = self._token_request(request, opened, extensions)
        with self._carried(opened):
            async with closing_async(await wrapped.handle_async_request(message)) as response:
                body, status = b"", response.status_code
                with suppress(*tolerated(status, self.library.network_errors)):
                    with anyio.fail_after(request.body_timeout(status)):
                        body = await aread(response, MAX_BODY)
                return TokenResponse(status, response.headers, body)

    async def handle_async_request(self, request: RequestT) -> ResponseT:
        try:
            call = self._prepare(request)
            if call is not None:
                response: ResponseT = await call.manager.async_runner.call(call)
                return response
        except Pay88Error as error:
            raise self.library.adapter_errors.convert(error)  # noqa: B904 - carries its cause
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
        since = monotonic()
        try:
            with anyio.CancelScope(shield=True):
                while self._is_held_open(since):  # noqa: ASYNC110 - an event would belong to one event loop
                    await anyio.sleep(_CHECK_INTERVAL)
        finally:
            self.opened = _Opened()


def attach(
    client: C,
    manager: AnyManager,
    sync: type[SyncTransport[Any, Any, Any, Any]],
    tasks: type[AsyncTransport[Any, Any, Any, Any]],
) -> C:
    """Attach *manager* to *client*: requests to ``manager.base_url`` carry a token."""
    module = sync.library.module
    check_client(client, module.__name__, (module.Client, module.AsyncClient))
    check_manager(manager)
    wrapper = sync if isinstance(client, module.Client) else tasks
    # There is no public way to change the transports of a client; these names are the same in all versions.
    transport, mounts = inside(client, "_transport"), inside(client, "_mounts", dict)
    own: Any = client

    def wrap(transport: Any) -> Any:
        before: Any = transport
        if not isinstance(transport, _Transport):
            return wrapper(manager, transport)
        return wrapper(manager, before.wrapped, timeout=before.timeout)

    own._transport = wrap(transport)
    own._mounts = {pattern: None if transport is None else wrap(transport) for pattern, transport in mounts.items()}
    return client

"""Differences between httpx and httpx2, and how their responses are read."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Any, TypeVar

import anyio  # both libraries depend on it

from .core.arguments import class_of, is_number
from .core.errors import AdapterErrors, ConfigurationError
from .core.token import MANAGED_FIELDS, Token
from .core.wire import MAX_DRAIN_SECONDS, TokenRequest
from .engine.bodies import WHOLE, BodyPosition
from .engine.logs import hide_secrets_in_logs
from .engine.responses import BodyTimeout, read_limited

C = TypeVar("C")
Target = tuple[bool, str, str, int | None, str]
"""Whether a token replaces headers, which may be true without any; the scheme, host, port and unescaped path."""
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
TransportT = TypeVar("TransportT")
TimeoutT = TypeVar("TimeoutT")

_MANAGED = frozenset(name.encode() for name in MANAGED_FIELDS)
_URLS = ("https://a.example", "http://user@[::1]:8080/a%2Fb?c#d", "HTTPS://XN--E1AFMKFD.example:443/", "//b.example:1")
_new = object.__new__  # looked up once


class ClientLibrary:
    """One of the two libraries.

    Args:
        module: The library.
        adapter_errors: Its exception classes.
    """

    def __init__(self, module: Any, adapter_errors: AdapterErrors) -> None:
        self.module = module
        self.adapter_errors = adapter_errors
        self.network_errors = (module.HTTPError, module.StreamError, OSError)
        # What may happen while a response is drained. Any other timeout is the caller's.
        self.drain_errors = (module.HTTPError, module.StreamError, ConnectionError, BodyTimeout)
        self.not_sent = (module.ConnectError, module.ConnectTimeout, module.ProxyError)
        others = module.NetworkError, module.TimeoutException, module.RemoteProtocolError
        self.connection_errors = (*self.not_sent, *others)
        self._headers = module.Headers
        self.examine: Callable[[Any], Target] = _examine if self._is_known() else _examine_publicly
        # The libraries do not export what bodies are wrapped in.
        self._bytes = module.ByteStream
        self._multipart = self._stream(files={"file": b""})
        self._iterators = (self._stream(content=iter(())), self._stream(content=_AsyncIterable()))
        hide_secrets_in_logs()

    def __deepcopy__(self, memo: object) -> ClientLibrary:
        return self  # there is one of each library, and a module cannot be copied

    def timeout(self, given: Any) -> Any:
        """Return *given*, which may be a number of seconds, as the library's own class.

        Raises:
            ConfigurationError: It is not a number, the library's class or ``None``.
        """
        kind = self.module.Timeout
        if given is None or isinstance(given, kind):
            return given
        if is_number(given) and 0 < given < inf:
            return kind(given)
        shown = given if isinstance(given, (int, float)) else class_of(given)
        raise ConfigurationError(
            f"timeout must be a {self.module.__name__}.Timeout, a positive number of seconds or None, not {shown}"
        )

    def phases(self, configured: Any, request: TokenRequest) -> dict[str, float]:
        """Return the timeouts of a token request: its own, and the *configured* ones where they are shorter.

        Args:
            configured: Those that the user sets for token requests, if any. A client's own are its caller's: others
                wait for the same token (rule 16).
            request: The token request.
        """
        own: dict[str, float] = self.module.Timeout(request.timeout, pool=request.pool_timeout).as_dict()
        given: Mapping[str, float | None] = own if configured is None else configured.as_dict()
        return {name: min(own[name], own[name] if (each := given[name]) is None else each) for name in own}

    def forget_headers(self, exc: Exception) -> None:
        """Replace the token request in *exc*, if any: the libraries would print the API key among its headers."""
        if isinstance(exc, self.module.HTTPError):
            error: Any = exc
            with suppress(RuntimeError):  # it has no request
                request = error.request
                if "x-api-key" in request.headers:  # no other one: many requests may share the exception
                    error.request = self.module.Request(request.method, request.url)

    def _stream(self, **body: Any) -> type[Any]:
        stream: object = self.module.Request("POST", "http://localhost", **body).stream
        return type(stream)

    def body_position(self, stream: Any) -> BodyPosition:
        """Return the state of a request's body, which has not been sent yet."""
        if type(stream) is self._bytes and type(stream._stream) is bytes:
            return WHOLE  # nearly always
        if type(stream) in self._iterators:
            return BodyPosition(stream._stream)
        if type(stream) is self._multipart:  # it rewinds its files itself
            return BodyPosition(*[getattr(each, "file", getattr(each, "value", each)) for each in stream.fields])
        return BodyPosition(stream)

    def with_token(self, request: Any, token: Token, replaces: bool) -> Any:
        """Return a copy of *request* with *token*: the repr of the caller's own object would contain the session id.

        Args:
            request: The caller's.
            token: The token. No local variable holds its headers.
            replaces: As :attr:`examine` returns it.
        """
        headers: Any
        if replaces:
            headers = self._headers(request.headers)
            for name, value in token.attached.items():
                headers[name] = value
        else:  # the same, at a tenth of the cost
            headers = _new(self._headers)
            headers._list = request.headers._list + (token.raw or token.encoded())
            headers._encoding = None  # is computed again when needed
        # The result of its constructor, at a third of the cost.
        attributes = request.__dict__.copy()
        attributes["headers"] = headers
        copy: Any = _new(request.__class__)
        copy.__dict__ = attributes
        return copy

    def _is_known(self) -> bool:
        """Whether the library has the internals of all known versions, which the short ways rely on."""
        token = Token("t", "s", 0.0, 0.0)
        try:
            for request in (self.module.Request("POST", url) for url in _URLS):
                if _examine(request)[1:] != _examine_publicly(request)[1:]:
                    return False
                appended, replaced = (self.with_token(request, token, replaces) for replaces in (False, True))
                if appended.headers.__dict__ != replaced.headers.__dict__:
                    return False
        except (AttributeError, TypeError, ValueError):
            return False
        return True


class WriteTrace:
    """A ``trace`` extension that notes whether a request was written to a connection.

    Args:
        following: The caller's own ``trace`` extension, which is called, too.
    """

    __slots__ = ("_following", "written")

    def __init__(self, following: Callable[[str, Any], Any] | None) -> None:
        self._following = following
        self.written = False

    def __call__(self, name: str, info: Mapping[str, Any]) -> Any:
        """Take an event of httpcore; return a coroutine to its async code, and ``None`` to its other code.

        Whichever that is: an inner layer may pass the request on to a transport of the other kind.
        """
        # The CONNECT request to a proxy has the extensions of the request for which it is made.
        if name.endswith(".send_request_headers.started") and _method(info) != b"CONNECT":
            self.written = True
        if self._following is not None:
            return self._following(name, info)
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        return _done() if caller.f_code.co_flags & inspect.CO_COROUTINE else None


def _method(info: Mapping[str, Any]) -> object:
    return getattr(info.get("request"), "method", None)


async def _done() -> None: ...


class _AsyncIterable:
    def __aiter__(self) -> Any:
        raise AssertionError


def _examine(request: Any) -> Target:
    """Do the same as :func:`_examine_publicly` at a tenth of the cost: properties of a URL parse it at each access."""
    scheme, _, host, port, path, _, _ = request.url._uri_reference
    if "%" in path:
        path = request.url.path
    for header in request.headers._list:
        if header[1] in _MANAGED:
            return True, scheme, host, port, path or "/"
    return False, scheme, host, port, path or "/"


def _examine_publicly(request: Any) -> Target:
    url = request.url
    return True, url.scheme, url.raw_host.decode("ascii"), url.port, url.path


@asynccontextmanager
async def closing_async(response: Any) -> AsyncGenerator[Any, None]:
    """Close *response*, also if the caller is cancelled: a cancelled task would not wait any more."""
    try:
        yield response
    finally:
        with anyio.move_on_after(MAX_DRAIN_SECONDS, shield=True):
            await response.aclose()


def read(response: Any, bound: int, until: float) -> bytes:
    # A transport without a network may return a response that was read before.
    if response.is_stream_consumed:
        content: bytes = response.content[: bound + 1]
        return content
    return read_limited(response.iter_raw(), bound, until)


async def aread(response: Any, bound: int) -> bytes:
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

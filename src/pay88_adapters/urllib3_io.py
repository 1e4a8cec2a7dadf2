"""Headers, token requests, bounded reads and errors of urllib3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from .core.secret import InjectedHeader, as_secret
from .core.token import MANAGED_FIELDS

try:
    import urllib3
except ModuleNotFoundError as exc:
    raise ImportError("urllib3 is not installed: pip install 'pay88-adapters[urllib3]'") from exc
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    SSLError,
    TimeoutError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url
from urllib3.util.proxy import connection_requires_http_tunnel

from pay88_adapters.stores.realtime import monotonic

from .core.errors import ClientClosed, NoFreeConnection
from .core.wire import (
    MAX_BODY,
    TokenRequest,
    TokenResponse,
)
from .engine.calls import Sender
from .engine.responses import read_limited, remaining_seconds, tolerated

NOT_SENT = (NewConnectionError, ConnectTimeoutError)
CONNECTION_ERRORS = (*NOT_SENT, ProxyError, ProtocolError, TimeoutError, SSLError)

_MANAGED_POOLS = f"{__package__}.urllib3"
# Modules that a pool's own urlopen() never runs through: here other requests begin.
_BEGINNINGS = frozenset({urllib3.PoolManager.__module__, urllib3.HTTPConnectionPool.request.__module__})


def post(urlopen: Callable[..., BaseHTTPResponse], target: str, request: TokenRequest) -> TokenResponse:
    """Send a token request over a pool, with the timeout of the request alone: the pool's own are a caller's (rule 16).

    Args:
        urlopen: The pool's own method, without a manager.
        target: The target of the request line: the whole URL for a proxy.
        request: The token request.
    """
    until = monotonic() + request.timeout
    try:
        response = urlopen(
            request.method,
            request.path if target.startswith("/") else request.url,  # a forwarding proxy requires the whole URL
            headers=dict(request.headers),
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(total=request.timeout),
            pool_timeout=request.pool_timeout,
            preload_content=False,
        )
    except ClosedPoolError as exc:
        raise ClientClosed("the connection pool was closed") from exc
    except EmptyPoolError as exc:
        raise NoFreeConnection from exc
    body = b""
    until = min(until, monotonic() + request.body_timeout(response.status))
    try:
        with suppress(*tolerated(response.status, ClientSender.network_errors)):
            body = read_limited(pieces(response, until), until=until)
    finally:
        release(response, finished=0 < len(body) <= MAX_BODY)
    return TokenResponse(response.status, response.headers, body)


def standalone_sender() -> ClientSender:
    """Return a sender with pools of its own."""
    return ClientSender(urllib3.PoolManager())


class ClientSender:
    """Sends token requests over the pools of a client."""

    network_errors = (HTTPError, OSError)

    def __init__(self, client: Any) -> None:
        self.client = client

    def post(self, request: TokenRequest) -> TokenResponse:
        """Do the same as :meth:`Sender.post`."""
        pool, target = self._pool(request.url)
        return post(getattr(pool, "plain_urlopen", pool.urlopen), target, request)

    def _pool(self, url: str) -> tuple[Any, str]:
        """Return the pool for *url*, and the target of a request line: the whole URL for a forwarding proxy."""
        pools: urllib3.PoolManager = self.client
        forwarded = pools.proxy is not None and not connection_requires_http_tunnel(
            pools.proxy, pools.proxy_config, parse_url(url).scheme
        )
        return pools.connection_from_url(url), url if forwarded else "/"

    def close(self) -> None:
        """Close the pools."""
        self.client.clear()


def client_sender(client: urllib3.PoolManager) -> Sender:
    """Return a sender over the pools of *client*."""
    return ClientSender(client)


class MarkedPool(urllib3.HTTPConnectionPool):
    """A pool that marks its connections: their host and port may be any, and others may have the same."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        self.pay88_mark = object()  # not the pool itself, which its connections would keep alive
        super().__init__(*args, **kw)

    def _new_conn(self, *args: Any, **kw: Any) -> Any:  # there is no public name; it is the same in all versions
        connection: Any = super()._new_conn(*args, **kw)
        with suppress(AttributeError):  # of a test double
            connection.pay88_mark = self.pay88_mark
        return connection


def was_not_sent(exc: Exception, pool: Any) -> bool:
    """Whether *exc* shows that a request over *pool* had no connection.

    The error of another request does not: a wrapper around the pool may send one when the first has been executed.
    """
    if _is_of_another_request(exc.__traceback__):
        return False
    if not isinstance(exc, ProxyError):
        return isinstance(exc, NOT_SENT) and _is_of_pool(exc, pool)
    # Whatever breaks a connection through a proxy comes as this, also where the request had been sent: urllib3
    # goes by whether the connection is open, and http.client has closed it by then.
    cause = exc.original_error
    refused = type(cause) is OSError and str(cause).startswith("Tunnel connection failed")
    return refused or (isinstance(cause, NOT_SENT) and _is_of_pool(cause, pool))


def _is_of_another_request(tb: TracebackType | None) -> bool:
    while tb is not None:
        module = tb.tb_frame.f_globals.get("__name__")
        if module in _BEGINNINGS or (module == _MANAGED_POOLS and tb.tb_frame.f_code.co_name == "urlopen"):
            return True
        tb = tb.tb_next
    return False


def _is_of_pool(exc: Exception, pool: Any) -> bool:
    """Whether the connection of *exc* is one of *pool*; also true without one, as in test doubles."""
    connection: Any = getattr(exc, "conn", None) or next(iter(exc.args), None)
    if not isinstance(connection, HTTPConnection):
        return True
    return getattr(connection, "pay88_mark", None) is pool.pay88_mark


def pieces(response: BaseHTTPResponse, until: float) -> Iterator[bytes]:
    """Yield a response body as it arrives; raise :class:`BodyTimeout` when it takes too long."""
    connection: Any = getattr(response, "connection", None)
    sock = socket_of(connection)
    if sock is None:
        yield from response.stream(1, decode_content=False)
        return
    # Older versions only read until they have the requested number of bytes.
    read = partial(response.read1, MAX_BODY) if hasattr(response, "read1") else partial(response.read, 1)
    configured = connection.timeout if isinstance(connection.timeout, (int, float)) else until
    piece = b"more"
    while piece:
        left = remaining_seconds(until)
        # The connection of a response that was read completely belongs to another request, which sets its own timeout.
        if response.connection is not None:
            sock.settimeout(min(left, configured))
        piece = read(decode_content=False)
        yield piece


def socket_of(connection: Any) -> Any:
    """Return the socket of *connection*; ``None`` for test doubles, and if it ends with this response."""
    sock = getattr(connection, "sock", None)
    return sock if hasattr(sock, "recv_into") else None


def release(response: BaseHTTPResponse, *, finished: bool) -> None:
    if not finished:
        response.close()
    response.release_conn()  # close() alone would lose the slot of a blocking pool


def split_headers(given: Mapping[str, str]) -> tuple[Fields, str | None, bool]:
    """Return the caller's headers without those of a token, its ``Authorization``, and whether any header is ours.

    Headers of ours mean that urllib3 makes a request of an outer level again, or follows its redirect.
    """
    fields: dict[str, str] = {}
    authorization, is_from_urllib3 = None, False
    count = 0
    for name, value in given.items():  # a repeated header is there twice
        if type(value) is InjectedHeader:
            is_from_urllib3 = True
            continue
        if type(name) is not str:
            name = _text(name)  # noqa: PLW2901
        lowered = name.lower()
        if lowered not in MANAGED_FIELDS:
            fields[name] = value
            count += 1
        elif authorization is None and lowered == "authorization":
            authorization = _text(value)
    if count == len(fields):
        return fields, authorization, is_from_urllib3
    pairs = [(_text(name), value) for name, value in without_injected(given).items()]
    repeated = _Headers([pair for pair in pairs if pair[0].lower() not in MANAGED_FIELDS])
    return repeated, authorization, is_from_urllib3


def as_own(headers: Mapping[str, str]) -> Fields:
    """Return *headers* of the caller, who has them from a token, so that they do not count as added by an adapter."""
    pairs = [(name, as_secret(value) if type(value) is InjectedHeader else value) for name, value in headers.items()]
    return _as_fields(pairs)


def pass_on(args: tuple[Any, ...], by_position: tuple[str, ...], kw: dict[str, Any]) -> tuple[Any, ...]:
    """Take the arguments with the names *by_position* out of *kw*; return all positional arguments."""
    return (*args, *[kw.pop(name) for name in by_position])


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def without_injected(headers: Mapping[str, str]) -> Fields:
    """Return *headers* without those that an adapter added."""
    return _as_fields([each for each in headers.items() if type(each[1]) is not InjectedHeader])


def _as_fields(pairs: list[tuple[str, str]]) -> Fields:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else _Headers(pairs)


class _Headers(urllib3.HTTPHeaderDict):
    """For repeated headers. The original's repr shows all values."""

    def __repr__(self) -> str:
        return f"<{len(self)} header fields>"


Fields = dict[str, str] | _Headers
"""Headers; a repeated one is there twice."""

NO_HEADERS: tuple[Fields, None, bool] = ({}, None, False)
"""The result of :func:`split_headers` for none."""

"""urllib3: pool managers whose calls to 88Pay carry a token. The core decides; this file translates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any, TypeVar

try:
    import urllib3
except ModuleNotFoundError as exc:
    raise ImportError("urllib3 is not installed: pip install 'pay88-adapters[urllib3]'") from exc
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    SSLError,
    TimeoutError,
    UnrewindableBodyError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from .bodies import bookmark
from .drivers import CarrierLost, Sender
from .errors import Flavours, Pay88Error
from .manager import TokenManager
from .retry import Broken, once
from .secret import Attached
from .token import MANAGED_FIELDS, Token
from .urllib3_retry import Pay88Retry
from .wire import MAX_BODY, MAX_DRAINED, TokenReply, TokenRequest, capped

__all__ = ["Pay88PoolManager", "Pay88Retry", "attach"]

P = TypeVar("P", bound=urllib3.PoolManager)

_NEVER_SENT = (NewConnectionError, ConnectTimeoutError)
_BROKEN = (*_NEVER_SENT, ProxyError, ProtocolError, TimeoutError, SSLError)

_flavours = Flavours(HTTPError, globals())


class Pay88PoolManager(urllib3.PoolManager):
    """A :class:`urllib3.PoolManager` whose calls to ``manager.base_url`` carry a token.

    Args:
        manager: Shared by every stack.
        num_pools, headers, connection_pool_kw: As for :class:`urllib3.PoolManager`.
    """

    def __init__(
        self,
        manager: TokenManager,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        **connection_pool_kw: Any,
    ) -> None:
        super().__init__(num_pools, headers, **connection_pool_kw)
        attach(self, manager)


def attach(pool_manager: P, manager: TokenManager) -> P:
    """Let the calls that *pool_manager* makes to ``manager.base_url`` carry a token.

    Works for every :class:`urllib3.PoolManager`, proxy managers among them. Requests in flight finish
    as they began; attaching again replaces the manager.

    Returns:
        *pool_manager*.
    """
    # A new dict: the one found there belongs to the whole urllib3 module.
    pool_manager.pool_classes_by_scheme = {
        scheme: _managed(pool_class, manager) for scheme, pool_class in pool_manager.pool_classes_by_scheme.items()
    }
    pool_manager.clear()
    return pool_manager


def standalone_sender(manager: TokenManager) -> Sender:
    """Return a sender with a pool of its own."""
    pool: Any = Pay88PoolManager(manager).connection_from_url(manager.base_url)
    return _Call(manager, pool, "POST", "/", None, [], False, False, False, {})


class _ManagedPool(urllib3.HTTPConnectionPool):
    """Mixed into a pool class. urllib3's own retries come through :meth:`urlopen`, too."""

    pay88_manager: TokenManager

    def urlopen(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Any = None,
        redirect: bool = True,
        assert_same_host: bool = True,
        **kw: Any,
    ) -> BaseHTTPResponse:
        given = self.headers if headers is None else headers
        fields, authorization, again = _sorted(given) if given else ([], None, False)
        manager = self._managing(url, authorization)
        if manager is None:
            if isinstance(told := self.retries_for(retries), Pay88Retry):  # of the pool, or a redirect has led here
                retries = told.plain()
            if again:
                headers = _headers([each for each in given.items() if type(each[1]) is not Attached])
            return super().urlopen(method, url, body, headers, retries, redirect, assert_same_host, **kw)
        call = _Call(manager, self, method, url, body, fields, retries, redirect, assert_same_host, kw)
        try:
            return call.send_again() if again else call.finish(manager.threads.call(call))
        except Pay88Error as error:
            raise _flavours.of(error)  # noqa: B904 - carries its cause

    def _managing(self, url: str, authorization: str | None) -> TokenManager | None:
        managing = self.pay88_manager.managing
        if url[:1] == "/":
            return managing(self.scheme or "http", self.host, self.port, url, authorization)
        target = parse_url(url)
        path = target.path or "/"
        manager = managing(target.scheme or "http", target.host or "", target.port, path, authorization)
        # Whatever the URL says, the bytes go where the pool's connections go, unless that is a proxy.
        if manager is None or (self.proxy is not None and (self.host, self.port) == (self.proxy.host, self.proxy.port)):
            return manager
        return managing(self.scheme or "http", self.host, self.port, "/", authorization)

    def retries_for(self, given: Any) -> Any:
        return self.retries if given is None else given


def _sorted(given: Mapping[str, str]) -> tuple[list[tuple[str, str]], str | None, bool]:
    """Return the caller's fields without those that a token goes into, its ``Authorization``, and whether any is ours.

    With fields of ours in it, this is urllib3 sending again what an outer level began.
    """
    fields: list[tuple[str, str]] = []
    authorization, again = None, False
    for name, value in given.items():  # one that occurs twice is there twice
        if type(value) is Attached:
            again = True
            continue
        if type(name) is not str:
            name = _text(name)  # noqa: PLW2901
        lowered = name.lower()
        if lowered not in MANAGED_FIELDS:
            fields.append((name, value))
        elif authorization is None and lowered == "authorization":
            authorization = _text(value)
    return fields, authorization, again


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _managed(pool_class: type[Any], manager: TokenManager) -> type[Any]:
    if issubclass(pool_class, _ManagedPool):
        pool_class = pool_class.__bases__[1]
    # By the same name, for errors and logs show it.
    return type(pool_class.__name__, (_ManagedPool, pool_class), {"pay88_manager": manager})


class _Headers(urllib3.HTTPHeaderDict):
    """For header fields that occur twice. The original prints all values."""

    def __repr__(self) -> str:
        return f"<{len(self)} header fields>"


def _headers(fields: list[tuple[str, str]]) -> Mapping[str, str]:
    plain = dict(fields)
    return plain if len(plain) == len(fields) else _Headers(fields)


_DEFAULT = Pay88Retry()


class _Call:
    """One call, and the token requests it may lead to."""

    network_errors = (HTTPError, OSError)
    status = staticmethod(attrgetter("status"))

    def __init__(
        self,
        manager: TokenManager,
        pool: _ManagedPool,
        method: str,
        url: str,
        body: Any,
        fields: list[tuple[str, str]],
        retries: Any,
        redirect: bool,
        assert_same_host: bool,
        kw: dict[str, Any],
    ) -> None:
        self.method = method
        self._manager, self._pool, self._url, self._body, self._fields = manager, pool, url, body, fields
        self._redirect, self._assert_same_host, self._kw = redirect, assert_same_host, kw
        self._bookmark = bookmark(body)
        # urllib3 rewinds to this before each send. Its own mark for "cannot tell" must not be passed on.
        if self._bookmark.position is not None and kw.get("body_pos") is None:
            kw["body_pos"] = self._bookmark.position
        if retries is None:
            retries = pool.retries
            if retries is urllib3.Retry.DEFAULT:
                retries = _DEFAULT
        self._retries = retries
        self._preload = False
        if isinstance(retries, Pay88Retry):
            self.retry = retries.policy
            # Reading is left until it is clear that this response is the one, and is no part of an attempt.
            self._preload, kw["preload_content"] = kw.get("preload_content", True), False
        else:
            self.retry = once(manager.retry)  # urllib3 sends again what the caller's own says

    @property
    def patience(self) -> float | None:
        timeout = self._kw.get("timeout")
        total = timeout.total if isinstance(timeout, urllib3.Timeout) else timeout
        return total if isinstance(total, (int, float)) else None

    @property
    def total(self) -> float | None:
        # A plain number is for each phase of each attempt.
        return self.patience if isinstance(self._kw.get("timeout"), urllib3.Timeout) else None

    @property
    def path(self) -> str:
        return self._url if self._url.startswith("/") else parse_url(self._url).path or "/"

    def send(self, token: Token) -> BaseHTTPResponse:
        fields = self._fields
        headers = _headers([*fields, *token.attached.items()]) if fields else token.attached.copy()
        # What the pool does without us; looked up here, for others wrap it, too.
        return super(_ManagedPool, self._pool).urlopen(
            self.method,
            self._url,
            self._body,
            headers,
            self._retries,
            self._redirect,
            self._assert_same_host,
            **self._kw,
        )

    def send_again(self) -> BaseHTTPResponse:
        """Send for urllib3's own retry, with a token that is good now; the outer level judges the answer."""
        if not self._bookmark.replayable:  # urllib3 would send an empty body
            raise UnrewindableBodyError("the body cannot be sent again: pass bytes, or a file that can seek")
        self._check_allowed(self._retries)
        with self._manager.threads.token_for(self) as token:
            response = self.send(token)
        if not hasattr(response, "pay88_token"):
            response.pay88_token = token  # type: ignore[attr-defined]
        return response

    def _check_allowed(self, retries: urllib3.Retry) -> None:
        # urllib3 asks the caller's allowed_methods after other errors, and not after what it takes for a proxy's.
        error = retries.history[-1].error if retries.history else None
        allowed = not retries.allowed_methods or self.method.upper() in retries.allowed_methods
        if isinstance(error, ProxyError) and not (allowed or _never_sent(error)):
            raise error

    def finish(self, response: BaseHTTPResponse) -> BaseHTTPResponse:
        """Read the response if the caller wants that."""
        if self._preload:
            _ = response.data
        return response

    def headers(self, response: BaseHTTPResponse) -> Mapping[str, str]:
        return response.headers

    def broken(self, exc: Exception) -> Broken | None:
        if not isinstance(exc, _BROKEN):
            return None
        self._note(self._retries, error=exc)
        return Broken(never_sent=_never_sent(exc))

    def _note(self, retries: Any, **attempt: Any) -> None:
        self._retries = retries.after(self.method, self.path, **attempt) if isinstance(retries, Pay88Retry) else retries

    def token_used(self, response: BaseHTTPResponse, token: Token) -> Token:
        return getattr(response, "pay88_token", token)

    def replayable(self) -> bool:
        return self._bookmark.replayable

    def discard(self, response: BaseHTTPResponse) -> None:
        self._note(response.retries, status=response.status)  # what is left of the caller's
        drained = False
        with suppress(*self.network_errors):
            drained = len(response.read(MAX_DRAINED + 1, decode_content=False)) <= MAX_DRAINED
        _let_go(response, finished=drained)

    def post(self, request: TokenRequest) -> TokenReply:
        pool = self._pool
        try:
            response = super(_ManagedPool, pool).urlopen(
                request.method,
                request.path if self._url.startswith("/") else request.url,  # a forwarding proxy wants it all
                headers=dict(request.headers),
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=_bounded(pool.timeout, request.timeout),
                pool_timeout=request.timeout,  # type: ignore[arg-type]  # seconds may be a float
                preload_content=False,
            )
        except ClosedPoolError as exc:
            raise CarrierLost from exc
        body = b""
        try:
            body = capped(response.stream(MAX_BODY, decode_content=False))
        finally:
            _let_go(response, finished=0 < len(body) <= MAX_BODY)
        return TokenReply(response.status, response.headers, body)


def _never_sent(exc: Exception) -> bool:
    if not isinstance(exc, ProxyError):
        return isinstance(exc, _NEVER_SENT)
    # Whatever breaks a connection through a proxy comes as this, also where the request had been sent: urllib3
    # goes by whether the connection is open, and http.client has closed it by then.
    cause = exc.original_error
    refused = type(cause) is OSError and str(cause).startswith("Tunnel connection failed")
    return refused or isinstance(cause, _NEVER_SENT)


def _let_go(response: BaseHTTPResponse, *, finished: bool) -> None:
    if not finished:
        response.close()
    response.release_conn()  # close() alone would lose the slot of a blocking pool


def _bounded(configured: urllib3.Timeout, seconds: float) -> urllib3.Timeout:
    """Return the pool's own timeouts where they are shorter than *seconds*."""
    phases = {"connect": configured.connect_timeout, "read": configured.read_timeout}
    shorter = {name: value for name, value in phases.items() if isinstance(value, (int, float)) and value < seconds}
    return urllib3.Timeout(total=seconds, **shorter)

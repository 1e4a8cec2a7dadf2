"""urllib3: pool managers whose requests to 88Pay carry a token. The core decides; this file translates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache, partial
from sys import modules
from typing import Any, TypeVar

try:
    import urllib3
except ModuleNotFoundError as exc:
    raise ImportError("urllib3 is not installed: pip install 'pay88-adapters[urllib3]'") from exc
from urllib3.exceptions import HTTPError, MaxRetryError, ProxyError, UnrewindableBodyError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, parse_url

from pay88_adapters.stores.realtime import monotonic

from .core import errors
from .core.arguments import check_client, inside
from .core.constants import UNAUTHORIZED
from .core.errors import AdapterErrors, Pay88Error
from .core.retry import ConnectionFailure, RetryPolicy, single_attempt
from .core.token import AUTHORIZATION, SESSION_ID, Token
from .core.wire import MAX_DRAIN_SECONDS, MAX_DRAINED, TokenRequest, TokenResponse
from .engine.bodies import PLAIN, WHOLE, BodyPosition
from .engine.logs import hide_secrets_in_logs
from .engine.manager import TokenManager
from .engine.recorders import RECORDER, check_call
from .engine.responses import BodyTimeout, read_limited
from .engine.stand_ins import AnyManager, UnavailableManager, check_manager
from .urllib3_io import (
    CONNECTION_ERRORS,
    NO_HEADERS,
    Fields,
    MarkedPool,
    as_own,
    pass_on,
    pieces,
    post,
    release,
    socket_of,
    split_headers,
    was_not_sent,
    without_injected,
)
from .urllib3_io import ClientSender as ClientSender
from .urllib3_io import client_sender as client_sender
from .urllib3_io import standalone_sender as standalone_sender
from .urllib3_retry import (
    Pay88Retry,
    Redirected,
    continues,
    exhausted,
    exhausted_status,
    is_redirect,
    removes_injected,
    without_removing,
    without_resending,
)

__all__ = ["Pay88PoolManager", "Pay88Retry", "attach"]

P = TypeVar("P", bound=urllib3.PoolManager)


class ConfigurationError(errors.ConfigurationError, HTTPError): ...


class CredentialsRejected(errors.CredentialsRejected, HTTPError): ...


class TokenBudgetExhausted(errors.TokenBudgetExhausted, HTTPError): ...


class TokenRateLimited(errors.TokenRateLimited, HTTPError): ...


class TokenEndpointUnavailable(errors.TokenEndpointUnavailable, HTTPError): ...


class TokenResponseInvalid(errors.TokenResponseInvalid, TokenEndpointUnavailable): ...


class RequestBudgetExhausted(errors.RequestBudgetExhausted, HTTPError): ...


class CircuitOpen(errors.CircuitOpen, HTTPError): ...


# The arguments of a pool's urlopen(), in their order.
_NAMES = (
    *("method", "url", "body", "headers", "retries", "redirect", "assert_same_host", "timeout", "pool_timeout"),
    *("release_conn", "chunked", "body_pos", "preload_content", "decode_content"),
)

_errors = AdapterErrors(HTTPError, globals())
hide_secrets_in_logs()


class Pay88PoolManager(urllib3.PoolManager):
    """A :class:`urllib3.PoolManager` whose requests to ``manager.base_url`` carry a token.

    Args:
        manager: The manager; it may be attached to any number of clients.
        num_pools, headers, connection_pool_kw: As for :class:`urllib3.PoolManager`.

    Raises:
        ConfigurationError: *manager* is not a manager.
    """

    def __init__(
        self,
        manager: AnyManager,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        **connection_pool_kw: Any,
    ) -> None:
        super().__init__(num_pools, headers, **connection_pool_kw)
        attach(self, manager)


def attach(pool_manager: P, manager: AnyManager) -> P:
    """Attach *manager* to *pool_manager*: requests to ``manager.base_url`` carry a token.

    Works for every :class:`urllib3.PoolManager`, including proxy managers. Requests in flight finish without a change;
    attaching again replaces the manager.

    Returns:
        *pool_manager*.

    Raises:
        ConfigurationError: *pool_manager* is not a :class:`urllib3.PoolManager`, or *manager* is not a manager.
    """
    check_client(pool_manager, "urllib3", (urllib3.PoolManager,))
    check_manager(manager)
    return install(pool_manager, manager)


def install(pool_manager: P, manager: AnyManager | UnavailableManager) -> P:
    """Attach *manager* like :func:`attach`, with checked arguments."""
    classes = inside(pool_manager, "pool_classes_by_scheme", dict)
    # A new dict: the existing one belongs to the whole urllib3 module. urllib3 calls its values.
    managed: Any = {scheme: _managed(pool_class, manager) for scheme, pool_class in classes.items()}
    pool_manager.pool_classes_by_scheme = managed
    pool_manager.clear()
    return pool_manager


class _ManagedPool(MarkedPool):
    """Mixed into a pool class. urllib3's own retries call :meth:`urlopen`, too."""

    def __init__(self, manager: AnyManager | UnavailableManager, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.pay88_manager = manager
        self.pay88_default_retries = Retry.DEFAULT  # what urllib3 gives a pool that it makes now

    def urlopen(self, *args: Any, **kw: Any) -> BaseHTTPResponse:
        # Wrappers around urllib3's own method rely on how urllib3 passes its arguments: pass each one the same way.
        by_position: tuple[str, ...] = ()
        if len(args) > 2:
            by_position = _NAMES[2 : len(args)]
            if len(args) > len(_NAMES) or not kw.keys().isdisjoint(by_position):
                return super().urlopen(*args, **kw)  # which raises the error about the arguments
            kw.update(zip(by_position, args[2:], strict=True))
            args = args[:2]
        url = args[1] if len(args) > 1 else kw.get("url", "")
        headers = kw.get("headers")
        if headers is None:
            headers = self.headers
        fields, authorization, is_from_urllib3 = split_headers(headers) if headers else NO_HEADERS
        if is_from_urllib3 and (response := self._before_retry(headers, args, by_position, kw)) is not None:
            return response
        try:
            if url[:1] == "/":  # the form of pool managers
                manager = self.pay88_manager.for_request(
                    self.scheme or "http", self.host, self.port, url, authorization
                )
            else:
                manager = self.manager_for(url, authorization)
        except Pay88Error as error:
            raise _errors.convert(error)  # noqa: B904 - carries its cause
        if manager is None:
            return self._pass_through(args, by_position, kw, without_injected(headers) if is_from_urllib3 else None)
        call = _Call()
        call.prepare(manager, self, args, by_position, kw, fields)
        try:
            if is_from_urllib3:
                return call.resend()
            response = manager.sync_runner.call(call)
            if call.preload:
                response = call.read(response)
            return call.follow(response) if type(response) is Redirected else response
        except Pay88Error as error:
            raise _errors.convert(error)  # noqa: B904 - carries its cause

    def _before_retry(
        self, headers: Any, args: tuple[Any, ...], by_position: tuple[str, ...], kw: dict[str, Any]
    ) -> BaseHTTPResponse | None:
        """Return the response to a request with *headers* of a token, or ``None`` if it is a retry of urllib3."""
        if not continues(kw.get("retries"), redirect=kw.get("redirect", True)):
            kw["headers"] = as_own(headers)
            return self.urlopen(*pass_on(args, by_position, kw), **kw)
        if is_redirect(kw["retries"]):
            kw["headers"] = without_injected(headers)
            return Redirected(args, by_position, kw)
        return None

    def _pass_through(
        self, args: tuple[Any, ...], by_position: tuple[str, ...], kw: dict[str, Any], headers: Fields | None
    ) -> BaseHTTPResponse:
        if headers is not None:
            kw["headers"] = headers
        # A default of the pool's, or a redirect that has led here
        retries = self.retries if kw.get("retries") is None else kw["retries"]
        if isinstance(retries, Pay88Retry):
            kw["retries"] = retries.plain()
        return super().urlopen(*pass_on(args, by_position, kw), **kw)

    def manager_for(self, url: str, authorization: str | None = None) -> TokenManager | None:
        for_request = self.pay88_manager.for_request
        target = parse_url(url)
        path = target.path or "/"
        manager = for_request(target.scheme or "http", target.host or "", target.port, path, authorization)
        # Whatever the URL contains, the bytes go to the pool's origin, unless that is a proxy.
        proxy = self.proxy  # whose host has the brackets of IPv6
        if manager is None or (proxy and (self.host, self.port) == ((proxy.host or "").strip("[]"), proxy.port)):
            return manager
        return for_request(self.scheme or "http", self.host, self.port, "/", authorization)

    def plain_urlopen(self, *args: Any, **kw: Any) -> BaseHTTPResponse:
        """Send a request without the manager."""
        return super().urlopen(*args, **kw)


def _managed(pool_class: Any, manager: AnyManager | UnavailableManager) -> partial[_ManagedPool]:
    """Return the factory of managed pools like *pool_class*, or like the result of an earlier call, for *manager*."""
    if isinstance(pool_class, partial):
        pool_class = pool_class.func
    # Not one class per manager: CPython 3.13t never frees a class, nor what it refers to.
    managed = pool_class if issubclass(pool_class, _ManagedPool) else _managed_class(pool_class)
    return partial(managed, manager)


@lru_cache(maxsize=64)
def _managed_class(pool_class: type[Any]) -> type[_ManagedPool]:
    # With the same name, which errors and logs show.
    return type(pool_class.__name__, (_ManagedPool, pool_class), {})


_DEFAULT = Pay88Retry()


class _Call:
    """One API request, and the token requests that it may send."""

    __slots__ = (
        "__weakref__",
        "_args",
        "_body_position",
        "_by_position",
        "_fields",
        "_kw",
        "_manager",
        "_pool",
        "_reads_attempts",
        "_retries",
        "preload",
        "retry",
    )

    _retries: Any
    retry: RetryPolicy | None

    network_errors = (HTTPError, OSError)

    def prepare(
        self,
        manager: TokenManager,
        pool: _ManagedPool,
        args: tuple[Any, ...],
        by_position: tuple[str, ...],
        kw: dict[str, Any],
        fields: Fields,
    ) -> None:
        """Note all about the request that sending it changes. No constructor: that costs much more."""
        self._manager, self._pool, self._fields = manager, pool, fields
        self._args, self._by_position, self._kw = args, by_position, kw
        body = kw.get("body")
        self._body_position = WHOLE if type(body) in PLAIN else BodyPosition(body, position=kw.get("body_pos"))
        self.preload = kw.get("preload_content", True)
        if self.preload:  # reading waits until this is known to be no rejected response, which may have no end
            kw["preload_content"] = False
            if "release_conn" in kw:
                kw["release_conn"] = None  # when the body has been read
        retries = kw.get("retries")
        if retries is None:
            retries = pool.retries
            if retries is pool.pay88_default_retries:  # as nearly always
                kw["retries"] = self._retries = _DEFAULT
                self.retry = None
                self._reads_attempts = False  # reading is no part of an attempt
                return
        self._obey(retries)

    def _obey(self, retries: Any) -> None:
        """Note how to retry, as *retries* says: a value of the caller's."""
        if removes_injected(retries):
            self._kw["retries"] = retries = without_removing(retries)
        self._retries = retries
        if isinstance(retries, Pay88Retry):
            self.retry = retries.policy
            self._reads_attempts = False
            return
        self.retry = single_attempt(self._manager.retry)  # urllib3 retries by itself
        self._reads_attempts = self.preload
        if not self._body_position.steady:
            self._kw["retries"] = without_resending(retries, redirect=self._kw.get("redirect", True))

    @property
    def method(self) -> str:
        method: str = self._args[0] if self._args else self._kw.get("method", "")
        return method

    @property
    def _url(self) -> str:
        url: str = self._args[1] if len(self._args) > 1 else self._kw.get("url", "")
        return url

    @property
    def client(self) -> object:
        return self._pool

    @property
    def is_closed(self) -> bool:
        return self._pool.pool is None

    def _timeout(self) -> Any:
        given = self._kw.get("timeout", self._pool.timeout)
        # urllib3's own value for "the pool's default", which its retries pass, is neither of these.
        return given if given is None or isinstance(given, (int, float, urllib3.Timeout)) else self._pool.timeout

    @property
    def token_timeout(self) -> float | None:
        timeout = self._timeout()
        total = timeout.total if isinstance(timeout, urllib3.Timeout) else timeout
        return total if isinstance(total, (int, float)) else None

    @property
    def total_timeout(self) -> float | None:
        # A plain number applies to each phase of each attempt.
        return self.token_timeout if isinstance(self._timeout(), urllib3.Timeout) else None

    @property
    def path(self) -> str:
        return self._url if self._url.startswith("/") else parse_url(self._url).path or "/"

    def _whole_url(self) -> str:
        pool = self._pool
        return f"{pool.scheme}://{pool.host}:{pool.port}{self._url}" if self._url.startswith("/") else self._url

    def status(self, response: BaseHTTPResponse) -> int:
        return response.status

    def send(self, token: Token) -> BaseHTTPResponse:
        if RECORDER in modules:
            check_call(self.method, self._whole_url())
        fields = self._fields
        headers: Any = fields.copy() if fields else {}
        headers[AUTHORIZATION], headers[SESSION_ID] = token.authorization, token.session
        kw = self._kw
        kw["headers"] = headers
        args = self._args
        if self._by_position:
            kw = kw.copy()
            args = pass_on(args, self._by_position, kw)
        # The pool's own method; looked up here, because other code wraps it, too.
        response: BaseHTTPResponse = super(_ManagedPool, self._pool).urlopen(*args, **kw)
        return self.read(response) if self._reads_attempts and response.status != UNAUTHORIZED else response

    def resend(self) -> BaseHTTPResponse:
        """Send urllib3's own retry with a valid token; the outer level judges the response."""
        self._rewind()
        self._check_allowed(self._retries)
        runner = self._manager.sync_runner
        if self._retries.history and not runner.may_retry(self, self._retries.history[-1].status):
            raise exhausted(self._retries, self._pool, self._url)
        with runner.token_for(self) as token:
            response = self.send(token)
        if not hasattr(response, "pay88_token"):
            response.pay88_token = token  # type: ignore[attr-defined]
        return response

    def _rewind(self) -> None:
        if not self._body_position.rewind():  # urllib3 would send an empty body
            raise UnrewindableBodyError("the body is not rewindable: pass bytes or a seekable file")

    def _check_allowed(self, retries: Retry) -> None:
        # urllib3 applies the caller's allowed_methods to other errors, but not to what it takes for a proxy error.
        error = retries.history[-1].error if retries.history else None
        allowed = not retries.allowed_methods or self.method.upper() in retries.allowed_methods
        if isinstance(error, ProxyError) and not (allowed or was_not_sent(error, self._pool)):
            raise error

    def read(self, response: BaseHTTPResponse) -> BaseHTTPResponse:
        """Read the body; if that fails, do what urllib3 does with ``preload_content``: it retries, or raises."""
        try:
            _ = response.data
        except CONNECTION_ERRORS as error:
            retries = response.retries
            if retries is None:
                raise
            self._retries = self._kw["retries"] = retries.increment(
                self.method, self._url, error=error, _pool=self._pool, _stacktrace=error.__traceback__
            )
            self._retries.sleep()
        else:
            return response
        return self.resend()

    def follow(self, redirected: Redirected) -> BaseHTTPResponse:
        """Send the request to which *redirected* leads: it has its own attempts, permits and token."""
        args, kw = redirected.args, redirected.kw
        if self.preload:
            kw.update(preload_content=self.preload, release_conn=None)
        url = args[1] if len(args) > 1 else kw["url"]
        if kw.get("body") is not None and (url[:1] == "/" or self._pool.manager_for(url) is not None):
            self._rewind()
        return self._pool.urlopen(*pass_on(args, redirected.by_position, kw), **kw)

    def headers(self, response: BaseHTTPResponse) -> Mapping[str, str]:
        return response.headers

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        if isinstance(exc, MaxRetryError):  # urllib3 has made the retries: none follows
            status = exhausted_status(exc)
            failed = status is not None or isinstance(exc.reason, CONNECTION_ERRORS)
            return ConnectionFailure(permanent=True, status=status) if failed else None
        if not isinstance(exc, CONNECTION_ERRORS):
            return None
        self._note(self._retries, error=exc)
        return ConnectionFailure(not_sent=was_not_sent(exc, self._pool))

    def _note(self, retries: Any, **attempt: Any) -> None:
        self._retries = retries.after(self.method, self.path, **attempt) if isinstance(retries, Pay88Retry) else retries
        self._kw["retries"] = self._retries

    def token_used(self, response: BaseHTTPResponse, token: Token) -> Token:
        return getattr(response, "pay88_token", token)

    def replayable(self) -> bool:
        return self._body_position.rewind()

    def discard(self, response: BaseHTTPResponse) -> None:
        drained = False
        try:
            self._note(response.retries, status=response.status)  # the caller's remaining retries
            until = monotonic() + MAX_DRAIN_SECONDS
            if socket_of(getattr(response, "connection", None)) is not None:
                with suppress(HTTPError, ConnectionError, BodyTimeout):  # no other timeout: that would be the caller's
                    drained = len(read_limited(pieces(response, until), MAX_DRAINED)) <= MAX_DRAINED
        finally:
            release(response, finished=drained)

    def post(self, request: TokenRequest) -> TokenResponse:
        pool = self._pool
        return post(pool.plain_urlopen, self._url, request)

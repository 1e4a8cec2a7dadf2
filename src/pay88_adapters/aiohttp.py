"""aiohttp: a client middleware that adds a token to requests to 88Pay. The core decides; this file translates."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from typing import Any, TypeVar

try:
    import aiohttp
except ModuleNotFoundError as exc:
    raise ImportError("aiohttp is not installed: pip install 'pay88-adapters[aiohttp]'") from exc
from aiohttp.client import IDEMPOTENT_METHODS
from aiohttp.client_middlewares import ClientHandlerType
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, istr

from .aiohttp_io import NETWORK_ERRORS, ending, post
from .aiohttp_io import client_sender as client_sender
from .aiohttp_io import standalone_sender as standalone_sender
from .core import errors
from .core.arguments import check_client, inside
from .core.errors import AdapterErrors, ClientClosed, Pay88Error
from .core.retry import ConnectionFailure
from .core.token import AUTHORIZATION, MANAGED_FIELDS, SESSION_ID, Token
from .core.wire import MAX_DRAIN_SECONDS, MAX_DRAINED, TokenRequest, TokenResponse
from .engine.bodies import WHOLE, BodyPosition
from .engine.responses import aread_limited
from .engine.stand_ins import AnyManager, check_manager

__all__ = ["Pay88Middleware", "attach"]

S = TypeVar("S", bound=aiohttp.ClientSession)


class ConfigurationError(errors.ConfigurationError, aiohttp.ClientError): ...


class CredentialsRejected(errors.CredentialsRejected, aiohttp.ClientError): ...


class TokenBudgetExhausted(errors.TokenBudgetExhausted, aiohttp.ClientError): ...


class TokenRateLimited(errors.TokenRateLimited, aiohttp.ClientError): ...


class TokenEndpointUnavailable(errors.TokenEndpointUnavailable, aiohttp.ClientError): ...


class TokenResponseInvalid(errors.TokenResponseInvalid, TokenEndpointUnavailable): ...


class RequestBudgetExhausted(errors.RequestBudgetExhausted, aiohttp.ClientError): ...


class CircuitOpen(errors.CircuitOpen, aiohttp.ClientError): ...


_errors = AdapterErrors(aiohttp.ClientError, globals())

_AUTHORIZATION, _SESSION_ID = istr(AUTHORIZATION), istr(SESSION_ID)  # folded once, not at each look-up

NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

# Payloads with their content in ``_value``, which has no public name.
_PAYLOADS = frozenset(
    getattr(aiohttp.payload, name, None)
    for name in (
        "BytesPayload",
        "StringPayload",
        "StringIOPayload",
        "JsonPayload",
        "JsonBytesPayload",
        "BytesIOPayload",
        "BufferedReaderPayload",
        "IOBasePayload",
    )
)

_MAX_REMEMBERED = 64  # requests that ended with a connection error and that aiohttp has not retried yet


class Pay88Middleware:
    """A client middleware: requests to ``manager.base_url`` carry a token, all others pass through unchanged.

    Responses show the request of the caller. Inner middlewares, and the session's traces, see the request as it is
    sent, with the token. Without a manager, aiohttp retries some requests if a reused connection was closed. With one,
    only its :class:`~pay88_adapters.RetryPolicy` decides about retries.

    Args:
        manager: The manager; it may be attached to any number of clients.

    Raises:
        ConfigurationError: *manager* is not a manager.
    """

    def __init__(self, manager: AnyManager) -> None:
        check_manager(manager)
        self._manager = manager
        # By its identity: the timer that all attempts of a request share, with the last one and its error.
        self._failed_requests: dict[int, tuple[object, weakref.ref[aiohttp.ClientRequest], Exception]] = {}

    async def __call__(self, request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
        url, headers = request.url, request.headers
        before = [] if _AUTHORIZATION not in headers and _SESSION_ID not in headers else _managed_fields(headers)
        authorization = headers.get(_AUTHORIZATION) if before else None
        path = url.raw_path_qs  # aiohttp needs it, too; any other form is computed for each new URL
        if "%" in path:
            path = url.path
        try:
            manager = self._manager.for_request(url.scheme, url.raw_host or "", url.port, path, authorization)
        except Pay88Error as error:
            raise _errors.convert(error)  # noqa: B904 - carries its cause
        if manager is None:
            return await handler(request)
        if self._failed_requests:
            self._reraise_failure(request)
        runner, body = manager.async_runner, request.body
        state, body_position = runner.state, _body_position(body) if body else WHOLE
        try:
            # What AsyncRunner.call() would do: its coroutine, and a call object for each request, cost more than this.
            now, (token, until) = state.now(), state.fast_path
            if token is None or now >= until:
                return await runner.call(_Call(request, handler, body_position))
            headers[_AUTHORIZATION], headers[_SESSION_ID] = token.authorization, token.session
            try:
                response = await handler(request)
            except BaseException as exc:  # noqa: BLE001 - raised again below
                failed = exc
            else:
                if response.status < state.settled_below:
                    return response
                return await runner.resume(_Call(request, handler, body_position), token, now, response)
            try:
                return await runner.recover(_Call(request, handler, body_position), token, now, failed)
            finally:
                del failed
        except Pay88Error as error:
            raise _errors.convert(error)  # noqa: B904 - carries its cause
        except aiohttp.ClientConnectorError:  # aiohttp does not retry after this one
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            self._remember_failure(request, error)
            raise
        finally:
            # They have been sent by now, and the response's request_info shows these very headers.
            try:
                del headers[_AUTHORIZATION], headers[_SESSION_ID]
            except KeyError:  # it was not sent, or an inner middleware has removed one
                headers.popall(_AUTHORIZATION, None)
                headers.popall(_SESSION_ID, None)
            if before:
                headers.extend(before)

    def _remember_failure(self, request: aiohttp.ClientRequest, error: Exception) -> None:
        if request.method not in IDEMPOTENT_METHODS:  # aiohttp retries no other methods
            return
        while len(self._failed_requests) >= _MAX_REMEMBERED:
            del self._failed_requests[next(iter(self._failed_requests))]
        timer = _timer(request)
        with suppress(TypeError):  # of a test double without weak references
            self._failed_requests[id(timer)] = (timer, weakref.ref(request), _without_frames(error))

    def _reraise_failure(self, request: aiohttp.ClientRequest) -> None:
        """Raise the error of the last attempt again if aiohttp, and not the caller, sends the request.

        After some connection errors aiohttp retries GET, PUT and others by itself, with a new request object on the
        timer of the first one. The retry policy has decided about a retry by then.
        """
        _, before, error = self._failed_requests.pop(id(_timer(request)), (None, None, None))
        if before is not None and error is not None and before() is not request:
            raise error


def attach(session: S, manager: AnyManager) -> S:
    """Attach *manager* to *session*: requests to ``manager.base_url`` carry a token.

    Other middlewares of the session stay, as inner layers; attaching again replaces the manager. A request with its own
    ``middlewares=`` replaces those of the session and is not managed.

    Returns:
        *session*.

    Raises:
        ConfigurationError: *session* is not aiohttp's, or *manager* is not a manager.
    """
    check_client(session, "aiohttp", (aiohttp.ClientSession,))
    # aiohttp has no public way to add a middleware to a session; the name is the same in all versions.
    middlewares = inside(session, "_middlewares", tuple)
    others = tuple(each for each in middlewares if not isinstance(each, Pay88Middleware))
    own: Any = session
    own._middlewares = (Pay88Middleware(manager), *others)
    return session


def _timer(request: aiohttp.ClientRequest) -> Any:
    return getattr(request, "_timer", request)  # there is no public name; it is the same in all versions


def _without_frames(error: Exception) -> Exception:
    """Return a copy of *error* that keeps no local variable of its caller alive."""
    try:
        plain = copy(error)
    except Exception:  # noqa: BLE001 - of a class that cannot be copied
        return error
    plain.__cause__ = error.__cause__
    return plain


class _Call:
    """One API request, and the token requests that it may send."""

    response: aiohttp.ClientResponse | None = None
    """That of the last attempt which failed or was discarded."""

    network_errors = NETWORK_ERRORS
    token_timeout = None  # the caller's own timeout cancels the call
    total_timeout = None
    retry = None

    def __init__(self, request: aiohttp.ClientRequest, handler: ClientHandlerType, body_position: BodyPosition) -> None:
        self.request, self.handler, self.body_position = request, handler, body_position

    @property
    def client(self) -> aiohttp.ClientSession:
        return self.request.session

    @property
    def is_closed(self) -> bool:
        return self.client.closed or self.client.connector is None

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def path(self) -> str:
        return self.request.url.path

    def status(self, response: aiohttp.ClientResponse) -> int:
        return response.status

    def send(self, token: Token) -> Awaitable[aiohttp.ClientResponse]:
        headers = self.request.headers
        headers[_AUTHORIZATION], headers[_SESSION_ID] = token.authorization, token.session
        return self.handler(self.request)

    def headers(self, response: aiohttp.ClientResponse) -> Mapping[str, str]:
        return response.headers

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        if isinstance(exc, asyncio.TimeoutError) and not isinstance(exc, aiohttp.ClientError):
            return ConnectionFailure(permanent=True)  # the timeout of the request itself
        cause = exc.__cause__
        if type(exc) is aiohttp.ClientConnectionError and cause and not isinstance(cause, self.network_errors):
            return None  # the body raised this
        connection = isinstance(exc, aiohttp.ClientConnectionError)
        # These are the signs of a response that is not HTTP.
        garbage = isinstance(exc, aiohttp.ClientResponseError) and isinstance(exc.__cause__, HttpProcessingError)
        if not (connection or garbage):
            return None
        return ConnectionFailure(not_sent=not self._was_written() and isinstance(exc, NOT_SENT) and self._is_own(exc))

    def _was_written(self) -> bool:
        """Whether an attempt since the last look was written to a connection: the request has another response then."""
        before, self.response = self.response, self.request.response
        return self.response is not None and self.response is not before

    def _is_own(self, exc: Exception) -> bool:
        """Whether *exc* is about this request; an inner middleware may send others."""
        request = self.request
        if not isinstance(exc, aiohttp.ClientConnectorError):
            return "://" not in str(exc) or str(exc).endswith(f" {request.url}")
        key: Any = next(iter(exc.args), None)
        if not hasattr(key, "host"):  # of a test double
            return True
        ends = [(each.raw_host, each.port) for each in (request.url, request.proxy) if each is not None]
        return (key.host, key.port) in ends

    def token_used(self, response: aiohttp.ClientResponse, token: Token) -> Token:
        return token

    def replayable(self) -> bool:
        # Files are read by threads, which a cancelled upload may leave at work.
        if not self._is_sent and self.body_position.has_file:
            return False
        return self.body_position.rewind() and self._awaits_continue_again()

    def _awaits_continue_again(self) -> bool:
        """Make a request that waits for "100 Continue" wait for the next one; return whether it can be retried.

        aiohttp waits for a future, which has its result by now, or is cancelled with the rest of the first attempt.
        """
        if self.request.headers.get(aiohttp.hdrs.EXPECT, "").lower() != "100-continue":
            return True
        inside: Any = self.request  # there is no documented name; both are the same in all versions
        before = getattr(inside, "_continue", inside)
        if before is None:  # an inner middleware has added the header
            return True
        renew = getattr(inside, "update_expect_continue", None)
        if renew is not None:
            renew()
        return getattr(inside, "_continue", before) is not before

    @property
    def _is_sent(self) -> bool:
        inside: Any = self.request  # there is no public name; it is the same in all versions
        writer = inside._writer
        return writer is None or writer.done()

    async def discard(self, response: aiohttp.ClientResponse) -> None:
        drained = False
        self.response = self.request.response
        content = response.content
        try:
            # Its own errors only: any other timeout is the caller's.
            with suppress(aiohttp.ClientError, ConnectionError), ending(content, MAX_DRAIN_SECONDS):
                drained = len(await aread_limited(content.iter_any(), MAX_DRAINED)) <= MAX_DRAINED
        finally:
            if drained and self._is_sent:
                response.release()
            else:
                response.close()

    async def post(self, request: TokenRequest) -> TokenResponse:
        mine = self.request
        # A separate session over the caller's pool, without its cookies, default headers and auth.
        if self.is_closed:
            raise ClientClosed("the ClientSession was closed")
        try:
            return await post(
                request,
                {
                    "proxy": mine.proxy,
                    "proxy_headers": mine.proxy_headers,
                    "proxy_auth": mine.proxy_auth,
                    "ssl": mine.ssl,
                    "server_hostname": mine.server_hostname,
                },
                connector=mine.session.connector,
                connector_owner=False,
            )
        except (*self.network_errors, RuntimeError) as exc:  # a connector that was closed raises the latter
            if self.is_closed:
                raise ClientClosed("the ClientSession was closed during the token request") from exc
            raise


def _managed_fields(headers: CIMultiDict[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() in MANAGED_FIELDS]


def _body_position(body: Any) -> BodyPosition:
    if type(body) in _PAYLOADS and type(body._value) is bytes:
        return WHOLE
    return BodyPosition(*_parts(body))


def _parts(body: Any) -> Iterator[Any]:
    if type(body) is aiohttp.MultipartWriter:
        for part, _, _ in body:
            yield from _parts(part)
    else:
        yield body._value if type(body) in _PAYLOADS else body

"""An adapter for Python's own ``http.client``: requests to 88Pay carry a token, all others pass through unchanged."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pay88_adapters import Pay88Error, Token, TokenManager
from pay88_adapters.engine import (
    MANAGED_FIELDS,
    MAX_BODY,
    AdapterErrors,
    BodyPosition,
    ConnectionFailure,
    TokenRequest,
    TokenResponse,
)

# Each error is a Pay88Error and an HTTPException. Their classes end up in this module, where pickle finds them.
_errors = AdapterErrors(http.client.HTTPException, globals())


class ConnectFailed(OSError):
    """No connection was made, so nothing was sent."""


class Response(NamedTuple):
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Makes each request over a connection of its own, on any thread.

    Args:
        manager: Shared by every client.
        timeout: Seconds for each step on the network.
    """

    def __init__(self, manager: TokenManager, timeout: float = 10) -> None:
        self._manager, self._timeout = manager, timeout

    def request(self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        """Send a request; read the whole response."""
        parts, fields = urlsplit(url), dict(headers or {})
        authorization = next((value for name, value in fields.items() if name.lower() == "authorization"), None)
        # 1. Is it 88Pay's, and ours to manage? The core decides.
        manager = self._manager.for_request(
            parts.scheme, parts.hostname or "", parts.port, parts.path or "/", authorization
        )
        if manager is None:
            return exchange(method, url, body, fields, self._timeout)
        # 2. Let the core send the request, and convert its errors to our subclasses.
        try:
            return manager.sync_runner.call(_Call(self, method, url, body, fields, self._timeout))
        except Pay88Error as error:
            raise _errors.convert(error)  # noqa: B904 - carries its cause


class _Call:
    """3. What the core needs from one request."""

    network_errors = (OSError, http.client.HTTPException)  # what post() may raise without a response
    retry = None  # the manager's policy
    token_timeout = None  # no limit for the wait for a token
    total_timeout = None  # no limit for all attempts

    def __init__(
        self, client: Client, method: str, url: str, body: Any, headers: dict[str, str], timeout: float
    ) -> None:
        self.client = client  # carries background refreshes once it has existed for long enough
        self.method, self.path = method, urlsplit(url).path or "/"
        self._url, self._body, self._timeout = url, body, timeout
        self._headers = {name: value for name, value in headers.items() if name.lower() not in MANAGED_FIELDS}
        self._body_position = BodyPosition(body)  # before the first send

    # Operations

    def send(self, token: Token) -> Response:
        return exchange(self.method, self._url, self._body, {**self._headers, **token.attached}, self._timeout)

    def discard(self, response: Response) -> None:
        """Nothing: its connection is closed. Drain or close one that returns to a pool."""

    def post(self, request: TokenRequest) -> TokenResponse:
        response = exchange(request.method, request.url, None, request.headers, request.timeout, most=MAX_BODY + 1)
        return TokenResponse(response.status, response.headers, response.body)

    # Facts

    def status(self, response: Response) -> int:
        return response.status

    def headers(self, response: Response) -> Mapping[str, str]:
        return response.headers

    def token_used(self, response: Response, token: Token) -> Token:
        return token  # another one only if the library retries by itself

    def replayable(self) -> bool:
        return self._body_position.rewind()

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        if isinstance(exc, self.network_errors):
            return ConnectionFailure(not_sent=isinstance(exc, ConnectFailed))
        return None  # a bug, perhaps: not a connection error


def exchange(
    method: str, url: str, body: Any, headers: Mapping[str, str], timeout: float, most: int | None = None
) -> Response:
    """Send one request and read the response, or *most* bytes of it. Follows no redirect."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with closing(kind(parts.hostname or "", parts.port, timeout=timeout)) as connection:
        try:
            connection.connect()
        except OSError as exc:
            raise ConnectFailed(f"no connection to {parts.netloc}") from exc
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        return Response(response.status, dict(response.getheaders()), response.read(most))

"""Token requests of aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

try:
    import aiohttp
except ModuleNotFoundError as exc:
    raise ImportError("aiohttp is not installed: pip install 'pay88-adapters[aiohttp]'") from exc
from aiohttp.client_middlewares import ClientHandlerType

from .core.errors import ConfigurationError, NoFreeConnection
from .core.wire import MAX_BODY, TokenRequest, TokenResponse
from .engine.calls import AsyncSender
from .engine.responses import aread_limited, tolerated
from .engine.standalone import ClosableSender

# Before Python 3.11 the last one is no OSError.
NETWORK_ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError)


class _StandaloneSender:
    """For threads: a session and an event loop for each token request."""

    network_errors = NETWORK_ERRORS

    def post(self, request: TokenRequest) -> TokenResponse:
        return asyncio.run(post(request, {}))

    def close(self) -> None:
        """Close nothing: each session is closed where it is made."""


class _ClientSender:
    """Sends token requests over the connections of a session."""

    network_errors = NETWORK_ERRORS

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client = client

    @property
    def is_closed(self) -> bool:
        return self.client.closed

    async def post(self, request: TokenRequest) -> TokenResponse:
        # None of this has a public name; all of it is the same in all versions.
        own: Any = self.client
        if own._loop is not asyncio.get_running_loop():
            raise ConfigurationError("client is a session of another event loop: use it on its own loop")
        proxy, proxy_auth = getattr(own, "_default_proxy", None), getattr(own, "_default_proxy_auth", None)
        return await post(
            request,
            {"proxy": proxy, "proxy_auth": proxy_auth},
            connector=own.connector,
            connector_owner=False,
            trust_env=own.trust_env,
        )


def client_sender(client: aiohttp.ClientSession) -> AsyncSender:
    """Return a sender over the connections of *client*."""
    return _ClientSender(client)


def standalone_sender() -> ClosableSender:
    """Return a sender with sessions of its own."""
    return _StandaloneSender()


@contextmanager
def ending(content: aiohttp.StreamReader, seconds: float) -> Generator[None, None, None]:
    """Let the reading of *content* in the block fail after *seconds*.

    Without a timeout around it: that would cancel the caller's task, and could be mistaken for the caller's own.
    """
    error = aiohttp.ServerTimeoutError("the response is not read to its end")
    late = asyncio.get_running_loop().call_later(seconds, content.set_exception, error)
    try:
        yield
    finally:
        late.cancel()


class _Queue:
    """Whether a request waits for a free connection of its pool: a timeout does not show what it has ended."""

    def __init__(self) -> None:
        self.waits = False
        self.config = aiohttp.TraceConfig()
        self.config.on_connection_queued_start.append(self._begin)
        self.config.on_connection_queued_end.append(self._end)

    async def _begin(self, *_: object) -> None:
        self.waits = True

    async def _end(self, *_: object) -> None:
        self.waits = False


async def _without_credentials(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """Remove what aiohttp adds to a token request, such as the caller's credentials in a netrc file (rule 13).

    A session that takes the proxy from the environment takes those, too. They have no place in a token request.
    """
    for name in (aiohttp.hdrs.AUTHORIZATION, aiohttp.hdrs.COOKIE):
        request.headers.popall(name, None)
    return await handler(request)


async def post(request: TokenRequest, connection: Mapping[str, Any], **pool: Any) -> TokenResponse:
    """Send a token request in a session of its own, with its own timeout: a session's are its caller's (rule 16).

    Args:
        request: The token request.
        connection: Arguments of the request about the connection.
        pool: Arguments of the session about the pool; one of its own unless given.
    """
    queue = _Queue()
    session = aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=request.timeout, connect=request.pool_timeout),
        auto_decompress=False,
        trace_configs=[queue.config],
        middlewares=(_without_credentials,),
        **pool,
    )
    try:
        async with (
            session,
            session.request(
                request.method,
                request.url,
                headers=request.headers,
                skip_auto_headers=("Content-Type", "User-Agent"),
                allow_redirects=False,
                **connection,
            ) as response,
        ):
            body, status = b"", response.status
            late = tolerated(status, NETWORK_ERRORS)
            with suppress(*late), ending(response.content, request.body_timeout(status)):
                body = await aread_limited(response.content.iter_any())
            if not 0 < len(body) <= MAX_BODY:
                response.close()
            return TokenResponse(status, response.headers, body)
    except asyncio.TimeoutError as exc:
        if queue.waits:
            raise NoFreeConnection from exc
        raise

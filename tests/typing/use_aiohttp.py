"""A program of a user's over aiohttp, for type checkers: what they must infer, and what they must reject."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

import pay88_adapters.aiohttp
from pay88_adapters import ActivatedManager, TokenManager
from pay88_adapters.aiohttp import Pay88Middleware, attach

if TYPE_CHECKING:
    from typing_extensions import assert_type


async def clients(manager: TokenManager) -> None:
    """Attach to sessions; give them a middleware."""
    assert_type(attach(aiohttp.ClientSession(), manager), aiohttp.ClientSession)
    assert_type(attach(aiohttp.ClientSession(), ActivatedManager()), aiohttp.ClientSession)
    aiohttp.ClientSession(middlewares=(Pay88Middleware(manager),))
    attach(aiohttp.TCPConnector(), manager)  # type: ignore[type-var]
    attach(aiohttp.ClientSession(), None)  # type: ignore[arg-type]
    Pay88Middleware(aiohttp.ClientSession())  # type: ignore[arg-type]


async def failures(session: aiohttp.ClientSession) -> None:
    """Catch an error of the library's, of the package's, or of both."""
    try:
        async with session.post("https://api.example") as response:
            assert_type(response, aiohttp.ClientResponse)
    except pay88_adapters.aiohttp.TokenRateLimited as error:
        both: tuple[aiohttp.ClientError, pay88_adapters.TokenRateLimited] = (error, error)
        assert_type(both[1].retry_after, float | None)
    except pay88_adapters.aiohttp.TokenEndpointUnavailable as error:
        assert_type(error.retryable, bool)

"""A program of a user's over httpx2, for type checkers: what they must infer, and what they must reject."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

import pay88_adapters.httpx2
from pay88_adapters import ActivatedManager, CredentialsRejected, TokenManager
from pay88_adapters.httpx2 import AsyncPay88Transport, Pay88Transport, attach

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Mine(httpx2.Client):
    """A user's own client."""


class MineAsync(httpx2.AsyncClient):
    """A user's own client."""


def clients(manager: TokenManager) -> None:
    """Attach to clients, and to what derives from them."""
    assert_type(attach(httpx2.Client(), manager), httpx2.Client)
    assert_type(attach(httpx2.AsyncClient(), manager), httpx2.AsyncClient)
    assert_type(attach(Mine(), manager), Mine)
    assert_type(attach(MineAsync(), ActivatedManager()), MineAsync)
    attach(None, manager)  # type: ignore[type-var]
    attach(httpx2.HTTPTransport(), manager)  # type: ignore[type-var]
    attach(httpx2.Client(), None)  # type: ignore[arg-type]


def transports(manager: TokenManager, inner: httpx2.BaseTransport, ainner: httpx2.AsyncBaseTransport) -> None:
    """Wrap transports, each in its kind."""
    transport = Pay88Transport(manager, inner, timeout=httpx2.Timeout(3))
    assert_type(transport, Pay88Transport)
    assert_type(transport.wrapped, httpx2.BaseTransport)
    assert_type(transport.timeout, httpx2.Timeout | None)
    assert_type(transport.handle_request(httpx2.Request("GET", "https://api.example")), httpx2.Response)
    with Pay88Transport(ActivatedManager(), timeout=5) as entered:
        assert_type(entered, Pay88Transport)
    httpx2.Client(transport=transport, mounts={"https://": Pay88Transport(manager)})
    assert_type(AsyncPay88Transport(manager, ainner, timeout=0.5).wrapped, httpx2.AsyncBaseTransport)
    httpx2.AsyncClient(transport=AsyncPay88Transport(manager))
    Pay88Transport(manager, ainner)  # type: ignore[arg-type]
    AsyncPay88Transport(manager, inner)  # type: ignore[arg-type]
    Pay88Transport(manager, timeout="five")  # type: ignore[arg-type]
    Pay88Transport(inner)  # type: ignore[arg-type]


async def responses(transport: AsyncPay88Transport) -> None:
    """Send."""
    assert_type(await transport.handle_async_request(httpx2.Request("GET", "https://api.example")), httpx2.Response)


def failures(client: Mine) -> float | None:
    """Catch an error of the library's, of the package's, or of both."""
    try:
        assert_type(client.post("/api/balance"), httpx2.Response)
    except pay88_adapters.httpx2.TokenRateLimited as error:
        both: tuple[httpx2.TransportError, pay88_adapters.TokenRateLimited] = (error, error)
        assert_type(both[1].retry_after, float | None)
    except pay88_adapters.httpx2.TokenEndpointUnavailable as error:
        assert_type(error.retry_after, float | None)
        return error.retry_after
    except CredentialsRejected as error:
        assert_type(error.status, int | None)
    return None

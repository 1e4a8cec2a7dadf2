"""A program of a user's over urllib3, for type checkers: what they must infer, and what they must reject."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING

import urllib3

import pay88_adapters.urllib3
from pay88_adapters import ActivatedManager, RetryPolicy, TokenManager
from pay88_adapters.urllib3 import Pay88PoolManager, Pay88Retry, attach

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Mine(urllib3.PoolManager):
    """A user's own pool manager."""


def clients(manager: TokenManager) -> None:
    """Attach to pool managers, and to what derives from them."""
    assert_type(attach(urllib3.PoolManager(), manager), urllib3.PoolManager)
    assert_type(attach(urllib3.ProxyManager("http://proxy"), manager), urllib3.ProxyManager)
    assert_type(attach(Mine(), ActivatedManager()), Mine)
    assert_type(Pay88PoolManager(manager, maxsize=5), Pay88PoolManager)
    attach(urllib3.HTTPConnectionPool("localhost"), manager)  # type: ignore[type-var]
    attach(urllib3.PoolManager(), None)  # type: ignore[arg-type]
    Pay88PoolManager(5)  # type: ignore[arg-type]


def failures(pool: urllib3.PoolManager) -> None:
    """Catch an error of the library's, of the package's, or of both."""
    try:
        response = pool.request("POST", "https://api.example", retries=Pay88Retry(policy=RetryPolicy(attempts=2)))
        assert_type(response, urllib3.BaseHTTPResponse)
    except pay88_adapters.urllib3.TokenRateLimited as error:
        both: tuple[urllib3.exceptions.HTTPError, pay88_adapters.TokenRateLimited] = (error, error)
        assert_type(both[1].retry_after, float | None)
    except pay88_adapters.urllib3.TokenEndpointUnavailable as error:
        assert_type(error.retryable, bool)

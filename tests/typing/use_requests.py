"""A program of a user's over requests, for type checkers: what they must infer, and what they must reject."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING

import requests

import pay88_adapters.requests
from pay88_adapters import ActivatedManager, TokenManager
from pay88_adapters.requests import Pay88Adapter, attach

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Mine(requests.Session):
    """A user's own session."""


def clients(manager: TokenManager) -> None:
    """Attach to sessions, and to what derives from them; mount adapters."""
    assert_type(attach(requests.Session(), manager), requests.Session)
    assert_type(attach(Mine(), ActivatedManager()), Mine)
    requests.Session().mount(manager.base_url, Pay88Adapter(manager, pool_maxsize=5))
    attach(requests, manager)  # type: ignore[type-var]
    attach(requests.Session(), None)  # type: ignore[arg-type]
    Pay88Adapter(requests.Session())  # type: ignore[arg-type]


def failures(session: Mine) -> None:
    """Catch an error of the library's, of the package's, or of both."""
    try:
        assert_type(session.post("https://api.example"), requests.Response)
    except pay88_adapters.requests.TokenRateLimited as error:
        both: tuple[requests.RequestException, pay88_adapters.TokenRateLimited] = (error, error)
        assert_type(both[1].retry_after, float | None)
    except pay88_adapters.requests.TokenEndpointUnavailable as error:
        assert_type(error.retryable, bool)

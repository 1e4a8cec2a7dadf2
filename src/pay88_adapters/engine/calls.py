"""What an adapter provides: senders of token requests, and API requests as the engine sees them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from pay88_adapters.core.retry import ConnectionFailure
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import TokenRequest, TokenResponse

from .effects import RequestInfo

R = TypeVar("R")


class Sender(Protocol):
    """Sends token requests, from any thread."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """The base exception of the client library for requests without a usable response."""
        ...

    def post(self, request: TokenRequest) -> TokenResponse:
        """Send *request*: no redirects, no retries, at most ``MAX_BODY`` + 1 bytes read."""
        ...


class AsyncSender(Protocol):
    """Sends token requests on the loop that awaits it."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """The base exception of the client library for requests without a usable response."""
        ...

    async def post(self, request: TokenRequest) -> TokenResponse:
        """Send *request*: no redirects, no retries, at most ``MAX_BODY`` + 1 bytes read."""
        ...


class ErrorClassifier(Protocol):
    """Classifies an attempt that got no response."""

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        """Return the failure that *exc* means for the attempt; ``None`` if it is not a connection error."""
        ...


class Call(RequestInfo[R], Sender, ErrorClassifier, Protocol[R]):
    """One API request of a sync client library."""

    def send(self, token: Token) -> R:
        """Send the request with *token*'s headers on a copy; return the response with any status code."""
        ...

    def discard(self, response: R) -> None:
        """Release the connection of a rejected response."""
        ...


class AsyncCall(RequestInfo[R], AsyncSender, ErrorClassifier, Protocol[R]):
    """One API request of an async client library."""

    def send(self, token: Token) -> Awaitable[R]:
        """Send the request with *token*'s headers on a copy; return the response with any status code."""
        ...

    async def discard(self, response: R) -> None:
        """Release the connection of a rejected response."""
        ...

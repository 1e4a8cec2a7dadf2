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
    """An HTTP client that sends token requests. Thread-safe."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """Exceptions of the client library for requests without a usable response. Any other one counts as a bug."""
        ...

    def post(self, request: TokenRequest) -> TokenResponse:
        """Send *request*, and return the response with any status code.

        Follow no redirect, retry nothing, and add no header, cookie or ``auth`` of the client. Read at most
        ``MAX_BODY`` + 1 bytes of the body. Wait at most ``request.pool_timeout`` real seconds for a connection, and
        ``request.timeout`` real seconds in all.

        Raises:
            ClientClosed: The client is closed.
            NoFreeConnection: The pool had no free connection within ``request.pool_timeout``.
            Exception: One of :attr:`network_errors`, if there was no usable response.
        """
        ...


class AsyncSender(Protocol):
    """An HTTP client that sends token requests on the event loop that awaits them."""

    @property
    def network_errors(self) -> tuple[type[Exception], ...]:
        """Exceptions of the client library for requests without a usable response. Any other one counts as a bug."""
        ...

    async def post(self, request: TokenRequest) -> TokenResponse:
        """Do the same as :meth:`Call.post`, without blocking the event loop. It raises the same exceptions."""
        ...


class ErrorClassifier(Protocol):
    """Classifies an attempt that got no response."""

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        """Return the failure that *exc* means for the attempt; ``None`` if it is not a connection error."""
        ...


class Call(RequestInfo[R], Sender, ErrorClassifier, Protocol[R]):
    """One API request of a sync client library."""

    def send(self, token: Token) -> R:
        """Send a copy of the request with ``token.attached``, and return the response with any status code.

        The timeouts are those of the caller's client, in real seconds.

        Raises:
            Exception: What the client library raises, unchanged. It is retried only if :meth:`classify_error` returns a
                connection failure for it.
        """
        ...

    def discard(self, response: R) -> None:
        """Release the connection of a response that the caller does not get.

        Read at most ``MAX_DRAINED`` bytes in at most ``MAX_DRAIN_SECONDS`` real seconds, or else close the connection.

        Raises:
            BaseException: Only a timeout or cancellation of the caller. Any other error is suppressed.
        """
        ...


class AsyncCall(RequestInfo[R], AsyncSender, ErrorClassifier, Protocol[R]):
    """One API request of an async client library."""

    def send(self, token: Token) -> Awaitable[R]:
        """Do the same as :meth:`Call.send`, without blocking the event loop. It raises the same exceptions."""
        ...

    async def discard(self, response: R) -> None:
        """Do the same as :meth:`Call.discard`, without blocking the event loop."""
        ...

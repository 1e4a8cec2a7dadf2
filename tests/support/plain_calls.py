"""API requests without a network, for the runners of a manager, and what watches the clock meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pay88_adapters import RetryPolicy, Token
from pay88_adapters.core.retry import ConnectionFailure
from pay88_adapters.core.wire import TokenRequest, TokenResponse
from pay88_adapters.testing import ManualClock
from support.processes import Endpoint88


class Call:
    """An API request of a client without a network; its token requests go to *endpoint*."""

    method, path = "POST", "/api/balance"
    retry: RetryPolicy | None = None
    total_timeout: float | None = None
    token_timeout: float | None = None
    network_errors: ClassVar[tuple[type[Exception], ...]] = (ConnectionError,)

    def __init__(self, endpoint: Endpoint88 | None = None) -> None:
        self._endpoint = endpoint or Endpoint88()

    def status(self, response: Any) -> int:
        del response
        return 200

    def token_used(self, response: Any, token: Token) -> Token:
        del response
        return token

    def headers(self, response: Any) -> dict[str, str]:
        del response
        return {}

    def classify_error(self, exc: Exception) -> ConnectionFailure | None:
        del exc
        return None

    def replayable(self) -> bool:
        return True

    def send(self, token: Token) -> Token:
        """Return a response with the token."""
        return token

    def discard(self, response: Any) -> None:
        """Do nothing."""

    def post(self, request: TokenRequest) -> TokenResponse:
        """Send the request to the endpoint."""
        return self._endpoint.post(request)


class AsyncCall(Call):
    """The same for an event loop; a token request gets its response when *responded* is set."""

    def __init__(self) -> None:
        super().__init__()
        self.requested, self.responded = asyncio.Event(), asyncio.Event()

    async def send(self, token: Token) -> Token:  # type: ignore[override]
        return token

    async def discard(self, response: Any) -> None:  # type: ignore[override]
        """Do nothing."""

    async def post(self, request: TokenRequest) -> TokenResponse:  # type: ignore[override]
        self.requested.set()
        await self.responded.wait()
        return super().post(request)


@contextmanager
def at_once(clock: ManualClock) -> Iterator[None]:
    """Check that what is done takes none of *clock*'s time; it gets some if it blocks, so that it ends."""
    since, over = clock.now(), threading.Event()

    def rescue() -> None:
        if not over.wait(3):
            while not over.wait(0.002):
                clock.advance(1)

    thread = threading.Thread(target=rescue)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert clock.now() == since, "it waited"


def await_threads(known: set[threading.Thread]) -> None:
    """Wait for the end of all other threads, and of those that they start."""
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - known:
        assert time.monotonic() < deadline, "a thread does not end"
        time.sleep(0.001)

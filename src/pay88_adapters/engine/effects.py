"""The effects that flows yield to a runner, sync or async, and their results.

Each flow is a generator that yields effects. It is written once: nothing in it blocks, awaits or knows an HTTP library.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from pay88_adapters.core.retry import RetryPolicy
from pay88_adapters.core.token import Token
from pay88_adapters.core.wire import TokenRequest

from .runtimes import WaitEvent

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class StartFetch(NamedTuple):
    """Start the fetch with this ticket; result: its :class:`FetchRun`."""

    ticket: int
    background: bool
    """Whether this is a background refresh: the request does not wait for it."""


class WaitForFetch(NamedTuple):
    """Wait for the event; result: nothing."""

    event: WaitEvent
    seconds: float


class DrainResponse:
    """Drain a rejected response (up to a limit) or close it, so that its connection is free."""

    __slots__ = ()


class LoadCredentials:
    """Load the credentials; result: :class:`Credentials` or :class:`Failure`."""

    __slots__ = ()


class StoreOperation(NamedTuple):
    """Run a store operation, which may block; result: its return value."""

    operation: Callable[[], object]


class SendTokenRequest(NamedTuple):
    """Send a token request; result: :class:`TokenResponse`, the network's exception, or :class:`UnexpectedError`."""

    request: TokenRequest


class UnexpectedError(NamedTuple):
    """An exception of a client that is not a network error: a bug around it, or a failed assertion of a test double."""

    error: Exception


class Sleep(NamedTuple):
    """Sleep; result: nothing."""

    seconds: float


class RetryDecision(NamedTuple):
    """Whether an attempt without a response is retried. If it is not, the caller gets its error."""

    retry: bool


AcquireTokenFlow = Generator[StartFetch | WaitForFetch | Sleep, Any, Token]
RequestFlow = Generator[
    StartFetch | WaitForFetch | StoreOperation | Sleep | Token | RetryDecision | DrainResponse, Any, R
]
FetchEffect = LoadCredentials | StoreOperation | SendTokenRequest | Sleep

DRAIN = DrainResponse()


class RequestInfo(Protocol[R_contra]):
    """The facts about an API request that the flow needs, without any I/O."""

    @property
    def method(self) -> str:
        """The HTTP method."""
        ...

    @property
    def path(self) -> str:
        """The path, with or without the query."""
        ...

    @property
    def retry(self) -> RetryPolicy | None:
        """The retry policy of this request; ``None`` for the manager's."""
        ...

    @property
    def token_timeout(self) -> float | None:
        """Real seconds that the caller waits for a token at most; ``None`` without a limit of its own."""
        ...

    @property
    def total_timeout(self) -> float | None:
        """Real seconds that the caller allows for all attempts; ``None`` without a limit of its own."""
        ...

    def status(self, response: R_contra, /) -> int:
        """Return the status code."""
        ...

    def headers(self, response: R_contra) -> Mapping[str, str]:
        """Return the headers, with names in any case."""
        ...

    def token_used(self, response: R_contra, token: Token) -> Token:
        """Return the token that the attempt carried, when the engine passed it *token*."""
        ...

    def replayable(self) -> bool:
        """Rewind the body for another attempt; return whether it is the same, byte for byte.

        Called only if an attempt follows unless this returns false: the file of a caller must stay where it is.
        """
        ...

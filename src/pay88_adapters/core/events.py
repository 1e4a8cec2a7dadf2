"""Events that a TokenManager emits. They are immutable and contain no secrets.

A listener runs on the thread or event loop where the event happened. No lock is held, and all waiters, in other
processes too, were notified before: a listener may call the manager. A slow listener delays only the request or the
event loop that it runs on. An exception of a listener is logged and has no other effect.

Events about a request are emitted on its own thread or task. Events about a fetch are emitted on the thread or task of
the fetch, when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Pay88Error


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events.

    Attributes:
        base_url: Base URL of the manager.
        merchant_id: Merchant id of the last credentials; empty before the first fetch of a credentials provider.
    """

    base_url: str
    merchant_id: str


@dataclass(frozen=True, slots=True)
class TokenFetched(Event):
    """A token request returned a token.

    Attributes:
        expires_in: Lifetime that 88Pay granted, in seconds.
        duration: Duration of the token request in seconds.
        previous_failures: Consecutive failed fetches before this one.
        ended_at: When the response was read, in seconds since the epoch; 0 if unknown.
    """

    expires_in: float
    duration: float
    previous_failures: int
    ended_at: float = field(default=0.0, compare=False, repr=False)

    @property
    def failed_before(self) -> int:
        """Deprecated name of ``previous_failures``."""
        return self.previous_failures


@dataclass(frozen=True, slots=True)
class SharedTokenUsed(Event):
    """A token fetched by another manager was read from the shared store.

    Attributes:
        previous_failures: Consecutive failed fetches of this manager before.
    """

    previous_failures: int

    @property
    def failed_before(self) -> int:
        """Deprecated name of ``previous_failures``."""
        return self.previous_failures


@dataclass(frozen=True, slots=True)
class TokenRequestFailed(Event):
    """A token request returned no token. It may be retried; :class:`RefreshFailed` follows if the fetch ends here.

    Attributes:
        error: Class of the failure.
        status: Status code; ``None`` without a response.
        duration: Duration of the token request in seconds.
        ended_at: When it failed, in seconds since the epoch; 0 if unknown.
    """

    error: type[Pay88Error]
    status: int | None
    duration: float
    ended_at: float = field(default=0.0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A fetch ended without a token, after all its attempts. Requests may keep using the stale token.

    Attributes:
        error: The error of requests without a token. The next fetch may start after its ``retry_after`` seconds.
        consecutive_failures: Failed fetches since the last new token, including this one.
    """

    error: Pay88Error
    consecutive_failures: int

    @property
    def in_a_row(self) -> int:
        """Deprecated name of ``consecutive_failures``."""
        return self.consecutive_failures


@dataclass(frozen=True, slots=True)
class BudgetExhausted(Event):
    """A token request was not sent because the token budget is exhausted. :class:`RefreshFailed` follows.

    Attributes:
        retry_after: Seconds until a unit of the budget is available.
    """

    retry_after: float


@dataclass(frozen=True, slots=True)
class TokenRejected(Event):
    """An API request got a 401.

    Attributes:
        replaced: Whether a new token is fetched; if not, the 401 is returned to the caller.
    """

    replaced: bool


@dataclass(frozen=True, slots=True)
class CallReplayed(Event):
    """A request that got a 401 is retried once with a new token."""


@dataclass(frozen=True, slots=True)
class CallRetried(Event):
    """A request that failed, or got a 429, will be retried.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        attempt: Number of the next attempt; the first one was 1.
        pause: Seconds until the next attempt.
        status: Status code of the last attempt; ``None`` without a response.
    """

    group: str
    attempt: int
    pause: float
    status: int | None


@dataclass(frozen=True, slots=True)
class CallWaited(Event):
    """A request, or a call of ``get_token()``, waited. Emitted when the wait ends, successful or not.

    Attributes:
        reason: ``"token"``, or with ``pacing=True`` the group whose rate limit was reached: ``"transactions"``
            or ``"balance"``.
        seconds: Duration of the wait.
    """

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CallNotSent(Event):
    """A request failed with an error of this package before it was sent or retried.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        error: Class of the error.
        retry_after: Seconds after which a retry can succeed; ``None`` if waiting does not help.
    """

    group: str
    error: type[Pay88Error]
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class BreakerOpened(Event):
    """The circuit opened: requests of *group* fail fast for ``retry_after`` seconds.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        retry_after: Seconds until the trial request.
        reopened: Whether the circuit was open before, and its trial request failed.
    """

    group: str
    retry_after: float
    reopened: bool

    @property
    def again(self) -> bool:
        """Deprecated name of ``reopened``."""
        return self.reopened


@dataclass(frozen=True, slots=True)
class BreakerClosed(Event):
    """The circuit closed: requests of *group* are sent.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
    """

    group: str


@dataclass(frozen=True, slots=True)
class StoreDegraded(Event):
    """The shared store is unavailable. Degraded mode: the process uses a share of the token budget,
    and of the rate limits with ``pacing=True``. If only the second file of a SQLite store fails, only of these.

    With a ``fallback_store``, all processes of the host use one share.
    """


@dataclass(frozen=True, slots=True)
class StoreRestored(Event):
    """The shared store is available again."""


Listener = Callable[[Event], object]

"""What a manager tells its listeners: small frozen values, and no secret in any of them.

A listener is called where the event happened, on that thread or event loop, with no lock held and
after everybody who waited has been woken, in other processes too: it may call the manager. A slow one
delays the call, or the loop, that it is called on, and nobody else. One that raises is logged and changes nothing.

What happens to a call is told on the call's own thread or task; what happens to a fetch, on the fetch's, once it
is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Pay88Error


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events.

    Attributes:
        base_url: The manager's.
        merchant_id: Of the credentials seen last; empty before the first fetch of a credentials callable.
    """

    base_url: str
    merchant_id: str


@dataclass(frozen=True, slots=True)
class TokenFetched(Event):
    """A token came.

    Attributes:
        expires_in: Seconds that the service granted.
        duration: Seconds that its token request took.
        previous_failures: Fetches that had failed in a row before this one.
        ended_at: When the response was read, in seconds since the epoch; 0 where that is not known.
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
    """Another manager with the same store had fetched a token: no token request was needed.

    Attributes:
        previous_failures: Fetches of this manager's that had failed in a row before.
    """

    previous_failures: int

    @property
    def failed_before(self) -> int:
        """Deprecated name of ``previous_failures``."""
        return self.previous_failures


@dataclass(frozen=True, slots=True)
class TokenRequestFailed(Event):
    """A token request brought no token. Another one may follow: :class:`RefreshFailed` says when none does.

    Attributes:
        error: What kind of failure it was.
        status: What it was answered with; ``None`` where it got no answer.
        duration: Seconds that it took.
        ended_at: When it had failed, in seconds since the epoch; 0 where that is not known.
    """

    error: type[Pay88Error]
    status: int | None
    duration: float
    ended_at: float = field(default=0.0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A fetch ended without a token, after all its attempts. Calls may go on with the token there is.

    Attributes:
        error: What a call without a token gets; its ``retry_after`` is when the next fetch may start.
        consecutive_failures: Fetches that have failed since there was a new token, this one included.
    """

    error: Pay88Error
    consecutive_failures: int

    @property
    def in_a_row(self) -> int:
        """Deprecated name of ``consecutive_failures``."""
        return self.consecutive_failures


@dataclass(frozen=True, slots=True)
class BudgetExhausted(Event):
    """A token request was not sent, for want of a unit of the budget; :class:`RefreshFailed` follows.

    Attributes:
        retry_after: Seconds until there is one.
    """

    retry_after: float


@dataclass(frozen=True, slots=True)
class TokenRejected(Event):
    """A call was answered 401.

    Attributes:
        replaced: Whether the token is being replaced; if not, the 401 is the caller's.
    """

    replaced: bool


@dataclass(frozen=True, slots=True)
class CallReplayed(Event):
    """A refused call is sent once more, with a fresh token."""


@dataclass(frozen=True, slots=True)
class CallRetried(Event):
    """A call that failed, or was told to slow down, will be sent again.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        attempt: The number of the attempt to come; the first one was 1.
        pause: Seconds until then.
        status: What the last attempt was answered with; ``None`` where it got no answer.
    """

    group: str
    attempt: int
    pause: float
    status: int | None


@dataclass(frozen=True, slots=True)
class CallWaited(Event):
    """A call, or whoever asked for a token, had to wait. Told when that is over, also if it was in vain.

    Attributes:
        reason: ``"token"``, or with ``pacing=True`` the group whose limit was used up: ``"transactions"``
            or ``"balance"``.
        seconds: How long.
    """

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CallNotSent(Event):
    """A call gets an error of this package, and is not sent, or not once more.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        error: What kind of error.
        retry_after: Seconds after which trying again can help; ``None`` where waiting does not.
    """

    group: str
    error: type[Pay88Error]
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class BreakerOpened(Event):
    """The service fails: calls of *group* fail at once for a while.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        retry_after: Seconds until one call is let through as a probe.
        reopened: Whether it was open already, and a probe failed.
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
    """The service works again: calls of *group* are sent again.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
    """

    group: str


@dataclass(frozen=True, slots=True)
class StoreDegraded(Event):
    """The store is unavailable: this process goes on with a share of the token budget.

    Its host has one share where the processes have a ``fallback_store``.
    """


@dataclass(frozen=True, slots=True)
class StoreRestored(Event):
    """The store is back."""


Listener = Callable[[Event], object]

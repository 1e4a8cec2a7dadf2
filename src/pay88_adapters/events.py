"""What a manager tells its listeners: small frozen values, and no secret in any of them.

A listener is called where the event happened, on that thread or event loop, with no lock held and
after everybody who waited has been woken, in other processes too: it may call the manager. A slow one
delays the call, or the loop, that it is called on, and nobody else. One that raises is logged and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """

    expires_in: float


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A fetch ended without a token, after all its attempts. Calls may go on with the token there is.

    Attributes:
        error: What a call without a token gets; its ``retry_after`` is when the next fetch may start.
    """

    error: Pay88Error


@dataclass(frozen=True, slots=True)
class BudgetExhausted(Event):
    """A token request was not sent, for want of a unit of the budget.

    Attributes:
        retry_after: Seconds until there is one.
    """

    retry_after: float


@dataclass(frozen=True, slots=True)
class TokenRefused(Event):
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
class BreakerOpened(Event):
    """The service fails: calls of *group* fail at once for a while.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
        retry_after: Seconds until one call is let through as a probe.
    """

    group: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class BreakerClosed(Event):
    """The service works again: calls of *group* are sent again.

    Attributes:
        group: ``"transactions"``, ``"balance"`` or ``"other"``.
    """

    group: str


@dataclass(frozen=True, slots=True)
class StoreDegraded(Event):
    """The store fails: this process goes on alone, with a share of the budget (``fallback_share``)."""


@dataclass(frozen=True, slots=True)
class StoreRestored(Event):
    """The store is back."""


Listener = Callable[[Event], object]

"""The decision table: the action for a request, by the state of the token and of the token endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import NamedTuple

from .errors import Failure
from .token import Token


class TokenState(Enum):
    """State of the cached token. Its age counts from the moment its token request was sent."""

    FRESH = auto()  # inside the reuse window                                                  rule 1
    AGING = auto()  # in the last part of that window                                          rule 2
    STALE = auto()  # past it, and not past `expires_in - expiry_skew`                         rule 6
    REJECTED = auto()  # FRESH or AGING, but a request got a 401                                rule 7
    ABSENT = auto()  # past all that, or never fetched


class EndpointState(Enum):
    """State of the token endpoint."""

    FREE = auto()  # a request may be sent
    BUSY = auto()  # one is in flight                                                          rule 3
    COOLDOWN = auto()  # none before `_cooldown_until`                                             rules 5, 9-11


class Action(Enum):
    """What a request does."""

    USE = auto()
    REFRESH = auto()  # use it, and start a background refresh
    FETCH = auto()  # start a fetch, then wait for it
    WAIT = auto()
    WAIT_OR_FAIL = auto()  # wait for the end of the cooldown if that is soon enough, else fail


ACTIONS: Mapping[TokenState, Mapping[EndpointState, Action]] = {
    token_state: dict(zip(EndpointState, row, strict=True))
    for token_state, row in {
        #            FREE            BUSY         COOLDOWN
        TokenState.FRESH: (Action.USE, Action.USE, Action.USE),
        TokenState.AGING: (Action.REFRESH, Action.USE, Action.USE),
        TokenState.STALE: (Action.FETCH, Action.WAIT, Action.USE),
        TokenState.REJECTED: (Action.FETCH, Action.WAIT, Action.USE),
        TokenState.ABSENT: (Action.FETCH, Action.WAIT, Action.WAIT_OR_FAIL),
    }.items()
}


class Use(NamedTuple):
    """Attach *token*; with a ticket, also start that fetch as a background refresh."""

    token: Token
    refresh: int | None = None


class Fetch(NamedTuple):
    """Start a fetch and wait for it. Every event of the fetch carries *ticket*."""

    ticket: int


class Wait(NamedTuple):
    """Decide again when a fetch has ended, at the latest at *until*."""

    until: float


class Fail(NamedTuple):
    """No token; *retry_after* is in seconds from now."""

    failure: Failure
    retry_after: float


Decision = Use | Fetch | Wait | Fail

"""What the log says of events: trouble and its end at WARNING, however long it lasts, all else at DEBUG.

Trouble that goes on is told at its first, second, fourth, eighth … occurrence: an outage of an hour makes a
handful of lines. That a store fails is logged by :mod:`.store_client`, once for all managers of a process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pay88_adapters.core.events import (
    BreakerClosed,
    BreakerOpened,
    BudgetExhausted,
    Event,
    Listener,
    RefreshFailed,
    SharedTokenUsed,
    StoreDegraded,
    StoreRestored,
    TokenFetched,
    TokenRejected,
    TokenRequestFailed,
)

_tokens = logging.getLogger("pay88_adapters.tokens")
_calls = logging.getLogger("pay88_adapters.calls")
_listeners = logging.getLogger("pay88_adapters.events")

_ABOUT_TOKENS = (TokenFetched, SharedTokenUsed, TokenRequestFailed, RefreshFailed, BudgetExhausted, TokenRejected)
_TROUBLE: frozenset[object] = frozenset(
    (TokenFetched, SharedTokenUsed, RefreshFailed, BreakerOpened, BreakerClosed)  # or its end
)


def logs(kind: Callable[..., Event]) -> bool:
    """Whether an event of this class can be worth a line, as things are set."""
    return kind in _TROUBLE or _calls.isEnabledFor(logging.DEBUG) or _tokens.isEnabledFor(logging.DEBUG)


def log(event: Event) -> None:
    """Write the line that *event* is worth."""
    whose = f"{event.base_url} {event.merchant_id}"
    match event:
        case RefreshFailed(error=error, consecutive_failures=count) if _worth_a_line(count):
            _tokens.warning("%s: no token, %d in a row: %s: %s", whose, count, type(error).__name__, error)
        case TokenFetched(previous_failures=count) | SharedTokenUsed(previous_failures=count) if count:
            _tokens.warning("%s: there is a token again, after %d failed fetches", whose, count)
        case BreakerOpened(group=group, reopened=False):
            _calls.warning("%s: 88Pay fails, the circuit is open: calls (%s) fail at once", whose, group)
        case BreakerClosed(group=group):
            _calls.warning("%s: 88Pay works, the circuit is closed: calls (%s) are sent again", whose, group)
        case StoreDegraded() | StoreRestored():
            pass
        case _:
            (_tokens if isinstance(event, _ABOUT_TOKENS) else _calls).debug("%s", event)


def log_bypass(base_url: str, merchant_id: str, *, first: bool) -> None:
    """Write the lines that a request with a ``Bearer`` of its own is worth."""
    if first:
        _calls.warning(
            "%s %s: a request has an Authorization: Bearer of its own and bypasses the manager: remove the header if a"
            " token is to be attached; later ones are logged at DEBUG",
            base_url,
            merchant_id,
        )
    _calls.debug(
        "%s %s: a request with an Authorization: Bearer of its own bypassed the manager", base_url, merchant_id
    )


class SafeListener:
    """A listener that raises nothing. What it raised is logged at its first, second, fourth, eighth … occurrence."""

    __slots__ = ("_raised", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._raised = 0

    def __call__(self, event: Event) -> BaseException | None:
        """Call the listener; return what it raised if that is no ``Exception`` and the caller's to have."""
        try:
            self.listener(event)
        except BaseException as exc:  # noqa: BLE001 - it is the user's
            self._raised += 1
            level = logging.ERROR if _worth_a_line(self._raised) else logging.DEBUG
            _listeners.log(level, "listener raised an exception for %s", event, exc_info=True)
            return None if isinstance(exc, Exception) else exc
        return None


def _worth_a_line(count: int) -> bool:
    return count & (count - 1) == 0

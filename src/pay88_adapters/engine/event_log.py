"""The log: one WARNING when a problem starts and one when it is resolved; all other events at DEBUG.

Repeated problems are logged at the 1st, 2nd, 4th, 8th … occurrence: an outage of an hour makes a handful of lines.
:mod:`.store_link` logs store failures, once for all managers of a process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pay88_adapters.core.errors import in_seconds
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
_WARNING_EVENTS: frozenset[object] = frozenset(
    (TokenFetched, SharedTokenUsed, RefreshFailed, BreakerOpened, BreakerClosed)  # also when they end a problem
)


def logs(kind: Callable[..., Event]) -> bool:
    """Whether an event of this class can be logged at the current log levels."""
    return kind in _WARNING_EVENTS or _calls.isEnabledFor(logging.DEBUG) or _tokens.isEnabledFor(logging.DEBUG)


def log(event: Event) -> None:
    """Log *event*."""
    whose = f"{event.base_url} {event.merchant_id}"
    match event:
        case RefreshFailed(error=error, consecutive_failures=count) if _is_power_of_two(count):
            _tokens.warning(
                "%s: token fetch failed (%d consecutive): %s: %s", whose, count, type(error).__name__, error
            )
        case TokenFetched(previous_failures=count) | SharedTokenUsed(previous_failures=count) if count:
            _tokens.warning("%s: token refresh recovered after %d consecutive failures", whose, count)
        case BreakerOpened(group=group, retry_after=seconds, reopened=False):
            _calls.warning("%s: circuit opened for %s requests, trial request in %s", whose, group, in_seconds(seconds))
        case BreakerClosed(group=group):
            _calls.warning("%s: circuit closed for %s requests", whose, group)
        case StoreDegraded() | StoreRestored():
            pass
        case _:
            (_tokens if isinstance(event, _ABOUT_TOKENS) else _calls).debug("%s", event)


def log_bypass(base_url: str, merchant_id: str, *, first: bool) -> None:
    """Log a request with its own ``Bearer`` header."""
    if first:
        _calls.warning(
            "%s %s: a request has its own Authorization: Bearer header and bypasses the manager: remove the header to"
            " use the manager's token; further ones are logged at DEBUG",
            base_url,
            merchant_id,
        )
    else:
        _calls.debug(
            "%s %s: a request with its own Authorization: Bearer header bypassed the manager", base_url, merchant_id
        )


class SafeListener:
    """A listener whose exceptions are logged, at the 1st, 2nd, 4th, 8th … occurrence."""

    __slots__ = ("_raised", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._raised = 0

    def __call__(self, event: Event) -> BaseException | None:
        """Call the listener; return its exception if it is not an ``Exception``, for the caller to raise."""
        try:
            self.listener(event)
        except BaseException as exc:  # noqa: BLE001 - listeners may raise anything
            self._raised += 1
            level = logging.ERROR if _is_power_of_two(self._raised) else logging.DEBUG
            _listeners.log(level, "listener raised an exception for %s", event, exc_info=True)
            return None if isinstance(exc, Exception) else exc
        return None


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0

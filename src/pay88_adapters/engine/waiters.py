"""The events that requests wait at for the end of a fetch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .runtimes import WaitEvent

E = TypeVar("E", bound=WaitEvent)


class Waiters:
    """One event for the threads, and one for each event loop. Guarded by the manager's lock."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: dict[object, WaitEvent] | None = None  # most managers have no waiters at most times

    def join(self, key: object, make: Callable[[], E]) -> E:
        """Return the event of the waiters with this *key*; *make* makes it for the first of them."""
        events = self._events = self._events or {}
        event = events.get(key)
        if event is None:
            event = events[key] = make()
        return event  # type: ignore[return-value]  # one key, one kind of event

    def wake(self) -> None:
        """Wake all waiters. An interrupted call is finished by the next one."""
        if self._events is None:
            return
        for event in self._events.values():
            event.set()
        # Not before: an exception may strike at any call. One that joins meanwhile wakes early, and joins again.
        self._events = None

    def clear(self) -> None:
        """Forget all waiters in a forked child: they belong to the parent."""
        self._events = None

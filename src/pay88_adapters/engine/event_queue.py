"""Queue of events for the log and the listeners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from pay88_adapters.core.events import Event, Listener

from .event_log import SafeListener, log, logs


class EventQueue:
    """Collects events under the manager's lock, and dispatches them once it has been released."""

    __slots__ = ("_listeners", "queued")

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(map(SafeListener, listeners))
        self.queued: list[Event] = []

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The listeners, as they were given."""
        return tuple(each.listener for each in self._listeners)

    def listen(self, listener: Listener) -> None:
        """Add a listener. The lock must be held."""
        self._listeners = (*self._listeners, SafeListener(listener))

    def wants(self, kind: Callable[..., Event]) -> bool:
        """Whether the log or a listener receives events of *kind*. Other events need not be created."""
        return bool(self._listeners) or logs(kind)

    def add(self, event: Event) -> None:
        """Queue *event*. The lock must be held."""
        self.queued.append(event)

    def dispatch(self, events: Sequence[Event]) -> None:
        """Log *events*, and call the listeners with them. The caller must hold no lock and no lease.

        Raises:
            BaseException: A listener raised an exception that is not an ``Exception``, such as a
                soft time limit.
        """
        raised: BaseException | None = None
        for event in events:
            log(event)
            for listener in self._listeners:
                raised = listener(event) or raised
        if raised is not None:
            raise raised

    def dispatch_safely(self, events: Sequence[Event]) -> None:
        """Do the same as :meth:`dispatch`, but log what a listener raises: there is no caller to raise it to."""
        with suppress(BaseException):
            self.dispatch(events)

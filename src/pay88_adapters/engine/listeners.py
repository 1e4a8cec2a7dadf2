"""Those who receive events: the log, and the listeners of a manager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from pay88_adapters.core.events import Event, Listener

from .event_log import SafeListener, log, logs


class Listeners:
    """The log and some listeners. Never changed, so that most managers share ``LOG_ALONE``."""

    __slots__ = ("_listeners",)

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = tuple(map(SafeListener, listeners))

    def and_one(self, listener: Listener) -> Listeners:
        """Return them with one more."""
        more = Listeners()
        more._listeners = (*self._listeners, SafeListener(listener))
        return more

    @property
    def given(self) -> tuple[Listener, ...]:
        """The listeners, as they were given."""
        return tuple(each.listener for each in self._listeners)

    def wants(self, kind: Callable[..., Event]) -> bool:
        """Whether the log or a listener receives events of *kind*. Other events need not be created."""
        return bool(self._listeners) or logs(kind)

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


LOG_ALONE = Listeners()

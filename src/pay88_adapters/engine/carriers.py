"""The age of what a fetch depends on: HTTP clients, and runs of event loops (rule 2)."""

from __future__ import annotations

import weakref

_EVER = float("inf")
_MANY = 256  # number of carriers from which on collected ones are removed


class Carriers:
    """Records when each client and each run of an event loop was first seen. The manager's lock guards it.

    A client for each request, or an event loop for each, may end before a background refresh does. A carrier that has
    existed for longer than a fetch can take is expected to remain.
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[object], float]] = {}

    def after_fork(self) -> None:
        """Continue without the parent's event loops and connections."""
        self._seen.clear()

    def age(self, carriers: tuple[object, ...], now: float) -> float:
        """Return for how many seconds the youngest of *carriers* has been known; infinity without carriers."""
        return min((now - self._since(carrier, now) for carrier in carriers), default=_EVER)

    def _since(self, carrier: object, now: float) -> float:
        reference, since = self._seen.get(id(carrier), (None, now))
        if reference is not None and reference() is carrier:
            return since
        if len(self._seen) >= _MANY:
            self._seen = {key: each for key, each in self._seen.items() if each[0]() is not None}
        try:
            self._seen[id(carrier)] = weakref.ref(carrier), now
        except TypeError:  # it supports no weak references: it counts as new each time
            self._seen.pop(id(carrier), None)
        return now

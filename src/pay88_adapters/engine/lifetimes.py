"""The age of what a fetch depends on: HTTP clients, and runs of event loops (rule 2)."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from pay88_adapters.core.constants import FOREVER
from pay88_adapters.core.policy import TokenPolicy

from .clock import Clock, shared_on

_MANY = 256  # number of dependencies from which on those that no longer exist are removed


class _FullPool(NamedTuple):
    client: weakref.ref[object]
    until: float
    """Until when it sends no token request."""
    times: int
    """How often it had no free connection, without one in between."""


class Lifetimes:
    """Records when each client and each run of an event loop was first seen. All managers on one clock share it.

    And which clients had no free connection for a token request.

    A client for each request, or an event loop for each, may end before a background refresh does. A dependency that
    has existed for longer than a fetch can take is expected to remain. It takes no lock: what two threads record at
    the same time may count as new once more.
    """

    __slots__ = ("_full", "_seen", "_sweep_at")

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[object], float]] = {}
        self._sweep_at = _MANY
        self._full: dict[int, _FullPool] = {}  # almost always empty

    def after_fork(self) -> None:
        """Continue without the parent's event loops and connections."""
        self._seen.clear()
        self._full.clear()

    def pool_was_full(self, dependencies: tuple[object, ...], now: float, policy: TokenPolicy) -> None:
        """Record that the client among *dependencies* had no free connection for a token request (rule 16)."""
        for dependency in dependencies:
            before = self._full_pool(dependency)
            times = 0 if before is None else before.times
            try:
                entry = _FullPool(weakref.ref(dependency), now + policy.full_pool_pause(times), times + 1)
            except TypeError:  # it supports no weak references: its requests wait for one another
                continue
            others = {key: each for key, each in list(self._full.items()) if each.client() is not None}
            self._full = {**others, id(dependency): entry}

    def pool_was_free(self, dependencies: tuple[object, ...]) -> None:
        """Record that it had one."""
        for dependency in dependencies:
            self._full.pop(id(dependency), None)

    def can_fetch_from(self, dependencies: tuple[object, ...]) -> float | None:
        """Return from when on *dependencies* can send a token request again, if the pool of one was full."""
        if not self._full:
            return None
        return max((full.until for dependency in dependencies if (full := self._full_pool(dependency))), default=None)

    def _full_pool(self, dependency: object) -> _FullPool | None:
        full = self._full.get(id(dependency))
        return full if full is not None and full.client() is dependency else None

    def age(self, dependencies: tuple[object, ...], now: float) -> float:
        """Return for how many seconds the youngest of *dependencies* has been known; infinity without dependencies."""
        return min((now - self._since(dependency, now) for dependency in dependencies), default=FOREVER)

    def _since(self, dependency: object, now: float) -> float:
        reference, since = self._seen.get(id(dependency), (None, now))
        if reference is not None and reference() is dependency:
            return since
        if len(self._seen) >= self._sweep_at:
            for key, (gone, _) in list(self._seen.items()):
                if gone() is None:
                    self._seen.pop(key, None)
            self._sweep_at = max(_MANY, 2 * len(self._seen))
        try:
            self._seen[id(dependency)] = weakref.ref(dependency), now
        except TypeError:  # it supports no weak references: it counts as new each time
            self._seen.pop(id(dependency), None)
        return now


def lifetimes_on(clock: Clock) -> Lifetimes:
    """Return what the managers on *clock* share."""
    return shared_on(clock, "_pay88_lifetimes", Lifetimes)

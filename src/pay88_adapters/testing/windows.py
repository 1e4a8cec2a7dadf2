"""Moving windows, counted in the simplest way.

The package counts its own budget with the ``limits`` library; a check must not share that code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from pay88_adapters.core.arguments import check_count, check_number
from pay88_adapters.core.errors import ConfigurationError

Limits = Sequence[tuple[int, float]]
"""Limits as pairs of a count and seconds, such as ``((10, 60), (100, 3600))``."""


def check_limits(name: str, limits: Limits) -> None:
    """Raise :class:`ConfigurationError` unless *limits* are pairs of a count and seconds."""
    try:
        for count, seconds in limits:
            check_count(name, count)
            check_number(name, seconds, positive=True)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{name} must be pairs of a count and seconds, such as ((10, 60),)") from None


class MovingWindows:
    """Requests counted against several limits.

    A request counted at ``t`` no longer counts at ``t + seconds``: ten at second 0 and a limit of
    ten in 60 seconds allow the next at second 60 exactly, and not before.
    """

    def __init__(self, limits: Limits) -> None:
        self._windows = [(count, seconds, deque[float]()) for count, seconds in limits]

    def wait(self, now: float) -> float:
        """Return the seconds until one more request is allowed; 0 when it is allowed now."""
        wait = 0.0
        for count, seconds, hits in self._windows:
            _forget(hits, now, seconds)
            if len(hits) >= count:
                leaves_at = hits[-count] + seconds if count else now + seconds
                wait = max(wait, leaves_at - now)
        return wait

    def hit(self, now: float) -> None:
        """Count one request."""
        for _, _, hits in self._windows:
            hits.append(now)

    def state(self, now: float) -> tuple[int, int, float] | None:
        """Return limit, remaining and the seconds until the next unit, for the tightest limit.

        ``None`` when there is no limit.
        """
        states: list[tuple[int, int, float]] = []
        for count, seconds, hits in self._windows:
            _forget(hits, now, seconds)
            back_in = hits[0] + seconds - now if hits else 0.0
            states.append((count, max(0, count - len(hits)), back_in))
        return min(states, key=lambda state: state[1], default=None)

    def usage(self, now: float) -> Iterator[tuple[int, float, int, float | None]]:
        """Yield each limit's count and seconds, its used units, and when the next unit is available, if any is used."""
        for count, seconds, hits in self._windows:
            _forget(hits, now, seconds)
            yield count, seconds, len(hits), hits[0] + seconds if hits else None


def largest_window(instants: Sequence[float], seconds: float) -> int:
    """Return how many of the *instants* (in order) fall into any half-open window of *seconds*."""
    largest = 0
    hits = deque[float]()
    for at in instants:
        _forget(hits, at, seconds)
        hits.append(at)
        largest = max(largest, len(hits))
    return largest


def _forget(hits: deque[float], now: float, seconds: float) -> None:
    while hits and now - hits[0] >= seconds:
        hits.popleft()

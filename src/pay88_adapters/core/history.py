"""Histories of acquired units, and whether they grant an acquisition: the arithmetic of every budget and rate limit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast, overload

from .constants import FOREVER


class Window(NamedTuple):
    """One limit on the history of one key. Several windows may share one history."""

    key: str
    limit: int
    expiry: float
    """Seconds that an entry counts, including the instant at which it leaves."""


class Entry(NamedTuple):
    """One acquired unit. A history is a set of entries by id: adding an entry twice adds it once."""

    id: str
    age: float
    """Seconds since the acquisition."""


Ages = Sequence[float]
"""Seconds since each entry was added, oldest first."""

History = Sequence[Entry]
"""Entries of one key, oldest first."""

MIN_TTL = 3660.0
"""Minimum seconds for which entries are kept: a manager with other limits finds an hour of history."""


class Cooldown(NamedTuple):
    """The wait that a 429 of the token endpoint demanded."""

    seconds: float
    """Duration of the wait, from the response on."""
    age: float
    """Seconds since the response, or a little less."""
    reason: str
    """The failure, in a format of the caller."""

    def left(self, most: float = FOREVER) -> float:
        """Return the remaining seconds, if the whole wait is capped at *most* seconds."""
        return max(min(self.seconds, most) - self.age, 0.0)


def longest(cooldowns: Iterable[Cooldown | None]) -> Cooldown | None:
    """Return the cooldown that ends last, if there is any."""
    return max((each for each in cooldowns if each is not None), key=Cooldown.left, default=None)


class Acquisition(NamedTuple):
    """Units to acquire, in one atomic step."""

    windows: Sequence[Window]
    """The limits. Each must have a unit left for every id."""
    ids: Sequence[str]
    """Ids of the entries to add to each history: one per unit. Entries that exist are granted again."""
    known: Mapping[str, History] = MappingProxyType({})
    """Entries to add to the histories first, by key, whether the acquisition is granted or not."""
    longest_cooldown: float = FOREVER
    """Cap on the cooldown for this acquisition, in seconds."""
    durable: bool = False
    """Whether the entries must outlive a failover of the store. Then the store client adds its other entries to
    *known*, in case the store has lost them, and a Redis store waits for its replicas."""


class StorageResult(NamedTuple):
    """Result of an :class:`Acquisition`."""

    wait: float
    """0 if the acquisition was granted; else the seconds until it can be granted."""
    histories: Mapping[str, History]
    """All entries, by the keys of the windows, including the new ones."""
    cooldown: Cooldown | None = None
    """The current cooldown, if any. Nothing is granted before it ends."""
    reason: str = ""
    """Why it was not granted, if the other fields do not contain the reason."""


class Past(Sequence[Entry]):
    """A history as instants and ids, oldest first: histories of API requests are long and seldom read in full.

    Args:
        instants: When each entry was acquired.
        ids: Their ids, in the same order.
        now: The time.
    """

    __slots__ = ("ids", "instants", "now")

    def __init__(self, instants: Sequence[float], ids: Sequence[str], now: float) -> None:
        self.instants, self.ids, self.now = instants, ids, now

    def __len__(self) -> int:
        return len(self.instants)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Past: ...
    def __getitem__(self, index: int | slice) -> Entry | Past:
        if isinstance(index, slice):
            return Past(self.instants[index], self.ids[index], self.now)
        return Entry(self.ids[index], self.now - self.instants[index])

    def __iter__(self) -> Iterator[Entry]:
        now = self.now
        return (Entry(name, now - at) for at, name in zip(self.instants, self.ids, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(cast("Sequence[object]", other))

    def __hash__(self) -> int:
        return hash(tuple(self))


def instants(history: History, now: float) -> list[tuple[float, str]]:
    """Return when each entry was acquired, on a clock that shows *now*, and its id."""
    if isinstance(history, Past):
        shift = now - history.now
        return [(at + shift, name) for at, name in zip(history.instants, history.ids, strict=True)]
    return [(now - entry.age, entry.id) for entry in history]


class _Ages(Sequence[float]):
    """Ages of the newest entries of a history."""

    __slots__ = ("_past", "_start")

    def __init__(self, past: Past, expiry: float) -> None:
        self._past, self._start = past, bisect_left(past.instants, past.now - expiry)

    def __len__(self) -> int:
        return len(self._past.instants) - self._start

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._past.now - self._past.instants[self._start + index]

    def __iter__(self) -> Iterator[float]:
        now = self._past.now
        return (now - at for at in self._past.instants[self._start :])


def counted(window: Window, history: History) -> Ages:
    """Return the ages of the entries that count in *window*."""
    if isinstance(history, Past):
        return _Ages(history, window.expiry)
    return [entry.age for entry in history if entry.age <= window.expiry]


def wait_for(window: Window, ages: Ages, amount: int) -> float:
    """Return the seconds until *amount* more entries fit into *window*; *ages* are those of its entries now."""
    free = window.limit - len(ages)
    if amount <= free:
        return 0.0
    if amount > window.limit:
        return window.expiry
    # The window is closed at both ends: an entry still counts at the instant it leaves.
    return max(window.expiry - ages[amount - free - 1], 0.0) + 1e-3


def verdict(acquisition: Acquisition, histories: Mapping[str, History], cooldown: Cooldown | None) -> float:
    """Return the seconds until *acquisition* can be granted, with the entries and cooldown of the store; 0 for now."""
    left = cooldown.left(acquisition.longest_cooldown) if cooldown is not None else 0.0
    if left > 0:
        return left
    if acquisition.ids and all(_contains(history, acquisition.ids) for history in histories.values()):
        return 0.0  # it was granted before, and the response was lost
    amount = len(acquisition.ids)
    return max(wait_for(window, counted(window, histories[window.key]), amount) for window in acquisition.windows)


def _contains(history: History, ids: Sequence[str]) -> bool:
    there = history.ids if isinstance(history, Past) else [entry.id for entry in history]
    return {*ids}.issubset(there)

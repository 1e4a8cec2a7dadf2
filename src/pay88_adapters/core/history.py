"""Histories of what was acquired, and what of a claim they grant: the arithmetic of every budget and rate limit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast, overload


class Window(NamedTuple):
    """One limit on the history of one key. Several windows may look at one history."""

    key: str
    limit: int
    expiry: float
    """Seconds that an entry counts. It still does at the very instant at which it leaves."""


class Entry(NamedTuple):
    """One unit that was acquired. Histories are sets of entries by their ids, so adding one twice adds it once."""

    id: str
    age: float
    """Seconds since it was acquired."""


Ages = Sequence[float]
"""Seconds since each entry was added, oldest first."""

History = Sequence[Entry]
"""What is kept under one key, oldest first."""

LEAST_KEEP = 3660.0
"""Seconds for which entries are kept at least: whoever comes with other limits finds an hour of history."""

FOREVER = float("inf")


class Cooldown(NamedTuple):
    """What the service said when it asked to wait."""

    seconds: float
    """For how long, from when it said so."""
    age: float
    """Seconds since then, or a little less."""
    reason: str
    """What it said, in a form of the caller's."""

    def left(self, most: float = FOREVER) -> float:
        """Return the seconds left, for whoever waits *most* seconds at most."""
        return max(min(self.seconds, most) - self.age, 0.0)


class Claim(NamedTuple):
    """What somebody wants to acquire, in one step."""

    windows: Sequence[Window]
    """All of which must have room."""
    ids: Sequence[str]
    """Of the entries to add to the history of each window: one a unit. Those that are there already are granted."""
    known: Mapping[str, History] = MappingProxyType({})
    """What the histories have to contain, by key: it is added first, whatever comes of the claim."""
    longest_cooldown: float = FOREVER
    """Seconds that a bar holds at most, for this one."""
    restores: bool = False
    """Whether whoever passes the claim on should fill in what else is *known*, in case the store has lost it."""


class ClaimResult(NamedTuple):
    """The answer to a claim."""

    wait: float
    """0 if it was granted; else nothing was, and this is how many seconds until it could be."""
    histories: Mapping[str, History]
    """Everything that is kept, by the windows' keys, the new entries included."""
    bar: Cooldown | None = None
    """What holds now, if anything does. None of the histories grants anything meanwhile."""
    reason: str = ""
    """Why it was not granted, where that is not plain from the rest."""


class Past(Sequence[Entry]):
    """A history as a sequence of instants, oldest first: histories of calls are long, and seldom looked at in full."""

    __slots__ = ("entries", "now")

    def __init__(self, entries: Sequence[tuple[float, str]], now: float) -> None:
        self.entries, self.now = entries, now

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Past: ...
    def __getitem__(self, index: int | slice) -> Entry | Past:
        if isinstance(index, slice):
            return Past(self.entries[index], self.now)
        at, name = self.entries[index]
        return Entry(name, self.now - at)

    def __iter__(self) -> Iterator[Entry]:
        now = self.now
        return (Entry(name, now - at) for at, name in self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(cast("Sequence[object]", other))

    def __hash__(self) -> int:
        return hash(tuple(self))


class _Ages(Sequence[float]):
    """The ages of what a history ends with."""

    __slots__ = ("_past", "_start")

    def __init__(self, past: Past, expiry: float) -> None:
        self._past, self._start = past, bisect_left(past.entries, (past.now - expiry, ""))

    def __len__(self) -> int:
        return len(self._past) - self._start

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._past.now - self._past.entries[self._start + index][0]

    def __iter__(self) -> Iterator[float]:
        now, entries = self._past.now, self._past.entries
        return (now - entries[index][0] for index in range(self._start, len(entries)))


def counted(window: Window, history: History) -> Ages:
    """Return the ages of what counts in *window*."""
    if isinstance(history, Past):
        return _Ages(history, window.expiry)
    return [entry.age for entry in history if entry.age <= window.expiry]


def wait_for(window: Window, ages: Ages, amount: int) -> float:
    """Return in how many seconds *amount* entries fit into *window*, given what counts in it now."""
    free = window.limit - len(ages)
    if amount <= free:
        return 0.0
    if amount > window.limit:
        return window.expiry
    # The window is closed at both ends: an entry still counts at the instant it leaves.
    return max(window.expiry - ages[amount - free - 1], 0.0) + 1e-3


def verdict(claim: Claim, histories: Mapping[str, History], bar: Cooldown | None) -> float:
    """Return in how many seconds *claim* can be granted, given what is kept; 0 for now."""
    left = bar.left(claim.longest_cooldown) if bar is not None else 0.0
    if left > 0:
        return left
    if claim.ids and all(_contains(history, claim.ids) for history in histories.values()):
        return 0.0  # it was granted before, and the answer was lost
    amount = len(claim.ids)
    return max(wait_for(window, counted(window, histories[window.key]), amount) for window in claim.windows)


def _contains(history: History, ids: Sequence[str]) -> bool:
    there = {name for _, name in history.entries} if isinstance(history, Past) else {entry.id for entry in history}
    return there.issuperset(ids)

"""What a store keeps for the managers that share it: a budget, and a record with the lease to replace it.

Every operation is one atomic step on the store's own clock. Ages and remaining life travel, never
instants: the clocks of those who share a store need not agree. All durations are in seconds of the
manager's :class:`~pay88_adapters.clock.Clock`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, NoReturn, Protocol

from limits.storage import MovingWindowSupport, Storage


class StoreError(Exception):
    """The store cannot be used at present: down, slow, full, locked or corrupt. Says which, without a secret."""


class Window(NamedTuple):
    """One limit on one key."""

    key: str
    limit: int
    expiry: float
    """Seconds that an entry counts. It still does at the very instant at which it leaves."""


Ages = Sequence[float]
"""Seconds since each entry was added, oldest first."""


class Acquired(NamedTuple):
    """The answer to one acquisition."""

    wait: float
    """0 if every window got an entry; else none did, and this is how many seconds until they could."""
    ages: Sequence[Ages]
    """What counts in each window now, the new entries included."""


def wait_for(window: Window, ages: Ages, amount: int) -> float:
    """Return in how many seconds *amount* entries fit into *window*, given what counts in it now."""
    free = window.limit - len(ages)
    if amount <= free:
        return 0.0
    if amount > window.limit:
        return window.expiry
    # The window is closed at both ends: an entry still counts at the instant it leaves.
    return max(window.expiry - ages[amount - free - 1], 0.0) + 1e-3


class BudgetStorage(Storage, MovingWindowSupport, ABC):
    """A moving-window storage of ``limits`` that takes several windows in one step.

    One ``hit`` after another would charge the first limit for what the second one refuses.
    """

    STORAGE_SCHEME = None  # made by the package alone, never from a URL

    @abstractmethod
    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> Acquired:
        """Add *amount* entries to every window, or to none. The keys differ.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    def add(self, window: Window, ages: Ages) -> None:
        """Add entries that were made elsewhere, whether they fit or not.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    def ages(self, window: Window) -> Ages:
        """Return what counts in *window* now.

        Raises:
            StoreError: The store cannot be used.
        """

    # --- the rest of what limits asks for

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return (StoreError,)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add *amount* entries if they fit."""
        return self.acquire_all([Window(key, limit, expiry)], amount).wait == 0

    @abstractmethod
    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return when the oldest entry was added, on the store's clock, and how many there are."""

    def incr(self, key: str, expiry: int, amount: int = 1) -> NoReturn:
        raise NotImplementedError("this storage keeps moving windows only")

    def get_expiry(self, key: str) -> NoReturn:
        raise NotImplementedError("this storage keeps moving windows only")


@dataclass(frozen=True, slots=True)
class Record:
    """What was published last."""

    version: int
    """The fence of whoever published it."""
    content: str = field(repr=False)
    """Holds a token: a secret."""
    age: float
    """Seconds since it was written, or a little more."""


class Lead(NamedTuple):
    """The answer to whoever wants to replace the record: exactly one of the three."""

    record: Record | None = None
    """It has been replaced already."""
    fence: int | None = None
    """You are the one: the lease is yours."""
    busy_for: float = 0.0
    """Somebody else's lease runs for so many seconds more, unless the record is replaced earlier."""


class Look(NamedTuple):
    """How things stand with one record, for whoever only looks."""

    record: Record | None = None
    """What was published last, if it is still kept."""
    owner: str = ""
    """Who has the lease, by the name given to :meth:`Store.lead`; "" for nobody."""
    busy_for: float = 0.0
    """For how many seconds more that lease runs."""


class Store(Protocol):
    """Where managers meet. Any thread may use it, and a forked child, too."""

    blocking: ClassVar[bool]
    """Whether an operation may take long, so that an event loop has to let a thread do it."""

    @property
    def budget(self) -> BudgetStorage:
        """Keeps the entries of the budget."""
        ...

    def lead(self, key: str, *, owner: str, known: int, lease: float) -> Lead:
        """Ask to be the one who replaces the record of *key*.

        Args:
            key: Names the record.
            owner: Names who asks. The lease is given to its owner again, under a new fence.
            known: The version that the owner knows, 0 for none: any other that is there is the answer.
            lease: For how many seconds nobody else may replace it.

        Raises:
            StoreError: The store cannot be used.
        """
        ...

    def publish(self, key: str, *, fence: int, content: str, keep: float, after: float = 0.0) -> bool:
        """Replace the record and end the lease, unless a newer fence has been given out.

        Args:
            key: Names the record.
            fence: From :meth:`lead`; becomes the record's version. One that the store has not given out,
                because it was emptied since, publishes nothing.
            content: The record.
            keep: After how many seconds the record may be forgotten. The count of fences outlives it
                by a day at least.
            after: How many seconds after :meth:`lead` returned the content was written. The record's age
                counts from then, however long it is on its way.

        Returns:
            Whether it was published.

        Raises:
            StoreError: The store cannot be used.
        """
        ...

    def look(self, key: str) -> Look:
        """Return the record of *key* and who is about to replace it. Takes nothing and changes nothing.

        Raises:
            StoreError: The store cannot be used.
        """
        ...

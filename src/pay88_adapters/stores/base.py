"""What a store keeps for the managers that share it: a budget, and a record with the lease to replace it.

Every operation is one atomic step on the store's own clock. Ages and remaining life travel, never
instants: the clocks of those who share a store need not agree. All durations are in seconds of the
manager's :class:`~pay88_adapters.clock.Clock`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import ClassVar, NamedTuple, NoReturn, Protocol

from limits.storage import MovingWindowSupport, Storage

from pay88_adapters.core.history import (
    Ages,
    Claim,
    ClaimResult,
    Cooldown,
    Entry,
    History,
    Window,
    counted,
)


class StoreError(Exception):
    """The store cannot be used at present: down, slow, full, locked or corrupt. Says which, without a secret."""


class WindowsResult(NamedTuple):
    """The answer to one acquisition."""

    wait: float
    """0 if every window got an entry; else none did, and this is how many seconds until they could."""
    ages: Sequence[Ages]
    """What counts in each window now, the new entries included."""


def new_id() -> str:
    """Name an entry as no other one is named."""
    return token_urlsafe(9)


class BudgetStorage(Storage, MovingWindowSupport, ABC):
    """A moving-window storage of ``limits`` that takes several windows in one step.

    One ``hit`` after another would charge the first limit for what the second one refuses.
    """

    STORAGE_SCHEME = None  # made by the package alone, never from a URL

    @abstractmethod
    def claim(self, claim: Claim) -> ClaimResult:
        """Grant all that is claimed, or none.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    def merge(self, key: str, entries: History, keep: float) -> None:
        """Add entries that were made elsewhere, whether they fit or not, unless they are there.

        Args:
            key: Of the history.
            entries: To be added.
            keep: For how many seconds somebody needs them.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    def history(self, key: str) -> History:
        """Return what is kept under *key*.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    def bar(self, key: str, bar: Cooldown) -> None:
        """Grant nothing of the history of *key* while *bar* lasts, unless one that lasts longer is there.

        Raises:
            StoreError: The store cannot be used.
        """

    @abstractmethod
    def cooldown(self, key: str) -> Cooldown | None:
        """Return the bar of *key*, if one lasts.

        Raises:
            StoreError: The store cannot be used.
        """

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> WindowsResult:
        """Add *amount* entries to the history of every window, or to none.

        Raises:
            StoreError: The store cannot be used.
        """
        answer = self.claim(Claim(windows, [new_id() for _ in range(amount)]))
        return WindowsResult(answer.wait, [counted(window, answer.histories[window.key]) for window in windows])

    def room(self, window: Window) -> int:
        """Return how many entries *window* may hold at present: its limit, unless some are set aside."""
        return window.limit

    def add(self, window: Window, ages: Ages) -> None:
        """Add entries that were made elsewhere, whether they fit or not.

        Raises:
            StoreError: The store cannot be used.
        """
        self.merge(window.key, [Entry(new_id(), age) for age in ages], window.expiry)

    def ages(self, window: Window) -> Ages:
        """Return what counts in *window* now.

        Raises:
            StoreError: The store cannot be used.
        """
        return list(counted(window, self.history(window.key)))

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

    def get(self, key: str) -> int:
        """Return how many entries *key* holds."""
        return len(self.history(key))

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
    stored: float = field(default=0.0, compare=False)
    """Seconds since it was stored: it was written earlier, or then."""


class Member(NamedTuple):
    """Whoever has a share of the budget while the store cannot be used."""

    name: str
    age: float
    """Seconds since it asked last."""
    parts: int
    """Its share is one part in so many; 0: it has none."""


class LeaseResult(NamedTuple):
    """The answer to whoever wants to replace the record: exactly one of the first three."""

    record: Record | None = None
    """It has been replaced already."""
    fencing_token: int | None = None
    """You are the one: the lease is yours."""
    lease_remaining: float = 0.0
    """Somebody else's lease runs for so many seconds more, unless the record is replaced earlier."""
    parts: int = 0
    """While the store cannot be used, the share of this member of the budget is one part in so many; 0: it has none."""
    others: Sequence[Member] = ()
    """All other members, unless there are too many to have any share."""


class StoreView(NamedTuple):
    """How things stand with one record, for whoever only looks."""

    record: Record | None = None
    """What was published last, if it is still kept."""
    owner: str = ""
    """Who has the lease, by the name given to :meth:`Store.try_acquire_lease`; "" for nobody."""
    lease_remaining: float = 0.0
    """For how many seconds more that lease runs."""


class StoreClock(Protocol):
    """The manager's clock, from the point of view of a store."""

    @property
    def speed(self) -> float:
        """How many of its seconds pass in one real second."""
        ...

    def now(self) -> float:
        """Return the seconds since an arbitrary instant."""
        ...

    def real(self, seconds: float) -> float:
        """Return how many real seconds *seconds* of it last."""
        ...


class Store(Protocol):
    """Where managers meet. Any thread may use it, and a forked child, too."""

    blocking: ClassVar[bool]
    """Whether an operation may take long, so that an event loop has to let a thread do it."""

    @property
    def budget(self) -> BudgetStorage:
        """Keeps the entries of the budget."""
        ...

    def after_fork(self) -> None:
        """Go on in a forked child: without the parent's threads, locks and connections."""
        ...

    def try_acquire_lease(self, key: str, *, owner: str, known: int, lease: float) -> LeaseResult:
        """Ask to be the one who replaces the record of *key*.

        Args:
            key: Names the record.
            owner: Names who asks. The lease is given to its owner again, under a new fence. What stands before
                a slash names the member of the fleet that the owner belongs to: see :mod:`.members`.
            known: The version that the owner knows, 0 for none: any other that is there is the answer.
            lease: For how many seconds nobody else may replace it.

        Raises:
            StoreError: The store cannot be used.
        """
        ...

    def publish(self, key: str, *, fencing_token: int, content: str, keep: float, after: float = 0.0) -> bool:
        """Replace the record and end the lease, unless a newer fence has been given out.

        Args:
            key: Names the record.
            fence: From :meth:`try_acquire_lease`; becomes the record's version. One that the store has not given out,
                because it was emptied since, publishes nothing.
            content: The record.
            keep: After how many seconds the record may be forgotten. The count of fences outlives it
                by a day at least.
            after: How many seconds after :meth:`try_acquire_lease` returned the content was written. The record's age
                counts from then, however long it is on its way.

        Returns:
            Whether it was published.

        Raises:
            StoreError: The store cannot be used.
        """
        ...

    def peek(self, key: str) -> StoreView:
        """Return the record of *key* and who is about to replace it. Takes nothing and changes nothing.

        Raises:
            StoreError: The store cannot be used.
        """
        ...

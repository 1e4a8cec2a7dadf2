"""Interface of shared stores: the token budget, and the record of the token with its refresh lease.

Every operation is one atomic step on the store's own clock. The store exchanges ages and remaining lifetimes, never
timestamps: the clocks of the hosts need not agree. All durations are in seconds of the
manager's :class:`~pay88_adapters.clock.Clock`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from secrets import token_urlsafe
from typing import ClassVar, NamedTuple, NoReturn, Protocol

from limits.storage import MovingWindowSupport, Storage

from pay88_adapters.core.history import (
    Acquisition,
    Ages,
    Cooldown,
    Entry,
    History,
    StorageResult,
    Window,
    counted,
)

REMEDY = "start the store, or correct PAY88_STORE"


class StoreError(Exception):
    """The store is unavailable: down, slow, full, locked or corrupt. The message says which, without a secret.

    Args:
        message: What failed, and why.
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str = REMEDY) -> None:
        super().__init__(message)
        self.remedy = remedy


def new_id() -> str:
    """Return a new unique id of an entry."""
    return token_urlsafe(9)


class EntryStorage(Storage, MovingWindowSupport, ABC):
    """A moving-window storage of ``limits`` that takes several windows in one step.

    Separate ``hit`` calls would charge the first limit for a request that the second one rejects.
    """

    STORAGE_SCHEME = None  # only the package creates it, never a URL

    @abstractmethod
    def acquire(self, acquisition: Acquisition) -> StorageResult:
        """Add all entries of *acquisition*, or none.

        Raises:
            StoreError: The store is unavailable.
        """

    @abstractmethod
    def merge(self, key: str, entries: History, ttl: float) -> None:
        """Add missing entries of other managers, within the limits or not.

        Args:
            key: Key of the history.
            entries: Entries to add.
            ttl: Seconds for which they are needed.

        Raises:
            StoreError: The store is unavailable.
        """

    @abstractmethod
    def history(self, key: str) -> History:
        """Return what is kept under *key*.

        Raises:
            StoreError: The store is unavailable.
        """

    @abstractmethod
    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        """Start a cooldown for *key*, unless the current one lasts longer. Nothing is granted before it ends.

        Raises:
            StoreError: The store is unavailable.
        """

    @abstractmethod
    def cooldown(self, key: str) -> Cooldown | None:
        """Return the current cooldown of *key*, if any.

        Raises:
            StoreError: The store is unavailable.
        """

    def acquire_all(self, windows: Sequence[Window], amount: int = 1) -> StorageResult:
        """Add *amount* entries to the history of every window, or to none.

        Raises:
            StoreError: The store is unavailable.
        """
        return self.acquire(Acquisition(windows, [new_id() for _ in range(amount)]))

    def usable_limit(self, window: Window) -> int:
        """Return how many entries *window* may hold at present: its limit, less those reserved for other processes."""
        return window.limit

    def add(self, window: Window, ages: Ages) -> None:
        """Add entries that were made elsewhere, whether they fit or not.

        Raises:
            StoreError: The store is unavailable.
        """
        self.merge(window.key, [Entry(new_id(), age) for age in ages], window.expiry)

    def ages(self, window: Window) -> Ages:
        """Return what counts in *window* now.

        Raises:
            StoreError: The store is unavailable.
        """
        return list(counted(window, self.history(window.key)))

    # --- the rest of the interface of limits

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
        raise NotImplementedError("this storage supports moving windows only")

    def get_expiry(self, key: str) -> NoReturn:
        raise NotImplementedError("this storage supports moving windows only")


@dataclass(frozen=True, slots=True)
class Record:
    """What was published last."""

    version: int
    """Fencing token of the publisher."""
    content: object = field(repr=False)
    """As it was published. It holds a token, which is a secret, and is to be validated by the reader."""
    age: float
    """Seconds since it was written, or a little more."""
    stored: float = field(default=0.0, compare=False)
    """Seconds since it was stored: it was written earlier, or then."""


class Member(NamedTuple):
    """A process, or a host with a fallback store, that has a share of the budget in degraded mode."""

    name: str
    age: float
    """Seconds since its last lease attempt."""
    divisor: int
    """Its share is 1/divisor of the budget; 0: it has none."""


class LeaseResult(NamedTuple):
    """Result of a lease attempt: exactly one of the first three is set."""

    record: Record | None = None
    """It has been replaced already."""
    fencing_token: int | None = None
    """Fencing token of the acquired lease."""
    lease_remaining: float = 0.0
    """Remaining seconds of another holder's lease."""
    divisor: int = 0
    """While the store cannot be used, the share of this member is 1/divisor of the budget; 0: it has none."""
    others: Sequence[Member] = ()
    """All other members, unless there are too many to have any share."""
    last_attempt: float = inf
    """Seconds since the last lease attempt of this member of which the store still knows, if it had a share then."""


class StoreView(NamedTuple):
    """Read-only view of one record."""

    record: Record | None = None
    """What was published last, if it is still kept."""
    owner: str = ""
    """Lease holder, as given to :meth:`Store.try_acquire_lease`; "" for none."""
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
    """What managers share: the record of a token with its refresh lease, and the entries of the budget.

    Thread-safe and fork-safe.
    """

    blocking: ClassVar[bool]
    """Whether an operation may take long, so that an event loop has to let a thread do it."""
    separate_calls: ClassVar[bool]
    """Whether API requests are counted apart, in a part of the store that may fail while the rest works."""

    @property
    def budget(self) -> EntryStorage:
        """Storage of the entries: of the token budget, and of the rate limits of API requests."""
        ...

    def after_fork(self) -> None:
        """Continue in a forked child, without the threads, locks and connections of the parent."""
        ...

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        """Try to acquire the refresh lease of *key*.

        Args:
            key: Key of the record.
            owner: The caller. Its own lease is granted again, with a new fencing token. The part before a slash is the
                member that the owner belongs to: see :mod:`.members`.
            known_version: The version that the owner knows, 0 for none. If the store has another one, it is the result.
            lease: Duration of the lease in seconds.

        Raises:
            StoreError: The store is unavailable.
        """
        ...

    def remove_member(self, member: str) -> None:
        """Free the share of *member*, which has ended: it makes no further lease attempt.

        Args:
            member: See :meth:`try_acquire_lease`. If it is none, nothing changes.

        Raises:
            StoreError: The store is unavailable.
        """
        ...

    def publish(self, key: str, *, fencing_token: int, content: str, ttl: float, write_delay: float = 0.0) -> bool:
        """Replace the record and release the lease, unless there is a newer fencing token.

        Args:
            key: Key of the record.
            fencing_token: From :meth:`try_acquire_lease`; becomes the record's version. A token that the store has not
                issued, because it was emptied since, publishes nothing.
            content: The record.
            ttl: Seconds after which the record may be deleted. The fencing token is kept for at least a day longer.
            write_delay: Seconds from the return of :meth:`try_acquire_lease` to the writing of the content. The age of
                the record counts from then, however long the operation takes.

        Returns:
            Whether it was published.

        Raises:
            StoreError: The store is unavailable.
        """
        ...

    def peek(self, key: str) -> StoreView:
        """Return the record of *key* and who is about to replace it. Takes nothing and changes nothing.

        Raises:
            StoreError: The store is unavailable.
        """
        ...

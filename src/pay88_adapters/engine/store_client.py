"""A store, as the managers of one process use it (rules 4, 5 and 24)."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from weakref import WeakSet, WeakValueDictionary

from pay88_adapters.core.constants import FOREVER
from pay88_adapters.core.policy import TokenPolicy
from pay88_adapters.core.snapshot import Snapshot
from pay88_adapters.stores.base import LeaseResult, Store
from pay88_adapters.stores.memory import MemoryStorage, MemoryStore

from .budget import TokenBudget
from .clock import Clock
from .forks import fork_id, living, survive_forks
from .local_call_copy import LocalCallCopy
from .local_copy import LocalCopy
from .store_link import Link
from .store_share import Share
from .threads import finish_at_exit

NO_LEASE = 0
"""The fencing token of a fetch without a lease, while the store is unavailable or must not be waited for."""


class StoreAccess(ABC):
    """What the managers of one process need of a store.

    Args:
        store: The store.
        token_entries: Storage of the token budget.
        call_entries: Storage of the rate limits of API requests.
        blocking: Whether an operation may take long.
    """

    def __init__(
        self, store: Store, token_entries: MemoryStorage, call_entries: MemoryStorage, *, blocking: bool
    ) -> None:
        self.store, self.token_entries, self.call_entries = store, token_entries, call_entries
        self.blocking = blocking
        self._budgets: WeakValueDictionary[tuple[TokenPolicy, str], TokenBudget] = WeakValueDictionary()

    @property
    def local_copy(self) -> LocalCopy | None:
        """This process's copy of the shared budget; ``None`` if no other process shares it."""
        return None

    @property
    def degraded(self) -> bool:
        """Whether the store is unavailable."""
        return False

    def token_budget(self, policy: TokenPolicy, base_url: str) -> TokenBudget:
        """Return the budgets of the merchants at one base URL, for all managers with *policy*."""
        budget = self._budgets.get((policy, base_url))
        if budget is None:
            budget = self._budgets[policy, base_url] = TokenBudget(policy, self.token_entries, base_url)
        return budget

    def is_unused(self) -> bool:
        """Whether no manager uses this, and no entry of its budget counts any longer."""
        return not (self._budgets or self.token_entries.holds_entries() or self.call_entries.holds_entries())

    @property
    @abstractmethod
    def runs_here(self) -> bool:
        """Whether this code interrupts an operation of the store, as a finalizer does on the same thread."""

    def may_share(self, other: StoreAccess) -> bool:
        """Whether *other* may be an access to the same leases. A store outside of this process has many URLs."""
        return self.store is other.store

    def open(self, manager: object) -> None:
        """Record that *manager* uses the store."""
        del manager

    def close(self, manager: object) -> Callable[[], None] | None:
        """Record that *manager* is closed. Return what gives the share of this process back to the store, if any.

        It may block for one store operation.
        """
        del manager
        return None

    @abstractmethod
    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        """Do the same as :meth:`Store.try_acquire_lease`."""

    @abstractmethod
    def publish(self, key: str, *, fencing_token: int, snapshot: Snapshot, now: float, write_delay: float) -> bool:
        """Do the same as :meth:`Store.publish` with *snapshot*, which was taken at the instant *now*."""


class MemoryStoreClient(StoreAccess):
    """Access to the store of this process, which cannot fail: nothing is serialized and nothing is kept twice.

    Args:
        store: The store, on the clock of the managers.
    """

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, store.budget, store.budget, blocking=False)
        self._memory = store

    @property
    def runs_here(self) -> bool:
        return self._memory.is_held_here

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        return self._memory.try_acquire_lease(key, owner=owner, known_version=known_version, lease=lease)

    def publish(self, key: str, *, fencing_token: int, snapshot: Snapshot, now: float, write_delay: float) -> bool:
        del write_delay  # as if it was written now: it needs no age, because it contains instants of the same clock
        content, ttl = snapshot.for_this_process(now), snapshot.ttl(now)
        return self._memory.publish(key, fencing_token=fencing_token, content=content, ttl=ttl, write_delay=FOREVER)


class StoreClient(StoreAccess):
    """Access to a store that processes share. It switches to degraded mode instead of raising store errors.

    Args:
        store: The shared store.
        clock: The clock of the managers.
        share: Share of the token budget of this process in degraded mode; ``None`` for the share that the store
            assigned.
        fallback: The fallback store of this host's processes.
        host: Id of the processes with *fallback*: they have one share.
    """

    def __init__(
        self, store: Store, clock: Clock, share: float | None = None, fallback: Store | None = None, host: str = ""
    ) -> None:
        self.link, self._call_link = _links(store, clock)
        self.fallback: Link | None = None
        call_fallback: Link | None = None
        if fallback is not None:
            self.fallback, call_fallback = _links(fallback, clock)
        self.share = Share(clock, share)
        self._local_copy = LocalCopy(self.link, self.fallback, self.share, clock)
        call_entries = LocalCallCopy(self._call_link, call_fallback, self.share, clock)
        blocking = store.blocking or (fallback is not None and fallback.blocking)
        super().__init__(store, self._local_copy, call_entries, blocking=blocking)
        self._host = host
        self._lease_member = ""  # the member that made the last lease attempt
        self._managers: WeakSet[object] = WeakSet()  # those that are not closed
        self._gave_share_back = False
        self._was_reopened = False  # after it gave its share back
        self._clock = clock
        survive_forks(self)

    def after_fork(self) -> None:
        """Continue in a forked child, which the store has not seen yet."""
        if self.fallback is None:
            self.share.split() if self.link.failing else self.share.fork()

    @property
    def local_copy(self) -> LocalCopy:
        return self._local_copy

    @property
    def degraded(self) -> bool:
        return self.link.failing or self._call_link.failing

    @property
    def runs_here(self) -> bool:
        links = self.link, self._call_link, self.fallback
        copies = self.token_entries, self.call_entries
        return any(link is not None and link.runs_here for link in links) or any(copy.is_held_here for copy in copies)

    def may_share(self, other: StoreAccess) -> bool:
        return isinstance(other, StoreClient)

    @property
    def member(self) -> str:
        """Id of this process in the store, or of all processes that share the fallback store with it."""
        return self._member(self.share.number)

    def _member(self, number: int) -> str:
        return self._host if self.fallback is not None else f"{fork_id()}.{number}"

    def open(self, manager: object) -> None:
        self._managers.add(manager)
        self._was_reopened |= self._gave_share_back

    def close(self, manager: object) -> Callable[[], None] | None:
        self._managers.discard(manager)
        # A process with a manager for each of its jobs keeps its share between them, in case that the store fails then.
        is_last = not self._managers and not self._was_reopened
        return self.at_exit if is_last and self._has_removable_share else None

    @property
    def _has_removable_share(self) -> bool:
        is_known = self._lease_member == self.member
        is_own = self.fallback is None and self.share.is_removable  # with a fallback store, it is the host's
        # Other processes reserve units for the share until all that were acquired from it are reported.
        is_settled = not self.link.failing and self._local_copy.is_reported
        return is_known and is_own and is_settled

    def at_exit(self) -> None:
        """Give the share of this process back to the store, if it has one. May block for one store operation."""
        member = self.member
        if self._has_removable_share:
            self._gave_share_back = True
            self.share.give_up()  # first: the store may execute the operation late, and not respond
            self.link.attempt_quietly(lambda store: store.remove_member(member))

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        """Do the same as :meth:`Store.try_acquire_lease`. In degraded mode, use the fallback store, or grant no lease.

        Fencing tokens and versions of the fallback store are negative here.
        """
        number = self.share.number
        self._lease_member = member = self._member(number)
        finish_at_exit(self)

        def operation(store: Store) -> LeaseResult:
            self._local_copy.flush(store)  # here, because a process that never fetches never uses the shared budget
            asked_at = self._clock.now()
            result = store.try_acquire_lease(
                key, owner=f"{member}/{owner}", known_version=max(known_version, 0), lease=lease
            )
            self.share.record_lease_result(result, asked_at, number, self.link)
            return result

        result = self.link.attempt(operation)
        if result is None and self.fallback is not None:
            result = self.fallback.attempt(
                lambda store: store.try_acquire_lease(
                    key, owner=owner, known_version=max(-known_version, 0), lease=lease
                )
            )
            result = result and _with_negative_versions(result)
        return result or LeaseResult(fencing_token=NO_LEASE)

    def publish(self, key: str, *, fencing_token: int, snapshot: Snapshot, now: float, write_delay: float) -> bool:
        """Do the same as :meth:`Store.publish`; nothing without a lease, or in degraded mode."""
        link = self.link if fencing_token > NO_LEASE else self.fallback
        if fencing_token == NO_LEASE or link is None:
            return False
        content, ttl = snapshot.dump(now), snapshot.ttl(now)
        return bool(
            link.attempt(
                lambda store: store.publish(
                    key, fencing_token=abs(fencing_token), content=content, ttl=ttl, write_delay=write_delay
                )
            )
        )


def _links(store: Store, clock: Clock) -> tuple[Link, Link]:
    """Return the link for the token and its budget, and the one for API requests."""
    link = Link(store, clock)
    calls = Link(store, clock, other_part=link, limits="the rate limits") if store.separate_calls else link
    return link, calls


def _with_negative_versions(result: LeaseResult) -> LeaseResult:
    record = result.record
    return result._replace(
        fencing_token=None if result.fencing_token is None else -result.fencing_token,
        record=None if record is None else type(record)(-record.version, record.content, record.age, record.stored),
    )


def _after_fork_in_parent() -> None:
    for store_client in living(StoreClient):
        if store_client.link.failing and store_client.fallback is None:
            store_client.share.split()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent)

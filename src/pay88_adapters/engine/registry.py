"""State that the managers of one process share: open stores, and the managers themselves."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from pay88_adapters.stores import MEMORY, open_fallback, open_store
from pay88_adapters.stores.base import Store
from pay88_adapters.stores.memory import MemoryStore

from .clock import Clock, shared_on
from .forks import survive_forks
from .store_client import MemoryStoreClient, StoreAccess, StoreClient


class Registered(Protocol):
    """A manager, from the point of view of the registry."""

    shared_key: tuple[object, ...] | None


M = TypeVar("M", bound=Registered)
_FIRST_SWEEP = 16  # number of kept objects at which unused ones are first removed
KEPT = 128
"""Number of unreferenced managers that :meth:`TokenManager.shared` keeps: the most recently used."""


class OpenStores:
    """The open stores of one clock, each with this process's store client."""

    def __init__(self) -> None:
        self._stores: WeakValueDictionary[str, Store] = WeakValueDictionary()
        self._clients: dict[tuple[str, str | None, float | None], StoreAccess] = {}
        self._sweep_at = _FIRST_SWEEP

    def __len__(self) -> int:
        return len(self._clients)

    def store_client(
        self, lock: AbstractContextManager[object], url: str, fallback: str | None, clock: Clock, share: float | None
    ) -> StoreAccess:
        """Return the store client of this process for a store. *lock* is the one of the process.

        It is not held while a store is opened: a file system may hang, and the import of a driver run any code.
        """
        if url == MEMORY:
            share = None  # it cannot fail
        store_client = self._clients.get((url, fallback, share))
        if store_client is not None:
            return store_client
        opened = self._stores.get(url) or open_store(url, clock)
        opened_fallback = None if fallback is None else open_fallback(fallback, clock)
        with lock:  # another thread may have opened it, too, as may a signal handler or a finalizer on this one
            store_client = self._clients.get((url, fallback, share))
            if store_client is not None:
                return store_client
            if len(self._clients) >= self._sweep_at:
                # Not when its last manager is collected: the units that it consumed still count.
                for key in [key for key, each in self._clients.items() if each.is_unused()]:
                    del self._clients[key]
                self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._clients))
            made = _client_of(self._stores.setdefault(url, opened), opened_fallback, clock, share)
            return self._clients.setdefault((url, fallback, share), made)

    def key(self, store_client: StoreAccess) -> tuple[str, str | None, float | None]:
        """Return the arguments that *store_client* was made with. It must be in use."""
        return next(key for key, each in self._clients.items() if each is store_client)


class SharedManagers(Generic[M]):
    """The managers of :meth:`TokenManager.shared`: all referenced ones, and the most recently used."""

    def __init__(self) -> None:
        # By the hash of the arguments, which each key holds itself. An argument may refer to its manager, so this
        # mapping must not refer to the arguments.
        self._known: dict[int, list[weakref.ref[M]]] = {}
        self._recent: dict[M, None] = {}
        self._sweep_at = _FIRST_SWEEP

    def __len__(self) -> int:
        return sum(len(refs) for refs in self._known.values())

    def find(self, key: tuple[object, ...]) -> M | None:
        """Return the manager that was made with the arguments *key*, if any."""
        for manager in self._alike(key):
            if manager.shared_key == key:
                self._keep(manager)
                return manager
        return None

    def add(self, key: tuple[object, ...], manager: M) -> None:
        """Register *manager* for *key*."""
        if len(self._known) >= self._sweep_at:
            known = {each: [ref for ref in refs if ref() is not None] for each, refs in self._known.items()}
            self._known = {each: refs for each, refs in known.items() if refs}
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._known))
        manager.shared_key = key
        others = [each for each in self._alike(key) if each.shared_key != key]
        self._known[hash(key)] = [weakref.ref(each) for each in (*others, manager)]
        self._keep(manager)

    def _alike(self, key: tuple[object, ...]) -> list[M]:
        found = [ref() for ref in self._known.get(hash(key), ())]
        return [each for each in found if each is not None]

    def _keep(self, manager: M) -> None:
        self._recent.pop(manager, None)
        self._recent[manager] = None
        while len(self._recent) > KEPT:
            self._recent.pop(next(iter(self._recent)), None)


class Process(Generic[M]):
    """State that the managers of this process share."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.managers: SharedManagers[M] = SharedManagers()
        self._pickled: WeakValueDictionary[str, M] = WeakValueDictionary()
        self._pickle_ids: WeakKeyDictionary[M, str] = WeakKeyDictionary()
        self.after_fork()
        survive_forks(self)

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self.lock = threading.RLock()

    def pickle_id(self, manager: M) -> str:
        """Return the id by which pickles refer to *manager*: see :meth:`unpickled`."""
        with self.lock:
            pickle_id = self._pickle_ids.setdefault(manager, os.urandom(16).hex())
            self._pickled[pickle_id] = manager
            return pickle_id

    def unpickled(self, pickle_id: str) -> M | None:
        """Return the manager with this id, in the process that pickled it, and in those forked from it."""
        return self._pickled.get(pickle_id)

    def store_client(self, url: str, fallback: str | None, clock: Clock, share: float | None) -> StoreAccess:
        """Return the store client of this process for a store on this clock."""
        return _open_stores(clock).store_client(self.lock, url, fallback, clock, share)

    def store_client_like(self, store_client: StoreAccess, before: Clock, clock: Clock) -> StoreAccess:
        """Return the store client on *clock* for the same store as *store_client*, which is on the clock *before*."""
        with self.lock:
            url, fallback, share = _open_stores(before).key(store_client)
        return _open_stores(clock).store_client(self.lock, url, fallback, clock, share)


def _open_stores(clock: Clock) -> OpenStores:
    # The stores refer to the clock: so both are collected together.
    return shared_on(clock, "_pay88_stores", OpenStores)


def _client_of(store: Store, fallback: tuple[Store, str] | None, clock: Clock, share: float | None) -> StoreAccess:
    survive_forks(store)
    if isinstance(store, MemoryStore):
        return MemoryStoreClient(store)
    if fallback is None:
        return StoreClient(store, clock, share)
    fallback_store, host = fallback
    survive_forks(fallback_store)
    return StoreClient(store, clock, share, fallback_store, host)

"""The shared token budget, and the share that this process uses in degraded mode (rules 5 and 24)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Literal

from pay88_adapters.core.constants import NEVER
from pay88_adapters.core.history import (
    MIN_TTL,
    Acquisition,
    Ages,
    Cooldown,
    Entry,
    History,
    StorageResult,
    Window,
    counted,
    instants,
    longest,
)
from pay88_adapters.stores.base import EntryStorage, Store
from pay88_adapters.stores.members import FIRST_DIVISOR, HORIZON
from pay88_adapters.stores.memory import MemoryStorage

from .clock import Clock
from .forks import survive_forks
from .store_link import RETRY_INTERVAL, Link
from .store_share import Share, Unreported

_FLUSH_BATCH = 20  # histories that one operation sends to the store
_OTHERS = "#"  # in the ids of entries that stand for units of other processes: see LocalCopy._acquire_share
_MAX_CALL_ENTRIES = 200  # entries of a history that need not be complete
_Limits = tuple[tuple[int, float], ...]  # units, and the seconds that each counts


class LocalCopy(MemoryStorage):
    """This process's copy of the shared budget, from which it acquires units in degraded mode.

    A unit that it acquires in degraded mode counts as if every other process acquired one too: as much as its share is
    smaller than the whole budget. For the time before, in which others may have acquired units that this process has
    not seen, it counts the sustained rate of the limits.

    Args:
        link: Access to the shared store.
        fallback: Access to the fallback store of this host's processes.
        share: Share of this process in degraded mode.
        clock: The clock of the managers.
    """

    def __init__(self, link: Link, fallback: Link | None, share: Share, clock: Clock) -> None:
        self._link, self._fallback, self._share = link, fallback, share
        # Units acquired in degraded mode, and those that they stand for.
        self._degraded_entries = MemoryStorage(clock.now)
        self._unreported: Mapping[str, Mapping[str, float]] = {}  # acquisitions that the store has not seen
        self._unreported_cooldowns: Set[str] = frozenset()
        self._complete_until: dict[str, float] = {}  # until when the history of a key is complete
        # By key, and all alike are one object: nearly all merchants have the same.
        self._limits: dict[str, _Limits] = {}
        self._known_limits: dict[_Limits, _Limits] = {}
        self._retained: dict[str, dict[str, float]] = {}  # see _retain_entries
        super().__init__(clock.now)
        self._forgotten_at = self._swept_at
        survive_forks(self)

    def after_fork(self) -> None:
        super().after_fork()
        self._degraded_entries.after_fork()
        self._unreported = {}  # the parent reports them

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        keys = dict.fromkeys(window.key for window in acquisition.windows)
        for key in keys:
            limits = tuple((window.limit, window.expiry) for window in acquisition.windows if window.key == key)
            self._limits[key] = self._known_limits.setdefault(limits, limits)
        asked_at = self._now()
        response = self._link.attempt(partial(self._acquire_shared, acquisition, keys))
        if response is None:
            return self._acquire_degraded(acquisition, keys)
        result, has_reserved = response
        for key, history in result.histories.items():
            self.import_history(key, history, _ttl(acquisition, key), asked_at)
        self._forget_unused()
        if result.cooldown is not None:
            super().start_cooldown(next(iter(keys)), result.cooldown)
        elif result.wait and has_reserved:
            return self._acquire_reserved(acquisition, keys, result)
        return result

    def _acquire_shared(
        self, acquisition: Acquisition, keys: Iterable[str], store: Store
    ) -> tuple[StorageResult, bool]:
        """Acquire from the store; return the result, and whether units were reserved for other processes."""
        self.flush(store)
        for key in keys:
            cooldown = self.cooldown(key)
            if cooldown is not None:  # the store may have lost it
                store.budget.start_cooldown(key, cooldown)
        known = {key: self.known(key) for key in keys} if acquisition.durable else acquisition.known
        windows = [self._without_reserved(window) for window in acquisition.windows]
        result = store.budget.acquire(acquisition._replace(windows=windows, known=known))
        return result, windows != list(acquisition.windows)

    def _acquire_reserved(self, acquisition: Acquisition, keys: Iterable[str], denied: StorageResult) -> StorageResult:
        """Acquire from this process's own share, which other processes reserve, although the store has recovered."""
        result = self._acquire_degraded(acquisition, keys)
        if not result.wait:
            self._link.attempt(self.flush)
            return result
        why = "the shared store is back, and not all processes have reported what they used meanwhile"
        return denied._replace(wait=min(denied.wait, RETRY_INTERVAL), reason=why)

    def _forget_unused(self) -> None:
        """Forget what is known of the histories that have been swept, once after each sweep."""
        if self._forgotten_at == self._swept_at or not self._link.is_steady:
            return
        self._forgotten_at, now = self._swept_at, self._now()
        for key in {*self._limits, *self._complete_until}:
            if key in self._histories:
                continue
            longest_expiry = max((expiry for _, expiry in self._limits.get(key, ())), default=MIN_TTL)
            if now > self._complete_until.get(key, NEVER) + longest_expiry:
                self._limits.pop(key, None)
                self._complete_until.pop(key, None)
        self._known_limits = {each: each for each in list(self._limits.values())}  # a copy: other threads add to it

    def _without_reserved(self, window: Window) -> Window:
        """Return *window* without the units that processes may have acquired in degraded mode and not reported yet.

        They acquired those before the store recovered: since then they use the store. So the number depends on the
        window that ended at the recovery, and on the entries that were known by then.
        """
        link, now = self._link, self._now()
        if link.is_steady:
            self._retained = {}
            return window
        entries = self._retain_entries(window.key, now)
        if now > link.restored_at + window.expiry:
            return window
        acquired = [at for at in entries.values() if at >= link.restored_at - window.expiry]
        reserved = sum(self._reserved_for(each, window, acquired) for each in self._share.unreported_shares(link))
        return window._replace(limit=window.limit - math.ceil(reserved - 1e-9))

    def _retain_entries(self, key: str, now: float) -> dict[str, float]:
        """Return when each entry of *key* was acquired: those in the history, and those that it has dropped lately."""
        retained = {name: at for name, at in self._retained.get(key, {}).items() if now - at <= 2 * HORIZON}
        retained |= {name: at for at, name in instants(self._kept(key).history(now), now)}
        self._retained[key] = retained
        return retained

    def _reserved_for(self, member: Unreported, window: Window, acquired: Sequence[float]) -> float:
        """Return how many units of *window* a member may have acquired in degraded mode.

        It is ``share * min(limit - seen - assumed, most)``:

        - *seen* are the units that were acquired when the member last reached the store;
        - *assumed* are those that it counts for other processes from then until the store failed;
        - *most* is what the limits allow for the duration of the outages.

        For example, a member has a quarter of 100 units per hour. When it last reached the store, 20 were acquired. The
        store failed 144 s later, for which the member assumes 4, and recovered after 30 minutes, in which the limit
        allows 100. So ``1/4 * min(100 - 20 - 4, 100)``, that is 19 units, are reserved.
        """
        outages = self._link.outages_after(member.at)
        failed_at, window_start = outages[0][0], self._link.restored_at - window.expiry
        seen = sum(at <= member.at for at in acquired)
        assumed = max(failed_at - max(member.at, window_start), 0.0) * self._rate(window.key)
        most = sum(self._most(window.key, until - since) for since, until in outages)
        return member.share * min(max(window.limit - seen - assumed, 0.0), most)

    def _rate(self, key: str) -> float:
        """Return the sustained rate of the limits of *key*, in units per second."""
        return min((limit / expiry for limit, expiry in self._limits.get(key, ())), default=0.0)

    def _most(self, key: str, seconds: float) -> float:
        """Return the maximum number of units of *key* in this many seconds."""
        limits = self._limits.get(key, ())
        return min((limit * (seconds // expiry + 1) for limit, expiry in limits), default=math.inf)

    def import_history(self, key: str, history: History, ttl: float, complete_until: float) -> None:
        """Merge the history of *key*, complete until the instant *complete_until*."""
        super().merge(key, history, ttl)
        self._complete_until[key] = max(complete_until, self._complete_until.get(key, NEVER))

    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        super().start_cooldown(key, cooldown)

        def start(store: Store) -> Literal[True]:
            store.budget.start_cooldown(key, cooldown)
            return True

        if not self._link.attempt(start):
            self._unreported_cooldowns = {*self._unreported_cooldowns, key}
            if self._fallback is not None:
                self._fallback.attempt(start)

    def known(self, key: str) -> History:
        """Return the known history of *key*."""
        return super().history(key)

    def history(self, key: str) -> History:
        """Return the history of *key*; in degraded mode, with the entries that stand for other processes."""
        known = super().history(key)
        if not self._link.failing:
            return known
        ids = {entry.id for entry in known}
        others = [entry for entry in self._degraded_entries.history(key) if entry.id not in ids]
        return sorted([*known, *others], key=lambda entry: -entry.age)

    def usable_limit(self, window: Window) -> int:
        return window.limit if self._link.failing else self._without_reserved(window).limit

    def ages(self, window: Window) -> Ages:
        assumed = [0.0] * self._assumed_units(window) if self._link.failing else []
        return [*counted(window, self.history(window.key)), *assumed]

    # --- degraded mode

    def _acquire_degraded(self, acquisition: Acquisition, keys: Iterable[str]) -> StorageResult:
        cooldown = longest(map(self.cooldown, keys))
        left = cooldown.left(acquisition.longest_cooldown) if cooldown is not None else 0.0
        if left > 0:
            return StorageResult(left, {key: self.history(key) for key in keys}, cooldown)
        result = self._acquire_from_fallback(acquisition, keys)
        if result is None:
            # A process that cannot use the file that it should share can only guess how many others cannot.
            spread = 1 if self._fallback is None else FIRST_DIVISOR
            result = self._acquire_share(self._degraded_entries, acquisition, keys, spread * self._divisor())
        if result.wait:
            return result._replace(wait=min(result.wait, RETRY_INTERVAL))  # the store may recover earlier
        now = self._now()
        with self._lock:
            for key in keys:
                super().merge(key, [Entry(name, 0.0) for name in acquisition.ids], _ttl(acquisition, key))
                self._unreported = {
                    **self._unreported,
                    key: {**self._unreported.get(key, {}), **dict.fromkeys(acquisition.ids, now)},
                }
        return result

    def _acquire_from_fallback(self, acquisition: Acquisition, keys: Iterable[str]) -> StorageResult | None:
        link = self._fallback
        if link is None:
            return None
        divisor = self._divisor()
        result = link.attempt(lambda store: self._acquire_share(store.budget, acquisition, keys, divisor))
        if result is None:
            return None
        for key, history in result.histories.items():
            self._degraded_entries.merge(key, history, _ttl(acquisition, key))
            super().merge(key, [entry for entry in history if _OTHERS not in entry.id], _ttl(acquisition, key))
        return result

    def _divisor(self) -> int:
        """Return the divisor of the present share of this process, or of its host; 0 for none."""
        return self._share.divisor(self._link.failing_since)

    @property
    def _rounds_down(self) -> bool:
        """Whether a share of less than one unit is none: the shares that the store assigns never exceed the budget."""
        return self._share.is_assigned

    def _acquire_share(
        self, storage: EntryStorage, acquisition: Acquisition, keys: Iterable[str], divisor: int
    ) -> StorageResult:
        """Acquire 1/*divisor* of *storage*: each unit counts *divisor* times there, once for each such share."""
        if not self._rounds_down:
            divisor = min(divisor, max(window.limit for window in acquisition.windows))
        windows = [self._reduced(window, divisor) for window in acquisition.windows]
        known = {key: self.known(key) for key in keys}
        if not acquisition.durable:
            known = {key: history[-_MAX_CALL_ENTRIES:] for key, history in known.items()}
        ids = [f"{name}{_OTHERS}{n}" if n else name for name in acquisition.ids for n in range(max(divisor, 1))]
        if divisor and all(len(ids) <= window.limit for window in windows):
            result = storage.acquire(acquisition._replace(windows=windows, ids=ids, known=known))
        else:
            result = StorageResult(RETRY_INTERVAL, {key: self.history(key) for key in keys})
        return result._replace(reason=self._denial_reason(acquisition, divisor)) if result.wait else result

    def _reduced(self, window: Window, divisor: int) -> Window:
        limit = window.limit
        if limit and not self._rounds_down:
            limit = max(limit, divisor)  # an empty window always has space for one
        return window._replace(limit=limit - self._assumed_units(window))

    def _assumed_units(self, window: Window) -> int:
        """Return how many units count in *window* that other processes may have acquired before the store failed.

        It is the sustained rate of the limits, for the time that this process has not observed.
        """
        if not self._share.has_joined:
            return 0
        until = self._link.failing_since
        since = max(self._complete_until.get(window.key, NEVER), self._now() - window.expiry)
        return min(max(math.ceil((until - since) * self._rate(window.key) - 1e-9), 0), window.limit)

    def _denial_reason(self, acquisition: Acquisition, divisor: int) -> str:
        small = min(acquisition.windows, key=lambda window: window.limit).limit
        if not divisor:
            why = f"this {self._who} has no share of the token budget"
        elif self._rounds_down and divisor > small:
            why = f"a share of 1/{divisor} of {small} token requests is less than one"
        else:
            why = f"the token budget of this {self._who} (1/{divisor}) is exhausted"
        return f"the shared store is unavailable and {why}: {self._remedy}"

    @property
    def _who(self) -> str:
        return "process" if self._fallback is None else "host"

    @property
    def _remedy(self) -> str:
        return "set fallback_store" if self._fallback is None else "restore it"

    def flush(self, store: Store) -> None:
        """Add to the store the units that it missed or lost.

        Raises:
            StoreError: The store is unavailable. Units that it may have missed are sent with the next operation.
        """
        for key in list(self._unreported_cooldowns)[:_FLUSH_BATCH]:
            cooldown = self.cooldown(key)
            if cooldown is not None:
                store.budget.start_cooldown(key, cooldown)
            self._unreported_cooldowns = self._unreported_cooldowns - {key}
        for key, entries in list(self._unreported.items())[:_FLUSH_BATCH]:
            now, ttl = self._now(), self._kept(key).ttl
            live = [Entry(name, now - at) for name, at in entries.items() if now - at <= ttl]
            if live:
                store.budget.merge(key, live, ttl)
            with self._lock:
                left = {name: at for name, at in self._unreported.get(key, {}).items() if name not in entries}
                others = {each: unreported for each, unreported in self._unreported.items() if each != key}
                self._unreported = {**others, key: left} if left else others

    @property
    def is_reported(self) -> bool:
        """Whether the store has seen all units that this process has acquired."""
        return not self._unreported

    def holds_entries(self) -> bool:
        return bool(self._unreported) or self._degraded_entries.holds_entries() or super().holds_entries()

    def mark_missing(self, key: str, ids: Iterable[str]) -> None:
        """Record that another process has only seen the entries *ids* of the history of *key*."""
        seen, now = set(ids), self._now()
        lost = {entry.id: now - entry.age for entry in self.known(key) if entry.id not in seen}
        if lost:
            with self._lock:
                self._unreported = {**self._unreported, key: {**lost, **self._unreported.get(key, {})}}


def _ttl(acquisition: Acquisition, key: str) -> float:
    return max(window.expiry for window in acquisition.windows if window.key == key)

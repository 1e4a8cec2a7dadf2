"""The shared token budget, and the share that this process uses in degraded mode (rules 5 and 24)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set

from pay88_adapters.core.history import (
    MIN_TTL,
    Ages,
    Claim,
    ClaimResult,
    Cooldown,
    Entry,
    History,
    Window,
    counted,
    longest,
)
from pay88_adapters.stores.base import BudgetStorage, Store
from pay88_adapters.stores.members import AT_FIRST, HORIZON
from pay88_adapters.stores.memory import MemoryStorage

from .clock import Clock
from .forks import survive_forks
from .store_link import RETRY_INTERVAL, Link
from .store_share import Share

_FLUSH_BATCH = 20  # histories that one operation sends to the store
_OTHERS = "#"  # in the ids of entries that stand for the unreported units of others
_MAX_CALL_ENTRIES = 200  # entries of a history that need not be complete
_NEVER = float("-inf")
_Limits = tuple[tuple[int, float], ...]  # units, and the seconds that each counts


class StoreBudget(MemoryStorage):
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
        self._earlier: dict[str, dict[str, float]] = {}  # entries known when the store failed: see _kept_free
        super().__init__(clock.now)
        self._forgotten_at = self._swept_at
        survive_forks(self)

    def after_fork(self) -> None:
        super().after_fork()
        self._degraded_entries.after_fork()
        self._unreported = {}  # the parent reports them

    def claim(self, claim: Claim) -> ClaimResult:
        keys = dict.fromkeys(window.key for window in claim.windows)
        for key in keys:
            limits = tuple((window.limit, window.expiry) for window in claim.windows if window.key == key)
            self._limits[key] = self._known_limits.setdefault(limits, limits)
        windows = list(claim.windows)

        def operation(store: Store) -> ClaimResult:
            self.flush(store)
            for key in keys:
                cooldown = self.cooldown(key)
                if cooldown is not None:  # the store may have lost it
                    store.budget.start_cooldown(key, cooldown)
            known = {key: self.known(key) for key in keys} if claim.durable else claim.known
            windows[:] = (self._kept_free(window) for window in claim.windows)
            return store.budget.claim(claim._replace(windows=windows, known=known))

        asked_at = self._now()
        answer = self._link.attempt(operation)
        if answer is None:
            return self._claim_degraded(claim, keys)
        for key, history in answer.histories.items():
            self.import_history(key, history, _ttl(claim, key), asked_at)
        self._forget_unused()
        if answer.cooldown is not None:
            super().start_cooldown(next(iter(keys)), answer.cooldown)
        elif answer.wait and windows != list(claim.windows):
            degraded = self._claim_degraded(claim, keys)  # its own share is free in any case
            if not degraded.wait:
                self._link.attempt(self.flush)
                return degraded
            why = "the shared store is back, and not all processes have reported what they used meanwhile"
            return answer._replace(wait=min(answer.wait, RETRY_INTERVAL), reason=why)
        return answer

    def _forget_unused(self) -> None:
        """Forget what is known of the histories that have been swept, once after each sweep."""
        if self._forgotten_at == self._swept_at or not self._link.is_steady:
            return
        self._forgotten_at, now = self._swept_at, self._now()
        for key in {*self._limits, *self._complete_until} - self._histories.keys():
            longest_expiry = max((expiry for _, expiry in self._limits.get(key, ())), default=MIN_TTL)
            if now > self._complete_until.get(key, _NEVER) + longest_expiry:
                self._limits.pop(key, None)
                self._complete_until.pop(key, None)
        self._known_limits = {each: each for each in self._limits.values()}

    def _kept_free(self, window: Window) -> Window:
        """Leave units of the shared budget free for unreported acquisitions of other processes in degraded mode.

        They acquired those before the store recovered: since then they use the store. So the number depends on the
        entries that were known at that time.
        """
        link, now, key = self._link, self._now(), window.key
        if link.is_steady:
            self._earlier = {}
            return window
        recent = {name: at for name, at in self._earlier.get(key, {}).items() if now - at <= 2 * HORIZON}
        earlier = self._earlier[key] = recent | {name: at for at, name in self._kept(key).live(now)}
        if now > link.restored_at + window.expiry:
            return window
        since = link.restored_at - window.expiry
        instants = [at for at in earlier.values() if at >= since]
        taken = 0.0
        for at, part in self._share.unreported_members(link):
            outages = link.outages_after(at)
            unseen = max(outages[0][0] - max(at, since), 0.0) * self._rate(key)  # which that process counts as used
            left = max(window.limit - sum(each <= at for each in instants) - unseen, 0.0)
            taken += part * min(left, sum(self._most(key, until - since) for since, until in outages))
        return window._replace(limit=window.limit - math.ceil(taken - 1e-9))

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
        self._complete_until[key] = max(complete_until, self._complete_until.get(key, _NEVER))

    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        super().start_cooldown(key, cooldown)
        if not self._link.attempt(lambda store: store.budget.start_cooldown(key, cooldown) is None):
            self._unreported_cooldowns = {*self._unreported_cooldowns, key}
            if self._fallback is not None:
                self._fallback.attempt(lambda store: store.budget.start_cooldown(key, cooldown))

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
        return window.limit if self._link.failing else self._kept_free(window).limit

    def ages(self, window: Window) -> Ages:
        assumed = [0.0] * self._unseen(window) if self._link.failing else []
        return [*counted(window, self.history(window.key)), *assumed]

    # --- degraded mode

    def _claim_degraded(self, claim: Claim, keys: Iterable[str]) -> ClaimResult:
        cooldown = longest(map(self.cooldown, keys))
        left = cooldown.left(claim.longest_cooldown) if cooldown is not None else 0.0
        if left > 0:
            return ClaimResult(left, {key: self.history(key) for key in keys}, cooldown)
        answer = self._in_fallback(claim, keys)
        if answer is None:
            # A process that cannot use the file that it should share can only guess how many others cannot.
            spread = 1 if self._fallback is None else AT_FIRST
            parts = spread * self._parts()
            answer = self._claim_share(self._degraded_entries, claim, keys, parts)
        if answer.wait:
            return answer._replace(wait=min(answer.wait, RETRY_INTERVAL))  # the store may recover earlier
        now = self._now()
        with self._lock:
            for key in keys:
                super().merge(key, [Entry(name, 0.0) for name in claim.ids], _ttl(claim, key))
                self._unreported = {
                    **self._unreported,
                    key: {**self._unreported.get(key, {}), **dict.fromkeys(claim.ids, now)},
                }
        return answer

    def _in_fallback(self, claim: Claim, keys: Iterable[str]) -> ClaimResult | None:
        link = self._fallback
        if link is None:
            return None
        parts = self._parts()
        answer = link.attempt(lambda store: self._claim_share(store.budget, claim, keys, parts))
        for key, history in answer.histories.items() if answer is not None else ():
            self._degraded_entries.merge(key, history, _ttl(claim, key))
            super().merge(key, [entry for entry in history if _OTHERS not in entry.id], _ttl(claim, key))
        return answer

    def _parts(self) -> int:
        """Return one part in how many the share of this process, or of its host, is now; 0 for none."""
        return self._share.parts(self._link.failing_since)

    @property
    def _is_firm(self) -> bool:
        """Whether a share of less than one unit is none."""
        return self._share.is_firm

    def _claim_share(self, storage: BudgetStorage, claim: Claim, keys: Iterable[str], parts: int) -> ClaimResult:
        if not self._is_firm:
            parts = min(parts, max(window.limit for window in claim.windows))
        windows = [self._reduced(window, parts) for window in claim.windows]
        known = {key: self.known(key)[-_MAX_CALL_ENTRIES * (not claim.durable) :] for key in keys}
        ids = [f"{name}{_OTHERS}{n}" if n else name for name in claim.ids for n in range(max(parts, 1))]
        if parts and all(len(ids) <= window.limit for window in windows):
            answer = storage.claim(claim._replace(windows=windows, ids=ids, known=known))
        else:
            answer = ClaimResult(RETRY_INTERVAL, {key: self.history(key) for key in keys})
        return answer._replace(reason=self._refusal(claim, parts)) if answer.wait else answer

    def _reduced(self, window: Window, parts: int) -> Window:
        limit = window.limit
        if limit and not self._is_firm:
            limit = max(limit, parts)  # an empty window always has space for one
        return window._replace(limit=limit - self._unseen(window))

    def _unseen(self, window: Window) -> int:
        """Return how many unseen units of others, from before the store failed, count in *window* now."""
        if not self._share.is_assigned:
            return 0
        until = self._link.failing_since
        since = max(self._complete_until.get(window.key, _NEVER), self._now() - window.expiry)
        return min(max(math.ceil((until - since) * self._rate(window.key) - 1e-9), 0), window.limit)

    def _refusal(self, claim: Claim, parts: int) -> str:
        small = min(claim.windows, key=lambda window: window.limit).limit
        if not parts:
            why = f"this {self._who} has no share of the token budget"
        elif self._is_firm and parts > small:
            why = f"a share of 1/{parts} of {small} token requests is less than one"
        else:
            why = f"the token budget of this {self._who} (1/{parts}) is exhausted"
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
        there, now = set(ids), self._now()
        lost = {entry.id: now - entry.age for entry in self.known(key) if entry.id not in there}
        if lost:
            with self._lock:
                self._unreported = {**self._unreported, key: {**lost, **self._unreported.get(key, {})}}


def _ttl(claim: Claim, key: str) -> float:
    return max(window.expiry for window in claim.windows if window.key == key)

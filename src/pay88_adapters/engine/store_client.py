"""The store that managers share, and what this process does without it (rules 4, 5 and 24)."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Generic, TypeVar
from weakref import WeakSet, WeakValueDictionary

from pay88_adapters.core.history import Ages, Claim, ClaimResult, Cooldown, Entry, History, Window, counted
from pay88_adapters.core.policy import LIFETIME, TokenPolicy
from pay88_adapters.stores.base import BudgetStorage, LeaseResult, Store, StoreError
from pay88_adapters.stores.members import AT_FIRST, HORIZON, part_left, shrunk
from pay88_adapters.stores.memory import MemoryStorage
from pay88_adapters.stores.realtime import monotonic

from .budget import TokenBudget
from .clock import Clock
from .forks import fork_id, survive_forks
from .threads import may_block

_log = logging.getLogger("pay88_adapters.store")

T = TypeVar("T")

OPERATION_TIMEOUT = 4.0
"""Real seconds for which an operation of a store may take; longer, and the store fails."""

_SLOW = 0.5  # real seconds after which others wait for the end of an operation, before they try themselves
_RETRY_INTERVAL = 5.0  # seconds for which a store that failed is left alone
_WARNING_INTERVAL = 60.0  # seconds between two warnings about a store that comes and goes
_FLUSH_BATCH = 20  # histories that one operation tells the store of
_OTHERS = "#"  # in the ids of entries that stand for what others may have taken
_TOLD_OF_CALLS = 200  # entries of a history that need not be complete
_DAY = 86_400.0
_NEVER = float("-inf")
_numbers = itertools.count(1)
NO_LEASE = 0
"""The fence of whoever leads without a lease, because the store fails or cannot be waited for."""


class StoreClient:
    """A store, from the point of view of one process. A store that fails raises nothing here.

    Args:
        store: What is shared.
        clock: The managers'.
        share: Of the budget, for this process alone while the store fails; ``None`` for what the store says.
        fallback: What the processes of this host share while the store fails.
        host: Names all that share *fallback*: they have one share together.
    """

    def __init__(
        self, store: Store, clock: Clock, share: float | None = None, fallback: Store | None = None, host: str = ""
    ) -> None:
        self.blocking = store.blocking or (fallback is not None and fallback.blocking)
        self.fallback = None if fallback is None else Link(fallback, clock)
        self.link = Link(store, clock)
        self.share = Share(clock, share)
        self.budget = _Budget(self, clock)
        self._budgets: WeakValueDictionary[tuple[TokenPolicy, str], TokenBudget] = WeakValueDictionary()
        self._host = host
        self._number = next(_numbers)
        self._clock = clock
        _fleets.add(self)
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on as a process of its own, of which the store does not know."""
        if self.fallback is None:
            self.share.split() if self.degraded else self.share.lose()

    @property
    def store(self) -> Store:
        """The store that is shared."""
        return self.link.store

    @property
    def degraded(self) -> bool:
        """Whether the store fails."""
        return self.link.failing

    @property
    def member(self) -> str:
        """Names this process, or all that share the fallback store with it, to the store."""
        return self._host if self.fallback is not None else f"{fork_id()}.{self._number}"

    def token_budget(self, policy: TokenPolicy, base_url: str) -> TokenBudget:
        """Return the budgets of the merchants at one base URL, for all managers with *policy*."""
        budget = self._budgets.get((policy, base_url))
        if budget is None:
            budget = self._budgets[policy, base_url] = TokenBudget(policy, self.budget, base_url)
        return budget

    def is_unused(self) -> bool:
        """Whether no manager uses this, and nothing that it knows of the budget counts any longer."""
        return not self._budgets and not self.budget.holds_entries()

    def try_acquire_lease(self, key: str, *, owner: str, known: int, lease: float) -> LeaseResult:
        """:meth:`Store.try_acquire_lease`; in the fallback store, or without a lease, while the store fails.

        Fences and versions of the fallback store are negative here.
        """

        def operation(store: Store) -> LeaseResult:
            self.budget.flush(store)  # here, because who never leads never asks for the shared budget
            asked_at = self._clock.now()
            led = store.try_acquire_lease(key, owner=f"{self.member}/{owner}", known=max(known, 0), lease=lease)
            self.share.told(led, asked_at, self.link)
            return led

        led = self.link.attempt(operation)
        if led is None and self.fallback is not None:
            led = self.fallback.attempt(
                lambda store: store.try_acquire_lease(key, owner=owner, known=max(-known, 0), lease=lease)
            )
            led = led and _mirrored(led)
        return led or LeaseResult(fencing_token=NO_LEASE)

    def publish(self, key: str, *, fencing_token: int, content: str, keep: float, after: float) -> bool:
        """Do what :meth:`Store.publish` does; nothing without a lease, or while the store fails."""
        link = self.link if fencing_token > NO_LEASE else self.fallback
        if fencing_token == NO_LEASE or link is None:
            return False
        return bool(
            link.attempt(
                lambda store: store.publish(
                    key, fencing_token=abs(fencing_token), content=content, keep=keep, after=after
                )
            )
        )


def _mirrored(led: LeaseResult) -> LeaseResult:
    record = led.record
    return led._replace(
        fencing_token=None if led.fencing_token is None else -led.fencing_token,
        record=None if record is None else type(record)(-record.version, record.content, record.age, record.stored),
    )


class Link:
    """The way to one store, which may fail."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.failing = False
        self.failing_since = self.restored_at = _NEVER
        self._outages: list[tuple[float, float]] = []  # of the last hour
        self._clock = clock
        self._failed_at = self._warned_at = _NEVER
        self._warned = False
        self._lock = threading.RLock()
        self._running: set[_Operation[Any]] = set()
        survive_forks(self)

    def after_fork(self) -> None:
        """Go on without the parent's threads."""
        self._lock = threading.RLock()
        self._running = set()

    @property
    def is_steady(self) -> bool:
        """Whether the store has not failed for an hour."""
        return not self.failing and self._clock.now() >= self.restored_at + HORIZON

    def outages_after(self, at: float) -> list[tuple[float, float]]:
        """Return from when to when a process that reached the store *at* that instant for the last time was alone."""
        return [(max(since, at), until) for since, until in self._outages if until > at]

    def attempt(self, operation: Callable[[Store], T]) -> T | None:
        """Use the store; return ``None`` if it fails, and for a while after it did."""
        began_at = self._clock.now()
        if began_at < self._failed_at + _RETRY_INTERVAL:
            return None
        try:
            result = self._run_with_timeout(operation) if self.store.blocking else operation(self.store)
        except Exception as exc:  # noqa: BLE001 - whatever a broken store makes of it, payments go on
            self._enter_degraded(str(exc) if isinstance(exc, StoreError) else type(exc).__name__)
            return None
        if self.failing:
            self._leave_degraded(began_at)
        return result

    def _run_with_timeout(self, operation: Callable[[Store], T]) -> T:
        # What hangs leaves its thread behind, and the next one would, too.
        for slow in [each for each in list(self._running) if each.is_slow]:
            if slow.is_late or not slow.wait():
                raise StoreError("an earlier operation has not come back")
        running = _Operation(lambda: operation(self.store))
        self._running.add(running)
        running.ended = lambda: self._running.discard(running)
        return running.result_in_time()

    def _enter_degraded(self, problem: str) -> None:
        with self._lock:  # the managers of one process warn once together
            self._failed_at = now = self._clock.now()
            news = not self.failing and now >= self._warned_at + _WARNING_INTERVAL
            if not self.failing:
                self.failing_since = now
            self.failing = True
            if news:
                self._warned_at, self._warned = now, True
        if news:
            _log.warning("the store fails (%s): this process goes on alone with a share of the budget", problem)

    def _leave_degraded(self, began_at: float) -> None:
        with self._lock:
            if began_at < self._failed_at or not self.failing:  # it began before the store failed
                return
            self.failing, warned, self._warned = False, self._warned, False
            self.restored_at = now = self._clock.now()
            recent = [each for each in self._outages if now - each[1] < HORIZON]
            self._outages = [*recent, (self.failing_since, now)]
        if warned:
            _log.warning("the store is back: this process shares its token and budget again")


class _Operation(threading.Thread, Generic[T]):
    """An operation in a thread of its own, so that nobody has to wait for its end."""

    def __init__(self, operation: Callable[[], T]) -> None:
        super().__init__(name="pay88-store-operation", daemon=True)
        self._operation = operation
        self._done = threading.Event()  # made here: whoever patches the standard library has done so by now
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.ended: Callable[[], object] = bool
        self._began_at = monotonic()

    @property
    def is_slow(self) -> bool:
        """Whether it may be hanging."""
        return monotonic() > self._began_at + _SLOW

    @property
    def is_late(self) -> bool:
        """Whether nobody waits for it any longer."""
        return monotonic() >= self._began_at + OPERATION_TIMEOUT

    def run(self) -> None:
        try:
            self._result.append(self._operation())
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        finally:
            self.ended()
            self._done.set()

    def wait(self) -> bool:
        """Wait for its end as long as anybody does; return whether it has ended."""
        return self._done.wait(max(self._began_at + OPERATION_TIMEOUT - monotonic(), 0.0))

    def result_in_time(self) -> T:
        """Return what the operation returns, or raise what it raises."""
        try:
            self.start()
        except RuntimeError:  # there are too many, or the process ends
            self.ended()
            if may_block():  # blocking this one blocks nobody else
                return self._operation()
            raise StoreError("cannot start a thread for the store operation") from None
        self.wait()
        if self._error is not None:
            raise self._error
        if not self._result:
            raise StoreError(f"no response within {OPERATION_TIMEOUT:g} s")
        return self._result[0]


def run_with_timeout(operation: Callable[[], T]) -> T:
    """Return what *operation* does, in time: looking up a host's name, for one, knows no timeout.

    Raises:
        StoreError: It took longer than ``OPERATION_TIMEOUT``, or no thread can be started.
    """
    return _Operation(operation).result_in_time()


class Share:
    """One part in how many of the budget this process has while the store fails.

    Args:
        clock: The managers'.
        part: Set by hand; ``None`` for what the store says.
    """

    def __init__(self, clock: Clock, part: float | None) -> None:
        self._clock = clock
        self._by_hand = None if part is None else math.ceil(1 / part - 1e-9)
        self._told: tuple[int, float] | None = None  # one part in how many, and when the store was asked
        self._before: tuple[int, float] | None = None  # the same before the store failed last
        self._others: dict[str, tuple[float, int]] = {}  # when each other member asked, and its parts

    @property
    def is_firm(self) -> bool:
        """Whether the store has said it: then it holds to the letter, or else it is a guess."""
        return self._by_hand is None and self._told is not None

    @property
    def is_set(self) -> bool:
        """Whether it was set by hand."""
        return self._by_hand is not None

    @property
    def was_told(self) -> bool:
        """Whether the store has ever been reached."""
        return self._told is not None

    def told(self, led: LeaseResult, asked_at: float, link: Link) -> None:
        """Note what the store said."""
        if link.failing:
            self._before = self._told
        asked = {each.name: (asked_at - each.age, each.parts) for each in led.others if each.parts}
        # Who fell silent as the store failed may be alone ever since, though the store has forgotten it.
        since = asked_at - (HORIZON if link.is_steady else _DAY)
        self._others = {**{name: each for name, each in self._others.items() if each[0] >= since}, **asked}
        parts = max(led.parts, len(self._others) + 1) if led.parts and not link.is_steady else led.parts
        self._told = parts, asked_at

    def silent(self, link: Link) -> list[tuple[float, float]]:
        """Return what parts of the budget those have who have not asked since the store is back, and since when."""
        others = [each for each in self._others.values() if each[0] < link.restored_at]
        silent = [(at, self._left(parts, link.outages_after(at)[0][0] - at)) for at, parts in others]
        if self._before is not None and self._clock.now() < link.restored_at + LIFETIME:
            # What is missing to the whole may have been given to others since; who makes requests asks by then.
            parts, asked_at = self._before
            told = sum(1 / parts for _, parts in self._others.values())
            silent.append((asked_at, max(1 - (1 / parts if parts else 0) - told, 0.0)))
        return silent

    def _left(self, parts: int, age: float) -> float:
        return 1 / parts if self.is_set else part_left(parts, age)

    def parts(self, failing_since: float) -> int:
        """Return one part in how many it is, of a store that fails since then; 0 for none."""
        if self._by_hand is not None:
            return self._by_hand
        if self._told is None:
            return AT_FIRST
        told, asked_at = self._told
        return shrunk(told, failing_since - asked_at)

    def split(self) -> None:
        """Go on with half of it, for another process goes on with the other half."""
        if self._told is not None:
            told, asked_at = self._told
            self._told = 2 * told, asked_at

    def lose(self) -> None:
        """Go on without, until the store says more."""
        if self._told is not None:
            self._told = 0, self._told[1]


_fleets: WeakSet[StoreClient] = WeakSet()


def _after_fork_in_parent() -> None:
    for store_client in list(_fleets):
        if store_client.degraded and store_client.fallback is None:
            store_client.share.split()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent)


class _Budget(MemoryStorage):
    """What this process knows of the shared budget, and goes on with while the store fails.

    What it takes alone counts as much as its share is smaller than the whole: as if every other process took
    the same. Of the time before, in which others may have taken what this one has not seen, it counts
    what the limits allow for long in as many seconds.
    """

    def __init__(self, store_client: StoreClient, clock: Clock) -> None:
        self._store_client = store_client
        self._alone = MemoryStorage(clock.now)  # what was taken alone, and what it stands for
        self._unreported: Mapping[str, Mapping[str, float]] = {}  # when what the store has not seen was taken
        self._unreported_cooldowns: Set[str] = frozenset()
        self._seen: dict[str, float] = {}  # until when this process knows what was taken
        self._limits: dict[str, list[Window]] = {}  # of a key
        self._earlier: dict[str, dict[str, float]] = {}  # what was known since the store failed: see _kept_free
        super().__init__(clock.now)
        survive_forks(self)

    def after_fork(self) -> None:
        super().after_fork()
        self._alone.after_fork()
        self._unreported = {}  # the parent tells

    def claim(self, claim: Claim) -> ClaimResult:
        keys = dict.fromkeys(window.key for window in claim.windows)
        for key in keys:
            self._limits[key] = [window for window in claim.windows if window.key == key]
        windows = list(claim.windows)

        def operation(store: Store) -> ClaimResult:
            self.flush(store)
            for key in keys:
                bar = self.cooldown(key)
                if bar is not None:  # the store may have forgotten it
                    store.budget.bar(key, bar)
            known = {key: self.known(key) for key in keys} if claim.restores else claim.known
            windows[:] = (self._kept_free(window) for window in claim.windows)
            return store.budget.claim(claim._replace(windows=windows, known=known))

        asked_at = self._now()
        answer = self._store_client.link.attempt(operation)
        if answer is None:
            return self._claim_alone(claim, keys)
        for key, history in answer.histories.items():
            self.learn(key, history, _keep(claim, key), asked_at)
        if answer.bar is not None:
            super().bar(next(iter(keys)), answer.bar)
        elif answer.wait and windows != list(claim.windows):
            alone = self._claim_alone(claim, keys)  # what is its own is free in any case
            if not alone.wait:
                self._store_client.link.attempt(self.flush)
                return alone
            why = "the shared store is back, and not all processes have reported what they used meanwhile"
            return answer._replace(wait=min(answer.wait, _RETRY_INTERVAL), reason=why)
        return answer

    def _kept_free(self, window: Window) -> Window:
        """Leave room in the shared budget for what others may have taken alone and not yet told.

        They took it before the store was back: from then on they ask it first. So it depends on what was known of the
        window as it was then.
        """
        link, now, key = self._store_client.link, self._now(), window.key
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
        for at, part in self._store_client.share.silent(link):
            alone = link.outages_after(at)
            unseen = max(alone[0][0] - max(at, since), 0.0) * self._rate(key)  # which that one counts as spent
            left = max(window.limit - sum(each <= at for each in instants) - unseen, 0.0)
            taken += part * min(left, sum(self._most(key, until - since) for since, until in alone))
        return window._replace(limit=window.limit - math.ceil(taken - 1e-9))

    def _rate(self, key: str) -> float:
        """Return how many units a second the limits of *key* allow for long."""
        return min((each.limit / each.expiry for each in self._limits.get(key, ())), default=0.0)

    def _most(self, key: str, seconds: float) -> float:
        """Return how many units the limits of *key* allow at most in so many seconds."""
        limits = self._limits.get(key, ())
        return min((each.limit * (seconds // each.expiry + 1) for each in limits), default=math.inf)

    def learn(self, key: str, history: History, keep: float, seen: float) -> None:
        """Take over what is known of the history of *key* until the instant *seen*."""
        super().merge(key, history, keep)
        self._seen[key] = max(seen, self._seen.get(key, _NEVER))

    def bar(self, key: str, bar: Cooldown) -> None:
        super().bar(key, bar)
        if not self._store_client.link.attempt(lambda store: store.budget.bar(key, bar) is None):
            self._unreported_cooldowns = {*self._unreported_cooldowns, key}
            if self._store_client.fallback is not None:
                self._store_client.fallback.attempt(lambda store: store.budget.bar(key, bar))

    def known(self, key: str) -> History:
        """Return what this process knows of the history of *key*."""
        return super().history(key)

    def history(self, key: str) -> History:
        """Return what counts for this process: alone, also what that stands for which it took."""
        known = super().history(key)
        if not self._store_client.degraded:
            return known
        ids = {entry.id for entry in known}
        others = [entry for entry in self._alone.history(key) if entry.id not in ids]
        return sorted([*known, *others], key=lambda entry: -entry.age)

    def room(self, window: Window) -> int:
        return window.limit if self._store_client.degraded else self._kept_free(window).limit

    def ages(self, window: Window) -> Ages:
        assumed = [0.0] * self._unseen(window) if self._store_client.degraded else []
        return [*counted(window, self.history(window.key)), *assumed]

    # --- alone

    def _claim_alone(self, claim: Claim, keys: Iterable[str]) -> ClaimResult:
        bar = max((bar for key in keys if (bar := self.cooldown(key))), key=Cooldown.left, default=None)
        if bar is not None and bar.left(claim.longest_cooldown) > 0:
            return ClaimResult(bar.left(claim.longest_cooldown), {key: self.history(key) for key in keys}, bar)
        answer = self._in_fallback(claim, keys)
        if answer is None:
            # Who cannot use the file it should share has no more than a guess at how many others cannot.
            spread = 1 if self._store_client.fallback is None else AT_FIRST
            parts = spread * self._store_client.share.parts(self._store_client.link.failing_since)
            answer = self._take(self._alone, claim, keys, parts)
        if answer.wait:
            return answer._replace(wait=min(answer.wait, _RETRY_INTERVAL))  # the store may be back before there is room
        now = self._now()
        with self._lock:
            for key in keys:
                super().merge(key, [Entry(name, 0.0) for name in claim.ids], _keep(claim, key))
                self._unreported = {
                    **self._unreported,
                    key: {**self._unreported.get(key, {}), **dict.fromkeys(claim.ids, now)},
                }
        return answer

    def _in_fallback(self, claim: Claim, keys: Iterable[str]) -> ClaimResult | None:
        link = self._store_client.fallback
        if link is None:
            return None
        parts = self._store_client.share.parts(self._store_client.link.failing_since)
        answer = link.attempt(lambda store: self._take(store.budget, claim, keys, parts))
        for key, history in answer.histories.items() if answer is not None else ():
            self._alone.merge(key, history, _keep(claim, key))
            super().merge(key, [entry for entry in history if _OTHERS not in entry.id], _keep(claim, key))
        return answer

    def _take(self, storage: BudgetStorage, claim: Claim, keys: Iterable[str], parts: int) -> ClaimResult:
        if not self._store_client.share.is_firm:
            parts = min(parts, max(window.limit for window in claim.windows))
        windows = [self._reduced(window, parts) for window in claim.windows]
        known = {key: self.known(key)[-_TOLD_OF_CALLS * (not claim.restores) :] for key in keys}
        ids = [f"{name}{_OTHERS}{n}" if n else name for name in claim.ids for n in range(max(parts, 1))]
        if parts and all(len(ids) <= window.limit for window in windows):
            answer = storage.claim(claim._replace(windows=windows, ids=ids, known=known))
        else:
            answer = ClaimResult(_RETRY_INTERVAL, {key: self.history(key) for key in keys})
        return answer._replace(reason=self._refusal(claim, parts)) if answer.wait else answer

    def _reduced(self, window: Window, parts: int) -> Window:
        limit = window.limit
        if limit and not self._store_client.share.is_firm:
            limit = max(limit, parts)  # one fits into any window that is empty
        return window._replace(limit=limit - self._unseen(window))

    def _unseen(self, window: Window) -> int:
        """Return how many units others may have taken unseen, before the store failed, that count in *window* now."""
        if not self._store_client.share.was_told:
            return 0
        until = self._store_client.link.failing_since
        since = max(self._seen.get(window.key, _NEVER), self._now() - window.expiry)
        return min(max(math.ceil((until - since) * self._rate(window.key) - 1e-9), 0), window.limit)

    def _refusal(self, claim: Claim, parts: int) -> str:
        who = "process" if self._store_client.fallback is None else "host"
        remedy = "set fallback_store" if self._store_client.fallback is None else "restore it"
        small = min(claim.windows, key=lambda window: window.limit).limit
        if not parts:
            why = f"this {who} has no share of the token budget"
        elif self._store_client.share.is_firm and parts > small:
            why = f"a share of 1/{parts} of {small} token requests is less than one"
        else:
            why = f"the token budget of this {who} (1/{parts}) is exhausted"
        return f"the shared store is unavailable and {why}: {remedy}"

    def flush(self, store: Store) -> None:
        """Add to the store what was taken without it, or lost by it.

        Raises:
            StoreError: The store cannot be used. It will be told again what it may not have heard.
        """
        for key in list(self._unreported_cooldowns)[:_FLUSH_BATCH]:
            bar = self.cooldown(key)
            if bar is not None:
                store.budget.bar(key, bar)
            self._unreported_cooldowns = self._unreported_cooldowns - {key}
        for key, entries in list(self._unreported.items())[:_FLUSH_BATCH]:
            now, keep = self._now(), self._kept(key).keep
            live = [Entry(name, now - at) for name, at in entries.items() if now - at <= keep]
            if live:
                store.budget.merge(key, live, keep)
            with self._lock:
                left = {name: at for name, at in self._unreported.get(key, {}).items() if name not in entries}
                others = {each: unreported for each, unreported in self._unreported.items() if each != key}
                self._unreported = {**others, key: left} if left else others

    def holds_entries(self) -> bool:
        return bool(self._unreported) or self._alone.holds_entries() or super().holds_entries()

    def miss(self, key: str, ids: Iterable[str]) -> None:
        """Note that somebody else has seen no more of the history of *key* than the entries *ids*."""
        there, now = set(ids), self._now()
        lost = {entry.id: now - entry.age for entry in self.known(key) if entry.id not in there}
        if lost:
            with self._lock:
                self._unreported = {**self._unreported, key: {**lost, **self._unreported.get(key, {})}}


def _keep(claim: Claim, key: str) -> float:
    return max(window.expiry for window in claim.windows if window.key == key)

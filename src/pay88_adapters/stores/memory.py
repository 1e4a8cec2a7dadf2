"""The store of one process, on the core's clock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, NamedTuple, cast

from pay88_adapters.core.constants import NEVER
from pay88_adapters.core.history import (
    MIN_TTL,
    Acquisition,
    Cooldown,
    History,
    Past,
    StorageResult,
    Window,
    instants,
    longest,
    verdict,
)

from .base import EntryStorage, LeaseResult, Member, StoreView
from .members import HORIZON, MAX_MEMBERS, assigned_divisor, member_of, with_share
from .record_slot import RecordSlot

_SWEEP = 600.0  # seconds between two cleanups
_REENTRY_WAIT = 0.01  # seconds


class _KeptHistory(NamedTuple):
    """The history of one key: when each entry was acquired, oldest first, and their ids in the same order."""

    ttl: float
    instants: tuple[float, ...]
    ids: tuple[str, ...]

    def live(self, now: float) -> _KeptHistory:
        first = bisect_left(self.instants, now - self.ttl)
        return _KeptHistory(self.ttl, self.instants[first:], self.ids[first:])

    def merged(self, new: Iterable[tuple[float, str]], ttl: float, now: float) -> _KeptHistory:
        live = self._replace(ttl=max(self.ttl, ttl)).live(now)
        known = {*live.ids}
        unknown = {name: at for at, name in new if name not in known and now - at <= live.ttl}
        if not unknown:
            return live
        entries, kept = sorted((at, name) for name, at in unknown.items()), live
        if live.ids and entries[0] < (live.instants[-1], live.ids[-1]):  # seldom: acquired elsewhere
            entries, kept = sorted([*zip(live.instants, live.ids, strict=True), *entries]), _NOTHING
        instants, ids = zip(*entries, strict=True)
        return _KeptHistory(live.ttl, kept.instants + instants, kept.ids + ids)

    def history(self, now: float) -> Past:
        live = self.live(now)
        return Past(live.instants, live.ids, now)


_NOTHING = _KeptHistory(MIN_TTL, (), ())
_EMPTY = RecordSlot()
_NO_ATTEMPT = (NEVER, 0)


class MemoryStorage(EntryStorage):
    """Entries in memory, one history a key.

    The library's own ``MemoryStorage`` reads the wall clock, which can be set, and starts timer
    threads. This one reads the clock it is given, starts nothing, and takes several limits in one step.
    Reading takes no lock, so that a signal handler and a finalizer can do it, too.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._lock = threading.RLock()
        # All instants, then all ids: a tuple for each entry would take half as much again, and there may be many. Never
        # changed, only replaced, so that reading needs no lock.
        self._histories: dict[str, tuple[Any, ...]] = {}
        self._ttls: dict[str, float] = {}  # of the histories that are kept longer than usual
        self._cooldowns: dict[str, tuple[float, float, str]] = {}  # since when, for how long, and why
        self._swept_at = NEVER

    def after_fork(self) -> None:
        """Replace the lock: another thread may have held it."""
        self._lock = threading.RLock()

    @property
    def is_held_here(self) -> bool:
        """Whether this code interrupts a change, as a signal handler or a finalizer does on the same thread."""
        return is_held_here(self._lock)

    def acquire(self, acquisition: Acquisition) -> StorageResult:
        if self.is_held_here:
            return StorageResult(
                _REENTRY_WAIT, {window.key: self.history(window.key) for window in acquisition.windows}
            )
        with self._lock:
            now = self._now()
            keys = dict.fromkeys(window.key for window in acquisition.windows)
            ttl = max(window.expiry for window in acquisition.windows)
            kept = {key: self._merged(key, acquisition.known.get(key, ()), ttl, now) for key in keys}
            cooldown = self._longest_cooldown(keys, now)
            wait = verdict(acquisition, {key: each.history(now) for key, each in kept.items()}, cooldown)
            if wait == 0:
                kept = {
                    key: each.merged([(now, name) for name in acquisition.ids], ttl, now) for key, each in kept.items()
                }
            self._keep(kept)
            self._sweep(now)
            return StorageResult(wait, {key: each.history(now) for key, each in kept.items()}, cooldown)

    def merge(self, key: str, entries: History, ttl: float) -> None:
        with self._lock:
            now = self._now()
            self._keep({key: self._merged(key, entries, ttl, now)})
            self._sweep(now)

    def holds_entries(self) -> bool:
        """Whether there is an entry that may still count. Takes no lock."""
        now = self._now()
        return any(self._kept(key).history(now) for key in list(self._histories))

    def history(self, key: str) -> History:
        return self._kept(key).history(self._now())

    def start_cooldown(self, key: str, cooldown: Cooldown) -> None:
        with self._lock:
            current, now = self.cooldown(key), self._now()
            if current is None or current.left() < cooldown.left():
                self._cooldowns[key] = (now - cooldown.age, cooldown.seconds, cooldown.reason)

    def cooldown(self, key: str) -> Cooldown | None:
        return self._longest_cooldown([key], self._now())

    def _longest_cooldown(self, keys: Iterable[str], now: float) -> Cooldown | None:
        cooldowns = (
            Cooldown(seconds, now - since, why) for key in keys for since, seconds, why in self._cooldowns_of(key)
        )
        return longest(each for each in cooldowns if each.left() > 0)

    def _cooldowns_of(self, key: str) -> list[tuple[float, float, str]]:
        cooldown = self._cooldowns.get(key)
        return [] if cooldown is None else [cooldown]

    def _merged(self, key: str, entries: History, ttl: float, now: float) -> _KeptHistory:
        return self._kept(key).merged(instants(entries, now), ttl, now)

    def _kept(self, key: str) -> _KeptHistory:
        history = self._histories.get(key, ())
        half = len(history) // 2
        return _KeptHistory(self._ttls.get(key, MIN_TTL), history[:half], history[half:])

    def _keep(self, histories: Mapping[str, _KeptHistory]) -> None:
        self._ttls.update({key: each.ttl for key, each in histories.items() if each.ttl > MIN_TTL})
        # In one step:
        self._histories.update({key: (*each.instants, *each.ids) for key, each in histories.items()})

    def _forget(self, key: str) -> None:
        self._histories.pop(key, None)
        self._ttls.pop(key, None)

    def _sweep(self, now: float) -> None:
        if now < self._swept_at + _SWEEP:
            return
        self._swept_at = now
        for key in list(self._histories):
            if not self._kept(key).history(now):
                self._forget(key)
        for key, (since, seconds, _) in list(self._cooldowns.items()):
            if now > since + seconds:
                self._cooldowns.pop(key, None)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now = self._now()
        live = [at for at in self._kept(key).history(now).instants if now - at <= Window(key, limit, expiry).expiry]
        return (live[0] if live else now, len(live))

    def clear(self, key: str) -> None:
        """Forget the entries of *key*."""
        with self._lock:
            self._forget(key)
            self._cooldowns.pop(key, None)

    def reset(self) -> int:
        """Forget all entries; return how many keys there were."""
        with self._lock:
            keys, self._histories, self._ttls, self._cooldowns = len(self._histories), {}, {}, {}
            return keys

    def check(self) -> bool:
        """Return ``True``: memory is always available."""
        return True


class MemoryStore:
    """The default: what the managers of one process share. A record may be any object: it never leaves the process."""

    blocking: ClassVar[bool] = False
    separate_calls: ClassVar[bool] = False

    def __init__(self, now: Callable[[], float]) -> None:
        self.budget = MemoryStorage(now)
        self._now = now
        self._lock = threading.RLock()
        self._slots: dict[str, RecordSlot] = {}
        self._members: dict[str, tuple[float, int]] = {}  # last lease attempt of each, and divisor of its share
        self._swept_at = NEVER

    def after_fork(self) -> None:
        """Continue without the parent's threads: replace the locks, and release the leases that they held."""
        self.budget.after_fork()
        self._lock = threading.RLock()
        self._slots = {key: replace(slot, leased_until=0.0) for key, slot in self._slots.items()}

    @property
    def is_held_here(self) -> bool:
        """Whether this code interrupts a change, as a signal handler or a finalizer does on the same thread."""
        return is_held_here(self._lock) or self.budget.is_held_here

    def try_acquire_lease(self, key: str, *, owner: str, known_version: int, lease: float) -> LeaseResult:
        if self.is_held_here:
            return LeaseResult(lease_remaining=_REENTRY_WAIT)
        with self._lock:
            now = self._now()
            self._sweep(now)
            slot = self._slot_copy(key)
            result = slot.try_acquire_lease(now, owner=owner, known_version=known_version, lease=lease)
            self._slots[key] = slot
            return self._join(result, member_of(owner), now)

    def remove_member(self, member: str) -> None:
        with self._lock:
            self._members = {name: each for name, each in self._members.items() if name != member}

    def publish(self, key: str, *, fencing_token: int, content: object, ttl: float, write_delay: float = 0.0) -> bool:
        if self.is_held_here:
            return False
        with self._lock:
            slot = self._slot_copy(key)
            published = slot.publish(
                self._now(), fencing_token=fencing_token, content=content, ttl=ttl, write_delay=write_delay
            )
            self._slots[key] = slot
            return published

    def peek(self, key: str) -> StoreView:
        return self._slot_copy(key).peek(self._now())

    def _slot_copy(self, key: str) -> RecordSlot:
        # Replaces the original once all is done: an exception at any instruction leaves no half.
        return replace(self._slots.get(key, _EMPTY))

    def _join(self, result: LeaseResult, member: str, now: float) -> LeaseResult:
        if not member:
            return result
        known = (Member(name, now - at, divisor) for name, (at, divisor) in self._members.items() if name != member)
        living = (each for each in known if each.age < HORIZON)
        others = tuple(islice(living, MAX_MEMBERS))
        at, divisor = self._members.get(member, _NO_ATTEMPT)
        before = Member(member, now - at, divisor) if now - at < HORIZON else None
        divisor = assigned_divisor(others, before)
        self._members[member] = now, divisor
        return with_share(result, divisor, others, before)

    def _sweep(self, now: float) -> None:
        if now < self._swept_at + _SWEEP:
            return
        self._swept_at = now
        for key, slot in list(self._slots.items()):
            if slot.is_dead(now):  # the fencing tokens of a new record start from the clock: none is ever issued twice
                self._slots.pop(key, None)
        for member, (at, _) in list(self._members.items()):
            if now - at >= HORIZON:
                self._members.pop(member, None)


def is_held_here(lock: object) -> bool:
    """Whether this thread holds *lock*, an RLock: this code interrupts its holder."""
    held: bool = cast("Any", lock)._is_owned()  # of an RLock, without a public name
    return held
